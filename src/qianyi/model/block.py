"""One Transformer block, composed of norms, attention and a feed-forward layer.

This is the code of one device: arrays are local shards, and the two places where tensor parallelism communicates are
written out (`gather_sequence`, `scatter_sequence`). Between them the residual stream is split along the sequence.

Dims: B batch, T position (t: T / model), D residual, F hidden width (local: 1 / model of the whole).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qianyi.config.schema import ModelConfig
from qianyi.model.attention import Look, attention, attention_params
from qianyi.model.linear import (
    activate,
    add_bias,
    deepnorm_gain,
    deepnorm_scale,
    fan_out,
    init_std,
    matmul,
    residual_std,
    to_residual,
)
from qianyi.model.moe import experts, moe_params
from qianyi.model.param import Param, Tree, with_amax
from qianyi.ops.norm import layer_norm, rms_norm
from qianyi.parallel.collectives import gather_sequence


class Cross(NamedTuple):
    """What a decoder's block looks at in the encoder's output."""

    memory: Array
    """[B, S, D]."""
    look: Look


def norm_params(m: ModelConfig) -> Tree:
    params: Tree = {"scale": Param((m.d_model,), ("residual",), mean=1.0, kind="vector")}
    if m.norm == "layernorm" and m.bias:
        params["bias"] = Param((m.d_model,), ("residual",), kind="vector")
    return params


def mlp_params(m: ModelConfig, F: int) -> Tree:
    D = m.d_model
    std = init_std(m, D) * deepnorm_gain(m)
    params: Tree = {"up": Param((D, F), ("embed", "ffn"), std), "down": Param((F, D), ("ffn", "embed"), residual_std(m, F))}
    if m.gated:
        params["gate"] = Param((D, F), ("embed", "ffn"), std)
    if m.bias:
        params["up_bias"] = Param((F,), ("ffn",), kind="vector")
        params["down_bias"] = Param((D,), ("residual",), kind="vector")
        if m.gated:
            params["gate_bias"] = Param((F,), ("ffn",), kind="vector")
    return with_amax(params, m.matmul)


def block_params(m: ModelConfig, *, cross: bool = False) -> Tree:
    """Of one layer; `cross`: of a decoder that looks at an encoder's output."""
    params: Tree = {**_norms("attn", m), "attn": attention_params(m)}
    if cross:
        params |= {**_norms("cross", m), "cross": attention_params(m)}
    if not m.parallel:
        params |= _norms("mlp", m)
    if m.mixture is None:
        return {**params, "mlp": mlp_params(m, m.d_hidden)}
    if m.mixture.n_shared:
        params["mlp"] = mlp_params(m, m.mixture.n_shared * m.d_expert)
    return {**params, "moe": moe_params(m, m.mixture)}


def _norms(name: str, m: ModelConfig) -> Tree:
    names = [f"{name}_norm", f"{name}_post_norm"] if m.norm_at == "sandwich" else [f"{name}_norm"]
    return {name: norm_params(m) for name in names}


def norm(x: Array, w: Tree, m: ModelConfig) -> Array:
    """[..., D] -> [..., D]."""
    if m.norm == "rmsnorm":
        return rms_norm(x, w["scale"], m.norm_eps)
    return layer_norm(x, w["scale"], w.get("bias"), m.norm_eps)


def block(x: Array, w: Tree, m: ModelConfig, look: Look, cross: Cross | None = None) -> tuple[Array, Any, Array]:
    """x [B, t, D] -> [B, t, D], what attention returned beside its output, and the balancing loss of experts."""
    if m.parallel:
        return _parallel(x, w, m, look)

    def attend(h: Array) -> tuple[Array, Any]:
        h, state = attention(h, h, w["attn"], m, look)
        return checkpoint_name(to_residual(h, w["attn"], "out_bias"), "attn_proj"), state

    def forward(h: Array) -> tuple[Array, Array]:
        h, balance = feed_forward(h, w, m)
        return checkpoint_name(to_residual(h, w.get("mlp", {}), "down_bias"), "mlp_out"), balance

    x, state = _residual(x, w, "attn", m, attend)
    if cross is not None:
        x, _ = _residual(x, w, "cross", m, lambda h: _cross(h, w["cross"], m, cross))
    x, balance = _residual(x, w, "mlp", m, forward)
    return x, state, balance


def _residual(x: Array, w: Tree, name: str, m: ModelConfig, f: Callable[[Array], tuple[Array, Any]]) -> tuple[Array, Any]:
    """A residual connection around f: [B, T, D] -> ([B, t, D], anything)."""
    after = m.norm_at in {"post", "deepnorm"}
    h = x if after else checkpoint_name(norm(x, w[f"{name}_norm"], m), f"{name}_norm")
    out, more = f(gather_sequence(h))
    if m.norm_at == "sandwich":
        out = norm(out, w[f"{name}_post_norm"], m)
    x = (x if m.norm_at != "deepnorm" else deepnorm_scale(m) * x) + out
    return (norm(x, w[f"{name}_norm"], m) if after else x), more


def _parallel(x: Array, w: Tree, m: ModelConfig, look: Look) -> tuple[Array, Any, Array]:
    """Attention and feed-forward layer side by side (Chowdhery et al. 2022, section 2): one norm, one communication each way."""
    h = gather_sequence(checkpoint_name(norm(x, w["attn_norm"], m), "attn_norm"))
    attended, state = attention(h, h, w["attn"], m, look)
    forward, balance = feed_forward(h, w, m)
    out = add_bias(to_residual(attended + forward, w["attn"], "out_bias"), w.get("mlp", {}), "down_bias")
    return x + checkpoint_name(out, "mlp_out"), state, balance


def _cross(h: Array, w: Tree, m: ModelConfig, cross: Cross) -> tuple[Array, Any]:
    h, state = attention(h, cross.memory, w, m, cross.look)
    return checkpoint_name(to_residual(h, w, "out_bias"), "attn_proj"), state


def feed_forward(h: Array, w: Tree, m: ModelConfig) -> tuple[Array, Array]:
    """[B, T, D] -> partial sums [B, T, D] of the dense layer, or of the experts and those that all tokens share."""
    if m.mixture is None:
        return mlp(h, w["mlp"], m), jnp.zeros(())
    out, balance = experts(h, w["moe"], m, m.mixture)
    return out + mlp(h, w["mlp"], m) if m.mixture.n_shared else out, balance


def mlp(h: Array, w: Tree, m: ModelConfig) -> Array:
    """[B, T, D] -> partial sums [B, T, D] over the local hidden units."""
    of_up, of_gate = fan_out(h, 2) if m.gated else (h, h)
    up = checkpoint_name(add_bias(matmul(of_up, w, "up", m, "output"), w, "up_bias"), "mlp_up")
    gate = checkpoint_name(add_bias(matmul(of_gate, w, "gate", m, "output"), w, "gate_bias"), "mlp_gate") if m.gated else None
    return matmul(checkpoint_name(activate(up, gate, m), "mlp_hidden"), w, "down", m, "input")
