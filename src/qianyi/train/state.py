"""What training carries from step to step: all of it is in a checkpoint, and nothing else is needed to go on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import Config
from qianyi.config.stages import EMPTY, layer_places
from qianyi.model import param
from qianyi.model.param import Tree
from qianyi.model.transformer import model_params
from qianyi.parallel.rules import make_rules
from qianyi.train import offload
from qianyi.train.optimizer import make_optimizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Parameters, optimizer state and counters; arrays of the whole mesh."""

    step: Array
    """int32: optimizer steps completed. The batch of the next step is a function of it."""
    params: Tree
    opt_state: Any
    rng: Array
    """Raw key data, constant over a run: randomness of step n is drawn from `fold_in(rng, n)`."""


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """A fresh state, drawn shard by shard: no device ever holds more than its part, and values do not depend on the mesh."""
    return jax.jit(lambda: _draw(config), out_shardings=jax.tree.map(lambda a: a.sharding, abstract_state(config, mesh)))()


def abstract_state(config: Config, mesh: Mesh | AbstractMesh) -> TrainState:
    """Shapes, types and shardings of the state, without arrays."""
    drawn = jax.eval_shape(lambda: _draw(config))

    def place(leaf: Any) -> Any:
        spec = P() if leaf.sharding is None else leaf.sharding.spec
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    params = param.abstract(stored_params(config), make_rules(config.layout), mesh, config.train.param_dtype)
    opt_state = jax.tree.map(place, abstract_opt_state(config, mesh))
    if config.train.offload == "optimizer":
        opt_state = offload.placed(opt_state)
    return TrainState(place(drawn.step), params, opt_state, place(drawn.rng))


def abstract_opt_state(config: Config, mesh: Mesh | AbstractMesh) -> Any:
    """Shapes, types and shardings of the optimizer's state: moments lie as gradients do, means over some of their dims as the others.
    Shardings are part of JAX's types, so the optimizer's own initialization says them; a scalar has none."""
    gradients = param.abstract(stored_params(config), make_rules(config.layout, gradients=True), mesh)
    return jax.eval_shape(make_optimizer(config).init, gradients)


def stored_params(config: Config) -> Tree:
    """The declarations, with a place in the stacked blocks for every layer and for those that uneven pipeline stages leave empty."""
    declared, n = model_params(config.model), len(layer_places(config))
    return {**declared, "blocks": param.map_params(lambda p: replace(p, shape=(n, *p.shape[1:])), declared["blocks"])}


def reorder_layers(stacked: Tree | Array, saved: Sequence[int], wanted: Sequence[int], spec: P | None = None) -> Any:
    """Stacked layers from the places of one layout to those of another; empty places are zero. `spec` is how arrays on a mesh lie."""
    rows = jnp.asarray([saved.index(layer) if layer != EMPTY else 0 for layer in wanted])
    live = jnp.asarray([layer != EMPTY for layer in wanted])

    def move(a: Array) -> Array:
        moved = a[rows] if spec is None else a.at[rows].get(out_sharding=spec)
        return jnp.where(live.reshape(-1, *[1] * (a.ndim - 1)), moved, 0)

    return stacked if list(saved) == list(wanted) else jax.tree.map(move, stacked)


def _draw(config: Config) -> TrainState:
    key = jax.random.key(config.train.seed)
    params = param.init(model_params(config.model), jax.random.fold_in(key, 0))
    params["blocks"] = reorder_layers(params["blocks"], range(config.model.n_blocks), layer_places(config))
    dtypes = param.matrix_dtypes(model_params(config.model), config.train.param_dtype)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=jax.tree.map(lambda a, dtype: a.astype(dtype), params, dtypes),
        opt_state=make_optimizer(config).init(params),
        rng=jax.random.key_data(jax.random.fold_in(key, 1)),
    )
