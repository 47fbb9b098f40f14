"""Weights and their gradients inside the step: where they lie, when they are made whole, when gradients are reduced."""

import math
from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import Config
from qianyi.model.param import Param, Tree, is_stacked, layer_spec, map_params, matrix_dtypes, specs
from qianyi.model.stack import Gather
from qianyi.model.transformer import model_params
from qianyi.parallel.collectives import Reduce, axes_of, reduce_amax, reduce_gradient, unshard, whole, with_own_gradient
from qianyi.parallel.rules import make_rules


class Separate(NamedTuple):
    """A weight, and the place of its gradient where that has another sharding (ZeRO-2) or type (bfloat16 parameters) than the weight."""

    weight: Array
    gradient: Array


def param_specs(config: Config) -> Tree:
    """How parameters lie on the mesh."""
    return specs(model_params(config.model), make_rules(config.layout))


def gradient_specs(config: Config) -> Tree:
    """How gradients and optimizer state lie on the mesh."""
    return specs(model_params(config.model), make_rules(config.layout, gradients=True))


def late_parts(config: Config) -> set[str]:
    """Parts of the model that are made whole before the first microbatch and whose gradients are reduced after the last; for the others
    both happen where they are used. What all stages of a pipeline share is late always: a sum over stages has no place in a branch."""
    layout, parts = config.layout, set(model_params(config.model))
    if layout.zero != 2 and config.gathers_once:
        return parts
    return parts - {"blocks"} if layout.stage > 1 else set()


def late_gradients(config: Config) -> set[str]:
    """Parts whose gradients are reduced after the last microbatch; the gradient noise scale needs those of each."""
    return set() if config.train.noise_scale else late_parts(config)


def separates_gradients(config: Config) -> bool:
    """Gradients reduced where weights are used go to places of their own."""
    separate = config.layout.zero == 2 or config.train.param_dtype != "float32"
    return separate and not late_parts(config)


def take_whole(name: str, part: Tree, config: Config) -> Tree:
    """A part of the model, whole and in the type of computation."""
    return jax.tree.map(whole, part, param_specs(config)[name], _dtypes(config)[name])


def make_gather(config: Config, already: Collection[str] = ()) -> Gather:
    """Makes a part of the model whole where it is used (of stacked ones, one layer), except those that are `already`."""
    declared, dtypes = model_params(config.model), _dtypes(config)
    stored, reduced = param_specs(config), gradient_specs(config)

    def use(p: Param, dtype: Any, at: P, to: P, w: Array | Separate) -> Array:
        if isinstance(w, Separate):
            return with_own_gradient(*w, at, to, dtype, reducer(p, config))
        return unshard(w, at, dtype, reducer(p, config))

    def gather(name: str, part: Tree) -> Tree:
        if name in already:
            return part
        at, to = (jax.tree.map(layer_spec, s[name]) if is_stacked(name) else s[name] for s in (stored, reduced))
        return map_params(use, declared[name], dtypes[name], at, to, part)

    return gather


def reduce_part(name: str, gradients: Tree, config: Config) -> Tree:
    """Each device's own gradients of a part of the model, reduced and sharded."""
    declared, to = model_params(config.model)[name], gradient_specs(config)[name]
    return map_params(lambda p, g, spec: reducer(p, config)(g, spec, ()), declared, gradients, to)


def reducer(p: Param, config: Config) -> Reduce:
    """How devices' gradients of a parameter become one."""
    if p.kind == "amax":
        return reduce_amax
    return partial(reduce_gradient, dtype=config.train.reduce_dtype if p.kind == "matrix" else "float32")


def shard_shape(p: Param, spec: P) -> tuple[int, ...]:
    """The shape of a device's part of an array that lies as `spec` says."""
    entries = [*spec, *[None] * (len(p.shape) - len(spec))]
    return tuple(size // math.prod(lax.axis_size(a) for a in axes_of(P(e))) for size, e in zip(p.shape, entries, strict=True))


def _dtypes(config: Config) -> Tree:
    return matrix_dtypes(model_params(config.model), config.model.dtype)
