"""A plan as one picture: memory, time, the front of what is fastest for its memory, and the pipeline's timeline."""

import math
from collections.abc import Callable, Iterator, Mapping

from qianyi.config.summary import readable
from qianyi.plan.describe import model_name, seconds_words
from qianyi.plan.plan import Plan
from qianyi.plan.search import Choice
from qianyi.plan.svg import STYLE, Panel, box, on, path, text, width_of
from qianyi.plan.timeline import timeline_panel
from qianyi.plan.words import Say, english

MEMORY_COLOURS = {
    "weights": "#1d6a87",
    "weights in use": "#6fa9bd",
    "gradients": "#c98a2b",
    "new gradients": "#e0b866",
    "optimizer": "#6f8f4e",
    "activations": "#b23a26",
    "working set": "#d98a70",
    "logits": "#e9c4b8",
    "runtime": "#9a9ea6",
}
TIME_COLOURS = {
    "products": "#1d6a87",
    "attention": "#4a93ad",
    "elementwise": "#86bccd",
    "head": "#b9d7e0",
    "tensor": "#b23a26",
    "context": "#c9604a",
    "experts": "#d98a70",
    "stages": "#e6b29c",
    "weights": "#c98a2b",
    "gradients": "#e0b866",
    "optimizer": "#6f8f4e",
    "bubble": "#8b8f98",
    "overhead": "#b4b7bd",
    "jitter": "#d3d5d9",
}
"""Blue: computing; red and yellow: sending; grey: waiting."""
LEAST = 5e-3
"""Terms below this share of a step are not named."""
EDGE, SPACE, HEAD = 28, 36, 118
"""Of the whole picture: margin, room between parts, room for its title."""


def picture(plan: Plan, say: Say = english) -> str:
    """One SVG with everything."""
    memory, time, front, *pipeline = panels(plan, say)
    second = HEAD + 42 + max(memory.height, time.height) + SPACE
    places = [(memory, EDGE, HEAD), (time, EDGE + memory.width + SPACE, HEAD), (front, EDGE, second)]
    bottom = second + 42 + front.height + SPACE
    for panel in pipeline:
        places.append((panel, EDGE, bottom))
        bottom += 42 + panel.height + SPACE
    width = 2 * EDGE + memory.width + SPACE + time.width
    body = [box(0, 0, width, bottom, "paper"), *_title(plan, width, say)]
    for panel, x, y in places:
        body.append(text(x, y + 16, panel.title, "ink bold", size=15))
        body.append(text(x + panel.width, y + 16, panel.note, "soft", anchor="end"))
        body.append(path(f"M{x},{y + 25.5}h{panel.width}", "rule"))
        body.append(f'<g transform="translate({x},{y + 42})">{panel.body}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom}" viewBox="0 0 {width} {bottom}" role="img">'
        f"<style>{STYLE}</style>{''.join(body)}</svg>\n"
    )


def panels(plan: Plan, say: Say = english) -> list[Panel]:
    """Its parts: memory, time, front, and the pipeline where there is one."""
    pipeline = timeline_panel(plan.config, plan.best.terms["bubble"] / plan.best.seconds, say)
    return [_memory(plan, say), _time(plan, say), _front(plan, say), *([pipeline] if pipeline else [])]


def _title(plan: Plan, width: float, say: Say) -> Iterator[str]:
    run = plan.campaign
    yield text(
        EDGE, 40, say("{model} on {cluster}").format(model=model_name(plan, say), cluster=plan.cluster.name), "ink bold", size=21
    )
    yield text(width - EDGE, 40, "Qianyi 千亿", "red bold", anchor="end")
    yield text(EDGE, 64, say("Layout: {words}").format(words=_layout(plan.best, say)))
    words = say("{s} per step · MFU {mfu} · {tokens} tokens in {days} days").format(
        s=seconds_words(plan.best.seconds), mfu=f"{plan.mfu:.1%}", tokens=readable(run.tokens), days=f"{run.wall_days:,.1f}"
    )
    yield text(EDGE, 84, words, "soft")


def _layout(choice: Choice, say: Say) -> str:
    return say(choice.config.layout.words).replace(" x ", " × ")


def _memory(plan: Plan, say: Say) -> Panel:
    best, hbm, width = plan.best, plan.cluster.chip.hbm_bytes, 440
    body = list(_stack(best.memory, MEMORY_COLOURS, 0, 0, width * best.memory_bytes / hbm, 26, say, _gigabytes))
    free = width * (1 - best.memory_bytes / hbm)
    body.append(box(width - free, 0, free, 26, "empty", f"{say('free')} {_gigabytes(hbm - best.memory_bytes)}"))
    if free > width_of(say("free")) + 12:
        body.append(text(width - free / 2, 17.5, say("free"), "soft", anchor="middle"))
    body.append(path(f"M{width},-3v32", "limit"))
    shown = {name: value for name, value in best.memory.items() if value}
    largest = max(shown.values())
    y = 48.0
    for name, value in shown.items():
        body += [
            box(0, y + 2, 12, 12, MEMORY_COLOURS[name]),
            text(20, y + 12.5, say(name)),
            box(128, y + 2, 226 * value / largest, 12, MEMORY_COLOURS[name]),
            text(width, y + 12.5, _gigabytes(value), anchor="end"),
        ]
        y += 29
    note = say("{used} of {all} GB").format(used=f"{best.memory_bytes / 1e9:.1f}", all=f"{hbm / 1e9:.0f}")
    return Panel(title=say("Memory per chip"), note=note, width=width, height=round(y), body="".join(body))


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.3g} GB"


def _time(plan: Plan, say: Say) -> Panel:
    width, best = 564, plan.best
    longest = max(choice.seconds for choice in plan.found.choices)
    body: list[str] = []
    y = 0.0
    for choice in plan.found.choices:
        first = choice is best
        later = "" if first else f"  (+{choice.seconds / best.seconds - 1:.1%})"
        body.append(text(0, y + 9, _layout(choice, say), "ink bold" if first else "ink"))
        body.append(text(width, y + 9, f"{seconds_words(choice.seconds)}{later}", "ink bold" if first else "ink", anchor="end"))
        height = 24 if first else 13
        body += _stack(choice.terms, TIME_COLOURS, 0, y + 15, width * choice.seconds / longest, height, say, seconds_words)
        y += 15 + height + 13
    named = {k: v for k, v in best.terms.items() if v >= LEAST * best.seconds}
    body.append(text(0, y + 10, say("of the best, in the order of the bars"), "soft"))
    for i, (name, value) in enumerate(named.items()):
        x, line = (i % 3) * 192, y + 20 + 20 * (i // 3)
        body.append(box(x, line + 2, 11, 11, TIME_COLOURS[name]))
        body.append(text(x + 18, line + 12, say(name)))
        body.append(text(x + 180, line + 12, seconds_words(value), anchor="end"))
    height = round(y + 20 + 20 * math.ceil(len(named) / 3))
    return Panel(title=say("Time of a step"), note=seconds_words(best.seconds), width=width, height=height, body="".join(body))


def _stack(
    values: Mapping[str, float],
    colours: Mapping[str, str],
    x: float,
    y: float,
    width: float,
    height: float,
    say: Say,
    words: Callable[[float], str],
) -> Iterator[str]:
    """Values beside each other, as wide as their shares; a name stands in what has room for it."""
    whole = sum(values.values())
    for name, value in values.items():
        part = width * value / whole
        fill = colours[name]
        if part >= 0.05:
            yield box(x, y, part, height, fill, f"{say(name)} {words(value)}")
        if height >= 20 and part > width_of(say(name)) + 8:
            yield text(x + part / 2, y + height / 2 + 4, say(name), on(fill), anchor="middle")
        x += part


def _front(plan: Plan, say: Say) -> Panel:
    """Time, on a logarithmic axis, against memory; beside it which layout each point is, fastest first."""
    left, right, ceiling, floor = 58, 480, 22, 252
    hbm, front = plan.cluster.chip.hbm_bytes, plan.found.front
    slow, fast = max(c.seconds for c in front), min(c.seconds for c in front)
    room = max(math.log(slow / fast), 0.1)
    low, top = fast * math.exp(-0.12 * room), slow * math.exp(0.08 * room)

    def across(memory_bytes: float) -> float:
        return left + (right - left) * memory_bytes / hbm

    def down(seconds: float) -> float:
        return ceiling + (floor - ceiling) * math.log(top / seconds) / math.log(top / low)

    body = [text(0, 10, say("time of a step"), "soft"), text(right, 10, "HBM", "soft", anchor="middle")]
    for value in _round(low, top) if top < 4 * low else _decades(low, top):
        y = down(value)
        body.append(path(f"M{left},{y:.1f}H{right}", "rule") + text(left - 8, y + 4, seconds_words(value), "soft", anchor="end"))
    for value in _round(0, hbm / 1e9):
        body.append(text(across(value * 1e9), floor + 18, f"{value:g}", "soft", anchor="middle"))
    body.append(path(f"M{right},{ceiling - 6}V{floor}", "limit") + path(f"M{left},{floor + 0.5}H{right}", "rule"))
    body.append(text((left + right) / 2, floor + 36, say("memory per chip, GB"), "soft", anchor="middle"))
    points = [(across(c.memory_bytes), down(c.seconds)) for c in front]
    # With less memory than a point needs, the time is that of the next point.
    steps = "".join(f"V{y:.1f}H{x:.1f}" for x, y in points[1:])
    body.append(path(f"M{points[0][0]:.1f},{points[0][1]:.1f}{steps}", "line"))
    body += _dots(points, [c.overrides == plan.best.overrides for c in front], right)
    body += _names(plan, say)
    height = max(floor + 42, 20 * len(front) + 4)
    note = say("nothing else is both faster and smaller")
    return Panel(title=say("Fastest for their memory"), note=note, width=1040, height=height, body="".join(body))


def _dots(points: list[tuple[float, float]], chosen: list[bool], right: float) -> Iterator[str]:
    """Each with its number, where the number meets no other."""
    taken: list[tuple[float, float]] = []
    for i, (x, y) in enumerate(points):
        of = "red" if chosen[i] else "blue"
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="{of}"/>'
        at = (x + 7, y - 6) if x < right - 24 else (x - 18, y - 6)
        if all(abs(at[0] - a) > 15 or abs(at[1] - b) > 12 for a, b in taken):
            taken.append(at)
            yield text(*at, str(i + 1), "soft", size=11)


def _names(plan: Plan, say: Say) -> Iterator[str]:
    for i, choice in enumerate(plan.found.front):
        y, of = 12 + 20 * i, "ink bold" if choice.overrides == plan.best.overrides else "ink"
        yield text(548, y, str(i + 1), "soft", anchor="end")
        yield text(612, y, seconds_words(choice.seconds), of, anchor="end")
        yield text(684, y, f"{choice.memory_bytes / 1e9:.1f} GB", of, anchor="end")
        yield text(700, y, _layout(choice, say), of)


def _round(low: float, high: float) -> list[float]:
    """Three to seven round numbers from low to high."""
    raw = (high - low) / 6
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= raw)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Round numbers from low to high that are about evenly spaced on a logarithmic axis."""
    of_ten = (1, 1.5, 2, 3, 5, 7) if high < 30 * low else (1, 3) if high < 1000 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**n for n in powers for m in of_ten if low <= m * 10.0**n <= high]
