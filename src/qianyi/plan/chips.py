"""Chips: what one computes, holds and sends, from `data/chips.csv`, where the source of each number stands."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from qianyi.config.explain import nearest
from qianyi.errors import ConfigError

TERA, GIGA = 1e12, 1e9
NETWORKS = ("switch", "mesh", "torus2d", "torus3d")


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator. Numbers that no source gives are 0."""

    name: str
    generation: str
    """Chips of one generation share fitted constants."""
    bf16_flops: float
    """Peak of dense bfloat16 products, FLOP/s."""
    fp8_flops: float = 0.0
    int8_flops: float = 0.0
    fp4_flops: float = 0.0
    measured_bf16_flops: float = 0.0
    """The most that a matrix product was seen to reach."""
    cores: int = 0
    """Among which a matrix product is divided in tiles; 0: so few that no tile waits."""
    hbm_bytes: float
    hbm_bytes_per_second: float
    network: str
    """Between chips of one domain: NETWORKS."""
    links: int
    link_bytes_per_second: float
    """Of one link, in one direction."""
    domain_chips: int
    """Chips that those links join at most: an NVLink domain, a TPU pod."""
    chips_per_host: int
    host_bytes_per_second: float
    """Beyond the domain, in one direction, for each chip."""
    tdp_watts: float = 0.0
    price_low: float = 0.0
    """US dollars per chip and hour."""
    price_high: float = 0.0

    @property
    def torus_axes(self) -> int:
        """Dimensions of the torus; 0: a switch."""
        return {"torus2d": 2, "torus3d": 3}.get(self.network, 0)

    def peak_flops(self, precision: str) -> float:
        """FLOP/s of products in a precision: `bf16`, `fp16`, `fp8`, `mxfp8`, `int8`, `nvfp4`.

        Raises:
            ConfigError: the chip has no such units.
        """
        peak = {
            "fp8": self.fp8_flops,
            "mxfp8": self.fp8_flops,
            "int8": self.int8_flops,
            "nvfp4": self.fp4_flops,
        }.get(precision, self.bf16_flops)
        if not peak:
            raise ConfigError(f"{self.name} has no units for {precision}; choose bf16")
        return peak


def chip(name: str) -> Chip:
    """A chip by its name or another name of it, in any case.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    known, other = _table()
    wanted = name.lower().replace("_", "-")
    found = known.get(other.get(wanted, wanted))
    if found is None:
        hint = nearest(wanted, [*known, *other])
        raise ConfigError(f"unknown chip `{name}`{hint} (known: {', '.join(known)}; your own: a YAML file)")
    return found


def chips() -> list[Chip]:
    """All that are known."""
    return list(_table()[0].values())


@cache
def _table() -> tuple[dict[str, Chip], dict[str, str]]:
    text = (files("qianyi.plan.data") / "chips.csv").read_text()
    known: dict[str, Chip] = {}
    other: dict[str, str] = {}
    for row in csv.DictReader(text.splitlines()):
        known[row["name"]] = _chip(row)
        other |= dict.fromkeys(row["aliases"].split(), row["name"])
    return known, other


def _chip(row: dict[str, str]) -> Chip:
    def number(key: str, unit: float = 1.0) -> float:
        return float(row[key] or 0) * unit

    return Chip(
        name=row["name"],
        generation=row["generation"],
        bf16_flops=number("bf16_tflops", TERA),
        fp8_flops=number("fp8_tflops", TERA),
        int8_flops=number("int8_tops", TERA),
        fp4_flops=number("fp4_tflops", TERA),
        measured_bf16_flops=number("measured_bf16_tflops", TERA),
        cores=int(row["cores"] or 0),
        hbm_bytes=number("hbm_gb", GIGA),
        hbm_bytes_per_second=number("hbm_gbps", GIGA),
        network=row["network"],
        links=int(row["links"]),
        link_bytes_per_second=number("link_gbps", GIGA),
        domain_chips=int(row["domain_chips"]),
        chips_per_host=int(row["chips_per_host"]),
        host_bytes_per_second=number("host_gbps_per_chip", GIGA),
        tdp_watts=number("tdp_w"),
        price_low=number("price_low_usd_per_hour"),
        price_high=number("price_high_usd_per_hour"),
    )
