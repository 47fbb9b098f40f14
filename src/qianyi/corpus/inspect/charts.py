"""Geometry of histograms; the page draws it, in a square of 1,000 units that is stretched to the room there is, labels outside as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qianyi.corpus.inspect.sketch import Sketch
from qianyi.monitor.charts import SIDE, Tick, ticks
from qianyi.monitor.words import count

BARS = 36
_ENDS = 0.002
"""Of all numbers, as many lie beyond each end of a chart; they are counted in its first and last bar."""
_WIDE = 40
"""Numbers that spread over more than this factor are drawn over their logarithm."""


@dataclass(frozen=True)
class Layer:
    """One histogram as SVG path data."""

    path: str
    style: str


@dataclass(frozen=True)
class Histogram:
    """How a column of numbers is distributed, after a stage and before it."""

    title: str
    layers: tuple[Layer, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    median: str
    median_before: str
    """Empty where there is nothing before."""


def histogram(title: str, after: Sketch, before: Sketch | None) -> Histogram | None:
    """The two on one scale, the one before behind; None where there are no numbers, or all are the same."""
    whole = before if before is not None and before.total else after
    if not after.total or whole.low == whole.high:
        return None
    scale = _scale(whole)
    edges = scale.edges(whole=whole.integral)
    sketches = [(after, "after")] if before is None else [(whole, "before"), (after, "after")]
    bars = [(sketch.histogram(edges), style) for sketch, style in sketches]
    top = max(max(counts) for counts, _ in bars) * 1.05
    return Histogram(
        title,
        tuple(Layer(_path(counts, [scale.place(edge) for edge in edges], top), style) for counts, style in bars),
        tuple(scale.ticks()),
        tuple(Tick(round((1 - at / top) * SIDE, 1), label) for at, label in ticks(0, top) if at == int(at)),
        number(after.quantile(0.5)),
        number(before.quantile(0.5)) if before is not None else "",
    )


def number(value: float) -> str:
    """Three digits at most, as they are read."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 1000:
        return count(value)
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


@dataclass(frozen=True)
class Scale:
    """Where a number lies between two, by itself or by its logarithm."""

    low: float
    high: float
    logarithmic: bool

    def place(self, value: float) -> float:
        """From 0 to SIDE."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low) * SIDE
        return (value - self.low) / (self.high - self.low) * SIDE

    def edges(self, *, whole: bool) -> list[float]:
        """Bounds of bars; of bars of whole numbers none is narrower than one."""
        ratio, width = self.high / self.low if self.logarithmic else 0.0, self.high - self.low
        found = [self.low * ratio ** (k / BARS) if ratio else self.low + width * k / BARS for k in range(BARS + 1)]
        if not whole:
            return found
        return [
            self.low,
            *sorted({math.floor(edge) + 0.5 for edge in found if self.low < math.floor(edge) + 0.5 < self.high}),
            self.high,
        ]

    def ticks(self) -> list[Tick]:
        """Round numbers."""
        if not self.logarithmic:
            return [Tick(round(self.place(at), 1), label) for at, label in ticks(self.low, self.high)]
        powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        found = [10.0**p for p in powers] if len(powers) > 1 else [self.low, math.sqrt(self.low * self.high), self.high]
        return [Tick(round(self.place(at), 1), number(at)) for at in found]


def _scale(sketch: Sketch) -> Scale:
    low, high = sketch.quantile(_ENDS), sketch.quantile(1 - _ENDS)
    if low == high:
        low, high = sketch.low, sketch.high
    logarithmic = low > 0 and high / low > _WIDE
    if sketch.integral:
        return Scale(round(low) - 0.5, round(high) + 0.5, logarithmic)
    if logarithmic:
        return Scale(low, high, True)
    if 0 <= low < 0.1 * high:
        low = 0.0
    return Scale(low, 1.0 if high <= 1 < high * 1.3 else high, False)


def _path(counts: Sequence[int], places: Sequence[float], top: float) -> str:
    """An outline over the bars, from and to the base line."""
    steps = "".join(f"V{(1 - n / top) * SIDE:.1f}H{right:.1f}" for n, right in zip(counts, places[1:], strict=True))
    return f"M0,{SIDE}{steps}V{SIDE}Z"
