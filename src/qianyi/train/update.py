"""From gradients to the next state: clipping, the optimizer, and how the result is stored."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import Config
from qianyi.config.stages import layer_places
from qianyi.model.param import Param, Tree, is_param, map_params, matrix_dtypes
from qianyi.model.transformer import model_params
from qianyi.ops.matmul import next_history
from qianyi.train.offload import fetch, leaf_by_leaf, put_back
from qianyi.train.optimizer import make_optimizer
from qianyi.train.state import TrainState
from qianyi.train.weights import gradient_specs, param_specs


def make_update(config: Config) -> Callable[[TrainState, Tree, Array], TrainState]:
    """(state, gradients, their norm) -> the state after a step."""
    optimizer, declared = make_optimizer(config), model_params(config.model)
    stored, reduced = param_specs(config), gradient_specs(config)

    def update(state: TrainState, gradients: Tree, norm: Array) -> TrainState:
        scale = 1.0 if config.optimizer.clip_norm is None else jnp.minimum(1, config.optimizer.clip_norm / norm)
        clipped = map_params(lambda p, g: jnp.zeros_like(g) if p.kind == "amax" else g * scale, declared, gradients)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

        def step(params: Tree, opt_state: Any) -> tuple[Tree, Any]:
            # Under ZeRO-1 and 2 each device updates the shard whose gradient it has, and the new shards are gathered.
            shards: Any = jax.tree.map(lambda w, spec: jax.reshard(w, spec).astype(jnp.float32), params, reduced)
            updates, new_state = optimizer.update(clipped, fetch(opt_state), shards)
            new: Any = optax.apply_updates(shards, updates)
            new = _in_stored_types(map_params(_remember, declared, new, gradients), key, config)
            return jax.tree.map(jax.reshard, new, stored), put_back(new_state, opt_state)

        params, opt_state = leaf_by_leaf(step, state.params, state.opt_state)
        return TrainState(state.step + 1, params, opt_state, state.rng)

    return update


def round_stochastically(a: Array, dither: Array) -> Array:
    """float32 to one of the two bfloat16 around it, the nearer one the likelier: the mean over `dither`, uniform in uint16, is `a`."""
    word = lax.bitcast_convert_type(a, jnp.uint32) + dither.astype(jnp.uint32)
    return lax.bitcast_convert_type((word >> 16).astype(jnp.uint16), jnp.bfloat16)


def _remember(p: Param, new: Array, gradient: Array) -> Array:
    """Magnitudes of this step go into their history, of which the optimizer knows nothing."""
    return next_history(new, gradient) if p.kind == "amax" else new


def _in_stored_types(params: Tree, key: Array, config: Config) -> Tree:
    """float32 parameters as they are stored. What is rounded has a key of its own, from its path and layer, so that it does not depend on
    the layout."""
    declared = model_params(config.model)

    def store(path: Any, p: Param, dtype: Any, spec: P, a: Array) -> Array:
        if dtype == jnp.float32:
            return a
        own = jax.random.fold_in(key, zlib.crc32("/".join(str(k.key) for k in path).encode()))
        return round_stochastically(a, _dither(own, a.shape, spec, layer_places(config) if p.dims[0] == "layers" else None))

    dtypes = matrix_dtypes(declared, config.train.param_dtype)
    return jax.tree_util.tree_map_with_path(store, declared, dtypes, gradient_specs(config), params, is_leaf=is_param)


def _dither(key: Array, shape: tuple[int, ...], spec: P, layers: Any) -> Array:
    """uint16, each device drawing its part. `layers` are the layers of a stack, by their places."""
    if layers is None:
        return jax.random.bits(key, shape, "uint16", out_sharding=spec)
    own = jax.vmap(lambda layer: jax.random.key_data(jax.random.fold_in(key, layer)))(jnp.maximum(jnp.asarray(layers), 0))

    def draw(raw: Array) -> Array:
        return jax.random.bits(jax.random.wrap_key_data(raw), shape[1:], "uint16", out_sharding=P(*spec[1:]))

    return jax.vmap(draw)(jax.reshard(own, P(spec[0])))
