"""Communication inside the manual region (`jax.shard_map` over all axes): each function is one line of the algorithm.

Collectives over axes of size one are left out of the program, so that one device runs exactly the unsharded model.
JAX tracks over which axes a value varies and refuses a program that forgets a reduction.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from qianyi.parallel.mesh import AXES


def _varying(x: Array) -> frozenset[str]:
    """Mesh axes over which the value of `x` differs between devices."""
    return jax.typeof(x).manual_axis_type.varying


def vary(x: Array, axes: Sequence[str] = AXES) -> Array:
    """Let `x` differ between devices along `axes`; the transpose sums the gradient over them."""
    new = tuple(a for a in axes if lax.axis_size(a) > 1 and a not in _varying(x))
    return lax.pcast(x, new, to="varying") if new else x


def sum_over(x: Array, axes: Sequence[str]) -> Array:
    """The sum of `x` over devices along `axes` (over those along which it differs)."""
    live = tuple(a for a in axes if a in _varying(x))
    return lax.psum(x, live) if live else x


def max_over(x: Array, axis: str) -> Array:
    """The maximum of `x` over devices along `axis`."""
    return lax.pmax(x, axis) if axis in _varying(x) else x


def all_gather(x: Array, axis: str, dim: int) -> Array:
    """Concatenate the shards of `dim` along `axis`; the transpose is `reduce_scatter`."""
    return lax.all_gather(vary(x, (axis,)), axis, axis=dim, tiled=True) if lax.axis_size(axis) > 1 else x


def reduce_scatter(x: Array, axis: str, dim: int) -> Array:
    """Sum over devices along `axis` and keep this device's shard of `dim`; the transpose is `all_gather`."""
    return lax.psum_scatter(vary(x, (axis,)), axis, scatter_dimension=dim, tiled=True) if lax.axis_size(axis) > 1 else x


def index_on(axis: str) -> Array | int:
    """This device's position along `axis`."""
    return lax.axis_index(axis) if lax.axis_size(axis) > 1 else 0


def gather_sequence(x: Array) -> Array:
    """[B, T / model, D] -> [B, T, D]: enter a tensor-parallel region (Korthikanti et al. 2022, section 4.2.2)."""
    return all_gather(x, "model", 1)


def scatter_sequence(x: Array) -> Array:
    """[B, T, D] of partial sums -> [B, T / model, D]: leave a tensor-parallel region."""
    return reduce_scatter(x, "model", 1)


def unshard(w: Array, spec: P, dtype: Any) -> Array:
    """A whole weight from its FSDP shards, cast before it travels; its gradient is reduced in float32 and sharded again."""
    from_type = jax.typeof(w)

    def forward(w: Array) -> tuple[Array, None]:
        full = vary(w if dtype is None else w.astype(dtype))
        for dim in _data_dims(spec):
            full = all_gather(full, "data", dim)
        return full, None

    def backward(_: None, gradient: Array) -> tuple[Array]:
        return (reduce_gradient(gradient, spec).astype(from_type.dtype),)

    gather = jax.custom_vjp(lambda w: forward(w)[0])
    # The forward rule communicates in plain sight, where a rematerialization policy sees it.
    gather.defvjp(forward, backward)
    return gather(w)


def reduce_gradient(gradient: Array, spec: P) -> Array:
    """The gradient of a sharded weight from every device's gradient of the whole weight: float32, sharded as `spec`."""
    gradient = gradient.astype(jnp.float32)
    for dim in _data_dims(spec):
        gradient = reduce_scatter(gradient, "data", dim)
    return sum_over(gradient, [a for a in AXES if a not in spec])


def _data_dims(spec: P) -> list[int]:
    return [dim for dim, axis in enumerate(spec) if axis == "data"]
