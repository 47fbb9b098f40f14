"""Mistral (Jiang et al. 2023): `MistralForCausalLM`, a Llama of which every layer sees a window."""

from qianyi.config.model import AttentionConfig
from qianyi.config.schema import ModelConfig
from qianyi.export.families import llama
from qianyi.export.families.family import Family, Json, require
from qianyi.export.families.parts import llama_keys, llama_settings, rope_settings


def model_config(hf: Json) -> ModelConfig:
    require(hf, "hidden_act", "silu")
    window = AttentionConfig(window=hf.get("sliding_window", 4096))
    return ModelConfig(**llama_settings(hf), **rope_settings(hf), attention=window)


def hf_config(m: ModelConfig) -> Json:
    return llama_keys(m, "mistral", "MistralForCausalLM") | {"sliding_window": m.attention.window}


FAMILY = Family(
    name="Mistral",
    model_type="mistral",
    table=llama.table,
    model_config=model_config,
    hf_config=hf_config,
    base="model.",
    ignored=("lm_head.weight", "*.rotary_emb.inv_freq"),
)
