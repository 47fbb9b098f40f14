"""The optimizer, composed from optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from qianyi.config.schema import Config, ModelConfig
from qianyi.model.param import Tree, decay_mask, map_params
from qianyi.model.transformer import model_params
from qianyi.model.width import rate_multipliers, width_ratio
from qianyi.train.schedule import make_schedule


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW: decoupled decay of matrices, moments in float32. Clipping is the step's, which knows the global norm."""
    o, declared = config.optimizer, model_params(config.model)
    adamw = optax.chain(
        optax.scale_by_adam(o.b1, o.b2, o.eps),
        # Before the decay, which is the same at every width.
        *width_scaling(config.model, declared),
        optax.add_decayed_weights(o.weight_decay, decay_mask(declared)),
        optax.scale_by_learning_rate(make_schedule(config.schedule, o.learning_rate, config.train.steps)),
    )
    moe = config.model.mixture
    return adamw if moe is None or moe.balance == "loss" else _with_balance(adamw, declared, moe.balance_rate)


def width_scaling(m: ModelConfig, declared: Tree) -> list[optax.GradientTransformation]:
    """Learning rates of the parameters at this width, as a stage for optimizers whose step does not grow with the gradient."""
    if width_ratio(m) == 1:
        return []
    rates = rate_multipliers(declared, m)
    return [optax.stateless(lambda updates, _: jax.tree.map(lambda u, rate: u * rate, updates, rates))]


def _with_balance(inner: optax.GradientTransformation, declared: Tree, rate: float) -> optax.GradientTransformation:
    """Biases on the choice of experts go down by `rate` where the load was above the mean, else up (Wang et al. 2024, algorithm 1)."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        steps: Any
        steps, state = inner.update(updates, state, params)
        steps = map_params(lambda p, step, g: -rate * jnp.sign(g) if p.kind == "balance" else step, declared, steps, updates)
        return steps, state

    return optax.GradientTransformation(inner.init, update)
