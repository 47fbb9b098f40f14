"""What a compiled program sends: its collectives, with the mesh axes that they cross, their bytes, and how often they run.

Read from the text of the compiled module (HLO). A collective counts as often as the loops around it go round; of a conditional, the branch
that sends most counts, every time.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OTHER_SENDERS = re.compile(r"ragged-all-to-all|collective-broadcast|send|recv")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z0-9\-]*)\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


class Sent(NamedTuple):
    """One collective of the program."""

    kind: str
    result_bytes: int
    groups: tuple[tuple[int, ...], ...]
    """Devices that exchange; of a permute (from, to). Empty: all."""


@dataclass(frozen=True)
class Instruction:
    """A line of HLO that sends or calls."""

    opcode: str
    sent: Sent | None
    called: tuple[str, ...]
    """Computations: a loop's body and condition, the branches of a conditional, what a call computes."""
    trip_count: int | None
    """Of a loop, where the compiler knows it."""


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind over the same axes."""

    kind: str
    axes: str
    """`data`, or `data x context`."""
    count: int
    """How often they run in a step."""
    bytes_per_device: int
    """What a device sends in a step, by the ring algorithms."""


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """What one run of a program sends, most first.

    Args:
        text: of a compiled program, `compiled.as_text()`.
        mesh: its devices.

    Raises:
        ValueError: something is sent that is not understood, or in a loop of unknown length.
    """
    counts, sizes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for sent, times in count_sent(text).items():
        key = sent.kind, _axes(sent, mesh)
        counts[key] += times
        sizes[key] += times * bytes_per_device(sent, mesh.size)
    found = [Collective(kind, axes, counts[kind, axes], sizes[kind, axes]) for kind, axes in counts]
    return sorted(found, key=lambda c: -c.bytes_per_device)


def merge(programs: Iterable[list[Collective]]) -> list[Collective]:
    """What several programs send together, most first."""
    total: dict[tuple[str, str], Collective] = {}
    for c in (c for program in programs for c in program):
        was = total.get((c.kind, c.axes), Collective(c.kind, c.axes, 0, 0))
        total[c.kind, c.axes] = Collective(c.kind, c.axes, was.count + c.count, was.bytes_per_device + c.bytes_per_device)
    return sorted(total.values(), key=lambda c: -c.bytes_per_device)


def count_sent(text: str) -> Counter[Sent]:
    """Every collective of a program and how often it runs."""
    entry, computations = parse(text)

    @cache
    def of_computation(name: str) -> Counter[Sent]:
        return sum((of_instruction(i) for i in computations[name]), Counter[Sent]())

    def of_instruction(i: Instruction) -> Counter[Sent]:
        if i.sent:
            return Counter({i.sent: 1})
        inner = [of_computation(name) for name in i.called]
        if i.opcode == "conditional":
            return max(inner, key=lambda c: sum(sent.result_bytes * n for sent, n in c.items()))
        total = sum(inner, Counter[Sent]())
        if i.opcode == "while" and total:
            if i.trip_count is None:
                raise ValueError(f"a loop of unknown length sends {total}")
            return Counter({sent: n * i.trip_count for sent, n in total.items()})
        return total

    return of_computation(entry)


def parse(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """The name of the entry computation, and of every computation the instructions that send or call."""
    entry, name, computations = "", "", dict[str, list[Instruction]]()
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header.group(2)
            computations[name] = []
            entry = name if header.group(1) else entry
        elif name and (found := _parse_instruction(line)):
            computations[name].append(found)
    if not entry:
        raise ValueError("HLO text without an ENTRY computation")
    return entry, computations


def _parse_instruction(line: str) -> Instruction | None:
    parts = _INSTRUCTION.match(line)
    if not parts:
        return None
    type_, opcode = parts.groups()
    attributes = line[parts.end() :]
    kind = opcode.removesuffix("-start")
    if _OTHER_SENDERS.fullmatch(kind):
        raise ValueError(f"{opcode} is not understood: {line.strip()[:200]}")
    if kind in COLLECTIVES:
        return Instruction(opcode, Sent(kind, _type_bytes(type_), _groups(attributes)), (), None)
    called = tuple(name.strip(" %") for names in _CALLED.findall(attributes) for name in names.strip("{}").split(","))
    trips = _TRIP_COUNT.search(attributes)
    return Instruction(opcode, None, called, int(trips.group(1)) if trips else None) if called else None


def _type_bytes(type_: str) -> int:
    """Bytes of an HLO type, `f32[2,3]{1,0}`, or a tuple of such."""
    total = 0
    for name, bits, dims in _SHAPE.findall(type_):
        elements = int(np.prod([int(d) for d in dims.split(",") if d]))
        total += -(-elements * (8 if name == "pred" else int(bits)) // 8)
    return total


def _groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """From `{{0,1},{2,3}}`, or from `[2,2]<=[2,2]T(1,0)`: so many groups of so many, of a transposed range."""
    if found := _GROUPS.search(attributes):
        return tuple(tuple(int(i) for i in group.split(",")) for group in found.group(1).strip("{}").split("},{"))
    if found := _IOTA.search(attributes):
        n, size, shape, order = found.groups()
        ids = np.arange(int(n) * int(size)).reshape([int(d) for d in shape.split(",")])
        ids = ids.transpose([int(d) for d in order.split(",")]) if order else ids
        return tuple(tuple(int(i) for i in row) for row in ids.reshape(int(n), int(size)))
    return ()


def _axes(sent: Sent, mesh: Mesh) -> str:
    """The axes along which devices of a group differ."""
    if not sent.groups:
        return " x ".join(a for a, n in mesh.shape.items() if n > 1)
    differ: set[int] = set()
    for group in sent.groups:
        places = np.array(np.unravel_index(group, tuple(mesh.shape.values()))).T
        differ |= {i for i in range(places.shape[1]) if len(set(places[:, i])) > 1}
    return " x ".join(mesh.axis_names[i] for i in sorted(differ))


def bytes_per_device(sent: Sent, n_devices: int) -> int:
    """What a device sends, by the ring algorithms, which send the least that is possible."""
    n = len(sent.groups[0]) if sent.groups else n_devices
    match sent.kind:
        case "all-reduce":
            return 2 * (n - 1) * sent.result_bytes // n
        case "reduce-scatter":  # the operand is n times the result
            return (n - 1) * sent.result_bytes
        case "collective-permute":
            return sent.result_bytes
        case _:
            return (n - 1) * sent.result_bytes // n
