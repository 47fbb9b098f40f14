"""A parameter is declared once: shape, dims, initializer, kind. Everything else about it is derived here.

A model is a nested dict of `Param`; its arrays, gradients, shardings and masks are nested dicts with the same keys.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qianyi.ops.matmul import HISTORY
from qianyi.parallel.rules import Rules

Tree = dict[str, Any]
"""Nested dict of Param, Array, PartitionSpec ..."""


@dataclass(frozen=True)
class Param:
    """The declaration of one parameter; how it is stored is up to `train.param_dtype`."""

    shape: tuple[int, ...]
    dims: tuple[str, ...]
    """The logical dim of each entry of `shape`: keys of `qianyi.parallel.rules`."""
    std: float = 0.0
    """Initialized from a normal distribution with this standard deviation around `mean`."""
    mean: float = 0.0
    kind: Literal["matrix", "vector", "router", "balance", "amax"] = "matrix"
    """A matrix is cast to the compute type for matmuls and decays; a vector (bias, norm scale) does neither; a router stays in float32
    and decays; a balance is stepped against the load of experts, not by the optimizer; an amax is a history of magnitudes (`with_amax`),
    whose "gradient" is those of the step, combined by maximum instead of sum."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


STACKED_DIMS = ("layers", "whole_layers", "experts")
"""Leading dims along which separate arrays are stacked."""


def own_axes(p: Param) -> tuple[int, ...]:
    """The axes of one layer's (and one expert's) array."""
    return tuple(axis for axis, dim in enumerate(p.dims) if dim not in STACKED_DIMS)


def matrix_axes(p: Param) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The axes of the rows and of the columns of each stacked matrix, heads and their width being one side of it; None for what is no
    matrix."""
    sides = list[tuple[int, ...]]()
    for axis in own_axes(p):
        if p.dims[axis] == "head_dim" and sides:
            sides[-1] += (axis,)
        else:
            sides.append((axis,))
    return (sides[0], sides[1]) if len(sides) == 2 and p.kind in {"matrix", "router"} else None


def is_param(x: object) -> bool:
    return isinstance(x, Param)


def map_params(f: Callable[..., Any], params: Tree, *rest: Tree) -> Tree:
    """Apply `f` to every declaration (and the entries of `rest` under the same keys)."""
    return jax.tree.map(f, params, *rest, is_leaf=is_param)


def stack(params: Tree, n: int, dim: str = "layers") -> Tree:
    """The declarations of n equal layers, stacked along a new leading dim."""
    return map_params(lambda p: replace(p, shape=(n, *p.shape), dims=(dim, *p.dims)), params)


def is_stacked(name: str) -> bool:
    """Is this part of a model a stack of layers?"""
    return name.endswith("blocks")


QUANTIZED_DIMS = {"heads", "kv_heads", "ffn"}
"""One of these is a dim of every matrix whose products may be in 8 bits."""


def with_amax(params: Tree, matmul: str) -> Tree:
    """Where scales are delayed, each matrix whose products are in 8 bits with its history beside it."""
    if matmul != "fp8_delayed":
        return params
    history = Param((3, HISTORY), ("operand", "history"), kind="amax")
    quantized = [name for name, p in params.items() if p.kind == "matrix" and QUANTIZED_DIMS & {*p.dims}]
    return params | {f"{name}_amax": history for name in quantized}


def count(params: Tree) -> int:
    """Number of scalars that are trained."""
    return sum(p.size for p in jax.tree.leaves(params, is_leaf=is_param) if p.kind != "amax")


def combine(params: Tree, total: Tree, more: Tree) -> Tree:
    """Gradients of two microbatches as one, of the type of `total`."""

    def add(p: Param, a: Array, b: Array) -> Array:
        return jnp.maximum(a, b) if p.kind == "amax" else a + b.astype(a.dtype)

    return map_params(add, params, total, more)


def specs(params: Tree, rules: Rules) -> Tree:
    """How each parameter lies on the mesh."""
    return map_params(lambda p: rules.spec(p.dims), params)


def layer_spec(spec: P) -> P:
    """The spec of one layer of a stacked parameter."""
    return P(*spec[1:])


def shardings(params: Tree, rules: Rules, mesh: Mesh) -> Tree:
    return map_params(lambda p: NamedSharding(mesh, rules.spec(p.dims)), params)


def abstract(params: Tree, rules: Rules, mesh: Mesh | AbstractMesh, dtype: str = "float32") -> Tree:
    """Shapes, types (of matrices `dtype`) and shardings without arrays: for compilation and for restoring."""

    def place(p: Param, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(p.shape, dtype, sharding=NamedSharding(mesh, rules.spec(p.dims)))

    return map_params(place, params, matrix_dtypes(params, dtype))


def init(params: Tree, key: Array) -> Tree:
    """Draw every parameter; each has a key of its own, derived from its path, so the values do not depend on the order or
    (JAX's generator being partitionable) on the mesh."""

    def draw(path: tuple[Any, ...], p: Param) -> Array:
        if p.std == 0:
            return jnp.full(p.shape, p.mean, jnp.float32)
        name = "/".join(str(k.key) for k in path)
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return p.mean + p.std * jax.random.normal(own, p.shape, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, params, is_leaf=is_param)


def decay_mask(params: Tree) -> Tree:
    """True where weight decay applies."""
    return map_params(lambda p: p.kind in {"matrix", "router"}, params)


def matrix_dtypes(params: Tree, dtype: str) -> Tree:
    """`dtype` for matrices, float32 for all else: the types in which parameters are computed with, or stored."""
    return map_params(lambda p: jnp.dtype(dtype if p.kind == "matrix" else "float32"), params)
