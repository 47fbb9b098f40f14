"""DeepSeek-V3 (DeepSeek-AI 2024): `DeepseekV3ForCausalLM`. The first layers are dense, those after them have experts; keys, values and
queries come from latent vectors, and the columns that carry positions are in interleaved pairs."""

from qianyi.config.model import AttentionConfig, LatentConfig, MoEConfig
from qianyi.config.schema import ModelConfig
from qianyi.export.families.family import Family, Json, need, require
from qianyi.export.families.parts import (
    LAYER,
    PRE_NORMS,
    expert_rows,
    llama_keys,
    llama_settings,
    mlp_rows,
    norm_rows,
    outer_rows,
    rope_settings,
)
from qianyi.export.names import SAME, Entry, Table, interleaved

LATENT_NORM_EPS = 1e-6
"""Of norms of latent vectors, whatever rms_norm_eps is; here all norms of a model have one."""


def table(m: ModelConfig) -> Table:
    n = m.n_layers - m.n_blocks
    first = (*_attention_rows(m, "dense_blocks", 0), *mlp_rows(stack="dense_blocks")) if n else ()
    bias = Entry(f"{LAYER}mlp.gate.e_score_correction_bias", ("blocks/moe/balance",), "E -> E", first_layer=n)
    experts = (*expert_rows(first_layer=n), bias, *mlp_rows("mlp.shared_experts", first_layer=n))
    return (*outer_rows(m), *first, *_attention_rows(m, "blocks", n), *experts)


def _attention_rows(m: ModelConfig, stack: str, first_layer: int) -> Table:
    rope_dim, h, ours = m.attention.latent.rope_dim, LAYER + "self_attn.", f"{stack}/attn/"
    turned = (interleaved(rope_dim),)

    def row(theirs: str, names: tuple[str, ...], dims: str, changes: tuple = ()) -> Entry:
        return Entry(f"{h}{theirs}.weight", tuple(ours + name for name in names), dims, changes, first_layer)

    if m.attention.latent.query_rank:
        queries = (
            row("q_a_proj", ("query_latent",), "D Q -> Q D"),
            row("q_a_layernorm", ("query_latent_norm",), "Q -> Q"),
            row("q_b_proj", ("query",), "Q H K -> (H K) Q", turned),
        )
    else:
        queries = (row("q_proj", ("query",), "D H K -> (H K) D", turned),)
    return (
        *norm_rows(PRE_NORMS, stack=stack, first_layer=first_layer),
        *queries,
        row("kv_a_proj_with_mqa", ("latent", "key_position"), "D C -> (* C) D", (SAME, interleaved())),
        row("kv_a_layernorm", ("latent_norm",), "C -> C"),
        row("kv_b_proj", ("key", "value"), "C H K -> (H * K) C"),
        row("o_proj", ("out",), "H K D -> D (H K)"),
    )


def model_config(hf: Json) -> ModelConfig:
    require(hf, "hidden_act", "silu")
    require(hf, "attention_bias", False)
    require(hf, "rope_interleave", True)
    require(hf, "rms_norm_eps", LATENT_NORM_EPS)
    require(hf, "scoring_func", "sigmoid")
    require(hf, "topk_method", "noaux_tc")
    require(hf, "moe_layer_freq", 1)
    require(hf, "v_head_dim", need(hf, "qk_nope_head_dim"))
    latent = LatentConfig(
        kv_rank=need(hf, "kv_lora_rank"), query_rank=hf.get("q_lora_rank") or 0, rope_dim=need(hf, "qk_rope_head_dim")
    )
    settings = llama_settings(hf) | {"n_kv_heads": None, "head_dim": need(hf, "qk_nope_head_dim")}
    return ModelConfig(**settings, **rope_settings(hf), attention=AttentionConfig(latent=latent), moe=_experts(hf))


def _experts(hf: Json) -> MoEConfig:
    return MoEConfig(
        n_experts=need(hf, "n_routed_experts"),
        experts_per_token=need(hf, "num_experts_per_tok"),
        n_shared=need(hf, "n_shared_experts"),
        d_ff=need(hf, "moe_intermediate_size"),
        dense_layers=need(hf, "first_k_dense_replace"),
        score="sigmoid",
        normalize=hf.get("norm_topk_prob", True),
        scale=float(hf.get("routed_scaling_factor", 2.5)),
        groups=hf.get("n_group") or 1,
        groups_chosen=hf.get("topk_group") or 1,
        balance="bias",
    )


def hf_config(m: ModelConfig) -> Json:
    keys, moe, latent = llama_keys(m, "deepseek_v3", "DeepseekV3ForCausalLM"), m.moe, m.attention.latent
    del keys["head_dim"]
    return keys | {
        "rms_norm_eps": LATENT_NORM_EPS,
        "qk_nope_head_dim": m.d_head,
        "v_head_dim": m.d_head,
        "qk_rope_head_dim": latent.rope_dim,
        "kv_lora_rank": latent.kv_rank,
        "q_lora_rank": latent.query_rank or None,
        "rope_interleave": True,
        "n_routed_experts": moe.n_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "n_shared_experts": moe.n_shared,
        "moe_intermediate_size": m.d_expert,
        "first_k_dense_replace": m.n_layers - m.n_blocks,
        "norm_topk_prob": moe.normalize,
        "routed_scaling_factor": moe.scale,
        "n_group": moe.groups,
        "topk_group": moe.groups_chosen,
        "num_mtp_layers": 0,
    }


FAMILY = Family(
    name="DeepSeek-V3",
    model_type="deepseek_v3",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="model.",
    ignored=("lm_head.weight", "*.rotary_emb.inv_freq"),
)
