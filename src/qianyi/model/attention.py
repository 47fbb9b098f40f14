"""Attention: queries, keys and values from the residual stream, and back.

Dims: B batch, T position, D residual, H query heads, G key/value heads, K head width; heads are local: 1 / model of the whole.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qianyi.config.model import LatentConfig
from qianyi.config.schema import ModelConfig
from qianyi.model.linear import add_bias, deepnorm_gain, fan_out, init_std, matmul, residual_std
from qianyi.model.param import Param, Tree, with_amax
from qianyi.model.width import query_multiplier
from qianyi.ops.norm import rms_norm

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(q, k, v) -> (output, state): how queries, scaled, meet keys. Training looks at the whole sequence; generation at a cache."""
Turn = Callable[[Array], Array]
"""Rotary positions of queries or keys [B, T, heads, K]; nothing where positions are others."""


class Look(NamedTuple):
    """What attention needs beside its input and weights."""

    attend: Attend
    turn: Turn


def attention_params(m: ModelConfig) -> Tree:
    return with_amax(_plain_params(m) if m.latent is None else _latent_params(m, m.latent), m.matmul)


def _plain_params(m: ModelConfig) -> Tree:
    D, H, G, K = m.d_model, m.n_heads, m.kv_heads, m.d_head
    kv_heads = "kv_heads" if G > 1 else "one_head"
    params: Tree = {
        "query": Param((D, H, K), ("embed", "heads", "head_dim"), _query_std(m, D)),
        "key": Param((D, G, K), ("embed", kv_heads, "head_dim"), init_std(m, D)),
        "value": Param((D, G, K), ("embed", kv_heads, "head_dim"), init_std(m, D) * deepnorm_gain(m)),
        "out": Param((H, K, D), ("heads", "head_dim", "embed"), residual_std(m, H * K)),
    }
    if m.bias:
        params["query_bias"] = Param((H, K), ("heads", "head_dim"), kind="vector")
        params["key_bias"] = Param((G, K), (kv_heads, "head_dim"), kind="vector")
        params["value_bias"] = Param((G, K), (kv_heads, "head_dim"), kind="vector")
        params["out_bias"] = Param((D,), ("residual",), kind="vector")
    if m.attention.qk_norm:
        params["query_norm"] = Param((K,), ("head_dim",), mean=1.0, kind="vector")
        params["key_norm"] = Param((K,), ("head_dim",), mean=1.0, kind="vector")
    return params


def _latent_params(m: ModelConfig, latent: LatentConfig) -> Tree:
    D, H, K, R, C, Q = m.d_model, m.n_heads, m.d_head, latent.rope_dim, latent.kv_rank, latent.query_rank
    params: Tree = {
        "latent": Param((D, C), ("embed", "rank"), init_std(m, D)),
        "latent_norm": Param((C,), ("rank",), mean=1.0, kind="vector"),
        "key_position": Param((D, R), ("embed", "rank"), init_std(m, D)),
        "key": Param((C, H, K), ("latent", "heads", "head_dim"), init_std(m, C)),
        "value": Param((C, H, K), ("latent", "heads", "head_dim"), init_std(m, C)),
        "out": Param((H, K, D), ("heads", "head_dim", "embed"), residual_std(m, H * K)),
    }
    if not Q:
        return {**params, "query": Param((D, H, K + R), ("embed", "heads", "head_dim"), init_std(m, D))}
    return {
        **params,
        "query_latent": Param((D, Q), ("embed", "rank"), init_std(m, D)),
        "query_latent_norm": Param((Q,), ("rank",), mean=1.0, kind="vector"),
        "query": Param((Q, H, K + R), ("latent", "heads", "head_dim"), init_std(m, Q)),
    }


def _query_std(m: ModelConfig, fan_in: int) -> float:
    """Where products are not divided by sqrt(K), initial queries are (T5: Raffel et al. 2020)."""
    return init_std(m, fan_in) / (_usual_scale(m) * math.sqrt(m.d_key)) if m.init == "fan_in" else m.init_std


def query_scale(m: ModelConfig) -> float:
    """Factor on products of queries and keys."""
    return _usual_scale(m) * query_multiplier(m)


def _usual_scale(m: ModelConfig) -> float:
    return m.attention.scale or m.d_key**-0.5


def attention(h: Array, memory: Array, w: Tree, m: ModelConfig, look: Look) -> tuple[Array, Any]:
    """Queries of h [B, T, D] look at memory [B, S, D] (h itself, but between decoder and encoder) -> partial sums [B, T, D] over the local
    heads, and what `attend` returned beside its output."""
    q, k, v = _latent(h, w, m, look.turn) if m.latent is not None else _plain(h, memory, w, m, look.turn)
    q, k, v = checkpoint_name(q, "query"), checkpoint_name(k, "key"), checkpoint_name(v, "value")
    out, state = look.attend(q, k, v)
    return matmul(out, w, "out", m, "input"), state


def _plain(h: Array, memory: Array, w: Tree, m: ModelConfig, turn: Turn) -> tuple[Array, Array, Array]:
    heads = "output" if m.kv_heads > 1 else None
    of_q, of_k, of_v = fan_out(h, 3) if memory is h else (h, *fan_out(memory, 2))
    q = add_bias(matmul(of_q, w, "query", m, "output"), w, "query_bias")
    k = add_bias(matmul(of_k, w, "key", m, heads), w, "key_bias")
    v = add_bias(matmul(of_v, w, "value", m, heads), w, "value_bias")
    if m.attention.qk_norm:
        q, k = rms_norm(q, w["query_norm"], m.norm_eps), rms_norm(k, w["key_norm"], m.norm_eps)
    return turn(q) * query_scale(m), turn(k), v


def _latent(h: Array, w: Tree, m: ModelConfig, turn: Turn) -> tuple[Array, Array, Array]:
    """Keys and values of all heads from one latent vector; positions in a part of their own, which all heads share for keys."""
    K = m.d_head
    c = rms_norm(matmul(h, w, "latent", m, None), w["latent_norm"], m.norm_eps)
    c_q = h
    if "query_latent" in w:
        c_q = rms_norm(matmul(h, w, "query_latent", m, None), w["query_latent_norm"], m.norm_eps)
    q, k, v = (matmul(of, w, name, m, "output") for of, name in ((c_q, "query"), (c, "key"), (c, "value")))
    shared = turn(matmul(h, w, "key_position", m, None)[:, :, None])
    shared = jnp.broadcast_to(shared, (*k.shape[:3], shared.shape[-1]))
    q = jnp.concatenate([q[..., :K], turn(q[..., K:])], axis=-1)
    return q * query_scale(m), jnp.concatenate([k, shared], axis=-1), v
