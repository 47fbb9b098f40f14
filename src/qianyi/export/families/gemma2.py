"""Gemma 2 (Team Gemma 2024): `Gemma2ForCausalLM`. Scales of norms are stored less one."""

from typing import Any

from qianyi.config.model import AttentionConfig
from qianyi.config.schema import ModelConfig
from qianyi.errors import CheckpointError
from qianyi.export.families.family import Family, Json, need, require
from qianyi.export.families.parts import (
    attention_rows,
    llama_keys,
    llama_settings,
    mlp_rows,
    norm_rows,
    outer_rows,
    rope_settings,
)
from qianyi.export.names import Table, plus

_NORMS = {
    "input_layernorm": "attn_norm/scale",
    "post_attention_layernorm": "attn_post_norm/scale",
    "pre_feedforward_layernorm": "mlp_norm/scale",
    "post_feedforward_layernorm": "mlp_post_norm/scale",
}


def table(m: ModelConfig) -> Table:
    one = plus(1.0)
    return (*outer_rows(m, one), *norm_rows(_NORMS, one), *attention_rows(m, norms=one), *mlp_rows())


def gemma_settings(hf: Json) -> dict[str, Any]:
    """Settings but for attention and positions."""
    require(hf, "hidden_activation", "gelu_pytorch_tanh")
    require(hf, "attention_bias", False)
    require(hf, "use_bidirectional_attention", False, None)
    parts = {"mlp": "geglu", "norm_at": "sandwich", "scale_embeddings": True}
    return llama_settings(hf, tied=True) | parts | {"logit_cap": hf.get("final_logit_softcapping")}


def attention_settings(hf: Json, global_every: int) -> dict[str, Any]:
    """Settings of attention; `global_every` where layers are not listed."""
    scalar = need(hf, "query_pre_attn_scalar")
    return {
        "logit_cap": hf.get("attn_logit_softcapping"),
        "scale": None if scalar == need(hf, "head_dim") else scalar**-0.5,
        **_windows(hf, global_every),
    }


def _windows(hf: Json, global_every: int) -> dict[str, Any]:
    n = need(hf, "num_hidden_layers")
    pattern = ["sliding_attention" if (i + 1) % global_every else "full_attention" for i in range(n)]
    layers = hf.get("layer_types") or pattern
    seeing_all = [i for i, kind in enumerate(layers) if kind == "full_attention"]
    if len(seeing_all) == n:
        return {}
    every = seeing_all[0] + 1 if seeing_all else 0
    if every and seeing_all != list(range(every - 1, n, every)):
        raise CheckpointError(f"layer_types has full_attention in layers {seeing_all}, at no regular distance")
    return {"window": need(hf, "sliding_window"), "global_every": every}


def gemma_keys(m: ModelConfig, model_type: str, architecture: str) -> Json:
    keys = llama_keys(m, model_type, architecture)
    del keys["hidden_act"]
    scale = m.attention.scale
    return keys | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": m.d_head if scale is None else max(round(scale**-2), 1),
        "sliding_window": m.attention.window or m.max_seq_len,
        "layer_types": ["sliding_attention" if local else "full_attention" for local in m.local_layers],
        "attn_logit_softcapping": m.attention.logit_cap,
        "final_logit_softcapping": m.logit_cap,
    }


def model_config(hf: Json) -> ModelConfig:
    attention = AttentionConfig(**attention_settings(hf, global_every=2))
    return ModelConfig(**gemma_settings(hf), **rope_settings(hf), attention=attention)


def hf_config(m: ModelConfig) -> Json:
    return gemma_keys(m, "gemma2", "Gemma2ForCausalLM")


FAMILY = Family(
    name="Gemma 2",
    model_type="gemma2",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="model.",
    ignored=("lm_head.weight", "*.rotary_emb.inv_freq"),
)
