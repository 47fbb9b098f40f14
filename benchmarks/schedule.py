"""The time of a step as a TPU's compiler estimates it: its cycles for each operation, added up over the schedule. For comparing two
programs of one compiler for one chip, not for predicting a time: against published steps the sum is 0 to 40% too high, by chip differently.

Cycles stand in the program for products and elementwise operations (of both cores of a chip that has two). What has none is costed here:

- a collective sends what a ring does (`qianyi.program.collectives`) over both directions of as many torus axes as its algorithm names, one
  of a permute over one direction of one; latency is not counted;
- splash attention runs at `ATTENTION_SHARE` of the chip's peak, which is assumed;
- copies between memories at the bandwidth of HBM, or of the host.

One core does one thing at a time. What begins and ends at different places (`-start`, `-done`) runs beside it on its own resource, and only
what is not over at its end is waited for.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, fields
from functools import cached_property

from qianyi.plan.chips import Chip
from qianyi.program.collectives import bytes_per_device, sent_by
from qianyi.program.flops import product_flops
from qianyi.program.hlo import HOST, Module, Op

FLOPS_PER_CYCLE = {"tpu-v4": 262144, "tpu-v5e": 131072, "tpu-v5p": 262144, "tpu-v6e": 524288}
"""Of a whole chip: with its peak they give the clock that the estimates are in."""
ATTENTION_SHARE = 0.45
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_EMITTER_AXES = re.compile(r'"emitter":"(\d)D')
_PHASES = re.compile(r"phases:(\d)")


@dataclass(frozen=True)
class Time:
    """Seconds of a step, by what the core does."""

    products: float = 0.0
    attention: float = 0.0
    other: float = 0.0
    collectives: float = 0.0
    """Nothing else runs meanwhile."""
    waits: float = 0.0
    """For what runs beside it."""

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))

    def __add__(self, more: "Time") -> "Time":
        return Time(*(getattr(self, f.name) + getattr(more, f.name) for f in fields(self)))

    def times(self, n: int) -> "Time":
        return Time(*(n * getattr(self, f.name) for f in fields(self)))


class Schedule:
    """A program on a chip."""

    def __init__(self, module: Module, chip: Chip, n_devices: int) -> None:
        self.module, self.chip, self.n_devices = module, chip, n_devices
        self._known: dict[str, Time] = {}

    @cached_property
    def time(self) -> Time:
        """Of a step."""
        return self._of(self.module.entry)

    @property
    def _clock(self) -> float:
        return self.chip.bf16_flops / FLOPS_PER_CYCLE[self.chip.name]

    def _of(self, name: str) -> Time:
        if name not in self._known:
            self._known[name] = self._run(name)
        return self._known[name]

    def _run(self, name: str) -> Time:
        """One run of a computation."""
        total, table = Time(), self.module.tables[name]
        free, finish = defaultdict[str, float](float), dict[str, float]()
        for op in self.module.computations[name]:
            if op.opcode.endswith("-start"):
                resource, seconds = self._beside(op)
                finish[op.name] = free[resource] = max(total.total, free[resource]) + seconds
            elif op.opcode.endswith("-done"):
                total += Time(waits=max(0.0, finish.get(self._begun(table, op), 0.0) - total.total))
            else:
                total += self._of_op(op, name)
        return total

    @staticmethod
    def _begun(table: dict[str, Op], op: Op) -> str:
        begun = table[op.operands[0]]
        while begun.opcode in {"get-tuple-element", "bitcast"}:
            begun = table[begun.operands[0]]
        return begun.name

    def _of_op(self, op: Op, caller: str) -> Time:
        if op.opcode == "while":
            trips = self.module.trip_count(op, caller)
            return self._of(op.body).times(1 if trips is None else trips)
        if op.opcode == "conditional":
            return max((self._of(c) for c in op.called), key=lambda t: t.total)
        if op.opcode == "call":
            return self._of(op.called[0])
        if sent := self._sent(op):
            return Time(collectives=sent)
        if "splash_mha" in op.attributes and op.opcode == "custom-call":
            return Time(
                attention=product_flops(self.module, op, self.module.tables[caller]) / self.chip.bf16_flops / ATTENTION_SHARE
            )
        found = _CYCLES.search(op.attributes)
        seconds = int(found[1]) / self._clock if found else 0.0
        return Time(products=seconds) if '"COST_MODEL_TYPE_CLASSIC"' in op.attributes else Time(other=seconds)

    def _sent(self, op: Op) -> float:
        """Seconds of the collectives that an operation is or contains."""
        inner = (
            [i for name in op.called for i in self.module.computations[name]] if op.opcode in {"fusion", "async-start"} else []
        )
        return sum(self._link_seconds(o, op) for o in (op, *inner))

    def _link_seconds(self, op: Op, outer: Op) -> float:
        sent = sent_by(op)
        if sent is None:
            return 0.0
        link = self.chip.link_bytes_per_second
        if sent.kind == "collective-permute":
            return sent.result_bytes / link
        named = _EMITTER_AXES.search(op.attributes) or _PHASES.search(op.attributes + outer.attributes)
        return bytes_per_device(sent, self.n_devices) / (2 * link * (int(named[1]) if named else 1))

    def _beside(self, op: Op) -> tuple[str, float]:
        """What an operation that begins occupies, and for how long."""
        if seconds := self._sent(op):
            sent = sent_by(op)
            return f"link {sent.groups[:2] if sent and sent.kind == 'collective-permute' else ''}", seconds
        n_bytes = max((s.bytes for s in op.shapes), default=0)
        if any(s.space == HOST for s in op.shapes):
            return "host", n_bytes / self.chip.host_bytes_per_second
        return "memory", n_bytes / self.chip.hbm_bytes_per_second
