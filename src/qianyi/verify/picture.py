"""The picture of a coordinate check: for each parametrization and place a panel, in each panel a line per step, both axes logarithmic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qianyi.monitor.charts import Tick
from qianyi.verify.coordinates import FLAT, PLACES, Coordinates

LEFT, TOP, WIDTH, HEIGHT, GAP_X, GAP_Y = 70, 96, 250, 180, 46, 74
"""Of the panels, in pixels."""


@dataclass(frozen=True)
class Line:
    """A step: points of an SVG polyline, and how dark it is, from 0 to 1."""

    points: str
    shade: float


@dataclass(frozen=True)
class Panel:
    title: str
    slope: str
    flat: bool
    left: float
    top: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def panels(checks: Sequence[Coordinates]) -> list[Panel]:
    """A row for each parametrization; the panels of a place share their vertical axis."""
    return [
        _panel(coordinates, place, LEFT + column * (WIDTH + GAP_X), TOP + row * (HEIGHT + GAP_Y), _range(checks, place))
        for row, coordinates in enumerate(checks)
        for column, place in enumerate(PLACES)
    ]


def _panel(c: Coordinates, place: str, left: float, top: float, limits: tuple[float, float]) -> Panel:
    low, high = limits
    first, last = math.log(c.widths[0]), math.log(c.widths[-1])

    def x(width: float) -> float:
        return round(left + (math.log(width) - first) / (last - first) * WIDTH, 1)

    def y(value: float) -> float:
        return round(top + (high - math.log10(value)) / (high - low) * HEIGHT, 1)

    steps = c.sizes[place][1:]
    lines = [
        Line(" ".join(f"{x(w)},{y(size.change)}" for w, size in zip(c.widths, sizes, strict=True)), (n + 1) / len(steps))
        for n, sizes in enumerate(steps)
    ]
    slope = c.slopes[place]
    x_ticks = tuple(Tick(x(width), f"{width:,}") for width in c.widths)
    y_ticks = tuple(Tick(y(value), f"{value:g}") for value in _round_values(low, high))
    return Panel(
        f"{c.name}: {place}", f"{round(slope, 2) + 0.0:+.2f}", abs(slope) <= FLAT, left, top, x_ticks, y_ticks, tuple(lines)
    )


def _range(checks: Sequence[Coordinates], place: str) -> tuple[float, float]:
    """Of the logarithms of all changes at a place, with some room."""
    values = [math.log10(size.change) for c in checks for sizes in c.sizes[place][1:] for size in sizes]
    room = max(0.08, 0.06 * (max(values) - min(values)))
    return min(values) - room, max(values) + room


def _round_values(low: float, high: float) -> list[float]:
    """Numbers 1, 2 and 5 times a power of ten, or the powers alone where those are many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 5), (1,)):
        found = [f * 10.0**p for p in powers for f in factors if low <= math.log10(f * 10.0**p) <= high]
        if len(found) <= 6:
            return found
    return found[:: -(-len(found) // 6)]
