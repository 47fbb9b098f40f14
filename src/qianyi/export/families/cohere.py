"""Cohere's Command R: `CohereForCausalLM`. With one key/value head it computes what PaLM does (Chowdhery et al. 2022)."""

import math

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
from qianyi.export.names import Table, interleaved


def table(m: ModelConfig) -> Table:
    norms = norm_rows({"input_layernorm": "attn_norm/scale"})
    return (*outer_rows(m), *norms, *attention_rows(m, rotary=interleaved()), *mlp_rows())


def model_config(hf: Json) -> ModelConfig:
    require(hf, "hidden_act", "silu")
    require(hf, "attention_bias", False)
    require(hf, "use_qk_norm", False)
    settings = llama_settings(hf, tied=True) | {"norm": "layernorm", "norm_eps": hf.get("layer_norm_eps", 1e-5)}
    return ModelConfig(**settings, **rope_settings(hf, theta=500_000.0), parallel=True, scale_logits=_scales_logits(hf))


def _scales_logits(hf: Json) -> bool:
    scale, ours = hf.get("logit_scale", 0.0625), need(hf, "hidden_size") ** -0.5
    if scale not in {1, None} and not math.isclose(scale, ours):
        raise CheckpointError(f"logit_scale={scale} in the model's configuration is not supported, only 1 or hidden_size**-0.5")
    return scale not in {1, None}


def hf_config(m: ModelConfig) -> Json:
    keys = llama_keys(m, "cohere", "CohereForCausalLM")
    del keys["rms_norm_eps"]
    scale = m.d_model**-0.5 if m.scale_logits else 1.0
    return keys | {"layer_norm_eps": m.norm_eps, "logit_scale": scale, "use_qk_norm": False}


FAMILY = Family(
    name="Cohere",
    model_type="cohere",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="model.",
    ignored=("lm_head.weight", "*.rotary_emb.inv_freq"),
)
