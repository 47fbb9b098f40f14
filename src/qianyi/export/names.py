"""How parameters of ours and tensors of a file become each other, as data: one table per family of models, used in both directions.

A table is made of

Entry      parameters of ours that are one tensor of theirs, and how dims relate: `D H K -> (H K) D` has ours on the left, theirs on the
           right, letters in parentheses flattened together. Where several of ours are one of theirs, `*` on the right counts them:
           `D (* H K)` has one after the other, `(H * K) D` has them by turns, head by head; ours may then differ in the sizes after `*`.
Constant   a tensor of theirs that says nothing
Fixed      a parameter of ours that they lack

What dims cannot say is a `Change` of one parameter: `interleaved`, `skip_rows`, `plus`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qianyi.errors import CheckpointError
from qianyi.model.param import Param, Tree, map_params

Tensor = NDArray[Any]
"""Ours are float32; theirs may be of any floating type."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """Two functions that undo each other, of one array in our dims."""

    to_theirs: Callable[[Tensor], Tensor]
    to_ours: Callable[[Tensor], Tensor]
    their_shape: Callable[[Shape], Shape] = lambda shape: shape


def plus(constant: float) -> Change:
    """Ours is theirs plus a constant (Gemma: scales of norms are stored less one)."""
    return Change(lambda ours: ours - constant, lambda theirs: theirs + constant)


def skip_rows(n: int) -> Change:
    """Theirs has n rows before the first of ours (OPT: positions begin at 2); they are written as zeros."""
    return Change(
        lambda ours: np.concatenate([np.zeros((n, *ours.shape[1:]), ours.dtype), ours]),
        lambda theirs: theirs[n:],
        lambda shape: (shape[0] + n, *shape[1:]),
    )


def interleaved(width: int | None = None) -> Change:
    """Rotary pairs of the last dim: ours are (i, i + K/2), theirs are (2i, 2i + 1) (GGUF's Llama, Cohere, DeepSeek).

    Args:
        width: only the last so many columns carry positions; None: all.
    """

    def turn(columns: Tensor, rows: int) -> Tensor:
        """[..., K] as a matrix [rows, K / rows], transposed."""
        K = columns.shape[-1]
        return columns.reshape(*columns.shape[:-1], rows, K // rows).swapaxes(-1, -2).reshape(columns.shape)

    def change(array: Tensor, rows: Callable[[int], int]) -> Tensor:
        K = width or array.shape[-1]
        kept, turned = array[..., :-K], array[..., -K:]
        return np.concatenate([kept, turn(turned, rows(K))], axis=-1)

    return Change(lambda ours: change(ours, lambda K: 2), lambda theirs: change(theirs, lambda K: K // 2))


SAME = Change(lambda ours: ours, lambda theirs: theirs)


@dataclass(frozen=True)
class Entry:
    """One tensor of theirs, or as many as there are layers and experts where its name has `{layer}` and `{expert}`."""

    theirs: str
    ours: tuple[str, ...]
    """Paths in our tree of parameters."""
    dims: str
    """Of one layer (and expert), after `changes`."""
    changes: tuple[Change, ...] = ()
    """One for each of `ours`; none: as they are."""
    first_layer: int = 0
    """Their number of our layer 0 (of a stack that another precedes)."""

    @property
    def parts(self) -> list[tuple[str, Change]]:
        return list(zip(self.ours, self.changes or (SAME,) * len(self.ours), strict=True))


@dataclass(frozen=True)
class Constant:
    """Written on export; a file that has another value is of another model."""

    theirs: str
    value: Tensor


@dataclass(frozen=True)
class Fixed:
    """This value everywhere, or the model cannot be exported."""

    ours: str
    value: float


Table = tuple[Entry | Constant | Fixed, ...]


def import_params(state: Mapping[str, Tensor], declared: Tree, table: Table, ignored: tuple[str, ...] = ()) -> Tree:
    """Tensors of theirs as our parameters, float32 on the host.

    Args:
        state: may load a tensor when it is asked for; each is asked for once.
        declared: our parameters.
        table: of the family.
        ignored: patterns of names that may be there and say nothing new.

    Raises:
        CheckpointError: a tensor is missing, has another shape than the model, or has no place in it.
    """
    params = map_params(lambda p: np.zeros(p.shape, np.float32), declared)
    used = {row.theirs for row in table if isinstance(row, Constant)}
    for row in table:
        match row:
            case Fixed():
                at(params, row.ours)[...] = row.value
            case Constant():
                if row.theirs in state and not np.array_equal(state[row.theirs], row.value):
                    raise CheckpointError(f"`{row.theirs}` has values that the model here does not compute with")
            case Entry():
                for index, name in _instances(row, declared):
                    used.add(name)
                    _read(state, name, row, params, index)
    _require_all_ours(declared, table)
    unknown = sorted(name for name in state.keys() - used if not any(fnmatchcase(name, pattern) for pattern in ignored))
    if unknown:
        raise CheckpointError(
            f"the weights have {len(unknown)} tensors that this model has no place for: {', '.join(unknown[:3])}"
            + (" ..." if len(unknown) > 3 else "")
        )
    return params


def export_params(params: Tree, declared: Tree, table: Table) -> Iterator[tuple[str, Tensor]]:
    """Our parameters, whole and on the host, as names and tensors of theirs, one after the other.

    Raises:
        CheckpointError: a parameter that they lack says something.
    """
    _require_all_ours(declared, table)
    for row in table:
        if isinstance(row, Constant):
            yield row.theirs, row.value
        elif isinstance(row, Fixed):
            if not np.all(np.asarray(at(params, row.ours)) == row.value):
                raise CheckpointError(f"parameter {row.ours} is not {row.value} everywhere, and the file has no place for it")
        else:
            for index, name in _instances(row, declared):
                parts = [change.to_theirs(np.asarray(at(params, path)[index])) for path, change in row.parts]
                yield name, _Dims(row.dims).join(parts)


def at(tree: Any, path: str) -> Any:
    """The leaf at a path such as `blocks/attn/query`."""
    for part in path.split("/"):
        tree = tree[part]
    return tree


def _instances(entry: Entry, declared: Tree) -> Iterator[tuple[tuple[int, ...], str]]:
    """(index in our stacked parameter, their name), over layers and experts."""
    stacked = [dim for dim in ("layer", "expert") if f"{{{dim}}}" in entry.theirs]
    for index in np.ndindex(*at(declared, entry.ours[0]).shape[: len(stacked)]):
        numbers = dict(zip(stacked, index, strict=True))
        if "layer" in numbers:
            numbers["layer"] += entry.first_layer
        yield index, entry.theirs.format(**numbers)


def _read(state: Mapping[str, Tensor], name: str, entry: Entry, params: Tree, index: tuple[int, ...]) -> None:
    """One tensor of theirs into its places."""
    dims = _Dims(entry.dims)
    shapes = [change.their_shape(at(params, path)[index].shape) for path, change in entry.parts]
    if name not in state:
        raise CheckpointError(f"`{name}` is missing in the weights")
    tensor = state[name]
    if tensor.shape != dims.joined_shape(shapes):
        raise CheckpointError(f"`{name}` has shape {tensor.shape}, the model needs {dims.joined_shape(shapes)}")
    for (path, change), part in zip(entry.parts, dims.split(tensor, shapes), strict=True):
        at(params, path)[index] = change.to_ours(part)


def _require_all_ours(declared: Tree, table: Table) -> None:
    """A table is written by hand: no parameter of the model may be forgotten in it."""
    named = {path for row in table if isinstance(row, Entry) for path in row.ours}
    named |= {row.ours for row in table if isinstance(row, Fixed)}
    missing = sorted(_paths(declared) - named)
    if missing:
        raise CheckpointError(f"the table of names of this family has no row for {', '.join(missing)}")


def _paths(tree: Tree, prefix: str = "") -> set[str]:
    paths: set[str] = set()
    for name, node in tree.items():
        if not isinstance(node, Param):
            paths |= _paths(node, f"{prefix}{name}/")
        elif node.kind != "amax":  # a history of training is not of the model
            paths.add(prefix + name)
    return paths


class _Dims:
    """`D H K -> (H * K) D`, parsed: arrays with dims D H K, to and from one with dims (H * K) D."""

    def __init__(self, dims: str):
        left, right = dims.split(" -> ")
        self.ours = left.split()
        self.theirs: list[list[str]] = []
        """Letters of each of their dims, without `*`."""
        self.axis, self.before = 0, 0
        """The dim that has `*`, and how many of its letters stand before it; the first, where there is none."""
        for dim, group in enumerate(_groups(right)):
            if "*" in group:
                self.axis, self.before = dim, group.index("*")
            self.theirs.append([letter for letter in group if letter != "*"])

    def join(self, parts: list[Tensor]) -> Tensor:
        """Arrays in our dims as one in theirs."""
        order = [self.ours.index(letter) for group in self.theirs for letter in group]
        apart = [part.transpose(order).reshape(self._with_star(part.shape)) for part in parts]
        whole = np.concatenate(apart, axis=self.axis + 1) if len(apart) > 1 else apart[0]
        return np.ascontiguousarray(whole.reshape(self.joined_shape([part.shape for part in parts])))

    def split(self, whole: Tensor, shapes: list[Shape]) -> list[Tensor]:
        """An array in their dims as those in ours, of these shapes."""
        widths = [self._with_star(shape)[self.axis + 1] for shape in shapes]
        turns = self._with_star(shapes[0])[self.axis]
        by_turns = whole.reshape(*whole.shape[: self.axis], turns, -1, *whole.shape[self.axis + 1 :])
        apart = np.split(by_turns, [int(stop) for stop in np.cumsum(widths)[:-1]], axis=self.axis + 1)
        letters = [letter for group in self.theirs for letter in group]
        order = [letters.index(letter) for letter in self.ours]
        return [
            part.reshape([shape[self.ours.index(letter)] for letter in letters]).transpose(order)
            for part, shape in zip(apart, shapes, strict=True)
        ]

    def joined_shape(self, shapes: list[Shape]) -> Shape:
        """Their shape of parameters of ours."""
        apart = [self._with_star(shape) for shape in shapes]
        width = sum(shape[self.axis + 1] for shape in apart)
        first = apart[0]
        return (*first[: self.axis], first[self.axis] * width, *first[self.axis + 2 :])

    def _with_star(self, shape: Shape) -> Shape:
        """Their dims of one of ours, with the dim that has `*` cut in two: before and after it."""
        sizes = [[shape[self.ours.index(letter)] for letter in group] for group in self.theirs]
        starred = sizes[self.axis]
        cut = [math.prod(starred[: self.before]), math.prod(starred[self.before :])]
        return (*map(math.prod, sizes[: self.axis]), *cut, *map(math.prod, sizes[self.axis + 1 :]))


def _groups(right: str) -> Iterator[list[str]]:
    """`D (H K)` as [D], [H, K]."""
    group: list[str] | None = None
    for word in right.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            group = []
        elif word == ")":
            assert group is not None
            yield group
            group = None
        elif group is None:
            yield [word]
        else:
            group.append(word)
