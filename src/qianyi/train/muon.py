"""Muon's orthogonal updates (Jordan et al. 2024), spread over the mesh.

Every matrix of every layer (and expert) is orthogonalized by itself, in a manual region. Whole layers go to devices as far as their number
allows, by all-to-all; over axes that are left, each matrix is split along one side:

    X: S x k, split along S    A = X'X: partial sums, reduced and scattered    p(A) by rows of A, gathered    X p(A): local

so that all devices but replicas share the work, and none holds more than its part of X and a few k x k matrices. Rows and columns may
change places on the way, which orthogonalization does not mind: they change back.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from qianyi.model.param import Param, Tree, matrix_axes
from qianyi.parallel.collectives import all_gather, all_to_all, axes_of, gather_copies, own_part, reduce_scatter, sum_over
from qianyi.train.transforms import stateless

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial that raises all singular values to about one (Jordan et al. 2024)."""
UPDATE_RMS = 0.2
"""Root mean square of an update, about that of AdamW's, so that one learning rate serves both (Liu et al. 2025, section 2.2)."""
EPS = 1e-7
"""Added to the norm of a matrix, which may be zero."""


@dataclass(frozen=True)
class Move:
    """What an axis splits, before and while matrices are orthogonalized."""

    axis: str
    source: int | None
    """The array axis that it splits; None: every device has all of it."""
    target: int | None

    def go(self, x: Array) -> Array:
        return _move(x, self.axis, self.source, self.target)

    def back(self, x: Array) -> Array:
        if self.source is None and self.target is not None:
            return gather_copies(x, self.axis, self.target)
        return _move(x, self.axis, self.target, self.source)


def _move(x: Array, axis: str, source: int | None, target: int | None) -> Array:
    if source is None:
        assert target is not None
        return own_part(x, axis, target)
    return all_gather(x, axis, source) if target is None else all_to_all(x, axis, target, source)


@dataclass
class Plan:
    """How the matrices of a parameter are spread over devices."""

    mesh: Mapping[str, int]
    shape: list[int]
    """Of a device's part, after the moves."""
    split: tuple[int, ...]
    """Array axes of the side of a matrix that may be split."""
    whole: tuple[int, ...]
    """Array axes of the other side."""
    moves: list[Move] = field(default_factory=list[Move])
    along: tuple[str, ...] = ()
    """Mesh axes that split each matrix."""
    moved_bytes: float = 0
    """What a device sends for the moves, there and back."""

    def move(self, axis: str, source: int | None, targets: tuple[int, ...]) -> bool:
        """Move a mesh axis to the first target that it divides."""
        target = next((t for t in targets if self.shape[t] % self.mesh[axis] == 0), None)
        if target is not None:
            self.shape[target] //= self.mesh[axis]
            self._leave(axis, source, target)
        return target is not None

    def gather(self, axis: str, source: int) -> None:
        """Every device gets what was split over a mesh axis."""
        self._leave(axis, source, None)

    def _leave(self, axis: str, source: int | None, target: int | None) -> None:
        self.moves.append(Move(axis, source, target))
        size = self.mesh[axis]
        if source is not None:
            self.shape[source] *= size
        # By all-to-all there and back, or by gathering what is split on one of these ways alone.
        times = 2 if None not in {source, target} else 1 if target is None else size
        self.moved_bytes += times * 4 * math.prod(self.shape) * (size - 1) / size

    def bytes_sent(self, steps: int) -> int:
        """By a device, in an update, by the ring algorithms."""
        n, _, k, devices = self._sizes()
        times = 3 if k % devices == 0 else 2  # scattered, gathered, gathered; or an all-reduce
        return round(self.moved_bytes + steps * times * 4 * n * k**2 * (devices - 1) / devices)

    def multiplications(self) -> int:
        """Of a device, in an iteration."""
        n, s, k, devices = self._sizes()
        return n * (2 * s * k**2 + k**3 // (devices if k % devices == 0 else 1))

    def _sizes(self) -> tuple[int, int, int, int]:
        """Matrices of a device, their sides, and the devices that split one."""
        n, s, k = (
            math.prod(self.shape[a] for a in axes) for axes in (range(min(self.split + self.whole)), self.split, self.whole)
        )
        return n, s, k, math.prod(self.mesh[axis] for axis in self.along)


def is_orthogonalized(p: Param) -> bool:
    """Muon is for matrices of layers; embeddings, the head, routers and vectors are not such maps between hidden states."""
    return p.dims[0] in {"layers", "whole_layers"} and p.kind == "matrix" and matrix_axes(p) is not None


def orthogonalize(declared: Tree, steps: int) -> optax.GradientTransformation:
    """Replace the update of each matrix, U S V', by about UPDATE_RMS * sqrt(longer side) * U V'. Masked updates stay."""

    def each(p: Param, u: Any, _: Any) -> Any:
        return u if isinstance(u, optax.MaskedNode) else _orthogonal(p, u, steps)

    return stateless(declared, each)


def _orthogonal(p: Param, update: Array, steps: int) -> Array:
    sharding = jax.typeof(update).sharding
    spec, sizes = sharding.spec, dict(sharding.mesh.shape)
    sides = matrix_axes(p)
    assert sides is not None
    scale = UPDATE_RMS * math.sqrt(max(math.prod(update.shape[a] for a in side) for side in sides))

    def on_device(x: Array) -> Array:
        s = plan(p, x.shape, spec, sizes)
        for move in s.moves:
            x = move.go(x)
        first, second = sorted((s.split, s.whole))
        matrices = x.reshape(*x.shape[: first[0]], -1, math.prod(x.shape[a] for a in second))
        if s.split == first:
            matrices = newton_schulz(matrices, steps, s.along)
        else:
            matrices = jnp.swapaxes(newton_schulz(jnp.swapaxes(matrices, -1, -2), steps, s.along), -1, -2)
        x = scale * matrices.reshape(x.shape)
        for move in reversed(s.moves):
            x = move.back(x)
        return x

    return jax.shard_map(on_device, in_specs=spec, out_specs=spec)(update)


def plan(p: Param, shape: tuple[int, ...], spec: P, mesh: Mapping[str, int]) -> Plan:
    """Spread matrices over all axes but `replica`, whose links are slow.

    Layers, then experts, go over axes that divide their number, the largest first. One side of each matrix is split over the
    rest: that with which a device has less to do. An axis that nothing divides repeats the work of others.

    Args:
        shape: of a device's part.
        spec: how the whole lies on the mesh.
        mesh: sizes of its axes.
    """
    sides = matrix_axes(p)
    assert sides is not None
    plans = [_plan(Plan(mesh, list(shape), split, whole), spec) for split, whole in (sides, sides[::-1])]
    return min(plans, key=lambda plan: (plan.multiplications(), len(plan.moves)))


def _plan(result: Plan, spec: P) -> Plan:
    stack, mesh = tuple(range(min(result.split + result.whole))), result.mesh
    splits: dict[str, int] = {axis: dim for dim, entry in enumerate(spec) for axis in axes_of(P(entry))}
    live = [axis for axis, size in mesh.items() if size > 1 and axis != "replica" and splits.get(axis) not in stack]
    left = [axis for axis in sorted(live, key=lambda a: -mesh[a]) if not result.move(axis, splits.get(axis), stack)]
    for axis in left:
        source = splits.get(axis)
        if source in result.split or result.move(axis, source, result.split):
            result.along += (axis,)
        elif source is not None:
            result.gather(axis, source)
    return result


def newton_schulz(x: Array, steps: int, along: tuple[str, ...]) -> Array:
    """Matrices [..., S, k], S split over axes `along` -> about U V' of each U S V': X (a + b X'X + c (X'X)^2), repeated."""
    a, b, c = COEFFICIENTS
    dim = x.ndim - 2
    shared = x.shape[-1] % math.prod(lax.axis_size(axis) for axis in along) == 0

    def step(_: int, x: Array) -> Array:
        products = jnp.swapaxes(x, -1, -2) @ x
        rows = reduce_scatter(products, along, dim) if shared else sum_over(products, along)
        squares = all_gather(rows, along, dim) if shared else rows
        polynomial = b * rows + c * rows @ squares
        return a * x + x @ (all_gather(polynomial, along, dim) if shared else polynomial)

    x = x / (jnp.sqrt(sum_over(jnp.sum(x * x, (-2, -1), keepdims=True), along)) + EPS)
    return lax.fori_loop(0, steps, step, x)
