"""One Transformer block, composed of a norm, attention and a feed-forward layer.

This is the code of one device: arrays are local shards, and the two places where tensor parallelism communicates are
written out (`gather_sequence`, `scatter_sequence`). Between them the residual stream is split along the sequence.

Dims: B batch, T position (t: T / model), D residual, H query heads, G key/value heads, K head width, F hidden width.
Heads and F are local: 1 / model of the whole.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qianyi.config.schema import ModelConfig
from qianyi.model.moe import experts, moe_params
from qianyi.model.param import Param, Tree
from qianyi.ops.norm import layer_norm, rms_norm
from qianyi.ops.rope import rotate
from qianyi.parallel.collectives import gather_sequence, scatter_sequence

Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
"""(q, k, v) -> (output, state): how queries meet keys. Training passes causal attention; generation one with a cache."""


def norm_params(m: ModelConfig) -> Tree:
    params: Tree = {"scale": Param((m.d_model,), ("residual",), mean=1.0, kind="vector")}
    if m.norm == "layernorm" and m.bias:
        params["bias"] = Param((m.d_model,), ("residual",), kind="vector")
    return params


def attention_params(m: ModelConfig) -> Tree:
    D, H, G, K = m.d_model, m.n_heads, m.kv_heads, m.d_head
    params: Tree = {
        "query": Param((D, H, K), ("embed", "heads", "head_dim"), m.init_std),
        "key": Param((D, G, K), ("embed", "kv_heads", "head_dim"), m.init_std),
        "value": Param((D, G, K), ("embed", "kv_heads", "head_dim"), m.init_std),
        "out": Param((H, K, D), ("heads", "head_dim", "embed"), residual_std(m)),
    }
    if m.bias:
        params["query_bias"] = Param((H, K), ("heads", "head_dim"), kind="vector")
        params["key_bias"] = Param((G, K), ("kv_heads", "head_dim"), kind="vector")
        params["value_bias"] = Param((G, K), ("kv_heads", "head_dim"), kind="vector")
        params["out_bias"] = Param((D,), ("residual",), kind="vector")
    return params


def mlp_params(m: ModelConfig, F: int) -> Tree:
    D = m.d_model
    params: Tree = {
        "up": Param((D, F), ("embed", "ffn"), m.init_std),
        "down": Param((F, D), ("ffn", "embed"), residual_std(m)),
    }
    if m.mlp == "swiglu":
        params["gate"] = Param((D, F), ("embed", "ffn"), m.init_std)
    if m.bias:
        params["up_bias"] = Param((F,), ("ffn",), kind="vector")
        params["down_bias"] = Param((D,), ("residual",), kind="vector")
    return params


def residual_std(m: ModelConfig) -> float:
    """Initial deviation of projections into the residual stream (Radford et al. 2019, section 2.3)."""
    return m.init_std / math.sqrt(2 * m.n_layers)


def block_params(m: ModelConfig) -> Tree:
    params: Tree = {
        "attn_norm": norm_params(m),
        "attn": attention_params(m),
        "mlp_norm": norm_params(m),
    }
    if m.mixture is None:
        return {**params, "mlp": mlp_params(m, m.d_hidden)}
    if m.mixture.n_shared:
        params["mlp"] = mlp_params(m, m.mixture.n_shared * m.d_hidden)
    return {**params, "moe": moe_params(m, m.mixture, residual_std(m))}


def norm(x: Array, w: Tree, m: ModelConfig) -> Array:
    """[..., D] -> [..., D]."""
    if m.norm == "rmsnorm":
        return rms_norm(x, w["scale"], m.norm_eps)
    return layer_norm(x, w["scale"], w.get("bias"), m.norm_eps)


def block(x: Array, w: Tree, m: ModelConfig, positions: Array, attend: Attend) -> tuple[Array, Any, Array]:
    """x [B, t, D] -> [B, t, D], what `attend` returned beside its output, and the balancing loss of experts."""
    h = gather_sequence(checkpoint_name(norm(x, w["attn_norm"], m), "attn_norm"))  # B T D
    h, state = attention(h, w["attn"], m, positions, attend)
    x = x + checkpoint_name(_to_residual(h, w["attn"], "out_bias"), "attn_proj")
    h = gather_sequence(checkpoint_name(norm(x, w["mlp_norm"], m), "mlp_norm"))
    h, balance = feed_forward(h, w, m)
    return x + checkpoint_name(_to_residual(h, w.get("mlp", {}), "down_bias"), "mlp_out"), state, balance


def feed_forward(h: Array, w: Tree, m: ModelConfig) -> tuple[Array, Array]:
    """[B, T, D] -> partial sums [B, T, D] of the dense layer, or of the experts and those that all tokens share."""
    if m.mixture is None:
        return mlp(h, w["mlp"], m), jnp.zeros(())
    out, balance = experts(h, w["moe"], m, m.mixture)
    return out + mlp(h, w["mlp"], m) if m.mixture.n_shared else out, balance


def attention(h: Array, w: Tree, m: ModelConfig, positions: Array, attend: Attend) -> tuple[Array, Any]:
    """[B, T, D] -> partial sums [B, T, D] over the local heads."""
    q = _add_bias(_matmul(h, w["query"]), w, "query_bias")
    k = _add_bias(_matmul(h, w["key"]), w, "key_bias")
    v = _add_bias(_matmul(h, w["value"]), w, "value_bias")
    if m.position == "rope":
        q, k = rotate(q, positions, m.rope_theta), rotate(k, positions, m.rope_theta)
    q, k, v = checkpoint_name(q, "query"), checkpoint_name(k, "key"), checkpoint_name(v, "value")
    out, state = attend(q, k, v)
    return _matmul(out, w["out"]), state


def mlp(h: Array, w: Tree, m: ModelConfig) -> Array:
    """[B, T, D] -> partial sums [B, T, D] over the local hidden units."""
    up = checkpoint_name(_add_bias(_matmul(h, w["up"]), w, "up_bias"), "mlp_up")
    if m.mlp == "swiglu":
        gate = checkpoint_name(_matmul(h, w["gate"]), "mlp_gate")
        hidden = jax.nn.silu(gate) * up
    else:
        hidden = jax.nn.gelu(up, approximate=True)
    return _matmul(checkpoint_name(hidden, "mlp_hidden"), w["down"])


def _matmul(x: Array, w: Array) -> Array:
    """[B, T, *in] times [*in, *out] -> [B, T, *out], as one product of two matrices: what CPU libraries are fastest at, and what other
    compilers make of it anyway."""
    B, T, *inner = x.shape
    rows = x.reshape(B * T, math.prod(inner)) @ w.reshape(math.prod(inner), -1)
    return rows.reshape(B, T, *w.shape[len(inner) :])


def _to_residual(partial_sums: Array, w: Tree, bias: str) -> Array:
    """[B, T, D] partial sums -> [B, t, D]; the bias is added once, after the sum."""
    return _add_bias(scatter_sequence(partial_sums), w, bias)


def _add_bias(x: Array, w: Tree, name: str) -> Array:
    return x + w[name].astype(x.dtype) if name in w else x
