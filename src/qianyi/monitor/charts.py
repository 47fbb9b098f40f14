"""Line charts as inline SVG: small, sharp at any size, coloured by the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 34
_MAX_POINTS = 1000


@dataclass(frozen=True)
class Series:
    """A named line; a series with `dots` is drawn as points joined by a thin line."""

    name: str
    points: Points
    dots: bool = False


def thin(points: Points, limit: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """At most `limit` points that keep every bucket's extremes, so that a spike of one step stays visible."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / (limit // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        low, high = min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])
        kept += sorted({low, high})
    return kept


def line_chart(title: str, unit: str, series: Sequence[Series], marks: Sequence[float] = (), from_zero: bool = False) -> str:
    """A chart over steps.

    Args:
        title: what is shown.
        unit: of the vertical axis.
        series: lines; points that are not finite are left out.
        marks: steps to mark with a vertical line (restarts).
        from_zero: the vertical axis begins at zero.
    """
    lines = [Series(s.name, thin([p for p in s.points if math.isfinite(p[1])]), s.dots) for s in series]
    points = [p for s in lines for p in s.points]
    if not points:
        return ""
    x_low, x_high = _span([p[0] for p in points])
    y_low, y_high = _span([p[1] for p in points] + ([0.0] if from_zero else []))

    def x(value: float) -> str:
        return f"{_LEFT + (value - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT):.1f}"

    def y(value: float) -> str:
        return f"{_HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title} over steps">']
    for tick in _ticks(y_low, y_high):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y(tick)}" text-anchor="end" dy="0.32em">{_label(tick)}</text>')
    for tick in _ticks(x_low, x_high):
        parts.append(f'<text class="tick" x="{x(tick)}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_label(tick)}</text>')
    for mark in marks:
        parts.append(f'<line class="mark" x1="{x(mark)}" x2="{x(mark)}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    for number, s in enumerate(lines):
        path = " ".join(f"{x(px)},{y(py)}" for px, py in s.points)
        parts.append(f'<polyline class="line s{number}{" thin" if s.dots else ""}" points="{path}"/>')
        if s.dots:
            parts += [f'<circle class="dot s{number}" cx="{x(px)}" cy="{y(py)}" r="3.5"/>' for px, py in s.points]
    parts.append("</svg>")
    legend = "".join(f'<span class="key s{n}">{s.name}</span>' for n, s in enumerate(lines)) if len(lines) > 1 else ""
    return f"<figure><figcaption>{title} <small>{unit}</small>{legend}</figcaption>{''.join(parts)}</figure>"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5, high + 0.5
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers between low and high."""
    raw = (high - low) / 5
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]


def _label(value: float) -> str:
    if value == 0:
        return "0"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.1e}"
