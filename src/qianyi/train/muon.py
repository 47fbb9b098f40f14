"""Muon's orthogonal updates (Jordan et al. 2024), spread over the mesh.

Every matrix of every layer (and expert) is orthogonalized by itself. Whole layers go to devices as far as their number allows; over axes
that are left, each matrix is split along one side:

    X: S x k, split along S    A = X'X, k x k: partial sums, reduced and scattered    A*A and p(A) by rows of A, gathered    X p(A): local

so that all devices but replicas share the work, and none holds more than its part of X and a few k x k matrices.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from qianyi.model.param import Param, Tree, matrix_axes
from qianyi.parallel.collectives import axes_of
from qianyi.train.transforms import stateless

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial that raises all singular values to about one (Jordan et al. 2024)."""
UPDATE_RMS = 0.2
"""Root mean square of an update, about that of AdamW's, so that one learning rate serves both (Liu et al. 2025, section 2.2)."""
EPS = 1e-7
"""Added to the norm of a matrix, which may be zero."""


@dataclass(frozen=True)
class Spread:
    """Where the matrices of a parameter are while they are orthogonalized."""

    stack: tuple[tuple[str, ...], ...]
    """Mesh axes of each stacked dim."""
    along: tuple[str, ...]
    """Mesh axes that split each matrix."""
    split: tuple[int, ...]
    """Array axes of the side that is split, the first of them over `along`."""
    whole: tuple[int, ...]
    """Array axes of the other side."""


def is_orthogonalized(p: Param) -> bool:
    """Muon is for matrices of layers; embeddings, the head, routers and vectors are not such maps between hidden states."""
    return "layers" in p.dims and p.kind == "matrix" and matrix_axes(p) is not None


def orthogonalize(declared: Tree, steps: int) -> optax.GradientTransformation:
    """Replace the update of each matrix, U S V', by about UPDATE_RMS * sqrt(larger side) * U V'. Masked updates stay."""

    def each(p: Param, u: Any, _: Any) -> Any:
        return u if isinstance(u, optax.MaskedNode) else _orthogonal(p, u, steps)

    return stateless(declared, each)


def _orthogonal(p: Param, update: Array, steps: int) -> Array:
    sharding = jax.typeof(update).sharding
    s = plan(p, update.shape, sharding.spec, sharding.mesh.shape)
    n_stacked = len(s.stack)
    spec: list[Any] = [*(axes or None for axes in s.stack), *[None] * (update.ndim - n_stacked)]
    spec[s.split[0]] = s.along or None
    x = jax.reshard(update, P(*spec)) if sharding.mesh.shape else update
    sizes = [math.prod(update.shape[a] for a in side) for side in (s.split, s.whole)]
    flipped = s.split > s.whole  # [..., columns, rows] from here on, where the columns are split
    x = x.reshape(*x.shape[:n_stacked], *(reversed(sizes) if flipped else sizes))
    x = jnp.swapaxes(x, -1, -2) if flipped else x
    x = UPDATE_RMS * math.sqrt(max(sizes)) * newton_schulz(x, steps, s)
    x = (jnp.swapaxes(x, -1, -2) if flipped else x).reshape(update.shape)
    return jax.reshard(x, sharding.spec) if sharding.mesh.shape else x


def plan(p: Param, shape: tuple[int, ...], spec: P, mesh: Mapping[str, int]) -> Spread:
    """Spread the matrices over all axes but `replica`, whose links are slow. Layers, then experts, go over axes that divide their number,
    the largest first; one side of each matrix over the rest: that which holds more devices, or else the longer, which makes X'X small."""
    sides = matrix_axes(p)
    assert sides is not None
    n_stacked = min(sides[0] + sides[1])
    stack = [axes_of(P(entry)) for entry in (*spec, *[None] * n_stacked)[:n_stacked]]
    left = [axis for axis, size in mesh.items() if size > 1 and axis != "replica" and axis not in sum(stack, ())]
    for axis in sorted(left, key=lambda axis: -mesh[axis]):
        for i, axes in enumerate(stack):
            if shape[i] % (mesh[axis] * _devices(axes, mesh)) == 0:
                stack[i] = (*axes, axis)
                left.remove(axis)
                break

    def splits(side: tuple[int, ...]) -> tuple[str, ...]:
        taken = tuple[str, ...]()
        for axis in left:
            if shape[side[0]] % (mesh[axis] * _devices(taken, mesh)) == 0:
                taken += (axis,)
        return taken

    def size(side: tuple[int, ...]) -> tuple[int, int]:
        return _devices(splits(side), mesh), math.prod(shape[axis] for axis in side)

    split, whole = sides if size(sides[0]) >= size(sides[1]) else sides[::-1]
    return Spread(tuple(stack), splits(split), split, whole)


def newton_schulz(x: Array, steps: int, s: Spread) -> Array:
    """Matrices [..., S, k], S over `s.along` -> about U V' of each U S V': x (a + b x'x + c (x'x)^2), repeated."""
    a, b, c = COEFFICIENTS
    mesh = jax.typeof(x).sharding.mesh.shape
    stack: list[Any] = [axes or None for axes in s.stack]
    rows: Any = s.along if s.along and x.shape[-1] % _devices(s.along, mesh) == 0 else None

    def product(equation: str, left: Array, right: Array, first: Any) -> Array:
        return jnp.einsum(equation, left, right, out_sharding=P(*stack, first, None) if mesh else None)

    def whole(m: Array) -> Array:
        return jax.reshard(m, P(*stack, None, None)) if mesh else m

    def step(_: int, x: Array) -> Array:
        squares = product("...sk,...sl->...kl", x, x, rows)
        polynomial = b * squares + c * product("...kl,...lm->...km", squares, whole(squares), rows)
        return a * x + product("...sk,...kl->...sl", x, whole(polynomial), s.along or None)

    x = x / (jnp.sqrt(jnp.sum(x * x, (-2, -1), keepdims=True)) + EPS)
    return lax.fori_loop(0, steps, step, x)


def _devices(axes: tuple[str, ...], mesh: Mapping[str, int]) -> int:
    return math.prod(mesh[axis] for axis in axes)
