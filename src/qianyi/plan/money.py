"""What chip-hours cost: money, energy and carbon, each with the assumptions that it rests on."""

import math
from dataclasses import dataclass

from qianyi.config.explain import nearest
from qianyi.errors import ConfigError

WATT_HOURS = 1e3
"""In a kilowatt-hour."""


@dataclass(frozen=True)
class PriceRange:
    """US dollars, per chip and hour or in all."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ConfigError(f"a price is a positive number or a range such as 2-3, not {self.low:g}-{self.high:g}")

    def __mul__(self, chip_hours: float) -> "PriceRange":
        return PriceRange(self.low * chip_hours, self.high * chip_hours)


def parse_price(text: str) -> PriceRange | None:
    """`2.49-12.29` or `4.2`; an empty text is an unknown price.

    Raises:
        ConfigError: it is neither.
    """
    if not text.strip():
        return None
    low, _, high = text.partition("-")
    try:
        return PriceRange(float(low), float(high or low))
    except ValueError:
        raise ConfigError(f"`{text}` is no price; write dollars per chip and hour as 2.5, or a range as 2-3") from None


@dataclass(frozen=True)
class Grid:
    """Carbon of electricity, over its life cycle, as an average of a year."""

    kg_per_kwh: float
    """Kilograms of CO2 equivalent."""
    source: str


_EMBER = "Ember, yearly electricity data of 2023, by Our World in Data"
_COUNTRIES = {
    "norway": 0.030,
    "france": 0.056,
    "finland": 0.079,
    "brazil": 0.098,
    "denmark": 0.152,
    "canada": 0.170,
    "ireland": 0.291,
    "germany": 0.381,
    "world": 0.481,
    "australia": 0.549,
    "china": 0.582,
    "india": 0.713,
}
GRIDS = {name: Grid(kg, _EMBER) for name, kg in _COUNTRIES.items()} | {
    "us": Grid(0.385, "Touvron et al. 2023 (LLaMA), section 6: the average of the United States"),
}
"""By country. The grid of one data center may be ten times better or worse than its country's."""


def grid(region: str) -> Grid:
    """Of a region in GRIDS.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    found = GRIDS.get(region.lower())
    if found is None:
        hint = nearest(region.lower(), list(GRIDS))
        raise ConfigError(f"unknown region `{region}`{hint} (known: {', '.join(sorted(GRIDS))}; or give kg CO2e per kWh)")
    return found


@dataclass(frozen=True, kw_only=True)
class Power:
    """Of one chip and of the building around it."""

    tdp_watts: float
    utilization: float = 1.0
    """Mean draw of the chip and its share of the host, relative to the chip's thermal design power. 1 is how Meta's model cards and
    Luccioni et al. 2022 count; hosts, network and storage bring it above, idle chips below."""
    pue: float = 1.1
    """Power usage effectiveness: energy of the data center per energy of its computers. 1.1: Touvron et al. 2023, section 6."""
    grid: Grid = GRIDS["world"]

    def __post_init__(self) -> None:
        for name, value in {"tdp_watts": self.tdp_watts, "utilization": self.utilization}.items():
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} must be a positive number, not {value:g}")
        if not 1 <= self.pue < math.inf:
            raise ConfigError(f"pue is energy of the data center per energy of its computers, at least 1, and is {self.pue:g}")

    @property
    def watts(self) -> float:
        """Of one chip, at the meter of the data center."""
        return self.tdp_watts * self.utilization * self.pue


@dataclass(frozen=True, kw_only=True)
class Bill:
    """Of a run. What no source gives is None."""

    chip_hours: float
    dollars: PriceRange | None
    energy_kwh: float | None
    carbon_tonnes: float | None
    """Of CO2 equivalent, from electricity; the making of chips and buildings is not counted."""
    assumptions: tuple[str, ...]


def bill(chip_hours: float, price: PriceRange | None, power: Power | None) -> Bill:
    """Of so many hours of all chips together; chips are paid and powered whether they advance or not."""
    energy = None if power is None else chip_hours * power.watts / WATT_HOURS
    return Bill(
        chip_hours=chip_hours,
        dollars=None if price is None else price * chip_hours,
        energy_kwh=energy,
        carbon_tonnes=None if energy is None or power is None else energy * power.grid.kg_per_kwh / 1e3,
        assumptions=(_price_words(price), *_power_words(power)),
    )


def _price_words(price: PriceRange | None) -> str:
    if price is None:
        return "price: unknown"
    dollars = f"{price.low:g}" if price.low == price.high else f"{price.low:g} to {price.high:g}"
    return f"price: {dollars} dollars per chip and hour; storage, network traffic and people not counted"


def _power_words(power: Power | None) -> tuple[str, ...]:
    if power is None:
        return ("power: unknown",)
    return (
        f"power: {power.tdp_watts:g} W per chip x {power.utilization:g} x PUE {power.pue:g} = {power.watts:.0f} W",
        f"carbon: {power.grid.kg_per_kwh:g} kg CO2e per kWh ({power.grid.source}); the making of hardware not counted",
    )
