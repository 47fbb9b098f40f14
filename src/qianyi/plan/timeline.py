"""The timeline of a pipeline: stages by time, from the order that training executes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qianyi.config.pipeline import passes
from qianyi.config.schema import Config
from qianyi.plan.svg import Panel, box, mixed, on, path, text, width_of
from qianyi.plan.words import Say

FORWARD, BACKWARD = "#1d6a87", "#b23a26"
FORWARD_COST, BACKWARD_COST = 1, 3
"""A backward pass computes twice the products of a forward pass, and runs the stage's forward part again."""
STEADY_TICKS = 6
"""Of the middle, which repeats itself, as many are shown on each side of the gap."""
LEFT, RIGHT, TOP, GAP = 58, 1040, 22, 30


@dataclass(frozen=True)
class Pass:
    """One forward or backward pass that is drawn."""

    stage: int
    chunk: int
    microbatch: int
    cost: int
    start: float
    """In forward passes of a chunk; what is cut out takes no time."""


@dataclass(frozen=True)
class Timeline:
    passes: tuple[Pass, ...]
    length: float
    cut: float | None
    """Where the middle is cut out; None: nothing is."""


def timeline(kind: str, n_stages: int, n_microbatches: int, n_chunks: int) -> Timeline:
    """Every pass of a step, but for the middle of a long one."""
    forward, backward = passes(kind, n_stages, n_microbatches, n_chunks)
    n_ticks = 1 + max(backward.values())
    first = np.zeros((n_ticks, n_stages))
    for (_, k), t in forward.items():
        first[t, k % n_stages] = FORWARD_COST
    both = first.copy()
    for (_, k), t in backward.items():
        both[t, k % n_stages] += BACKWARD_COST
    # The pipeline is full from the first backward pass of stage 0 to its last forward pass.
    full = min(t for (_, k), t in backward.items() if k == 0) + STEADY_TICKS
    drains = max(t for (_, k), t in forward.items() if k == 0) + 1 - STEADY_TICKS
    lasts = both.max(axis=1)
    lasts[full : max(drains, full)] = 0
    starts = np.cumsum(lasts) - lasts
    drawn = [
        Pass(k % n_stages, k // n_stages, m, cost, float(starts[t] + before[t, k % n_stages]))
        for done, cost, before in ((forward, FORWARD_COST, np.zeros_like(first)), (backward, BACKWARD_COST, first))
        for (m, k), t in done.items()
        if lasts[t]
    ]
    return Timeline(tuple(drawn), float(lasts.sum()), float(starts[full]) if drains > full else None)


def timeline_panel(config: Config, bubble: float, say: Say) -> Panel | None:
    """Of a recipe with stages; None without. `bubble`: share of the step, as the cost model has it."""
    layout = config.layout
    if layout.stage == 1:
        return None
    found = timeline(layout.schedule, layout.stage, config.train.accumulation, layout.chunks)
    row = min(22.0, max(5.0, 300 / layout.stage))
    bottom = TOP + row * layout.stage
    note = "{stages} stages, {microbatches} microbatches; bubble {bubble} of the step"
    if layout.chunks > 1:
        note = "{stages} stages of {chunks} chunks, {microbatches} microbatches; bubble {bubble} of the step"
    body = [*_key(layout.chunks, say), *_stages(layout.stage, row, say), *_passes(found, layout.chunks, row)]
    if found.cut is not None:
        body += _gap(_x(found, found.cut) - GAP, bottom, say)
    body += [
        path(f"M{LEFT},{bottom + 12:.1f}H{RIGHT - 7}m0,-4l7,4l-7,4", "rule"),
        text(LEFT, bottom + 28, say("time"), "soft"),
    ]
    return Panel(
        title=say("Pipeline"),
        note=say(note).format(
            stages=layout.stage, chunks=layout.chunks, microbatches=config.train.accumulation, bubble=f"{bubble:.1%}"
        ),
        width=RIGHT,
        height=round(bottom + 34),
        body="".join(body),
    )


def _x(found: Timeline, start: float) -> float:
    room = RIGHT - LEFT - (GAP if found.cut is not None else 0)
    after = GAP if found.cut is not None and start >= found.cut else 0
    return LEFT + start / found.length * room + after


def _passes(found: Timeline, n_chunks: int, row: float) -> Iterator[str]:
    """Rectangles, those of one colour as one shape, and in what is wide enough the number of its microbatch."""
    unit = (RIGHT - LEFT - (GAP if found.cut is not None else 0)) / found.length
    shapes: dict[str, list[str]] = {}
    numbers: list[str] = []
    for p in found.passes:
        x, y, width = _x(found, p.start), TOP + row * p.stage, unit * p.cost
        fill = _shade(FORWARD if p.cost == FORWARD_COST else BACKWARD, p.chunk, n_chunks)
        # A hairline between neighbours, where there is room for it.
        shape = f"M{x:.2f},{y:.1f}h{width - min(1.0, width / 8):.2f}v{row - 1:.1f}h-{width - min(1.0, width / 8):.2f}z"
        shapes.setdefault(fill, []).append(shape)
        number = str(p.microbatch + 1)
        if row >= 14 and width > width_of(number, 10) + 3:
            numbers.append(text(x + width / 2, y + row / 2 + 3, number, on(fill), anchor="middle", size=10))
    yield from (f'<path d="{"".join(shape)}" fill="{fill}"/>' for fill, shape in shapes.items())
    yield from numbers


def _shade(fill: str, chunk: int, n_chunks: int) -> str:
    """The first chunk is light, the last has the full colour."""
    return mixed("#ffffff", fill, 1.0 if n_chunks == 1 else 0.35 + 0.65 * chunk / (n_chunks - 1))


def _stages(n_stages: int, row: float, say: Say) -> Iterator[str]:
    every = 1 if row >= 12 else 4 if row >= 6 else 8
    yield text(0, TOP - 8, say("stage"), "soft")
    for stage in range(n_stages):
        y = TOP + row * stage
        yield box(LEFT, y, RIGHT - LEFT, row - 1, "empty")
        if stage % every == 0:
            yield text(LEFT - 8, y + row / 2 + 4, str(stage), "soft", anchor="end")


def _gap(x: float, bottom: float, say: Say) -> Iterator[str]:
    yield box(x + 0.5, TOP - 2, GAP - 2, bottom - TOP + 3, "paper", say("the same again"))
    yield text(x + GAP / 2, (TOP + bottom) / 2 + 4, "···", "soft", anchor="middle")


def _key(n_chunks: int, say: Say) -> Iterator[str]:
    names = ["forward", "backward, with the forward part again"]
    if n_chunks > 1:
        names = ["forward, first to last chunk", "backward, with the forward part again, first to last chunk"]
    x = float(LEFT)
    for name, colour in zip(names, (FORWARD, BACKWARD), strict=True):
        shown = sorted({0, (n_chunks - 1) // 2, n_chunks - 1})
        for chunk in shown:
            yield box(x, TOP - 18, 11, 11, _shade(colour, chunk, n_chunks))
            x += 12
        yield text(x + 5, TOP - 8, say(name), "soft")
        x += width_of(say(name)) + 26
    yield box(x, TOP - 18, 11, 11, "empty") + text(x + 17, TOP - 8, say("idle"), "soft")
