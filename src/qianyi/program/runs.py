"""How often each part of a compiled program runs in one step: bodies of loops as often as these go round."""

from collections import Counter
from collections.abc import Callable

from qianyi.program.hlo import Module, Op

Weight = Callable[[Op], float]
"""What counts of an operation: bytes that it sends, FLOPs."""


def executions(module: Module, weight: Weight, taken: float = 1.0) -> Counter[str]:
    """Times that each computation runs. Of a conditional the branch that weighs most runs.

    Args:
        module: the program.
        weight: what counts.
        taken: how often, of all times that it could, a conditional that is in no other one takes that branch.

    Raises:
        ValueError: something that weighs is in a loop of unknown length.
    """
    times = Counter[str]()
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
        return weight(op) + (module.trip_count(op, caller) or 1) * sum(inner) if op.opcode == "while" else weight(op) + sum(inner)

    def run(name: str, n: int, taken: float) -> None:
        times[name] += n
        for op in module.computations[name]:
            if op.opcode == "conditional":
                run(max(op.called, key=weigh), round(n * taken), 1.0)
            elif op.opcode == "while":
                trips = module.trip_count(op, name)
                if trips is None and weigh(op.body) > 0:
                    raise ValueError(f"a loop of unknown length: {op.name}")
                run(op.body, n * (1 if trips is None else trips), taken)
            else:
                for called in op.called:
                    run(called, n, taken)

    run(module.entry, 1, taken)
    return times
