"""A decoder-only language model: embedding, a scanned stack of blocks, final norm, output projection.

Like the block, this is the code of one device. Weights arrive as they are stored (sharded over `data` under FSDP); `gather`
makes a part of them whole right before its use, or does nothing where the step has gathered all of them at once.

Dims as in `qianyi.model.block`; V vocabulary rows (local: 1 / model of the whole).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qianyi.config.check import MATMUL_ACTIVATIONS
from qianyi.config.schema import Config, ModelConfig
from qianyi.model.block import block, block_params, norm, norm_params
from qianyi.model.param import Param, Tree, stack
from qianyi.ops.attention import reference_attention
from qianyi.ops.context import context_attention, sequence_positions
from qianyi.ops.loss import LossSums, vocabulary_loss
from qianyi.parallel.collectives import gather_sequence, index_on, scatter_sequence, vary
from qianyi.parallel.mesh import LOSS_AXES

Batch = dict[str, Array]
"""`inputs` and `targets`, int32 [batch, sequence]; target -1 is not scored. `documents`, likewise, where attention is to stay
within equal numbers."""
Gather = Callable[[str, Tree], Tree]
"""(part of the model, its weights) -> whole weights in the type of computation."""


def decoder_params(m: ModelConfig) -> Tree:
    """Every parameter of the model."""
    embedding: Tree = {"tokens": Param((m.vocab_size, m.d_model), ("vocab", "embed"), m.init_std)}
    if m.position == "learned":
        embedding["positions"] = Param((m.max_seq_len, m.d_model), ("positions", "embed"), m.init_std)
    params: Tree = {
        "embedding": embedding,
        "blocks": stack(block_params(m), m.n_layers),
        "final_norm": norm_params(m),
    }
    if not m.tied_embeddings:
        params["head"] = {"tokens": Param((m.vocab_size, m.d_model), ("vocab", "embed"), m.init_std)}
    return params


def decoder_loss(params: Tree, batch: Batch, config: Config, gather: Gather) -> LossSums:
    """Sums of the loss terms over this device's tokens."""
    rows, outer = own_tokens(batch), gather_outer(params, gather)
    x = decoder_embed(outer, rows, config.model)
    x, balance = decoder_layers(params["blocks"], x, rows, config, gather)
    return decoder_head(outer, x, rows, config)._replace(balance=balance)


def decoder_logits(params: Tree, tokens: Array, config: Config, gather: Gather) -> Array:
    """Tokens int32 [B, T] -> float32 [B, T, V]; axis `context` must have size one."""
    rows, outer = own_tokens({"inputs": tokens}), gather_outer(params, gather)
    x = decoder_embed(outer, rows, config.model)
    x, _ = decoder_layers(params["blocks"], x, rows, config, gather)
    x, table = _final(outer, x, config.model)
    return jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32)


def gather_outer(params: Tree, gather: Gather) -> Tree:
    """What is not in a block, whole: embedding, final norm, output projection."""
    return {name: gather(name, part) for name, part in params.items() if name != "blocks"}


def own_tokens(batch: Batch) -> Batch:
    """This device's positions of whole rows [B, T]: the same arrays [B, T / context], with their `positions`."""
    length = batch["inputs"].shape[1]
    positions = sequence_positions(length)
    rows = batch if positions.shape[0] == length else {name: a[:, positions] for name, a in batch.items()}
    return {**rows, "positions": positions}


def decoder_embed(outer: Tree, rows: Batch, m: ModelConfig) -> Array:
    """Tokens -> [B, t, D]."""
    return embed(outer["embedding"], rows["inputs"], rows["positions"], m)


def decoder_layers(
    blocks: Tree, x: Array, rows: Batch, config: Config, gather: Gather, live: Array | None = None
) -> tuple[Array, Array]:
    """A stack of blocks, [B, t, D] -> [B, t, D], and the sum of their balancing losses.

    Args:
        live: bool [layers]; where given, layers that are not live are skipped (empty places of uneven pipeline stages).
    """
    m, positions = config.model, rows["positions"]

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
        return context_attention(q, k, v, rows.get("documents"), config.layout.ring), None

    def layer(x: Array, w: Tree) -> tuple[Array, Array]:
        x, _, balance = block(x, gather("blocks", w), m, positions, attend)
        return x, vary(balance, LOSS_AXES)

    def skip(x: Array, _: Tree) -> tuple[Array, Array]:
        return x, vary(jnp.zeros(()), LOSS_AXES)

    layer = jax.checkpoint(layer, policy=_remat_policy(m))
    if live is None:
        x, balance = lax.scan(layer, x, blocks)
    else:
        x, balance = lax.scan(lambda x, part: lax.cond(part[0], layer, skip, x, part[1]), x, (live, blocks))
    return x, balance.sum()


def decoder_head(outer: Tree, x: Array, rows: Batch, config: Config) -> LossSums:
    """Final hidden states [B, t, D] -> sums of the loss terms."""
    x, table = _final(outer, x, config.model)
    return vocabulary_loss(x, table, rows["targets"], config.train.z_loss, config.train.loss_chunk_tokens)


def _final(outer: Tree, x: Array, m: ModelConfig) -> tuple[Array, Array]:
    """The final norm, [B, t, D] -> [B, T, D], and the output table [V, D]."""
    head = outer["embedding" if m.tied_embeddings else "head"]
    return gather_sequence(norm(x, outer["final_norm"], m)), head["tokens"]


class Cache(NamedTuple):
    """Keys and values of the positions seen so far, [L, B, S, G, K] each; S is the longest sequence that fits."""

    keys: Array
    values: Array


def empty_cache(m: ModelConfig, batch: int, length: int) -> Cache:
    shape = (m.n_layers, batch, length, m.kv_heads, m.d_head)
    return Cache(jnp.zeros(shape, m.dtype), jnp.zeros(shape, m.dtype))


def decoder_extend(
    params: Tree, tokens: Array, start: Array, cache: Cache, m: ModelConfig, gather: Gather
) -> tuple[Array, Cache]:
    """Read tokens int32 [B, T] at positions start .. start + T - 1 after what the cache holds.

    Returns:
        float32 logits [B, T, V] and the cache with these positions written. Axes `model` and `context` must have size one.
    """
    if m.mixture is not None:  # a few tokens are no group with a capacity
        m = m.model_copy(update={"moe": m.mixture.model_copy(update={"capacity_factor": None})})
    positions = start + jnp.arange(tokens.shape[1])
    mask = positions[:, None] >= jnp.arange(cache.keys.shape[2])[None, :]
    outer = gather_outer(params, gather)

    def layer(x: Array, part: tuple[Tree, Array, Array]) -> tuple[Array, Cache]:
        w, keys, values = part

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
            seen = Cache(
                lax.dynamic_update_slice_in_dim(keys, k, start, axis=1),
                lax.dynamic_update_slice_in_dim(values, v, start, axis=1),
            )
            return reference_attention(q, *seen, mask), seen

        x, seen, _ = block(x, gather("blocks", w), m, positions, attend)
        return x, seen

    x = embed(outer["embedding"], tokens, positions, m)
    x, cache = lax.scan(layer, x, (params["blocks"], cache.keys, cache.values))
    x, table = _final(outer, x, m)
    return jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32), cache


def embed(w: Tree, tokens: Array, positions: Array, m: ModelConfig) -> Array:
    """Tokens [B, T] -> [B, t, D]. Each device looks up the rows it has; the sum over `model` completes them."""
    table = w["tokens"]
    rows = table.shape[0]
    local = vary(tokens) - index_on("model") * rows
    mine = (local >= 0) & (local < rows)
    x = jnp.where(mine[..., None], table[jnp.where(mine, local, 0)], 0)
    if m.position == "learned":
        # Added by one device of `model` alone, since the shards are summed.
        x = x + jnp.where(index_on("model") == 0, w["positions"][positions], 0)
    return scatter_sequence(x)


def _remat_policy(m: ModelConfig) -> Callable[..., bool] | None:
    """What is kept. Never what a collective put together from shards: whole weights and whole sequences are gathered again in the backward
    pass (ZeRO-3: Rajbhandari et al. 2020; sequences: Korthikanti et al. 2022, section 4.2.2)."""
    if m.remat == "full":
        return None
    kept = MATMUL_ACTIVATIONS if m.remat == "matmuls" else m.remat
    return jax.checkpoint_policies.save_only_these_names(*kept)
