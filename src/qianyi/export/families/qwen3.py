"""Qwen3 (Yang et al. 2025): `Qwen3ForCausalLM`, a Llama whose queries and keys are normalized."""

from qianyi.config.model import AttentionConfig
from qianyi.config.schema import ModelConfig
from qianyi.export.families import llama
from qianyi.export.families.family import Family, Json, require
from qianyi.export.families.parts import llama_keys, llama_settings, rope_settings


def model_config(hf: Json) -> ModelConfig:
    require(hf, "hidden_act", "silu")
    require(hf, "attention_bias", False)
    require(hf, "use_sliding_window", False)
    settings = llama_settings({"head_dim": 128} | hf)
    return ModelConfig(**settings, **rope_settings(hf), attention=AttentionConfig(qk_norm=True))


def hf_config(m: ModelConfig) -> Json:
    return llama_keys(m, "qwen3", "Qwen3ForCausalLM") | {"use_sliding_window": False}


FAMILY = Family(
    name="Qwen3",
    model_type="qwen3",
    table=llama.table,
    model_config=model_config,
    hf_config=hf_config,
    base="model.",
    ignored=("lm_head.weight", "*.rotary_emb.inv_freq"),
)
