"""From tokens to the residual stream and from there to logits and losses.

Like the block, this is the code of one device. Dims: B batch, T position (t: T / model), D residual, V vocabulary rows (local: 1 / model).
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from qianyi.config.schema import Config, ModelConfig
from qianyi.model.block import norm, norm_params
from qianyi.model.linear import activate, init_std
from qianyi.model.param import Param, Tree
from qianyi.model.width import width_ratio
from qianyi.ops.loss import LossSums, Output, Shape, vocabulary_loss
from qianyi.ops.position import sinusoids
from qianyi.parallel.collectives import gather_sequence, index_on, scatter_sequence, sum_over, vary


def embedding_params(m: ModelConfig) -> Tree:
    std = (m.d_model**-0.5 if m.scale_embeddings else 1.0) if m.init == "fan_in" else m.init_std
    params: Tree = {"tokens": Param((m.vocab_size, m.d_model), ("vocab", "embed"), std)}
    if m.position == "learned":
        params["positions"] = Param((m.max_seq_len, m.d_model), ("positions", "embed"), std)
    if m.segments:
        params["segments"] = Param((m.segments, m.d_model), ("positions", "embed"), std)
    if m.embedding_norm:
        params["norm"] = norm_params(m)
    return params


def head_params(m: ModelConfig) -> Tree:
    """What logits need beside tied embeddings; empty where nothing."""
    D, std = m.d_model, init_std(m, m.d_model)
    params: Tree = {}
    if not m.tied_embeddings:
        params["tokens"] = Param((m.vocab_size, D), ("vocab", "embed"), std)
    if m.kind == "encoder" and m.mlm_head:
        params["transform"] = Param((D, D), ("embed", "residual"), std)
        params["transform_bias"] = Param((D,), ("residual",), kind="vector")
        params["norm"] = norm_params(m)
        params["bias"] = Param((m.vocab_size,), ("vocab",), kind="vector")
    return params


def sentence_params(m: ModelConfig) -> Tree:
    D, std = m.d_model, init_std(m, m.d_model)
    return {
        "pool": Param((D, D), ("embed", "residual"), std),
        "pool_bias": Param((D,), ("residual",), kind="vector"),
        "out": Param((D, 2), ("embed", "label"), std),
        "out_bias": Param((2,), ("label",), kind="vector"),
    }


def embed(w: Tree, rows: Tree, m: ModelConfig) -> Array:
    """`inputs` int32 [B, T] at `positions` [T] or [B, T] (and of `segments` [B, T]) -> [B, t, D]. Each device looks up the rows it has; the
    sum over `model` completes them."""
    table, tokens, positions = w["tokens"], rows["inputs"], rows["positions"]
    n = table.shape[0]
    local = vary(tokens) - index_on("model") * n
    mine = (local >= 0) & (local < n)
    x = jnp.where(mine[..., None], table[jnp.where(mine, local, 0)], 0)
    x = x * math.sqrt(m.d_model) if m.scale_embeddings else x
    added: list[Array] = []
    if m.position == "learned":
        added.append(w["positions"][positions])
    if m.position == "sinusoidal":
        added.append(jnp.asarray(sinusoids(m.max_seq_len, m.d_model), x.dtype)[positions])
    if m.segments:
        added.append(w["segments"][rows["segments"]])
    for more in added:  # by one device of `model` alone, since the shards are summed
        x = x + jnp.where(index_on("model") == 0, more, 0)
    x = scatter_sequence(x)
    return norm(x, w["norm"], m) if m.embedding_norm else x


def _before_logits(outer: Tree, x: Array, m: ModelConfig) -> Array:
    """[B, t, D] -> [B, T, D]: final norm, BERT's extra layer, scale."""
    x = norm(x, outer["final_norm"], m) if m.final_norm else x
    if "transform" in (head := outer.get("head", {})):
        hidden = x @ head["transform"] + head["transform_bias"].astype(x.dtype)
        x = norm(activate(hidden, None, m), head["norm"], m)
    x = gather_sequence(x)
    scale = (m.d_model**-0.5 if m.scale_logits else 1.0) / width_ratio(m)
    return x if scale == 1 else x * scale


def _output(outer: Tree, m: ModelConfig) -> Output:
    head = outer.get("head", {})
    return Output((outer["embedding"] if m.tied_embeddings else head)["tokens"], head.get("bias"))


def head_loss(outer: Tree, x: Array, rows: Tree, config: Config) -> LossSums:
    """Final hidden states [B, t, D] -> sums of the loss terms."""
    m, train = config.model, config.train
    shape = Shape(train.z_loss, train.loss_chunk_tokens, m.logit_cap)
    sums = vocabulary_loss(_before_logits(outer, x, m), _output(outer, m), rows["targets"], shape)
    return sums._replace(sentence=_sentence_loss(outer["sentence"], x, rows["sentence"])) if m.sentence_head else sums


def head_logits(outer: Tree, x: Array, m: ModelConfig) -> Array:
    """[B, t, D] -> float32 [B, T, V]."""
    table, bias = _output(outer, m)
    logits = jnp.einsum("btd,vd->btv", _before_logits(outer, x, m), table, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias
    return logits if m.logit_cap is None else m.logit_cap * jnp.tanh(logits / m.logit_cap)


def sentence_logits(w: Tree, x: Array) -> Array:
    """[B, t, D] -> float32 [B, 2], from the first token (Devlin et al. 2019, section 3.1)."""
    first = gather_sequence(x)[:, 0]
    pooled = jnp.tanh(first @ w["pool"] + w["pool_bias"].astype(x.dtype))
    return (pooled @ w["out"]).astype(jnp.float32) + w["out_bias"]


def _sentence_loss(w: Tree, x: Array, labels: Array) -> Array:
    """Sum over this device's rows; labels int32 [B, 1], -1 is not scored."""
    log_p, label = jax.nn.log_softmax(sentence_logits(w, x)), labels[:, 0]
    loss = -jnp.where(label >= 0, jnp.take_along_axis(log_p, jnp.maximum(labels, 0), axis=1)[:, 0], 0).sum()
    # All devices of `model` have the same rows, each counts them in part.
    return sum_over(loss / lax.axis_size("model"), ("model",))
