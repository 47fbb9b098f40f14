"""A stack of blocks, scanned; which of them see how far, and what each needs to know of the tokens."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from qianyi.config.schema import Config, ModelConfig
from qianyi.model.attention import Look, Turn
from qianyi.model.block import Cross, block
from qianyi.model.param import Tree
from qianyi.model.remat import remat_policy
from qianyi.ops.attention import Context, Pattern
from qianyi.ops.context import context_attention
from qianyi.ops.fused import fused_attention
from qianyi.ops.position import alibi_slopes, distance_bias
from qianyi.ops.rope import frequencies, rotate
from qianyi.parallel.collectives import index_on, vary
from qianyi.parallel.mesh import LOSS_AXES

Gather = Callable[[str, Tree], Tree]
"""(part of the model, its weights) -> whole weights in the type of computation."""


class Flags(NamedTuple):
    """What differs between the layers of a stack; None: nothing."""

    live: Array | None = None
    """bool [layers]; layers that are not live are skipped (empty places of uneven pipeline stages)."""
    local: Array | None = None
    """bool [layers]; which layers see only a window."""


def run_layers(
    blocks: Tree,
    x: Array,
    m: ModelConfig,
    gather: Callable[[Tree], Tree],
    looks: Callable[[Array | None], Look],
    flags: Flags,
    cross: Cross | None = None,
) -> tuple[Array, Array]:
    """A stack of blocks, [B, t, D] -> [B, t, D], and the sum of their balancing losses.

    Args:
        blocks: weights, [layers, ...].
        gather: makes those of one layer whole.
        looks: how a layer looks, by its flag `local`.
    """

    def layer(x: Array, part: tuple[Tree, Flags]) -> tuple[Array, Array]:
        x, _, balance = block(checkpoint_name(x, "block_in"), gather(part[0]), m, looks(part[1].local), cross)
        return x, vary(balance, LOSS_AXES)

    def skip(x: Array, _: tuple[Tree, Flags]) -> tuple[Array, Array]:
        return x, vary(jnp.zeros(()), LOSS_AXES)

    layer = jax.checkpoint(layer, policy=remat_policy(m))

    def step(x: Array, part: tuple[Tree, Flags]) -> tuple[Array, Array]:
        return layer(x, part) if part[1].live is None else lax.cond(part[1].live, layer, skip, x, part)

    x, balance = lax.scan(step, x, (blocks, flags))
    return x, balance.sum()


def local_flags(m: ModelConfig, layers: slice = slice(None)) -> Array | None:
    """bool [layers] where some layers see a window and some see all."""
    local = np.asarray(m.local_layers)
    return jnp.asarray(local[layers]) if local.any() and not local.all() else None


def self_looks(
    config: Config, rows: Tree, bias_table: Array | None = None, *, causal: bool = True
) -> Callable[[Array | None], Look]:
    """How the layers of a stack look at their own tokens.

    Args:
        rows: `positions` int32 [T], and where they matter `documents` int32 [B, T] and `prefix` int32 [B, 1].
        bias_table: of relative positions.
        causal: left to right, else both ways.
    """
    m, positions = config.model, rows["positions"]
    T, prefix = positions.shape[0], rows.get("prefix")
    everything = Pattern(causal, None, m.attention.logit_cap)
    window = everything._replace(window=m.attention.window)
    context = Context(
        documents=rows.get("documents"),
        positions=positions if m.position == "alibi" or m.attention.window else None,
        prefix=None if prefix is None else prefix[:, 0],
        slopes=slopes(m) if m.position == "alibi" else None,
        bias=None if bias_table is None else vary(distance_bias(bias_table, T, T, both_ways=not causal)),
    )

    def see(pattern: Pattern) -> Callable[[Array, Array, Array], Array]:
        return lambda q, k, v: context_attention(q, k, v, pattern, context, config.layout.ring, m.attention.kernel)

    def looks(local: Array | None) -> Look:
        def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
            if local is not None:
                return lax.cond(local, see(window), see(everything), q, k, v), None
            return see(window)(q, k, v), None  # all layers are local, or there is no window

        return Look(attend, turn(m, positions, local))

    return looks


def cross_look(config: Config, rows: Tree) -> Look:
    """How a decoder's layers look at the encoder's output."""
    documents, own = rows.get("source_documents"), None
    if documents is not None:
        own = jnp.zeros(rows["inputs"].shape, jnp.int32)
    a = config.model.attention
    pattern, context = Pattern(causal=False, cap=a.logit_cap), Context(documents=own, key_documents=documents)
    return Look(lambda q, k, v: (fused_attention(q, k, v, pattern, context, a.kernel), None), lambda x: x)


def turn(m: ModelConfig, positions: Array, local: Array | None) -> Turn:
    """Rotary positions, where the model has them."""
    if m.position != "rope":
        return lambda x: x
    a, width = m.attention, (m.attention.latent.rope_dim if m.latent else m.d_head)
    everywhere = jnp.asarray(frequencies(width, m.rope_theta, m.rope_scaling))
    if a.window is None or a.local_rope_theta is None:
        return lambda x: rotate(x, positions, everywhere)
    near = jnp.asarray(frequencies(width, a.local_rope_theta, m.rope_scaling.model_copy(update={"kind": "none"})))
    return lambda x: rotate(x, positions, near if local is None else jnp.where(local, near, everywhere))


def slopes(m: ModelConfig) -> Array:
    """[heads]: ALiBi's of this device's heads."""
    n = m.n_heads // lax.axis_size("model")
    return lax.dynamic_slice_in_dim(jnp.asarray(alibi_slopes(m.n_heads)), index_on("model") * n, n)
