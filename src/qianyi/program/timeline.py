"""A compiled program run through on paper: operations one after the other on the core, what is begun and awaited beside them.

A scheduled program states an order. Each operation takes seconds of one resource: those of the core follow each other; a transfer that has
a beginning and an end of its own occupies its link from the one, and the core waits at the other for what is not done. A loop's body
counts as often as it goes round, and of a conditional the longest branch.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from qianyi.program.hlo import Module, Op
from qianyi.program.runs import Taken, always

CORE = "core"
Terms = defaultdict[str, float]


class Work(NamedTuple):
    """What an operation takes."""

    resource: str
    """CORE, or what it occupies beside the core: a link, a copy engine."""
    seconds: float
    term: str
    """What the time is spent on."""


@dataclass(frozen=True)
class Timeline:
    """Seconds of a run."""

    seconds: float
    terms: Terms
    """By what they are spent on; their sum is the whole. Transfers count as far as nothing hides them."""
    busy: Terms
    """Of transfers alone, by term: hidden or not."""


Cost = Callable[[Op, dict[str, Op]], Work | None]
"""Work of an operation, with the table of its computation; None: nothing."""
Runner = Callable[[str], Timeline]
_BEGINS, _ENDS = "async-collective-start", "async-collective-done"
"""What TPUs call the fusions that begin and end a gather which those between carry on while they compute."""


def timeline(module: Module, cost: Cost, taken: Taken = always) -> Timeline:
    """Of a module's entry; of branches the longest counts, as often as it is taken."""

    @cache
    def run(name: str) -> Timeline:
        return _run(module, name, cost, taken, run)

    return run(module.entry)


def _run(module: Module, name: str, cost: Cost, taken: Taken, run: Runner) -> Timeline:
    clock, table = 0.0, module.tables[name]
    terms, busy = Terms(float), Terms(float)
    free, ends = dict[str, float](), dict[str, tuple[float, str]]()
    for op in module.computations[name]:
        inner = _inner(module, name, op, taken, run)
        if inner is not None:
            clock += inner.seconds
            _add(terms, inner.terms)
            _add(busy, inner.busy)
        elif awaited := ended(op):
            end, term = ends.pop(_behind(table, awaited), (clock, ""))
            if end > clock:
                terms[term] += end - clock
                clock = end
        elif work := cost(op, table):
            if work.resource == CORE:
                terms[work.term] += work.seconds
                clock += work.seconds
                continue
            begin = max(clock, free.get(work.resource, 0.0))
            end = free[work.resource] = begin + work.seconds
            busy[work.term] += work.seconds
            if begun(op):
                ends[op.name] = end, work.term
            else:
                terms[work.term] += end - clock
                clock = end
    return Timeline(clock, terms, busy)


def _behind(table: dict[str, Op], name: str) -> str:
    """The operation whose result, or part of it, a name is."""
    while table[name].opcode in {"get-tuple-element", "bitcast"}:
        name = table[name].operands[0]
    return name


def begun(op: Op) -> bool:
    """Whether an operation only begins something, which another one ends."""
    return op.opcode.endswith("-start") or op.opcode in {"send", "recv"} or op.name.startswith(_BEGINS)


def ended(op: Op) -> str:
    """The name of the operation whose end another one awaits; empty: it awaits none."""
    if op.name.startswith(_ENDS):
        return op.name.replace(_ENDS, _BEGINS)
    return op.operands[0] if op.opcode.endswith("-done") else ""


def _inner(module: Module, caller: str, op: Op, taken: Taken, run: Runner) -> Timeline | None:
    """The timeline of a loop, a conditional or a call."""
    match op.opcode:
        case "while":
            trips = module.trip_count(op, caller)
            return _scaled(run(op.body), 1 if trips is None else trips)
        case "conditional":
            return _scaled(max((run(name) for name in op.called), key=lambda t: t.seconds), taken(op))
        case "call":
            return _sum(run(name) for name in op.called)
        case _:
            return None


def _scaled(once: Timeline, n: float) -> Timeline:
    return Timeline(n * once.seconds, _times(n, once.terms), _times(n, once.busy))


def _times(n: float, terms: Terms) -> Terms:
    return Terms(float, {key: n * value for key, value in terms.items()})


def _add(to: Terms, terms: Terms) -> None:
    for key, value in terms.items():
        to[key] += value


def _sum(parts: Iterable[Timeline]) -> Timeline:
    seconds, terms, busy = 0.0, Terms(float), Terms(float)
    for part in parts:
        seconds += part.seconds
        _add(terms, part.terms)
        _add(busy, part.busy)
    return Timeline(seconds, terms, busy)
