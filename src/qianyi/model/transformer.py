"""A whole model: embedding, scanned stacks of blocks, final norm, output projection.

A decoder reads left to right; an encoder both ways; an encoder-decoder reads a source both ways, then a target left to right, whose
blocks also look at the encoder's output.

Like the block, this is the code of one device. Weights arrive as they are stored (sharded over `data` under FSDP); `gather`
makes a part of them whole right before its use, or does nothing where the step has gathered all of them at once.

Dims: B batch, T position (t: T / model), D residual, V vocabulary rows.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qianyi.config.counts import DISTANCE_BUCKETS
from qianyi.config.schema import Config, ModelConfig
from qianyi.model.attention import Look
from qianyi.model.block import Cross, block, block_params, norm, norm_params
from qianyi.model.embedding import embed, embedding_params, head_logits, head_loss, head_params, sentence_params
from qianyi.model.linear import settle
from qianyi.model.param import Param, Tree, is_stacked, stack
from qianyi.model.stack import Flags, Gather, cross_look, local_flags, run_layers, self_looks, slopes, turn
from qianyi.model.width import scale_deviations
from qianyi.ops.attention import reference_attention
from qianyi.ops.context import sequence_positions
from qianyi.ops.loss import LossSums
from qianyi.ops.position import distance_bias
from qianyi.parallel.collectives import gather_sequence

Batch = dict[str, Array]
"""`inputs` and `targets`, int32 [batch, sequence]; target -1 is not scored. Where they matter: `documents`, likewise (attention stays
within equal numbers); `prefix` [batch, 1] (tokens before it are seen by all); `segments`, `sentence` [batch, 1] (BERT); `sources` and
`source_documents` [batch, source] (encoder-decoder)."""


def model_params(m: ModelConfig) -> Tree:
    """Every parameter of the model."""
    params: Tree = {"embedding": embedding_params(m)}
    if m.encoder_layers:
        params |= {"encoder_blocks": stack(block_params(m), m.encoder_layers, "whole_layers"), "encoder_norm": norm_params(m)}
    if m.n_blocks < m.n_layers:
        params["dense_blocks"] = stack(block_params(m.dense), m.n_layers - m.n_blocks, "whole_layers")
    params["blocks"] = stack(block_params(m, cross=m.kind == "encoder_decoder"), m.n_blocks)
    if m.position == "relative":
        table = Param((DISTANCE_BUCKETS, m.n_heads), ("buckets", "heads"), m.init_std, kind="vector")
        params["relative"] = {"own": table, "encoder": table} if m.encoder_layers else {"own": table}
    if m.final_norm:
        params["final_norm"] = norm_params(m)
    elif m.encoder_layers:
        del params["encoder_norm"]
    if head := head_params(m):
        params["head"] = head
    if m.sentence_head:
        params["sentence"] = sentence_params(m)
    return scale_deviations(params, m)


def model_loss(params: Tree, batch: Batch, config: Config, gather: Gather) -> LossSums:
    """Sums of the loss terms over this device's tokens."""
    m, rows = config.model, own_tokens(batch)
    x, balance = model_hidden(params, gather_outer(params, gather), rows, config, gather)
    # A table that is also the embedding has a gradient of its own here: neither is held whole while the layers are gone back through.
    name = "embedding" if m.tied_embeddings else "head"
    x, table = settle(x, params[name]["tokens"])
    last = gather_outer({**params, name: {**params[name], "tokens": table}}, gather)
    return head_loss(last, x, rows, config)._replace(balance=balance)


def model_logits(params: Tree, batch: Batch, config: Config, gather: Gather) -> Array:
    """float32 [B, T, V]; axis `context` must have size one."""
    rows, outer = own_tokens(batch), gather_outer(params, gather)
    return head_logits(outer, model_hidden(params, outer, rows, config, gather)[0], config.model)


def model_hidden(params: Tree, outer: Tree, rows: Batch, config: Config, gather: Gather) -> tuple[Array, Array]:
    """The residual stream after the last block, [B, t, D], and the balancing losses."""
    m = config.model
    cross = Cross(encode(params, outer, rows, config, gather), cross_look(config, rows)) if m.encoder_layers else None
    x, first = first_layers(params, outer, rows, config, gather)
    flags = Flags(local=local_flags(m))
    x, balance = layers(params["blocks"], x, rows, config, gather, flags, _bias_table(outer), cross)
    return x, first + balance


def first_layers(params: Tree, outer: Tree, rows: Batch, config: Config, gather: Gather) -> tuple[Array, Array]:
    """Embedding and, in a model with experts, the first dense layers: [B, t, D]."""
    m = config.model
    x = embed(outer["embedding"], rows, m)
    if "dense_blocks" not in params:
        return x, jnp.zeros(())
    looks = self_looks(config, rows, _bias_table(outer), causal=m.kind != "encoder")
    return run_layers(params["dense_blocks"], x, m.dense, partial(gather, "dense_blocks"), looks, Flags())


def layers(
    blocks: Tree,
    x: Array,
    rows: Batch,
    config: Config,
    gather: Gather,
    flags: Flags,
    bias_table: Array | None = None,
    cross: Cross | None = None,
) -> tuple[Array, Array]:
    """Layers of the main stack, [B, t, D] -> [B, t, D], and the sum of their balancing losses."""
    looks = self_looks(config, rows, bias_table, causal=config.model.kind != "encoder")
    return run_layers(blocks, x, config.model, partial(gather, "blocks"), looks, flags, cross)


def encode(params: Tree, outer: Tree, rows: Batch, config: Config, gather: Gather) -> Array:
    """The encoder's output for `sources` int32 [B, S]: [B, S, D], the whole sequence on every device of `model`."""
    m, sources = config.model, rows["sources"]
    source: Batch = {"inputs": sources, "positions": jnp.arange(sources.shape[1])}
    if "source_documents" in rows:
        source["documents"] = rows["source_documents"]
    looks = self_looks(config, source, outer.get("relative", {}).get("encoder"), causal=False)
    x = embed(outer["embedding"], source, m)
    x, _ = run_layers(params["encoder_blocks"], x, m, partial(gather, "encoder_blocks"), looks, Flags())
    return gather_sequence(norm(x, outer["encoder_norm"], m) if m.final_norm else x)


def _bias_table(outer: Tree) -> Array | None:
    """Biases by distance of the stack that makes logits."""
    return outer.get("relative", {}).get("own")


def gather_outer(params: Tree, gather: Gather) -> Tree:
    """What is in no stack of blocks, whole."""
    return {name: gather(name, part) for name, part in params.items() if not is_stacked(name)}


def own_tokens(batch: Batch) -> Batch:
    """This device's positions of whole rows [B, T]: the same arrays [B, T / context], with their `positions`."""
    length = batch["inputs"].shape[1]
    positions = sequence_positions(length)
    if positions.shape[0] == length:
        return {**batch, "positions": positions}
    return {**{name: a[:, positions] for name, a in batch.items()}, "positions": positions}


class Cache(NamedTuple):
    """Keys and values of the positions seen so far, [L, B, S, G, width] each; S is the longest sequence that fits."""

    keys: Array
    values: Array


def empty_cache(m: ModelConfig, batch: int, length: int) -> Cache:
    heads = m.n_heads if m.latent else m.kv_heads
    keys, values = ((m.n_layers, batch, length, heads, width) for width in (m.d_key, m.d_head))
    return Cache(jnp.zeros(keys, m.dtype), jnp.zeros(values, m.dtype))


def decoder_extend(
    params: Tree, tokens: Array, start: Array, cache: Cache, m: ModelConfig, gather: Gather
) -> tuple[Array, Cache]:
    """Read tokens int32 [B, T] at positions start .. start + T - 1 after what the cache of a decoder holds.

    Returns:
        float32 logits [B, T, V] and the cache with these positions written. Axes `model` and `context` must have size one.
    """
    if m.mixture is not None:  # a few tokens are no group with a capacity
        m = m.model_copy(update={"moe": m.mixture.model_copy(update={"capacity_factor": None})})
    positions, outer = start + jnp.arange(tokens.shape[1]), gather_outer(params, gather)
    x = embed(outer["embedding"], {"inputs": tokens, "positions": positions}, m)
    n, caches = m.n_layers - m.n_blocks, list[Cache]()
    for name, part, variant in (("dense_blocks", slice(0, n), m.dense), ("blocks", slice(n, None), m)):
        if name in params:
            old = jax.tree.map(lambda a, part=part: a[part], cache)
            local = jnp.asarray(m.local_layers)[part]
            looks = _Cached(positions, local, _bias_table(outer))
            x, new = _extend_stack(params[name], x, old, looks, variant, partial(gather, name))
            caches.append(new)
    return head_logits(outer, x, m), jax.tree.map(lambda *a: jnp.concatenate(a), *caches)


class _Cached(NamedTuple):
    """How the layers of a stack look at a cache."""

    positions: Array
    """[T], of the queries."""
    local: Array
    """bool [layers]; which layers see only a window."""
    bias_table: Array | None


def _extend_stack(
    blocks: Tree, x: Array, cache: Cache, looks: _Cached, m: ModelConfig, gather: partial[Tree]
) -> tuple[Array, Cache]:
    positions, local, table = looks
    S = cache.keys.shape[2]
    distance = positions[:, None] - jnp.arange(S)[None, :]
    bias = -slopes(m)[:, None, None] * distance if m.position == "alibi" else None
    if table is not None:
        bias = distance_bias(table, S, S, both_ways=False)[:, distance + S - 1]

    def layer(x: Array, part: tuple[Tree, Cache, Array]) -> tuple[Array, Cache]:
        w, old, is_local = part
        visible = distance >= 0
        if m.attention.window is not None:
            visible &= ~is_local | (distance < m.attention.window)

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
            seen = Cache(*(lax.dynamic_update_slice_in_dim(a, b, positions[0], axis=1) for a, b in zip(old, (k, v), strict=True)))
            return reference_attention(q, *seen, visible, bias, m.attention.logit_cap), seen

        x, seen, _ = block(x, gather(w), m, Look(attend, turn(m, positions, is_local)))
        return x, seen

    return lax.scan(layer, x, (blocks, cache, local))
