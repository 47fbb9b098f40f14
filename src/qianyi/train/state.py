"""What training carries from step to step: all of it is in a checkpoint, and nothing else is needed to go on."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import Config
from qianyi.model import param
from qianyi.model.decoder import decoder_params
from qianyi.model.param import Tree
from qianyi.parallel.rules import make_rules
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


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state, without arrays."""
    params = param.abstract(decoder_params(config.model), make_rules(config.layout), mesh)
    drawn = jax.eval_shape(lambda: _draw(config))
    replicated = NamedSharding(mesh, P())

    def place(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated)

    # Moments lie as their parameters do; everything else is a scalar.
    structure = jax.tree.structure(params)
    opt_state = jax.tree.map(
        lambda part: params if jax.tree.structure(part) == structure else place(part),
        drawn.opt_state,
        is_leaf=lambda part: jax.tree.structure(part) == structure,
    )
    return TrainState(place(drawn.step), params, opt_state, place(drawn.rng))


def _draw(config: Config) -> TrainState:
    key = jax.random.key(config.train.seed)
    params = param.init(decoder_params(config.model), jax.random.fold_in(key, 0))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=make_optimizer(config).init(params),
        rng=jax.random.key_data(jax.random.fold_in(key, 1)),
    )
