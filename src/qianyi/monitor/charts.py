"""Geometry of line charts over steps; the page draws it.

Curves are in a square of `SIDE` units that is stretched to whatever room there is; labels stay outside of it as text, so that they
keep their size on a phone and on paper.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

Points = Sequence[tuple[float, float]]
"""(step, value); a value that is not finite breaks the line."""

SIDE = 1000
MAX_POINTS = 1000


@dataclass(frozen=True)
class Series:
    """A named curve; `style` is a class of the page's style sheet."""

    name: str
    points: Points
    style: str = "line"


@dataclass(frozen=True)
class Tick:
    """A round number, at a distance from the left or the top."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """One value that can be pointed at."""

    path: str
    label: str


@dataclass(frozen=True)
class Curve:
    """A series as an SVG path."""

    name: str
    style: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    """All that the page needs to draw one chart."""

    title: str
    unit: str
    note: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...]


def chart(
    title: str,
    unit: str,
    note: str,
    series: Sequence[Series],
    last_step: float,
    marks: Sequence[float] = (),
    *,
    from_zero: bool = False,
) -> Chart | None:
    """A chart from step 0 to the last; None where no value is finite.

    Args:
        title: what is shown.
        unit: of the vertical axis.
        note: the one figure to remember.
        series: curves; those of style `dots` show each value.
        last_step: the right end.
        marks: steps to mark with a vertical line.
        from_zero: the vertical axis begins at zero.
    """
    values = [y for s in series for _, y in s.points if math.isfinite(y)]
    if not values:
        return None
    low, high = _range(min(values), max(values), from_zero)

    def x(step: float) -> float:
        return round(step / last_step * SIDE, 1)

    def y(value: float) -> float:
        return round((high - value) / (high - low) * SIDE, 1)

    def curve(s: Series) -> Curve:
        placed = [(x(step), y(value)) for step, value in thin(s.points)]
        whole = [(step, value) for step, value in s.points if s.style == "dots" and math.isfinite(value)]
        dots = tuple(Dot(_path([(x(step), y(v))]), f"step {step:,.0f}: {v:.4g}") for step, v in thin(whole))
        return Curve(s.name, s.style, _path(placed), dots)

    return Chart(
        title,
        unit,
        note,
        curves=tuple(curve(s) for s in series),
        x_ticks=tuple(Tick(x(step), label) for step, label in ticks(0, last_step) if step == int(step)),
        y_ticks=tuple(Tick(y(value), label) for value, label in ticks(low, high)),
        marks=tuple(Tick(x(step), f"{step:,.0f}") for step in marks if step <= last_step),
    )


def thin(points: Points, limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `limit` points: both ends and, of every interval, the extremes and a gap, so that what lasted one step stays visible."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / ((limit - 2) // 3))
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        span = range(start, min(start + size, len(points)))
        finite = [i for i in span if math.isfinite(points[i][1])]
        if finite:
            kept |= {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])}
        if len(finite) < len(span):
            kept.add(next(i for i in span if not math.isfinite(points[i][1])))
    return [points[i] for i in sorted(kept)]


def smooth(points: Points, reach: int) -> list[tuple[float, float]]:
    """At about 300 places, the mean of the finite values up to `reach` points away on both sides.

    Towards the ends the reach shrinks on both sides alike, which keeps a slope where it is.
    """
    stride = max(len(points) // 300, 1)
    means: list[tuple[float, float]] = []
    for centre in [*range(0, len(points) - 1, stride), len(points) - 1]:
        half = min(reach, centre, len(points) - 1 - centre)
        finite = [y for _, y in points[centre - half : centre + half + 1] if math.isfinite(y)]
        means.append((points[centre][0], fmean(finite) if finite else math.nan))
    return means


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Two to six round numbers from low to high, with labels that tell them apart."""
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    top = max(abs(low), abs(high))
    size, unit = next(((s, u) for least, s, u in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")) if top >= least), (1.0, ""))
    decimals = max(0, -math.floor(math.log10(step / size) + 1e-9))

    def label(value: float) -> str:
        if value == 0:
            return "0"
        # Learning rates are written with powers of ten; long decimals are hard to compare.
        plain = f"{value / size:,.{decimals}f}{unit}"
        return plain if decimals <= 4 or top >= 1e-3 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")

    return [(n * step, label(n * step)) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _range(low: float, high: float, from_zero: bool) -> tuple[float, float]:
    """The values with a little room around them."""
    if from_zero:
        return min(low, 0.0), (high * 1.06 if high > 0 else 1.0)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
    return low - room, high + room


def _path(points: Points) -> str:
    """SVG path data; a point that stands alone is a line of no length, which round caps make a dot."""
    pieces: list[list[str]] = [[]]
    for px, py in points:
        if math.isfinite(py):
            pieces[-1].append(f"{px:g},{py:g}")
        elif pieces[-1]:
            pieces.append([])
    return "".join(f"M{' '.join(piece)}" + ("h0" if len(piece) == 1 else "") for piece in pieces if piece)
