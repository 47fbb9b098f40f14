"""What a compiled program sends: its collectives, with the mesh axes that they cross, their bytes, and how often they run."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qianyi.program.hlo import Module, Op, parse, parse_shapes
from qianyi.program.runs import Taken, always, executions

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OTHER_SENDERS = re.compile(r"ragged-all-to-all|collective-broadcast|send|recv")
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_CHAIN, _CHAIN_BEGINS = 'chain_id="', "AsyncCollectiveStart"
_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_OF_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
SLICES = "slices"
Groups = tuple[tuple[int, ...], ...]
IntArray = NDArray[np.int64]


class Sent(NamedTuple):
    """One collective of the program."""

    kind: str
    result_bytes: int
    groups: Groups
    """Devices that exchange; of a permute (from, to). Empty: all."""
    between_slices: bool = False
    """Over the network that joins TPU slices: each device with its counterparts on the others. `result_bytes` is what it hands over."""


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind over the same axes."""

    kind: str
    axes: str
    """`data`, or `data x context`; SLICES: between TPU slices, whatever axis lies there."""
    count: int
    """How often they run in a step."""
    bytes_per_device: int
    """What a device sends in a step, by the ring algorithms."""


def collectives(text: str, sizes: Mapping[str, int], n_slices: int = 1) -> list[Collective]:
    """What one run of a program sends, most first.

    Args:
        text: of a compiled program, `compiled.as_text()`.
        sizes: of the axes of its mesh, in order: `mesh.shape`.
        n_slices: of TPUs, which a network joins.

    Raises:
        ValueError: something is sent that is not understood, or in a loop of unknown length.
    """
    n_devices = int(np.prod(list(sizes.values())))
    counts, total = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for sent, times in count_sent(parse(text)).items():
        key = sent.kind, crossed(sent, sizes)
        counts[key] += times
        total[key] += times * bytes_per_device(sent, n_slices if sent.between_slices else n_devices)
    found = [Collective(kind, axes, counts[kind, axes], total[kind, axes]) for kind, axes in counts]
    return sorted(found, key=lambda c: -c.bytes_per_device)


def merge(programs: Iterable[list[Collective]]) -> list[Collective]:
    """What several programs send together, most first."""
    total: dict[tuple[str, str], Collective] = {}
    for c in (c for program in programs for c in program):
        was = total.get((c.kind, c.axes), Collective(c.kind, c.axes, 0, 0))
        total[c.kind, c.axes] = Collective(c.kind, c.axes, was.count + c.count, was.bytes_per_device + c.bytes_per_device)
    return sorted(total.values(), key=lambda c: -c.bytes_per_device)


def count_sent(module: Module, taken: Taken = always) -> Counter[Sent]:
    """Every collective of a program and how often it runs (`taken`: see `executions`)."""
    counts = defaultdict[Sent, float](float)
    for name, times in executions(module, sent_bytes, taken).items():
        for op in module.computations[name]:
            if (sent := sent_by(op)) and not _goes_on(op, module.computations[name]):
                counts[sent] += times
    return Counter({sent: round(times) for sent, times in counts.items()})


def _goes_on(op: Op, beside: Iterable[Op]) -> bool:
    """Whether it is a further piece of a collective. TPUs gather while fusions compute: the same gather then stands in the fusion that
    begins it, in those that carry it on and in the one that ends it."""
    return _CHAIN in op.attributes and not any(_CHAIN_BEGINS in other.attributes for other in beside)


def sent_by(op: Op) -> Sent | None:
    """The collective that an operation is, or begins.

    Raises:
        ValueError: it sends something that is not understood.
    """
    if between := _BETWEEN_SLICES.search(op.attributes):
        kind = between[1].lower().replace("_", "-")
        return Sent(kind, parse_shapes(op.elements[0])[0].bytes, (), between_slices=True) if op.opcode == "send" else None
    kind, asynchronous = op.opcode.removesuffix("-start"), op.opcode.endswith("-start")
    if _OTHER_SENDERS.fullmatch(kind):
        raise ValueError(f"{op.opcode} is not understood: {op.name}")
    if kind not in COLLECTIVES:
        return None
    # The type of what begins is (operands, results, contexts), but of an all-reduce the results alone.
    shapes = parse_shapes(op.elements[1]) if asynchronous and kind != "all-reduce" else op.shapes
    return Sent(kind, sum(shape.bytes for shape in shapes), parse_groups(op.attributes))


def sent_bytes(op: Op) -> float:
    sent = sent_by(op)
    return float(sent.result_bytes) if sent else 0.0


def parse_groups(attributes: str) -> Groups:
    """From `{{0,1},{2,3}}`; from `[2,2]<=[2,2]T(1,0)`: so many groups of so many, of a transposed range; or from
    `mesh['data'=2,'model'=2] {'data'}`: devices that differ along these axes.

    Raises:
        ValueError: they are written in another way.
    """
    if found := _GROUPS.search(attributes):
        return tuple(tuple(int(i) for i in group.split(",")) for group in found.group(1).strip("{}").split("},{"))
    if found := _IOTA.search(attributes):
        n, size, shape, order = found.groups()
        return _rows(_range(shape, order).reshape(int(n), int(size)))
    if found := _OF_MESH.search(attributes):
        sizes, shape, order, axes = found.groups()
        mesh = {name: int(n) for name, n in _AXIS.findall(sizes)}
        ids = _range(shape or str(np.prod(list(mesh.values()))), order).reshape(list(mesh.values()))
        return _along(mesh, ids, [name.strip(" '") for name in axes.split(",")])
    if "replica_groups=mesh" in attributes:
        raise ValueError(f"groups are not understood: {attributes}")
    return ()


def _range(shape: str, order: str | None) -> IntArray:
    """`[2,3]T(1,0)`: numbers of so many dims, transposed."""
    dims = [int(d) for d in shape.split(",")]
    ids = np.arange(np.prod(dims)).reshape(dims)
    return ids.transpose([int(d) for d in order.split(",")]) if order else ids


def _rows(ids: IntArray) -> Groups:
    return tuple(tuple(int(i) for i in row) for row in ids)


def _along(mesh: Mapping[str, int], ids: IntArray, axes: list[str]) -> Groups:
    """Groups of devices that differ along axes of a mesh."""
    if set(axes) - set(mesh):  # a part of an axis
        raise ValueError(f"groups are not understood: {axes} of {mesh}")
    names = list(mesh)
    order = [names.index(n) for n in [*(n for n in names if n not in axes), *axes]]
    return _rows(ids.transpose(order).reshape(-1, int(np.prod([mesh[n] for n in axes]))))


def crossed(sent: Sent, sizes: Mapping[str, int]) -> str:
    """The axes that a collective crosses, in words."""
    return SLICES if sent.between_slices else axes_of(sent.groups, sizes)


def axes_of(groups: Groups, sizes: Mapping[str, int]) -> str:
    """The axes along which devices of a group differ."""
    names = list(sizes)
    if not groups:
        return " x ".join(a for a in names if sizes[a] > 1)
    places = np.stack(np.unravel_index(np.array(groups), tuple(sizes.values())), axis=-1)
    differ = (places != places[:, :1]).any(axis=(0, 1))
    return " x ".join(name for name, differs in zip(names, differ, strict=True) if differs)


def bytes_per_device(sent: Sent, n_devices: int) -> int:
    """What a device sends, by the ring algorithms, which send the least that is possible. `n_devices`: of a group that names none."""
    n = len(sent.groups[0]) if sent.groups else n_devices
    if sent.between_slices:  # what is handed over is a share of a gather's result, and the whole of a reduction's
        return sent.result_bytes * (n - 1) * (2 if sent.kind == "all-reduce" else 1) // (1 if sent.kind == "all-gather" else n)
    match sent.kind:
        case "all-reduce":
            return 2 * (n - 1) * sent.result_bytes // n
        case "reduce-scatter":  # the operand is n times the result
            return (n - 1) * sent.result_bytes
        case "collective-permute":
            return sent.result_bytes
        case _:
            return (n - 1) * sent.result_bytes // n
