"""The text of a compiled program (HLO), as XLA's compilers for CPU, GPU and TPU print it, in pieces.

A scheduled module prints the operations of a computation in the order in which they run. A loop's body is a computation of its own, which
is printed once, however often it runs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_BEGIN = re.compile(r"^  (?:ROOT )?%?[\w.\-]+ = ")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
HBM, HOST = 0, 5
"""Memory spaces of XLA. A TPU's others are on the chip: vector memory, scalars, semaphores."""


@dataclass(frozen=True)
class Shape:
    """Of one array."""

    dtype: str
    bits: int
    dims: tuple[int, ...]
    layout: str
    """Order of dims from the fastest, tiles and memory space, as printed: `1,0:T(8,128)(2,1)S(1)`."""

    @property
    def elements(self) -> int:
        n = 1
        for d in self.dims:
            n *= d
        return n

    @property
    def bytes(self) -> int:
        """Without padding."""
        return -(-self.elements * self.bits // 8)

    @property
    def space(self) -> int:
        found = _SPACE.search(self.layout)
        return int(found[1]) if found else HBM

    @property
    def stored_bytes(self) -> int:
        """With the padding of its tiles."""
        found = _TILE.search(self.layout)
        order = [int(d) for d in self.layout.partition(":")[0].split(",") if d.strip().isdigit()]
        if found is None or len(order) != len(self.dims):
            return self.bytes
        tile = [int(t) for t in found[1].split(",")]
        dims = [self.dims[d] for d in reversed(order)]
        dims = [1] * (len(tile) - len(dims)) + dims
        n = 1
        for size, t in zip(dims, [1] * (len(dims) - len(tile)) + tile, strict=True):
            n *= -(-size // t) * t
        return -(-n * self.bits // 8)


@dataclass(frozen=True)
class Op:
    """One instruction."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    """What follows the operands: dims, groups, metadata, the backend's configuration."""
    is_root: bool
    value: str
    """Of a constant; the number of a parameter."""

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the result; several of a tuple."""
        return parse_shapes(self.type)

    @cached_property
    def elements(self) -> tuple[str, ...]:
        """Types of the elements of a tuple."""
        parts: list[str] = []
        depth, begin = 0, 1
        for at, c in enumerate(self.type):
            depth += (c in "({[") - (c in ")}]")
            if (c == "," and depth == 1) or (c == ")" and depth == 0):
                parts.append(self.type[begin:at])
                begin = at + 1
        return tuple(parts)

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Computations: a loop's body and condition, the branches of a conditional, what a fusion computes."""
        found = _CALLED.findall(self.attributes)
        return tuple(name.strip(" %") for names in found for name in names.strip("{}").split(","))

    @property
    def body(self) -> str:
        """Of a loop."""
        return self._named("body")

    @property
    def condition(self) -> str:
        """Of a loop."""
        return self._named("condition")

    def _named(self, attribute: str) -> str:
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Where it comes from in the traced program: `jit(train_step)/.../transpose(jvp())/dot_general`."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    @property
    def frame(self) -> int | None:
        found = _FRAME.search(self.attributes)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Module:
    """A compiled program."""

    entry: str
    computations: Mapping[str, tuple[Op, ...]]
    aliases: Mapping[int, int]
    """Elements of the result that are written where arguments were: index of the one -> number of the other."""
    sources: Mapping[int, tuple[tuple[str, int], ...]]
    """By number of a stack frame: (file, line) from the innermost call outwards."""

    def source(self, op: Op, package: str = "qianyi") -> str:
        """`file:line` of the innermost call in a package, or else of the innermost call."""
        lines = self.sources.get(op.frame or -1, ())
        for file, line in lines:
            if f"/{package}/" in file:
                return f"{package}/{file.rpartition(f'/{package}/')[2]}:{line}"
        return f"{lines[0][0].rpartition('/')[2]}:{lines[0][1]}" if lines else ""

    def named(self, op: Op) -> Op:
        """The operation that says where another one comes from: itself, or of a fusion without a name the last one in it that has one."""
        if op.op_name or op.opcode != "fusion":
            return op
        return next((inner for inner in reversed(self.computations[op.called[0]]) if inner.op_name), op)

    @cached_property
    def tables(self) -> dict[str, dict[str, Op]]:
        """Operations by name, of each computation."""
        return {name: {op.name: op for op in ops} for name, ops in self.computations.items()}

    def trip_count(self, loop: Op, caller: str) -> int | None:
        """How often a loop of a computation goes round: from the compiler, or else from its counter; None: unknown."""
        found = _TRIP_COUNT.search(loop.attributes)
        return int(found[1]) if found else _counted(self, loop, caller)


def parse(text: str) -> Module:
    """A module from its text.

    Raises:
        ValueError: no entry computation.
    """
    entry, name, computations = "", "", dict[str, list[Op]]()
    pending: list[str] = []

    def finish() -> None:
        if pending and (op := _parse_op("\n".join(pending))):
            computations[name].append(op)
        pending.clear()

    for line in text.splitlines():
        if _BEGIN.match(line):
            finish()
            pending.append(line)
        elif line.startswith("}") and (not pending or line == "}" or _closes(pending)):
            finish()
        elif header := _HEADER.match(line):
            finish()
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
        elif pending:
            pending.append(line)
    finish()
    if not entry:
        raise ValueError("HLO text without an ENTRY computation")
    return Module(entry, {name: tuple(ops) for name, ops in computations.items()}, _aliases(text), _frames(text))


def _closes(pending: list[str]) -> bool:
    """Whether the brackets of an instruction are balanced, so that a closing one is the computation's."""
    text = "".join(pending)
    return text.count("{") == text.count("}")


def parse_shapes(type_: str) -> tuple[Shape, ...]:
    """Of `f32[2,3]{1,0}`, or of a tuple of such."""
    return tuple(
        Shape(name, 8 if name == "pred" else int(bits), tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), layout)
        for name, bits, dims, layout in _SHAPE.findall(type_)
    )


def _parse_op(text: str) -> Op | None:
    parts = _INSTRUCTION.match(text)
    if not parts:
        return None
    root, name, type_, opcode = parts.groups()
    end = _closing(text, parts.end())
    inside = text[parts.end() : end]
    value = inside if opcode in {"constant", "parameter"} else ""
    return Op(name, type_, opcode, tuple(_NAME.findall(inside)), text[end + 1 :], bool(root), value)


def _closing(text: str, start: int) -> int:
    """Where the bracket before `start` is closed."""
    depth = 1
    for at in range(start, len(text)):
        if text[at] == "(":
            depth += 1
        elif text[at] == ")":
            depth -= 1
            if depth == 0:
                return at
    return len(text)


_INTEGER = re.compile(r"[su]\d+\[\]")
_INDEX = re.compile(r"\bindex=(\d+)")


def _counted(module: Module, loop: Op, caller: str) -> int | None:
    """Programs for TPUs state no trip counts. The limit is the constant of the condition; what the counter starts at and grows by (2 where
    a windowed product is unrolled) are constants of the caller and of the body, 0 and 1 where there are none."""
    limits = {_integer(op) for op in module.computations[loop.condition]} - {None}
    if len(limits) != 1:
        return None
    limit, at = next(iter(limits)) or 0, _counter(module.computations[loop.condition])
    start = _carried(module.tables[caller], module.tables[caller][loop.operands[0]], at)
    body = module.tables[loop.body]
    grown = _carried(body, next(op for op in body.values() if op.is_root), at)
    added = [_integer(body[name]) for name in grown.operands if name in body] if grown and grown.opcode == "add" else []
    step = next((n for n in added if n is not None), 1)
    return max(0, -(-(limit - ((_integer(start) if start else 0) or 0)) // step))


def _counter(condition: tuple[Op, ...]) -> int:
    """Which element of what a loop carries its condition looks at."""
    found = next((_INDEX.search(op.attributes) for op in condition if op.opcode == "get-tuple-element"), None)
    return int(found[1]) if found else 0


def _carried(table: Mapping[str, Op], carried: Op, at: int) -> Op | None:
    """An element of what a loop carries, copies aside."""
    found = table.get(carried.operands[at]) if carried.opcode == "tuple" else None
    while found is not None and found.opcode in {"copy", "bitcast"}:
        found = table.get(found.operands[0])
    return found


def _integer(op: Op) -> int | None:
    """The value of an integer constant."""
    whole = op.opcode == "constant" and _INTEGER.match(op.type) and op.value.lstrip("-").isdigit()
    return int(op.value) if whole else None


def _aliases(text: str) -> dict[int, int]:
    head = text.partition("\n")[0]
    return {int(out): int(argument) for out, argument in re.findall(r"\{(\d+)\}: \((\d+), \{\}", head)}


def _frames(text: str) -> dict[int, tuple[tuple[str, int], ...]]:
    """The tables of stack frames at the head of a module."""
    tables: dict[str, dict[int, str]] = {}
    table = ""
    for line in text.splitlines():
        if line in {"FileNames", "FunctionNames", "FileLocations", "StackFrames"}:
            table = line
            tables[table] = {}
        elif line.startswith(("%", "ENTRY", "  ")):
            break
        elif table and (found := re.match(r"(\d+) (.*)", line)):
            tables[table][int(found[1])] = found[2]
    files = {n: name.strip('"') for n, name in tables.get("FileNames", {}).items()}
    places: dict[int, tuple[str, int]] = {}
    for n, location in tables.get("FileLocations", {}).items():
        file, line = re.search(r"file_name_id=(\d+)", location), re.search(r"\bline=(\d+)", location)
        if file and line:
            places[n] = files.get(int(file[1]), ""), int(line[1])
    return _chains(tables.get("StackFrames", {}), places)


def _chains(frames: Mapping[int, str], places: Mapping[int, tuple[str, int]]) -> dict[int, tuple[tuple[str, int], ...]]:
    chains: dict[int, tuple[tuple[str, int], ...]] = {}
    for n, frame in sorted(frames.items()):
        location, parent = re.search(r"file_location_id=(\d+)", frame), re.search(r"parent_frame_id=(\d+)", frame)
        if location is None:
            continue
        # The number of the caller's frame is printed as one more: 1 is none.
        outer = int(parent[1]) - 1 if parent else 0
        chains[n] = (places.get(int(location[1]), ("", 0)), *chains.get(outer, ()))
    return chains
