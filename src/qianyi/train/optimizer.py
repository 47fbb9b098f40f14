"""The optimizer, composed from optax and from what stacked parameters need: arrays hold all layers (and experts), and what a method says of
a matrix is done for each of them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from qianyi.config.optimizer import OptimizerConfig
from qianyi.config.schema import Config
from qianyi.model.param import Tree, decay_mask, map_params
from qianyi.model.transformer import model_params
from qianyi.model.width import rate_multipliers, width_ratio
from qianyi.train.factored import scale_by_factored_rms
from qianyi.train.muon import is_orthogonalized, orthogonalize
from qianyi.train.schedule import learning_rate
from qianyi.train.transforms import clip_by_rms, scale_by_parameter_rms, scale_by_trust_ratio


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """The method of `optimizer.kind`; its state is float32 and lies as gradients do. Clipping is the step's, which knows the norm."""
    declared = model_params(config.model)
    optimizer = _composed(config, declared)
    moe = config.model.mixture
    return optimizer if moe is None or moe.balance == "loss" else _with_balance(optimizer, declared, moe.balance_rate)


def _composed(config: Config, declared: Tree) -> optax.GradientTransformation:
    o, rate = config.optimizer, learning_rate(config)
    step = optax.scale_by_learning_rate(rate)
    strength: Any = o.weight_decay if o.decay_power == 1 else lambda n: o.weight_decay * rate(n)
    decay = optax.add_decayed_weights(strength, decay_mask(declared))
    match o.kind:
        case "lars":  # the learning rate is in the moment (You et al. 2017, algorithm 1)
            return optax.chain(decay, scale_by_trust_ratio(declared, o.trust_coefficient), step, _momentum(o))
        case "lamb":
            return optax.chain(_adam(o), decay, scale_by_trust_ratio(declared, 1.0), step)
        case _:
            # Rates by width come before the decay, which is the same at every width.
            return optax.chain(_direction(o, declared), *_width_scaling(config, declared), decay, step)


def _direction(o: OptimizerConfig, declared: Tree) -> optax.GradientTransformation:
    """What decay is added to and the learning rate multiplies."""
    match o.kind:
        case "adafactor":
            return _adafactor(o, declared)
        case "lion":
            return optax.scale_by_lion(o.b1, o.b2)
        case "sgd":
            return _momentum(o)
        case "muon":
            return _muon(o, declared)
        case _:
            return _adam(o)


def _adam(o: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(o.b1, o.b2, o.eps)


def _momentum(o: OptimizerConfig) -> optax.GradientTransformation:
    return optax.trace(o.moment_decay, o.nesterov) if o.moment_decay else optax.identity()


def _adafactor(o: OptimizerConfig, declared: Tree) -> optax.GradientTransformation:
    """Shazeer & Stern 2018, algorithm 4; with a moment, that of the scaled updates (PaLM, section 5)."""
    parts = [scale_by_factored_rms(declared, o.second_moment_exponent, o.eps, factored=o.factored)]
    if o.update_rms is not None:
        parts.append(clip_by_rms(declared, o.update_rms))
    if o.parameter_scaling:
        parts.append(scale_by_parameter_rms(declared))
    if o.moment_decay:
        parts.append(optax.ema(o.moment_decay, debias=False))
    return optax.chain(*parts)


def _muon(o: OptimizerConfig, declared: Tree) -> optax.GradientTransformation:
    """Momentum and orthogonal updates for matrices of layers (Jordan et al. 2024), Adam for the rest; decay and learning rate are shared
    (Liu et al. 2025)."""
    momentum = optax.trace(o.moment_decay, nesterov=True)
    methods: dict[Any, Any] = {"muon": optax.chain(momentum, orthogonalize(declared, o.newton_schulz_steps)), "adam": _adam(o)}
    return optax.partition(methods, map_params(lambda p: "muon" if is_orthogonalized(p) else "adam", declared))


def _width_scaling(config: Config, declared: Tree) -> list[optax.GradientTransformation]:
    """Learning rates of the parameters at this width, for methods whose updates do not grow with the gradient. Of an orthogonal update all
    singular values are sqrt(width), where Adam's has few of the size of the width: the rule is the root of Adam's (Yang, Simon & Bernstein
    2023, condition 1)."""
    m, muon = config.model, config.optimizer.kind == "muon"
    if width_ratio(m) == 1:
        return []
    rates = map_params(
        lambda p, rate: rate**0.5 if muon and is_orthogonalized(p) else rate, declared, rate_multipliers(declared, m)
    )
    return [optax.stateless(lambda updates, _: jax.tree.map(lambda u, rate: u * rate, updates, rates))]


def _with_balance(inner: optax.GradientTransformation, declared: Tree, rate: float) -> optax.GradientTransformation:
    """Biases on the choice of experts go down by `rate` where the load was above the mean, else up (Wang et al. 2024, algorithm 1)."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        steps: Any
        steps, state = inner.update(updates, state, params)
        steps = map_params(lambda p, step, g: -rate * jnp.sign(g) if p.kind == "balance" else step, declared, steps, updates)
        return steps, state

    return optax.GradientTransformation(inner.init, update)
