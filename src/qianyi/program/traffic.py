"""Bytes that an operation moves between a device's memory and its core."""

from qianyi.program.hlo import HBM, Module, Op

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "opt-barrier",
    "optimization-barrier", "iota",
}  # fmt: skip
"""Operations that move nothing."""


def moved_bytes(module: Module, op: Op, table: dict[str, Op]) -> int:
    """Operands and results in HBM. Of an operand of which only slices are read, the slices; of a result of which one slice is written, the
    slice, read and written."""
    if op.opcode in _FREE:
        return 0
    if op.opcode == "fusion":
        return _of_fusion(module, op, table)
    if op.opcode == "dynamic-slice":
        return 2 * _stored(op)
    if op.opcode == "dynamic-update-slice":
        return 2 * _stored(table[op.operands[1]])
    return _stored(op) + sum(_stored(table[name]) for name in op.operands if name in table)


def _of_fusion(module: Module, op: Op, table: dict[str, Op]) -> int:
    ops = module.computations[op.called[0]]
    inside = module.tables[op.called[0]]
    users: dict[str, list[Op]] = {}
    for user in ops:
        for name in user.operands:
            users.setdefault(name, []).append(user)
    total = 0
    for parameter in ops:
        if parameter.opcode != "parameter" or int(parameter.value) >= len(op.operands):
            continue
        operand = table.get(op.operands[int(parameter.value)])
        if operand is None or not operand.shapes or operand.shapes[0].space != HBM:
            continue
        readers = _readers(parameter, users)
        if readers and all(r.opcode in {"dynamic-slice", "gather"} and _leads(r.operands[0], parameter, inside) for r in readers):
            total += sum(_stored(r) for r in readers)
        elif readers and all(r.opcode == "dynamic-update-slice" and _leads(r.operands[0], parameter, inside) for r in readers):
            total += sum(_stored(inside[r.operands[1]]) for r in readers)
        else:
            total += _stored(operand)
    root = next(o for o in ops if o.is_root)
    ends = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for end, shape in zip(ends, op.shapes, strict=False):
        if shape.space == HBM:
            update = _behind_bitcasts(end, inside)
            total += _stored(inside[update.operands[1]]) if update.opcode == "dynamic-update-slice" else shape.stored_bytes
    return total


def _readers(op: Op, users: dict[str, list[Op]]) -> list[Op]:
    """Operations that use a value, through bitcasts."""
    found: list[Op] = []
    for user in users.get(op.name, []):
        found += _readers(user, users) if user.opcode == "bitcast" else [user]
    return found


def _leads(name: str, parameter: Op, table: dict[str, Op]) -> bool:
    return _behind_bitcasts(table[name], table).name == parameter.name


def _behind_bitcasts(op: Op, table: dict[str, Op]) -> Op:
    while op.opcode == "bitcast":
        op = table[op.operands[0]]
    return op


def _stored(op: Op) -> int:
    return sum(shape.stored_bytes for shape in op.shapes if shape.space == HBM)
