"""Qwen3 with experts (Yang et al. 2025): `Qwen3MoeForCausalLM`."""

from qianyi.config.model import AttentionConfig, MoEConfig
from qianyi.config.schema import ModelConfig
from qianyi.errors import CheckpointError
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
    return (*outer_rows(m), *norm_rows(PRE_NORMS), *attention_rows(m), *expert_rows())


def model_config(hf: Json) -> ModelConfig:
    require(hf, "hidden_act", "silu")
    require(hf, "attention_bias", False)
    require(hf, "use_sliding_window", False)
    require(hf, "decoder_sparse_step", 1)
    if hf.get("mlp_only_layers"):
        raise CheckpointError(f"mlp_only_layers={hf['mlp_only_layers']} in the model's configuration is not supported, only none")
    width = need(hf, "moe_intermediate_size")
    moe = MoEConfig(
        n_experts=need(hf, "num_experts", "num_local_experts"),
        experts_per_token=need(hf, "num_experts_per_tok"),
        normalize=hf.get("norm_topk_prob", False),
    )
    # intermediate_size is of dense layers, of which there are none.
    settings = llama_settings(hf | {"intermediate_size": width})
    return ModelConfig(**settings, **rope_settings(hf), attention=AttentionConfig(qk_norm=True), moe=moe)


def hf_config(m: ModelConfig) -> Json:
    return llama_keys(m, "qwen3_moe", "Qwen3MoeForCausalLM") | {
        "intermediate_size": m.d_expert,
        "moe_intermediate_size": m.d_expert,
        "num_experts": m.moe.n_experts,
        "num_experts_per_tok": m.moe.experts_per_token,
        "norm_topk_prob": m.moe.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


FAMILY = Family(
    name="Qwen3-MoE",
    model_type="qwen3_moe",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="model.",
    ignored=("lm_head.weight", "*.rotary_emb.inv_freq"),
)
