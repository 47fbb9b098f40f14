"""What lies in a device's memory when most does, buffer by buffer, replayed from the schedule of a compiled program.

The compiler's own number (`memory_analysis`) is the truth about the total; it does not say of what. Here every operation's result is a
buffer from the operation to its last use; what is written in place (what a loop carries, updates of slices, arguments that are given away)
is no new buffer. The replayed peak and the compiler's differ by what the compiler shares or pads beyond that.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from qianyi.program.hlo import HBM, Module, Op, Shape

_SHARING = {"add", "subtract", "multiply", "divide", "maximum", "minimum", "select", "convert", "negate", "copy"}
"""Results may be written over an operand that nothing reads afterwards; loop fusions too."""
Leaf = tuple[str, int]
"""An operation, and which array of its result."""


@dataclass(frozen=True)
class Buffer:
    """A piece of memory."""

    op: Op
    shape: Shape
    bytes: int
    is_argument: bool = False


@dataclass(frozen=True)
class Peak:
    """The fullest moment."""

    bytes: int
    buffers: tuple[Buffer, ...]
    """Largest first."""
    at: str
    """The operation that runs then."""


def replay(module: Module, space: int = HBM) -> Peak:
    """The fullest moment of a program's run on one device, in one memory space: HBM or HOST."""
    arguments = [
        Buffer(op, op.shapes[0], op.shapes[0].stored_bytes, is_argument=True)
        for op in module.computations[module.entry]
        if op.opcode == "parameter" and op.shapes and op.shapes[0].space == space
    ]
    own = _replay(module, module.entry, space, set(module.aliases))
    buffers = sorted([*arguments, *own.buffers], key=lambda b: -b.bytes)
    return Peak(sum(b.bytes for b in buffers), tuple(buffers), own.at)


def _replay(module: Module, name: str, space: int, in_place: set[int] | None) -> Peak:
    """The fullest moment of one computation and those that it calls, without what it was given. `in_place`: leaves of its result that are
    written over what was given; None: all, as in the body of a loop."""
    ops, table = module.computations[name], module.tables[name]
    places = {(op.name, i): _place(module, table, op, i) for op in ops for i in range(len(op.shapes))}
    last = _last_uses(ops, places)
    root = next(op for op in ops if op.is_root)
    given = {places[root.name, i] for i in range(len(root.shapes)) if in_place is None or i in in_place}
    given |= {(op.name, i) for op in ops if op.opcode == "parameter" for i in range(len(op.shapes))}
    live: dict[Leaf, Buffer] = {}
    best = Peak(-1, (), "")
    for at, op in enumerate(ops):
        made = _made(op, places, given, space)
        dying = [leaf for leaf in live if last.get(leaf, at) <= at]
        inner = max((_replay(module, body, space, None) for body in _bodies(op)), key=lambda p: p.bytes, default=Peak(0, (), ""))
        if _shares(op):
            for leaf in dying:
                del live[leaf]
        live |= made
        total = sum(b.bytes for b in live.values()) + inner.bytes
        if total > best.bytes:
            best = Peak(total, (*live.values(), *inner.buffers), inner.at or op.name)
        live = {leaf: b for leaf, b in live.items() if last.get(leaf, at) > at}
    return best


def _made(op: Op, places: Mapping[Leaf, Leaf], given: set[Leaf], space: int) -> dict[Leaf, Buffer]:
    """New buffers of an operation."""
    own = [(op.name, i) for i in range(len(op.shapes)) if places[op.name, i] == (op.name, i)]
    return {
        leaf: Buffer(op, op.shapes[leaf[1]], op.shapes[leaf[1]].stored_bytes)
        for leaf in own
        if leaf not in given and op.shapes[leaf[1]].space == space and op.opcode != "constant"
    }


def _last_uses(ops: tuple[Op, ...], places: Mapping[Leaf, Leaf]) -> dict[Leaf, int]:
    """When each buffer is read last; those of the result, after all."""
    last: dict[Leaf, int] = {}
    for at, op in enumerate(ops):
        # To take one array out of a tuple uses none of the others; its own use is whatever reads it then.
        for operand in () if op.opcode == "get-tuple-element" else op.operands:
            i = 0
            while (operand, i) in places:
                last[places[operand, i]] = at
                i += 1
        if op.is_root:
            last |= {places[op.name, i]: len(ops) for i in range(len(op.shapes))}
    return last


def _bodies(op: Op) -> tuple[str, ...]:
    if op.opcode == "while":
        return (op.body,)
    return op.called if op.opcode in {"conditional", "call"} else ()


def _shares(op: Op) -> bool:
    return op.opcode in _SHARING or (op.opcode == "fusion" and "kind=kLoop" in op.attributes)


def _place(module: Module, table: Mapping[str, Op], op: Op, leaf: int) -> Leaf:
    """The operation that made the buffer in which a leaf lies."""
    while True:
        found = _inside(module, table, op, leaf)
        if found is None:
            return op.name, leaf
        op, leaf = table[found[0]], found[1]


def _inside(module: Module, table: Mapping[str, Op], op: Op, leaf: int) -> Leaf | None:  # noqa: PLR0911 (a table)
    """The leaf of an operand whose buffer a leaf of the result is; None: it is a new one."""
    match op.opcode:
        case "get-tuple-element":
            return op.operands[0], _offset(table[op.operands[0]], op) + leaf
        case "tuple" | "while" | "opt-barrier" | "optimization-barrier":
            return _leaf_of(table, op.operands, leaf)
        case "bitcast" | "copy-done" | "dynamic-update-slice":
            return op.operands[0], 0
        case "fusion":
            return _updated(module, op, leaf)
        case _ if op.opcode.endswith("-done"):
            begun = table[op.operands[0]]
            return begun.name, min(_n_inputs(table, begun) + leaf, len(begun.shapes) - 1)
        case _ if op.opcode.endswith("-start"):
            if op.opcode == "copy-start":
                return (op.operands[0], 0) if leaf == 1 else None
            return _leaf_of(table, op.operands, leaf) if leaf < _n_inputs(table, op) else None
        case _:
            return None


def _n_inputs(table: Mapping[str, Op], begun: Op) -> int:
    """Leaves of an asynchronous operation's result that are its operands."""
    if begun.opcode == "all-reduce-start":
        return 0
    return sum(len(table[name].shapes) for name in begun.operands)


def _leaf_of(table: Mapping[str, Op], operands: tuple[str, ...], leaf: int) -> Leaf:
    for name in operands:
        n = len(table[name].shapes)
        if leaf < n:
            return name, leaf
        leaf -= n
    raise ValueError(f"no leaf {leaf} in {operands}")


def _offset(source: Op, op: Op) -> int:
    """Leaves before an element of a tuple, whose elements may be tuples."""
    index = int(op.attributes.partition("index=")[2].partition(",")[0].split()[0])
    if len(source.elements) == len(source.shapes):
        return index
    return sum(max(1, element.count("[")) for element in source.elements[:index])


def _updated(module: Module, op: Op, leaf: int) -> Leaf | None:
    """A fusion that ends with the update of a slice of an operand writes it in place."""
    table = module.tables[op.called[0]]
    root = next(o for o in table.values() if o.is_root)
    at = table[root.operands[leaf]] if root.opcode == "tuple" else root
    updates = False
    while at.opcode in {"bitcast", "dynamic-update-slice"}:
        updates |= at.opcode == "dynamic-update-slice"
        at = table[at.operands[0]]
    if not updates or at.opcode != "parameter" or int(at.value) >= len(op.operands):
        return None
    return op.operands[int(at.value)], 0
