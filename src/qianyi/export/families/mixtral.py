"""Mixtral (Jiang et al. 2024): `MixtralForCausalLM`, a Mistral with experts."""

from qianyi.config.model import AttentionConfig, MoEConfig
from qianyi.config.schema import ModelConfig
from qianyi.export.families.family import Family, Json, need, require
from qianyi.export.families.parts import (
    PRE_NORMS,
    attention_rows,
    expert_rows,
    llama_keys,
    llama_settings,
    norm_rows,
    outer_rows,
    rope_settings,
)
from qianyi.export.names import Table


def table(m: ModelConfig) -> Table:
    experts = expert_rows("block_sparse_moe", ("w1", "w3", "w2"))
    return (*outer_rows(m), *norm_rows(PRE_NORMS), *attention_rows(m), *experts)


def model_config(hf: Json) -> ModelConfig:
    require(hf, "hidden_act", "silu")
    moe = MoEConfig(n_experts=need(hf, "num_local_experts"), experts_per_token=need(hf, "num_experts_per_tok"))
    window = AttentionConfig(window=hf.get("sliding_window"))
    return ModelConfig(**llama_settings(hf, norm_eps=1e-5), **rope_settings(hf, theta=1e6), attention=window, moe=moe)


def hf_config(m: ModelConfig) -> Json:
    return llama_keys(m, "mixtral", "MixtralForCausalLM") | {
        "intermediate_size": m.d_expert,
        "sliding_window": m.attention.window,
        "num_local_experts": m.moe.n_experts,
        "num_experts_per_tok": m.moe.experts_per_token,
    }


FAMILY = Family(
    name="Mixtral",
    model_type="mixtral",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="model.",
    ignored=("lm_head.weight", "*.rotary_emb.inv_freq"),
)
