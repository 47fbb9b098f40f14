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
    edges, logarithmic = _edges(whole)
    bars = [(sketch.histogram(edges), style) for sketch, style in ((whole, "before"), (after, "after")) if sketch is not None]
    bars = bars if before is not None else bars[1:]
    top = max(max(counts) for counts, _ in bars) * 1.05
    return Histogram(
        title,
        tuple(Layer(_path(counts, top), style) for counts, style in bars),
        tuple(_x_ticks(edges, logarithmic)),
        tuple(Tick(round((1 - at / top) * SIDE, 1), label) for at, label in ticks(0, top)[:4] if at == int(at)),
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


def _edges(sketch: Sketch) -> tuple[list[float], bool]:
    """Bounds of bars, and whether they grow by a factor."""
    low, high = sketch.quantile(_ENDS), sketch.quantile(1 - _ENDS)
    if low == high:
        low, high = sketch.low, sketch.high
    if sketch.integral and high - low < BARS:
        return [low + k - 0.5 for k in range(int(high - low) + 2)], False
    if low > 0 and high / low > _WIDE:
        return [low * (high / low) ** (k / BARS) for k in range(BARS + 1)], True
    if low >= 0 and low < 0.1 * high:
        low = 0.0
    if high <= 1 < high * 1.3:
        high = 1.0
    return [low + (high - low) * k / BARS for k in range(BARS + 1)], False


def _path(counts: Sequence[int], top: float) -> str:
    """An outline over the bars, from and to the base line."""
    width = SIDE / len(counts)
    steps = "".join(f"V{(1 - n / top) * SIDE:.1f}H{(k + 1) * width:.1f}" for k, n in enumerate(counts))
    return f"M0,{SIDE}{steps}V{SIDE}Z"


def _x_ticks(edges: Sequence[float], logarithmic: bool) -> list[Tick]:
    low, high = edges[0], edges[-1]
    if not logarithmic:
        return [Tick(round((at - low) / (high - low) * SIDE, 1), label) for at, label in ticks(low, high)]
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    found = [10.0**p for p in powers] if len(powers) > 1 else [low, math.sqrt(low * high), high]
    return [Tick(round(math.log(at / low) / math.log(high / low) * SIDE, 1), number(at)) for at in found]
