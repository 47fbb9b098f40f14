"""Pipeline schedules as data: at each tick, what each stage does.

A tick has two slots: the forward pass of one microbatch, then the backward pass of another ("paired ticks"). Neighbours exchange
activations and gradients once per tick, so a tick lasts as long as its busiest stage; pairing forward with backward on every stage
keeps 1F1B at its ideal time, which one action per tick does not. The price: a stage holds the inputs of up to
2 (stages - 1 - stage) + 1 microbatches instead of stages - stage.

Model chunk v of stage s is virtual stage v * stages + s. The last virtual stage has no forward slot: its backward slot computes forward,
loss and backward together. Pure NumPy: tables are made, simulated and tested without a device.

Schedules: GPipe (Huang et al. 2019), 1F1B (Narayanan et al. 2019, PipeDream-flush), interleaved 1F1B (Narayanan et al. 2021, section 2.2).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qianyi.config.pipeline import Action, passes

Entry = Any
"""int32 [ticks, stages] in a table; on a device, what its stage does at one tick."""


class Ticks(NamedTuple):
    """What each stage does at each tick; every field is int32 [ticks, stages]. Buffer slots of arrivals that nobody needs are the last."""

    f_on: Entry
    """1: run a forward pass, of microbatch `f_microbatch` through chunk `f_chunk`."""
    f_microbatch: Entry
    f_chunk: Entry
    f_first: Entry
    """1: this is virtual stage 0, whose input is the embedding of tokens."""
    f_last: Entry
    """1: this is the last virtual stage (in tables without backward passes)."""
    f_input: Entry
    """Slot of the input."""
    y_arrives: Entry
    """Slot for the activation that arrives at the end of this tick."""
    b_on: Entry
    b_microbatch: Entry
    b_chunk: Entry
    b_first: Entry
    b_last: Entry
    b_input: Entry
    b_gradient: Entry
    """Slot of the gradient of the output."""
    g_arrives: Entry
    """Slot for the gradient that arrives at the start of this tick."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A table and the buffers that it needs."""

    ticks: Ticks
    n_stages: int
    n_chunks: int
    n_microbatches: int
    input_slots: int
    """Activations that a stage keeps; the largest over stages."""
    gradient_slots: int

    def makespan(self, forward_cost: float = 1.0, backward_cost: float = 3.0) -> float:
        """Time of one step in units of a stage's forward pass of a microbatch; backward includes recomputation."""
        cost = forward_cost * self.ticks.f_on + backward_cost * self.ticks.b_on
        return float(cost.max(axis=1).sum()) / self.n_chunks

    def bubble(self, forward_cost: float = 1.0, backward_cost: float = 3.0) -> float:
        """Share of the makespan in which the average stage does nothing."""
        work = (forward_cost * self.ticks.f_on + backward_cost * self.ticks.b_on).sum() / self.n_stages / self.n_chunks
        return 1 - float(work) / self.makespan(forward_cost, backward_cost)


def make_schedule(kind: str, n_stages: int, n_microbatches: int, n_chunks: int = 1, *, backward: bool = True) -> Schedule:
    """The table of a schedule.

    Args:
        kind: `gpipe` or `1f1b` (with n_chunks > 1: interleaved).
        n_stages: of the pipeline, at least 2.
        n_microbatches: per step.
        n_chunks: model chunks per stage.
        backward: False: a table of forward passes alone, for validation.
    """
    done_f, done_b = passes(kind, n_stages, n_microbatches, n_chunks, backward)
    n_ticks = 1 + max([*done_f.values(), *done_b.values()])
    table = Ticks(*(np.zeros((n_ticks, n_stages), np.int32) for _ in Ticks._fields))
    last = n_stages * n_chunks - 1
    for (m, k), t in done_f.items():
        s = k % n_stages
        table.f_on[t, s], table.f_microbatch[t, s], table.f_chunk[t, s] = 1, m, k // n_stages
        table.f_first[t, s], table.f_last[t, s] = k == 0, k == last
    for (m, k), t in done_b.items():
        s = k % n_stages
        table.b_on[t, s], table.b_microbatch[t, s], table.b_chunk[t, s] = 1, m, k // n_stages
        table.b_first[t, s], table.b_last[t, s] = k == 0, k == last
    used = done_b if backward else done_f
    # An activation is written at the end of the tick that makes it, so it may take the slot of one that is read for the last time then;
    # a gradient is written at the start of the next tick, before that tick's reads.
    inputs = _color({(m, k): (done_f[m, k - 1], used[m, k]) for m, k in used if k > 0}, n_stages, reuse_at_last_read=True)
    gradients = _color({(m, k): (done_b[m, k + 1] + 1, t) for (m, k), t in done_b.items() if k < last}, n_stages, False)
    input_slots, gradient_slots = (1 + max(slots.values(), default=-1) for slots in (inputs, gradients))
    table.y_arrives[:], table.g_arrives[:] = input_slots, gradient_slots
    for (m, k), slot in inputs.items():
        s = k % n_stages
        table.y_arrives[done_f[m, k - 1], s] = slot
        if (m, k) in done_f:
            table.f_input[done_f[m, k], s] = slot
        if backward:
            table.b_input[done_b[m, k], s] = slot
    for (m, k), slot in gradients.items():
        s = k % n_stages
        table.g_arrives[done_b[m, k + 1] + 1, s] = slot
        table.b_gradient[done_b[m, k], s] = slot
    return Schedule(
        ticks=table,
        n_stages=n_stages,
        n_chunks=n_chunks,
        n_microbatches=n_microbatches,
        input_slots=input_slots,
        gradient_slots=gradient_slots,
    )


def _color(lives: dict[Action, tuple[int, int]], n_stages: int, reuse_at_last_read: bool) -> dict[Action, int]:
    """A buffer slot for each value that lives in [arrival, last read] on its stage: first free slot, in order of arrival."""
    slots: dict[Action, int] = {}
    free_at: list[list[int]] = [[] for _ in range(n_stages)]
    for (m, k), (arrival, last_read) in sorted(lives.items(), key=lambda item: item[1]):
        stage = free_at[k % n_stages]
        slot = next((i for i, tick in enumerate(stage) if tick < arrival + reuse_at_last_read), len(stage))
        stage[slot : slot + 1] = [last_read]
        slots[m, k] = slot
    return slots
