"""Communication inside the manual region (`jax.shard_map` over all axes): each function is one line of the algorithm.

Collectives over axes of size one are left out of the program, so that one device runs exactly the unsharded model.
JAX tracks over which axes a value varies and refuses a program that forgets a reduction.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from qianyi.parallel.mesh import AXES
from qianyi.parallel.rules import SHARDING_AXES


def _varying(x: Array) -> frozenset[str]:
    """Mesh axes over which the value of `x` differs between devices."""
    return jax.typeof(x).manual_axis_type.varying


def vary(x: Array, axes: Sequence[str] = AXES) -> Array:
    """Let `x` differ between devices along `axes`; the transpose sums the gradient over them."""
    new = tuple(a for a in axes if lax.axis_size(a) > 1 and a not in _varying(x))
    return lax.pcast(x, new, to="varying") if new else x


def vary_as(x: Array, like: Array) -> Array:
    """Let `x` differ between devices that `like` differs between."""
    new = tuple(a for a in AXES if a in _varying(like) - _varying(x))
    return lax.pcast(x, new, to="varying") if new else x


def unchecked(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` without the tracking of what varies, for operations that take no part in it. What `f` computes counts as the same on all devices
    until `vary_as` says otherwise, so a derivative across its border would be summed over devices: `f` has to take its own."""
    in_region = jax.sharding.get_abstract_mesh().manual_axes
    return jax.shard_map(f, in_specs=P(), out_specs=P(), check_vma=False) if in_region else f


def sum_over(x: Array, axes: Sequence[str]) -> Array:
    """The sum of `x` over devices along `axes` (over those along which it differs)."""
    live = tuple(a for a in axes if a in _varying(x))
    return lax.psum(x, live) if live else x


def max_over(x: Array, axes: str | Sequence[str]) -> Array:
    """The maximum of `x` over devices along `axes` (over those along which it differs)."""
    live = tuple(a for a in ((axes,) if isinstance(axes, str) else axes) if a in _varying(x))
    return lax.pmax(x, live) if live else x


def all_gather(x: Array, axes: str | tuple[str, ...], dim: int) -> Array:
    """Concatenate the shards of `dim` along `axes`; the transpose is `reduce_scatter`."""
    axes = _live(axes)
    return lax.all_gather(vary(x, axes), axes, axis=dim, tiled=True) if axes else x


def reduce_scatter(x: Array, axes: str | tuple[str, ...], dim: int) -> Array:
    """Sum over devices along `axes` and keep this device's shard of `dim`; the transpose is `all_gather`."""
    axes = _live(axes)
    return lax.psum_scatter(vary(x, axes), axes, scatter_dimension=dim, tiled=True) if axes else x


def all_to_all(x: Array, axis: str, split_dim: int, concat_dim: int) -> Array:
    """Part i of `split_dim` goes to device i of `axis`; what arrives is concatenated along `concat_dim`."""
    if lax.axis_size(axis) == 1:
        return x
    return lax.all_to_all(vary(x, (axis,)), axis, split_axis=split_dim, concat_axis=concat_dim, tiled=True)


def own_part(x: Array, axis: str, dim: int) -> Array:
    """This device's part, along `axis`, of what all devices have."""
    size = x.shape[dim] // lax.axis_size(axis)
    return lax.dynamic_slice_in_dim(vary(x, (axis,)), index_on(axis) * size, size, dim)


def gather_copies(x: Array, axis: str, dim: int) -> Array:
    """The inverse of `own_part`: the result is known to be the same on all devices."""
    return lax.all_gather(x, axis, axis=dim, tiled=True, to="invarying") if lax.axis_size(axis) > 1 else x


def send(x: Any, axis: str, distance: int) -> Any:
    """Every device gets the arrays of the one `distance` before it on the ring along `axis`."""
    size = lax.axis_size(axis)
    pairs = [(i, (i + distance) % size) for i in range(size)]
    return jax.tree.map(lambda a: lax.ppermute(a, axis, pairs), x)


def _live(axes: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(a for a in ((axes,) if isinstance(axes, str) else axes) if lax.axis_size(a) > 1)


def index_on(axis: str) -> Array | int:
    """This device's position along `axis`."""
    return lax.axis_index(axis) if lax.axis_size(axis) > 1 else 0


def gather_sequence(x: Array) -> Array:
    """[B, T / model, D] -> [B, T, D]: enter a tensor-parallel region (Korthikanti et al. 2022, section 4.2.2)."""
    return all_gather(x, "model", 1)


def scatter_sequence(x: Array) -> Array:
    """[B, T, D] of partial sums -> [B, T / model, D]: leave a tensor-parallel region."""
    return reduce_scatter(x, "model", 1)


def unshard(w: Array, spec: P, dtype: Any, reduce: "Reduce") -> Array:
    """A whole weight from its shards, cast before it travels; its gradient is reduced by `reduce` and sharded again. Where the weights
    differ, as those of pipeline stages do, their gradients are not combined."""
    own = _varying(w)

    def forward(w: Array) -> tuple[Array, None]:
        return whole(w, spec, dtype), None

    def backward(_: None, gradient: Array) -> tuple[Array]:
        return (reduce(gradient, spec, own).astype(w.dtype),)

    gather = jax.custom_vjp(lambda w: forward(w)[0])
    # The forward rule communicates in plain sight, where a rematerialization policy sees it.
    gather.defvjp(forward, backward)
    return gather(w)


def with_own_gradient(w: Array, place: Array, stored: P, reduced: P, dtype: Any, reduce: "Reduce") -> Array:
    """A whole weight from its shards; its gradient goes to `place`, in float32 whatever the type of `w`, and sharded as `reduced` even
    where `w` is not (ZeRO-2)."""

    def forward(w: Array, place: Array) -> tuple[Array, None]:
        return whole(w, stored, dtype), None

    def backward(_: None, gradient: Array) -> tuple[None, Array]:
        return None, reduce(gradient, reduced, ())

    use = jax.custom_vjp(lambda w, place: forward(w, place)[0])
    use.defvjp(forward, backward)
    return use(w, place)


def whole(w: Array, spec: P, dtype: Any) -> Array:
    """A weight from its shards, of a type, and taken to differ between all devices, so that its gradient is each device's own. It travels
    in the narrower of the two types."""
    if w.dtype == jnp.float32 and dtype == jnp.bfloat16:
        # The same as the cast alone, which the TPU compiler would do for a whole stack of layers ahead of the loop over them: a second
        # copy of all weights.
        w = lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7)
    full = vary(w.astype(min(w.dtype, jnp.dtype(dtype), key=lambda t: t.itemsize)))
    for dim, axes in _sharded_dims(spec):
        full = all_gather(full, axes, dim)
    return full.astype(dtype)


def reduce_gradient(gradient: Array, spec: P, own: Collection[str] = (), dtype: Any = jnp.float32) -> Array:
    """The gradient of a sharded weight from every device's gradient of the whole weight: float32, sharded as `spec`, and summed over all
    axes but `own`, on the way in `dtype`."""
    gradient = gradient.astype(dtype)
    for dim, axes in _sharded_dims(spec):
        gradient = reduce_scatter(gradient, axes, dim)
    return sum_over(gradient, [a for a in AXES if a not in axes_of(spec) and a not in own]).astype(jnp.float32)


def reduce_amax(observed: Array, spec: P, own: Collection[str] = ()) -> Array:
    """The largest magnitudes on any device, from each device's: what a history has for a gradient."""
    return max_over(observed, [a for a in AXES if a not in axes_of(spec) and a not in own])


Reduce = Callable[[Array, P, Collection[str]], Array]
"""(a device's gradient, how the whole is sharded, axes along which weights differ) -> the reduced gradient."""


def axes_of(spec: P) -> tuple[str, ...]:
    """Mesh axes along which an array is split."""
    entries = ((entry,) if isinstance(entry, str) else entry or () for entry in spec)
    return tuple(axis for entry in entries for axis in entry)


def _sharded_dims(spec: P) -> list[tuple[int, tuple[str, ...]]]:
    """Dims that ZeRO or FSDP split, with the axes over which."""
    return [(dim, axes) for dim, entry in enumerate(spec) if set(axes := axes_of(P(entry))) & set(SHARDING_AXES)]
