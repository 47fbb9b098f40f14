"""The training step: the only one. The loop runs it, tests compare it across meshes, compilers get it for absent hardware.

`train_step(state, batch) -> (state, metrics)`. Loss and gradients are computed in one manual region, where the code is that of
one device and every communication is written out; the update is ordinary array code over the whole mesh.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import Config
from qianyi.model.decoder import Gather, decoder_loss, decoder_params
from qianyi.model.param import Tree, layer_spec, specs
from qianyi.parallel.collectives import reduce_gradient, sum_over, unshard, vary
from qianyi.parallel.mesh import AXES, BATCH_AXES
from qianyi.parallel.rules import batch_spec, make_rules
from qianyi.train.optimizer import make_optimizer
from qianyi.train.schedule import make_schedule
from qianyi.train.state import TrainState

Batch = dict[str, Array]
"""`inputs` and `targets`, int32 [batch, sequence]; target -1 is not scored."""


class Metrics(NamedTuple):
    """Scalars of one step, still on the device."""

    loss: Array
    z_loss: Array
    grad_norm: Array
    learning_rate: Array


class LossAndGradients(NamedTuple):
    loss: Array
    """Mean cross-entropy per scored token of the global batch, in nats."""
    z_loss: Array
    grad_norm: Array
    gradients: Tree
    """Of loss + z_loss, float32, sharded as the parameters."""


def make_train_step(config: Config) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step for a recipe, to be called under `jax.set_mesh`; the state that goes in is donated."""
    loss_and_gradients = make_loss_and_gradients(config)
    optimizer = make_optimizer(config)
    rate = make_schedule(config.schedule, config.optimizer.learning_rate, config.train.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, z_loss, norm, gradients = loss_and_gradients(state.params, batch)
        if config.optimizer.clip_norm is not None:
            scale = jnp.minimum(1, config.optimizer.clip_norm / norm)
            gradients = jax.tree.map(lambda g: g * scale, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        metrics = Metrics(loss, z_loss, norm, rate(state.step))
        return TrainState(state.step + 1, params, opt_state, state.rng), metrics

    return jax.jit(train_step, donate_argnums=0)


def make_loss_and_gradients(config: Config) -> Callable[[Tree, Batch], LossAndGradients]:
    """(params, batch) -> mean loss over the scored tokens of the global batch, and its gradient, under any layout."""
    train, layout = config.train, config.layout
    param_specs = specs(decoder_params(config.model), make_rules(layout))
    once = layout.gather == "step" or (layout.gather == "auto" and train.accumulation > 1)

    def on_device(params: Tree, batch: Batch) -> LossAndGradients:
        rows = jax.tree.map(lambda a: a.reshape(train.accumulation, -1, a.shape[-1]), batch)
        scored = sum_over(jnp.sum(batch["targets"] >= 0), BATCH_AXES)
        share = 1 / jnp.maximum(scored, 1).astype(jnp.float32)
        weights = _gather_all(params, param_specs, config) if once else params
        gather = (lambda _, part: part) if once else _gatherer(param_specs, config)

        def loss(weights: Tree, rows: Batch) -> tuple[Array, Array]:
            sums = decoder_loss(
                weights, rows["inputs"], rows["targets"], config.model, gather, train.z_loss, train.loss_chunk_tokens
            )
            return sums.cross_entropy * share, train.z_loss * sums.z * share

        def accumulate(carry: tuple[Array, Array, Tree], rows: Batch) -> tuple[tuple[Array, Array, Tree], None]:
            (ce, z), g = jax.value_and_grad(loss, has_aux=True)(weights, rows)
            return (carry[0] + ce, carry[1] + z, jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry[2], g)), None

        zero = vary(jnp.zeros(()), BATCH_AXES)
        zeros = jax.tree.map(partial(_zero_gradient, whole=once), weights, param_specs)
        (ce, z, gradients), _ = lax.scan(accumulate, (zero, zero, zeros), rows)
        if once:
            gradients = jax.tree.map(reduce_gradient, gradients, param_specs)
        return LossAndGradients(
            sum_over(ce, BATCH_AXES), sum_over(z, BATCH_AXES), _global_norm(gradients, param_specs), gradients
        )

    scalar: Any = P()
    out_specs = LossAndGradients(scalar, scalar, scalar, param_specs)
    return jax.shard_map(on_device, in_specs=(param_specs, batch_spec(config.layout)), out_specs=out_specs)


def make_eval_step(config: Config) -> Callable[[Tree, Batch], tuple[Array, Array]]:
    """Jitted (params, batch) -> (summed cross-entropy in nats, number of scored tokens) over the global batch."""
    train = config.train
    param_specs = specs(decoder_params(config.model), make_rules(config.layout))

    def on_device(params: Tree, batch: Batch) -> tuple[Array, Array]:
        gather = _gatherer(param_specs, config)
        sums = decoder_loss(params, batch["inputs"], batch["targets"], config.model, gather, 0.0, train.loss_chunk_tokens)
        return sum_over(sums.cross_entropy, BATCH_AXES), sum_over(jnp.sum(batch["targets"] >= 0), BATCH_AXES)

    return jax.jit(jax.shard_map(on_device, in_specs=(param_specs, batch_spec(config.layout)), out_specs=(P(), P())))


def _gatherer(param_specs: Tree, config: Config) -> Gather:
    """Makes one part of the model whole; of the blocks, one layer."""
    params = decoder_params(config.model)

    def gather(name: str, part: Tree) -> Tree:
        part_specs = jax.tree.map(layer_spec, param_specs[name]) if name == "blocks" else param_specs[name]
        return jax.tree.map(lambda w, spec, p: unshard(w, spec, _compute_dtype(p.kind, config)), part, part_specs, params[name])

    return gather


def _gather_all(params: Tree, param_specs: Tree, config: Config) -> Tree:
    declared = decoder_params(config.model)
    return jax.tree.map(lambda w, spec, p: unshard(w, spec, _compute_dtype(p.kind, config)), params, param_specs, declared)


def _compute_dtype(kind: str, config: Config) -> jnp.dtype | None:
    return jnp.dtype(config.model.dtype) if kind == "matrix" else None


def _zero_gradient(weight: Array, spec: P, whole: bool) -> Array:
    """Where gradients add up: of whole weights every device has its own sum, of shards the devices that share one agree."""
    zeros = jnp.zeros(weight.shape, jnp.float32)
    return vary(zeros) if whole else vary(zeros, [axis for axis in spec if axis is not None])


def _global_norm(gradients: Tree, param_specs: Tree) -> Array:
    """L2 norm over all parameters, each counted once: squares of copies are divided by their number."""

    def squares(g: Array, spec: P) -> Array:
        copies = math.prod(lax.axis_size(axis) for axis in AXES if axis not in spec)
        return vary(jnp.sum(g * g) / copies)

    total = jnp.stack(jax.tree.leaves(jax.tree.map(squares, gradients, param_specs))).sum()
    return jnp.sqrt(sum_over(total, AXES))
