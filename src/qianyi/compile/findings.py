"""What is wrong, or merely worth knowing, in a compiled step: each a sentence with its numbers and what to do."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qianyi.compile.compilers import Compiled
from qianyi.compile.costs import Pricing
from qianyi.compile.flops import Flops
from qianyi.compile.target import Target
from qianyi.config.schema import Config
from qianyi.plan.search import USABLE
from qianyi.program.flops import product_flops
from qianyi.program.hlo import HBM, Module, Op
from qianyi.program.runs import executions
from qianyi.program.timeline import CORE, Terms, Timeline

Severity = Literal["error", "warning", "note"]
EXCESS = 1.3
"""Times the model's FLOPs from which products are too many: masked blocks and attention's scores, made again, stay below."""
WORTH = 0.02
"""Share of the step, or of the memory, below which nothing is said."""
_MOVES = {"copy", "transpose", "reshape", "copy-start"}


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    severity: Severity
    kind: str
    message: str


def findings(
    module: Module, config: Config, target: Target, compiled: Compiled, line: Timeline, priced: Pricing, counted: Flops
) -> Iterator[Finding]:
    """Errors first."""
    yield from _memory(compiled, target)
    yield from _rematerialized(compiled)
    yield from (Finding("note", "compiler", remark) for remark in compiled.remarks)
    yield from _replicated(compiled, target)
    yield from _multiplied(counted)
    yield from _exposed(line)
    yield from _relayouts(module, line, priced)
    yield from _wide_products(module, config)
    yield from _padded(module, target)


def _memory(compiled: Compiled, target: Target) -> Iterator[Finding]:
    needed, hbm = compiled.needed_bytes(target.platform), target.hbm_bytes_per_device
    chip = target.cluster.chip.name
    if needed > hbm:
        yield Finding(
            "error",
            "memory",
            f"does not fit: {needed / 1e9:.1f} of {hbm / 1e9:.0f} GB per {chip}, {(needed - hbm) / 1e9:.1f} too many",
        )
    elif needed > USABLE * hbm:
        yield Finding(
            "warning",
            "memory",
            f"{needed / hbm:.0%} of {chip}'s memory is in use, plans fill {USABLE:.0%}: drivers, communicators and fragments need the rest",
        )


def _rematerialized(compiled: Compiled) -> Iterator[Finding]:
    """The partitioner gathers an array whole because it cannot go from one sharding to another: a mistake in a sharding."""
    for line in dict.fromkeys(compiled.rematerialized):
        yield Finding("error", "involuntary rematerialization", line[:400])


def _replicated(compiled: Compiled, target: Target) -> Iterator[Finding]:
    """Arguments that lie whole on devices among which they could be divided."""
    total = Counter[str]()
    for array in compiled.replicated:
        total[array["axes"]] += array["bytes"]
    for axes, size in total.items():
        if size > WORTH * target.hbm_bytes_per_device:
            largest = max((a for a in compiled.replicated if a["axes"] == axes), key=lambda a: a["bytes"])
            yield Finding(
                "note",
                "replication",
                f"{size / 1e9:.2f} GB of state are the same on every device along {axes} (the largest: {largest['name']}, "
                f"{largest['bytes'] / 1e9:.2f} GB); layout.zero=3 and layout.data divide it",
            )


def _multiplied(counted: Flops) -> Iterator[Finding]:
    """More products than the model and recomputation ask for: experts that multiply rows of others, padding, masked scores."""
    once = counted.forward + counted.backward
    if once > EXCESS * counted.model:
        yield Finding(
            "warning",
            "FLOPs",
            f"forward and backward passes multiply {once / counted.model:.1f} times what the model asks for, recomputation aside; experts "
            "without a kernel of their own multiply every row (model.moe.capacity_factor bounds that)",
        )


def _exposed(line: Timeline) -> Iterator[Finding]:
    for term, seconds in sorted(line.terms.items(), key=lambda term: -term[1]):
        if line.busy[term] and seconds > WORTH * line.seconds and " over " in term:
            hidden = max(0.0, 1 - seconds / line.busy[term])
            yield Finding(
                "warning" if seconds > 0.1 * line.seconds else "note",
                "exposed communication",
                f"{term}: the chip waits {seconds:.3g} s of each step for it ({seconds / line.seconds:.0%}); {hidden:.0%} is hidden",
            )


def _relayouts(module: Module, line: Timeline, priced: Pricing) -> Iterator[Finding]:
    """Copies that only change how an array lies in memory."""
    spent = Terms(float)
    largest: dict[str, Op] = {}
    for name, times in executions(module, lambda _: 0.0).items():
        table = module.tables[name]
        for op in module.computations[name]:
            if op.opcode not in _MOVES or (work := priced.cost(op, table)) is None or work.resource != CORE:
                continue
            place = module.source(op) or next((module.source(table[name]) for name in op.operands if name in table), "")
            spent[place] += work.seconds * times
            if place not in largest or op.shapes[0].bytes > largest[place].shapes[0].bytes:
                largest[place] = op
    for place, seconds in sorted(spent.items(), key=lambda p: -p[1])[:3]:
        if seconds > WORTH * line.seconds:
            shape = largest[place].shapes[0]
            size = f"{shape.dtype}[{','.join(map(str, shape.dims))}]"
            yield Finding(
                "warning",
                "relayout",
                f"{seconds:.3g} s of each step ({seconds / line.seconds:.0%}) go into copies of arrays such as {size}: "
                f"{place or 'no source'}",
            )


def _wide_products(module: Module, config: Config) -> Iterator[Finding]:
    """Products in float32 in a program that computes in bfloat16."""
    if config.model.dtype != "bfloat16":
        return
    wide, total = Terms(float), 0.0
    for name, times in executions(module, lambda op: product_flops(module, op)).items():
        table = module.tables[name]
        for op in module.computations[name]:
            if n := times * product_flops(module, op, table):
                total += n
                if op.opcode != "custom-call" and all(table[o].shapes[0].dtype == "f32" for o in op.operands[:2]):
                    wide[module.source(op)] += n
    for place, n in sorted(wide.items(), key=lambda p: -p[1])[:2]:
        if n > WORTH * total:
            yield Finding("warning", "float32 products", f"{n / total:.1%} of the FLOPs are products of float32 arrays: {place}")


def _padded(module: Module, target: Target) -> Iterator[Finding]:
    """Arguments whose tiles hold much besides their numbers."""
    lost = [
        (op.shapes[0].stored_bytes - op.shapes[0].bytes, op)
        for op in module.computations[module.entry]
        if op.opcode == "parameter" and op.shapes and op.shapes[0].space == HBM
    ]
    total = sum(n for n, _ in lost)
    if total > WORTH * target.hbm_bytes_per_device:
        n, op = max(lost, key=lambda pair: pair[0])
        shape = op.shapes[0]
        yield Finding(
            "warning",
            "padding",
            f"{total / 1e9:.2f} GB of arguments are padding of tiles; {n / 1e9:.2f} GB of {shape.dtype}[{','.join(map(str, shape.dims))}]",
        )
