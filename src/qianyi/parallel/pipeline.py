"""A pipeline that executes a schedule table: one program for all stages, one scan over ticks.

Each tick a stage runs what its row of the table says, under real branches: an idle stage skips the work. Activations and gradients
travel by two collective-permutes per tick, outside all branches; an activation travels while the backward pass runs, a gradient during the
next forward pass. A stage keeps the inputs of the microbatches in flight and computes the rest again in the backward pass, so memory
follows the table: flat in the number of microbatches for 1F1B.

The model comes as three functions of one microbatch: `embed`, `layers` (one chunk) and `head`. Their weights differ, as JAX's types see it,
between all devices, so that no reduction hides in a branch; gradients are summed here over microbatches alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from qianyi.parallel.collectives import send, vary
from qianyi.parallel.mesh import LOSS_AXES
from qianyi.parallel.schedule import Schedule, Ticks

Tree = Any

FORWARD, BACKWARD, LOSS = "stage_forward", "stage_backward", "stage_loss"
"""What the work of a tick is called in programs; the loss is the last stage's, within its backward pass."""


@dataclass(frozen=True)
class Parts:
    """A model in parts; rows are those of one microbatch."""

    embed: Callable[[Tree, Tree], Array]
    """(outer weights, rows) -> x."""
    layers: Callable[[Tree, Array, Array, Tree], tuple[Array, Array]]
    """(weights of a chunk, its number, x, rows) -> (x, loss of the layers themselves)."""
    head: Callable[[Tree, Array, Tree], tuple[Array, Tree]]
    """(outer weights, x, rows) -> (loss, what to report: a tree of scalars)."""


@dataclass(frozen=True)
class Model:
    """The weights of this stage."""

    outer: Tree
    """Whole on every stage."""
    blocks: Tree
    """[chunks, ...] each."""


def pipeline_gradients(
    parts: Parts, model: Model, batch: Tree, schedule: Schedule, zeros: Model, reported: Tree
) -> tuple[Tree, Array, Model]:
    """Loss and gradients, summed over microbatches.

    Args:
        parts: the model's functions.
        model: its weights.
        batch: arrays [microbatches, ...].
        schedule: the table.
        zeros: where gradients add up, float32.
        reported: zeros, where what the head reports adds up.

    Returns:
        What the head reports, summed (nonzero on the last stage alone); the layers' own loss; gradients of this stage's part.
    """
    x_type = jax.eval_shape(parts.embed, model.outer, _at(batch, 0))
    nothing = vary(jnp.zeros(x_type.shape, x_type.dtype))

    def tick(carry: Any, row: Ticks) -> tuple[Any, None]:
        inputs, gradients, sums, g_sent = carry

        def source(first: Array, microbatch: Array, slot: Array) -> Array:
            return lax.cond(first == 1, lambda: parts.embed(model.outer, _at(batch, microbatch)), lambda: inputs[slot])

        def forward() -> Array:
            x = source(row.f_first, row.f_microbatch, row.f_input)
            return parts.layers(_at(model.blocks, row.f_chunk), row.f_chunk, x, _at(batch, row.f_microbatch))[0]

        def backward() -> tuple[Any, Array]:
            x = source(row.b_first, row.b_microbatch, row.b_input)
            return _backward(parts, model, x, _at(batch, row.b_microbatch), row, gradients, sums)

        gradients = gradients.at[row.g_arrives].set(send(g_sent, "stage", -1))
        with jax.named_scope(FORWARD):
            y = lax.cond(row.f_on == 1, forward, lambda: nothing)
        # Forward before backward: the activation then travels during the backward pass.
        y, gradients = lax.optimization_barrier((y, gradients))
        arrived = inputs.at[row.y_arrives].set(send(y, "stage", 1))
        with jax.named_scope(BACKWARD):
            sums, g = lax.cond(row.b_on == 1, backward, lambda: (sums, nothing))
        return (arrived, gradients, sums, g), None

    buffers = (_slots(nothing, schedule.input_slots), _slots(nothing, schedule.gradient_slots))
    own_loss = vary(jnp.zeros(()), LOSS_AXES)
    sums = (reported, own_loss, zeros.outer, zeros.blocks)
    (_, _, sums, _), _ = lax.scan(tick, (*buffers, sums, nothing), _rows_of_this_stage(schedule))
    reported, own_loss, outer, blocks = sums
    return reported, own_loss, Model(outer, blocks)


def _backward(parts: Parts, model: Model, x: Array, rows: Tree, row: Ticks, gradients: Array, sums: Any) -> tuple[Any, Array]:
    """Forward again, then backward; adds to the sums and returns the gradient of the stage's input."""
    reported, own_loss, outer, blocks = sums

    @jax.named_scope("forward_again")  # by which `qianyi.program.flops` knows them
    def chunk_layers(blocks: Tree, x: Array) -> tuple[Array, Array]:
        return parts.layers(blocks, row.b_chunk, x, rows)

    (y, loss), pull = jax.vjp(chunk_layers, _at(model.blocks, row.b_chunk), x)

    def from_loss() -> tuple[Array, Tree, Tree]:
        total, pull_head, report = jax.vjp(lambda w, y: parts.head(w, y, rows), model.outer, y, has_aux=True)
        g_outer, g_y = pull_head(jnp.ones_like(total))
        return g_y, _add(outer, g_outer), _add(reported, report)

    def from_next_stage() -> tuple[Array, Tree, Tree]:
        return gradients[row.b_gradient], outer, reported

    with jax.named_scope(LOSS):
        g_y, outer, reported = lax.cond(row.b_last == 1, from_loss, from_next_stage)
    g_blocks, g_x = pull((g_y, jnp.ones_like(loss)))
    blocks = jax.tree.map(lambda total, g: total.at[row.b_chunk].add(g.astype(total.dtype)), blocks, g_blocks)

    def to_embedding() -> Tree:
        _, pull_embed = jax.vjp(lambda w: parts.embed(w, rows), model.outer)
        return _add(outer, pull_embed(g_x)[0])

    outer = lax.cond(row.b_first == 1, to_embedding, lambda: outer)
    return (reported, own_loss + loss, outer, blocks), g_x


def pipeline_forward(parts: Parts, model: Model, batch: Tree, schedule: Schedule, reported: Tree) -> Tree:
    """What the head reports, summed over microbatches (nonzero on the last stage alone); the table has no backward passes."""
    x_type = jax.eval_shape(parts.embed, model.outer, _at(batch, 0))
    nothing = vary(jnp.zeros(x_type.shape, x_type.dtype))

    def tick(carry: tuple[Array, Tree], row: Ticks) -> tuple[tuple[Array, Tree], None]:
        inputs, reported = carry
        rows = _at(batch, row.f_microbatch)

        def forward() -> tuple[Array, Tree]:
            x = lax.cond(row.f_first == 1, lambda: parts.embed(model.outer, rows), lambda: inputs[row.f_input])
            y, _ = parts.layers(_at(model.blocks, row.f_chunk), row.f_chunk, x, rows)
            return y, lax.cond(row.f_last == 1, lambda: _add(reported, parts.head(model.outer, y, rows)[1]), lambda: reported)

        y, reported = lax.cond(row.f_on == 1, forward, lambda: (nothing, reported))
        return (inputs.at[row.y_arrives].set(send(y, "stage", 1)), reported), None

    (_, reported), _ = lax.scan(tick, (_slots(nothing, schedule.input_slots), reported), _rows_of_this_stage(schedule))
    return reported


def _rows_of_this_stage(schedule: Schedule) -> Ticks:
    """[ticks] each."""
    stage = lax.axis_index("stage")
    return jax.tree.map(lambda table: jnp.asarray(table)[:, stage], schedule.ticks)


def _slots(value: Array, n: int) -> Array:
    """A buffer of n slots and one for what nobody needs."""
    return jnp.broadcast_to(value, (n + 1, *value.shape))


def _at(tree: Tree, index: Array | int) -> Tree:
    return jax.tree.map(lambda a: a[index], tree)


def _add(total: Tree, more: Tree) -> Tree:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, more)
