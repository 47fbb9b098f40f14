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
from qianyi.config.schema import ModelConfig
from qianyi.model.block import block, block_params, norm, norm_params
from qianyi.model.param import Param, Tree, stack
from qianyi.ops.attention import causal_attention, reference_attention
from qianyi.ops.loss import LossSums, vocabulary_loss
from qianyi.parallel.collectives import gather_sequence, index_on, scatter_sequence, vary

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


def decoder_loss(
    params: Tree, inputs: Array, targets: Array, m: ModelConfig, gather: Gather, z_weight: float, chunk_tokens: int
) -> LossSums:
    """Sums of the loss terms over this device's rows; inputs and targets int32 [B, T], target -1 is not scored."""
    x, table = _hidden(params, inputs, m, gather)
    return vocabulary_loss(x, table, targets, z_weight, chunk_tokens)


def decoder_logits(params: Tree, inputs: Array, m: ModelConfig, gather: Gather) -> Array:
    """float32 [B, T, V] from tokens int32 [B, T]."""
    x, table = _hidden(params, inputs, m, gather)
    return jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32)


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
        float32 logits [B, T, V] and the cache with these positions written. Axis `model` must have size one.
    """
    positions = start + jnp.arange(tokens.shape[1])
    mask = positions[:, None] >= jnp.arange(cache.keys.shape[2])[None, :]
    embedding = gather("embedding", params["embedding"])

    def layer(x: Array, part: tuple[Tree, Array, Array]) -> tuple[Array, Cache]:
        w, keys, values = part

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
            seen = Cache(
                lax.dynamic_update_slice_in_dim(keys, k, start, axis=1),
                lax.dynamic_update_slice_in_dim(values, v, start, axis=1),
            )
            return reference_attention(q, *seen, mask), seen

        return block(x, gather("blocks", w), m, positions, attend)

    x = embed(embedding, tokens, positions, m)
    x, cache = lax.scan(layer, x, (params["blocks"], cache.keys, cache.values))
    x = norm(x, gather("final_norm", params["final_norm"]), m)
    head = embedding if m.tied_embeddings else gather("head", params["head"])
    return jnp.einsum("btd,vd->btv", x, head["tokens"], preferred_element_type=jnp.float32), cache


def _hidden(params: Tree, inputs: Array, m: ModelConfig, gather: Gather) -> tuple[Array, Array]:
    """Tokens [B, T] -> final hidden states [B, T, D] and the output table [V, D]."""
    embedding = gather("embedding", params["embedding"])
    positions = jnp.arange(inputs.shape[1])
    x = embed(embedding, inputs, positions, m)
    x = _stack(x, params["blocks"], m, positions, gather)
    x = gather_sequence(norm(x, gather("final_norm", params["final_norm"]), m))
    head = embedding if m.tied_embeddings else gather("head", params["head"])
    return x, head["tokens"]


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


def _stack(x: Array, blocks: Tree, m: ModelConfig, positions: Array, gather: Gather) -> Array:
    def layer(x: Array, w: Tree) -> tuple[Array, None]:
        x, _ = block(x, gather("blocks", w), m, positions, _causal)
        return x, None

    x, _ = lax.scan(jax.checkpoint(layer, policy=_remat_policy(m)), x, blocks)
    return x


def _causal(q: Array, k: Array, v: Array) -> tuple[Array, None]:
    return causal_attention(q, k, v), None


def _remat_policy(m: ModelConfig) -> Callable[..., bool] | None:
    """What is kept. Never what a collective put together from shards: whole weights and whole sequences are gathered again in the backward
    pass (ZeRO-3: Rajbhandari et al. 2020; sequences: Korthikanti et al. 2022, section 4.2.2)."""
    if m.remat == "full":
        return None
    kept = MATMUL_ACTIVATIONS if m.remat == "matmuls" else m.remat
    return jax.checkpoint_policies.save_only_these_names(*kept)
