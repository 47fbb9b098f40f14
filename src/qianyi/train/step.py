"""The training step: the only one. The loop runs it, tests compare it across meshes, compilers get it for absent hardware.

`train_step(state, batch) -> (state, metrics)`. Loss and gradients are computed in one manual region, where the code is that of
one device and every communication is written out; the update is ordinary array code over the whole mesh.
"""

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from qianyi.config.ramp import at_batch_size
from qianyi.config.schema import Config
from qianyi.model.param import Param, Tree, combine, map_params
from qianyi.model.transformer import Batch, model_loss, model_params
from qianyi.ops.loss import LossSums
from qianyi.parallel.collectives import axes_of, sum_over, vary
from qianyi.parallel.mesh import AXES, BATCH_AXES, LOSS_AXES
from qianyi.parallel.options import compiler_options
from qianyi.parallel.pipeline import pipeline_forward, pipeline_gradients
from qianyi.parallel.rules import batch_spec
from qianyi.train.schedule import learning_rate
from qianyi.train.stages import in_chunks, pipeline_parts, schedule_of
from qianyi.train.state import TrainState, stored_params
from qianyi.train.update import make_update
from qianyi.train.weights import (
    Separate,
    gradient_specs,
    late_gradients,
    late_parts,
    make_gather,
    param_specs,
    reduce_part,
    separates_gradients,
    shard_shape,
    take_whole,
)


class Metrics(NamedTuple):
    """Scalars of one step, still on the device."""

    loss: Array
    z_loss: Array
    balance_loss: Array
    sentence_loss: Array
    grad_norm: Array
    microbatch_grad_norm: Array | None
    learning_rate: Array


class Losses(NamedTuple):
    """Terms of the objective. On a device: its share, the sum over devices being the whole."""

    cross_entropy: Array
    """Mean per scored token of the global batch, in nats."""
    correct: Array
    """Right ones among scored tokens; reported alone."""
    z: Array
    balance: Array
    sentence: Array
    """Mean per row with a sentence label."""


class LossAndGradients(NamedTuple):
    loss: Array
    """Mean cross-entropy per scored token of the global batch, in nats."""
    z_loss: Array
    balance_loss: Array
    sentence_loss: Array
    grad_norm: Array
    microbatch_grad_norm: Array | None
    """Root mean square, over microbatches, of the norm of a microbatch's own mean gradient; None without train.noise_scale."""
    gradients: Tree
    """Of the sum of the losses, float32, sharded as `gradient_specs` says."""


Total = Callable[[LossSums], tuple[Array, Losses]]
"""Sums over this device's tokens -> its share of the objective, which is differentiated, and of the losses, which are reported."""


def make_train_step(
    config: Config, options: Mapping[str, Any] | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step for a recipe, to be made and called under `jax.set_mesh`; the state that goes in is donated. It is compiled once for
    each batch size of a ramp, with the compiler options of the mesh's chips (`qianyi.parallel.options`), or with these."""
    chosen = compiler_options(config.run.compiler_options) if options is None else dict(options)
    update, rate = make_update(config), learning_rate(config)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        stage = at_batch_size(config, batch["inputs"].shape[0])
        out = make_loss_and_gradients(stage)(state.params, batch)
        losses = out.loss, out.z_loss, out.balance_loss, out.sentence_loss
        metrics = Metrics(*losses, out.grad_norm, out.microbatch_grad_norm, rate(state.step))
        return update(state, out.gradients, out.grad_norm), metrics

    return jax.jit(train_step, donate_argnums=0, compiler_options=chosen or None)


def make_loss_and_gradients(config: Config) -> Callable[[Tree, Batch], LossAndGradients]:
    """(params, batch) -> mean loss over the scored tokens of the global batch, and its gradient, under any layout."""
    stored, reduced, late = param_specs(config), gradient_specs(config), late_parts(config)
    accumulate = _accumulate if config.layout.stage == 1 else _accumulate_in_pipeline

    def on_device(params: Tree, batch: Batch) -> LossAndGradients:
        total = partial(_total, config=config, tokens=_scored(batch, "targets"), sentences=_scored(batch, "sentence"))
        weights = {name: take_whole(name, part, config) if name in late else part for name, part in params.items()}
        losses, gradients, squares = accumulate(total, weights, _microbatches(batch, config), config)
        gradients = _reduce(gradients, late_gradients(config), config)
        loss, _, z, balance, sentence = (sum_over(a, LOSS_AXES) for a in losses)
        norm = jnp.sqrt(sum_over(_squares(gradients, config), AXES))
        # A microbatch's own mean is `accumulation` times its share of the batch's.
        small_norm = None if squares is None else jnp.sqrt(config.train.accumulation * sum_over(squares, AXES))
        return LossAndGradients(loss, z, balance, sentence, norm, small_norm, gradients)

    one: Any = P()
    out_specs = LossAndGradients(one, one, one, one, one, one, reduced)
    return jax.shard_map(on_device, in_specs=(stored, batch_spec(config.layout)), out_specs=out_specs)


def _accumulate(total: Total, weights: Tree, microbatches: Batch, config: Config) -> tuple[Losses, Tree, Array | None]:
    """Losses and gradients, summed over microbatches, one after the other; with train.noise_scale also this device's share of the squares
    of each microbatch's gradient, which is then reduced at once."""
    gather = make_gather(config, late_parts(config))
    early = late_parts(config) - late_gradients(config)
    zeros, declared = _zero_gradients(weights, config), model_params(config.model)
    # Then it is differentiated by the places of gradients instead of the weights.
    separate = separates_gradients(config)

    def objective(inputs: Tree, rows: Batch) -> tuple[Array, Losses]:
        used = jax.tree.map(Separate, weights, inputs) if separate else inputs
        return total(model_loss(used, rows, config, gather))

    def add(carry: Any, rows: Batch) -> tuple[Any, None]:
        (_, losses), g = jax.value_and_grad(objective, has_aux=True)(zeros if separate else weights, rows)
        g = _reduce(g, early, config)
        squares = _squares(g, config) if config.train.noise_scale else None
        losses, squares = jax.tree.map(jnp.add, (carry[0], carry[2]), (losses, squares))
        return (losses, combine(declared, carry[1], g), squares), None

    no_squares = vary(jnp.zeros(())) if config.train.noise_scale else None
    sums, _ = lax.scan(add, (_zero_losses(), zeros, no_squares), microbatches)
    return sums


def _accumulate_in_pipeline(total: Total, weights: Tree, microbatches: Batch, config: Config) -> tuple[Losses, Tree, None]:
    """The same, microbatches following one another through the stages."""
    model, zeros = in_chunks(weights, config), in_chunks(_zero_gradients(weights, config), config)
    parts = pipeline_parts(total, config, make_gather(config, late_parts(config)))
    losses, balance, g = pipeline_gradients(parts, model, microbatches, schedule_of(config), zeros, _zero_losses())
    blocks = jax.tree.map(lambda a, w: a.reshape(w.shape), g.blocks, weights["blocks"])
    return losses._replace(balance=balance), {**g.outer, "blocks": blocks}, None


def make_eval_step(config: Config) -> Callable[[Tree, Batch], tuple[Array, Array, Array]]:
    """Jitted (params, batch) -> (summed cross-entropy in nats, number of right ones, number of scored tokens) over the global batch."""
    stored = param_specs(config)
    total = partial(_total, config=config, tokens=1.0, sentences=1.0)

    def on_device(params: Tree, batch: Batch) -> tuple[Array, Array, Array]:
        if config.layout.stage == 1:
            losses = total(model_loss(params, batch, config, make_gather(config)))[1]
        else:
            outer = {name: take_whole(name, part, config) for name, part in params.items() if name != "blocks"}
            model, schedule = in_chunks({**params, **outer}, config), schedule_of(config, backward=False)
            parts = pipeline_parts(total, config, make_gather(config, outer))
            losses = pipeline_forward(parts, model, _microbatches(batch, config), schedule, _zero_losses())
        sums = sum_over(losses.cross_entropy, LOSS_AXES), sum_over(losses.correct, LOSS_AXES)
        return *sums, sum_over(jnp.sum(batch["targets"] >= 0), BATCH_AXES)

    return jax.jit(jax.shard_map(on_device, in_specs=(stored, batch_spec(config.layout)), out_specs=(P(), P(), P())))


def _scored(batch: Batch, name: str) -> Array | float:
    """Number of labels in the global batch, one at least."""
    return jnp.maximum(sum_over(jnp.sum(batch[name] >= 0), BATCH_AXES), 1).astype(jnp.float32) if name in batch else 1.0


def _microbatches(batch: Batch, config: Config) -> Batch:
    """[batch, sequence] -> [microbatch, rows, sequence]. Every n-th row is of the same microbatch, so that its rows are the same under any
    layout: experts are balanced over a microbatch."""
    n = config.train.accumulation
    return jax.tree.map(lambda a: a.reshape(-1, n, a.shape[-1]).swapaxes(0, 1), batch)


def _total(sums: LossSums, config: Config, tokens: Array | float, sentences: Array | float) -> tuple[Array, Losses]:
    z, balance = config.train.z_loss * sums.z / tokens, sums.balance / config.train.accumulation
    losses = Losses(sums.cross_entropy / tokens, sums.correct, z, balance, sums.sentence / sentences)
    # The cross-entropy carries the gradient of the z-loss too.
    return losses.cross_entropy + losses.balance + losses.sentence, losses


def _zero_losses() -> Losses:
    return Losses(*(vary(jnp.zeros(()), LOSS_AXES) for _ in Losses._fields))


def _zero_gradients(weights: Tree, config: Config) -> Tree:
    """Where gradients add up: of weights gathered early every device has its own sum; of others, devices that share a shard agree."""
    late, declared, reduced = late_gradients(config), stored_params(config), gradient_specs(config)

    def early(p: Param, to: P) -> Array:
        return vary(jnp.zeros(shard_shape(p, to), jnp.float32), axes_of(to))

    return {
        name: jax.tree.map(lambda w: vary(jnp.zeros(w.shape, jnp.float32)), part)
        if name in late
        else map_params(early, declared[name], reduced[name])
        for name, part in weights.items()
    }


def _reduce(gradients: Tree, parts: Collection[str], config: Config) -> Tree:
    """Gradients of these parts of the model, each device's own, reduced and sharded; the others are so already."""
    return {name: reduce_part(name, part, config) if name in parts else part for name, part in gradients.items()}


def _squares(gradients: Tree, config: Config) -> Array:
    """This device's share of the squared L2 norm over all parameters: squares of copies are divided by their number. Balances and
    histories have no gradient."""

    def squares(p: Param, g: Array, spec: P) -> Array:
        copies = math.prod(lax.axis_size(axis) for axis in AXES if axis not in axes_of(spec))
        return vary(jnp.zeros(()) if p.kind in {"balance", "amax"} else jnp.sum(g * g) / copies)

    of_params = map_params(squares, model_params(config.model), gradients, gradient_specs(config))
    return jnp.stack(jax.tree.leaves(of_params)).sum()
