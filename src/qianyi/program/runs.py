"""How often each part of a compiled program runs in one step: bodies of loops as often as these go round."""

from collections import defaultdict
from collections.abc import Callable

from qianyi.program.hlo import Module, Op

Weight = Callable[[Op], float]
"""What counts of an operation: bytes that it sends, FLOPs."""

Taken = Callable[[Op], float]
"""How often, of all times that it could, a conditional takes the branch that works."""


def always(_: Op) -> float:
    return 1.0


def executions(module: Module, weight: Weight, taken: Taken = always) -> dict[str, float]:
    """Times that each computation runs, on average where branches are not always taken. Of a conditional the branch that weighs most runs.

    Args:
        module: the program.
        weight: what counts.
        taken: how often conditionals take that branch.

    Raises:
        ValueError: something that weighs is in a loop of unknown length.
    """
    times = defaultdict[str, float](float)
    weights: dict[str, float] = {}

    def weigh(name: str) -> float:
        if name not in weights:
            weights[name] = 0.0
            weights[name] = sum(_weight_of(op, name) for op in module.computations[name])
        return weights[name]

    def _weight_of(op: Op, caller: str) -> float:
        inner = [weigh(name) for name in op.called]
        if op.opcode == "conditional":
            return max(inner, default=0.0)
        return weight(op) + (_times_round(op, caller) if op.opcode == "while" else 1) * sum(inner)

    def _times_round(op: Op, caller: str) -> int:
        trips = module.trip_count(op, caller)
        return 1 if trips is None else trips

    def run(name: str, n: float) -> None:
        times[name] += n
        for op in module.computations[name]:
            if op.opcode == "conditional":
                run(max(op.called, key=weigh), n * taken(op))
            elif op.opcode == "while":
                if module.trip_count(op, name) is None and weigh(op.body) > 0:
                    raise ValueError(f"a loop of unknown length: {op.name}")
                run(op.body, n * _times_round(op, name))
            else:
                for called in op.called:
                    run(called, n)

    run(module.entry, 1)
    return times
