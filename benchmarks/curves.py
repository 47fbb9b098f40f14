"""Pictures of curves on logarithmic axes: panels beside one another, over batch size."""

import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, TOP, GAP, FLOOR = 920, 430, 64, 104, 28, 330
COLORS = ("#57606a", "#d9822b", "#3f8f5f", "#2f6db3")
FONT = "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""


@dataclass(frozen=True)
class Curve:
    """Steps over batch size."""

    name: str
    points: list[tuple[int, float | None]]
    """(batch size, steps), None where the target was not reached."""


@dataclass(frozen=True)
class Panel:
    title: str
    curves: list[Curve]


class Scale:
    """Logarithmic, from values to places."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self._low, self._high, self._start, self._end = math.log(low), math.log(high), start, end

    def __call__(self, value: float) -> float:
        share = (math.log(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)


def picture(title: str, about: str, base: int, panels: list[Panel]) -> str:
    """An SVG: steps to a target over batch size, a panel per rule, a line per optimizer; a dashed line says what perfect scaling from the
    batch size `base` would be, a cross on the upper edge that the target was not reached."""
    reached = [steps for panel in panels for curve in panel.curves for _, steps in curve.points if steps is not None] or [1.0]
    y = Scale(max(1, min(reached)) / 1.5, max(reached) * 1.8, FLOOR, TOP + 14)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT} '
        'font-size="12" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(title)}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(16, 28, title, size=17, weight="bold"),
        _text(16, 49, about, color="#57606a"),
    ]
    width = (WIDTH - LEFT - GAP * len(panels)) / len(panels)
    for i, panel in enumerate(panels):
        parts += _panel(LEFT + i * (width + GAP), width, panel, base, y, numbers=i == 0)
    for i, curve in enumerate(panels[0].curves):
        parts.append(_text(LEFT + 80 * i, 392, curve.name, weight="bold", color=COLORS[i]))
    foot = "Dashed: half the steps for twice the batch. Crosses: target not reached. Both axes are logarithmic."
    parts += [_text(LEFT, 412, foot, size=11, color="#57606a"), "</svg>"]
    return "\n".join(parts) + "\n"


def _panel(left: float, width: float, panel: Panel, base: int, y: Scale, *, numbers: bool) -> list[str]:
    sizes = [size for size, _ in panel.curves[0].points]
    x = Scale(sizes[0], sizes[-1], left + 14, left + width - 14)
    parts = [
        _text(left, TOP - 14, panel.title, weight="bold"),
        f'<line x1="{left:.1f}" y1="{FLOOR}" x2="{left + width:.1f}" y2="{FLOOR}" stroke="#d0d7de"/>',
        f'<line x1="{left:.1f}" y1="{TOP}" x2="{left:.1f}" y2="{FLOOR}" stroke="#d0d7de"/>',
        *(_text(x(size), FLOOR + 18, f"{size:,}", size=11, anchor="middle") for size in sizes),
        _text(left + width / 2, FLOOR + 36, "sequences per step", size=11, color="#57606a", anchor="middle"),
    ]
    ticks = [value for value in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if TOP <= y(value) <= FLOOR]
    parts += [_text(left - 6, y(value) + 4, f"{value:,}", size=11, anchor="end") for value in ticks if numbers]
    for place, curve in enumerate(panel.curves):
        parts += _curve(curve, COLORS[place], base, x, y)
        missing = [size for size, steps in curve.points if steps is None]
        parts += [_text(x(s) + 9 * (place - 1.5), TOP + 6, "×", size=14, color=COLORS[place], anchor="middle") for s in missing]
    return parts


def _curve(curve: Curve, color: str, base: int, x: Scale, y: Scale) -> list[str]:
    points = [(x(size), y(max(steps, 1))) for size, steps in curve.points if steps is not None]
    parts = [f'<polyline points="{_points(points)}" fill="none" stroke="{color}" stroke-width="2"/>'] if points else []
    parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"/>' for px, py in points]
    at_base = dict(curve.points).get(base)
    if at_base is not None:
        first, last = curve.points[0][0], curve.points[-1][0]
        ideal = [(x(size), y(at_base * base / size)) for size in (first * (last / first) ** (i / 99) for i in range(100))]
        inside = [place for place in ideal if TOP <= place[1] <= FLOOR]
        parts.append(f'<polyline points="{_points(inside)}" fill="none" stroke="{color}" stroke-dasharray="3 3" opacity="0.7"/>')
    return parts


def _points(places: list[tuple[float, float]]) -> str:
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in places)


def _text(
    x: float, y: float, words: str, *, size: int = 12, weight: str = "normal", color: str = "#1f2328", anchor: str = "start"
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{color}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
