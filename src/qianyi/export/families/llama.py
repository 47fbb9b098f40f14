"""Llama (Touvron et al. 2023; Grattafiori et al. 2024), and SmolLM2, which is one: `LlamaForCausalLM`. Linear layers are stored output
first."""

from typing import Any

from qianyi.config.schema import ModelConfig, RopeScalingConfig
from qianyi.errors import CheckpointError
from qianyi.export.families.family import Family, Gguf, Json, Metadata, need, require
from qianyi.export.names import Entry, Table, interleaved

_PARTS: dict[str, Any] = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "bias": False}


def table(m: ModelConfig) -> Table:
    h = "model.layers.{layer}."
    head = () if m.tied_embeddings else (Entry("lm_head.weight", ("head/tokens",), "V D -> V D"),)
    return (
        Entry("model.embed_tokens.weight", ("embedding/tokens",), "V D -> V D"),
        Entry(h + "input_layernorm.weight", ("blocks/attn_norm/scale",), "D -> D"),
        Entry(h + "self_attn.q_proj.weight", ("blocks/attn/query",), "D H K -> (H K) D"),
        Entry(h + "self_attn.k_proj.weight", ("blocks/attn/key",), "D G K -> (G K) D"),
        Entry(h + "self_attn.v_proj.weight", ("blocks/attn/value",), "D G K -> (G K) D"),
        Entry(h + "self_attn.o_proj.weight", ("blocks/attn/out",), "H K D -> D (H K)"),
        Entry(h + "post_attention_layernorm.weight", ("blocks/mlp_norm/scale",), "D -> D"),
        Entry(h + "mlp.gate_proj.weight", ("blocks/mlp/gate",), "D F -> F D"),
        Entry(h + "mlp.up_proj.weight", ("blocks/mlp/up",), "D F -> F D"),
        Entry(h + "mlp.down_proj.weight", ("blocks/mlp/down",), "F D -> D F"),
        Entry("model.norm.weight", ("final_norm/scale",), "D -> D"),
        *head,
    )


def model_config(hf: Json) -> ModelConfig:
    require(hf, "hidden_act", "silu")
    require(hf, "attention_bias", False)
    require(hf, "mlp_bias", False)
    return ModelConfig(
        **_PARTS,
        vocab_size=need(hf, "vocab_size"),
        n_layers=need(hf, "num_hidden_layers"),
        d_model=need(hf, "hidden_size"),
        n_heads=need(hf, "num_attention_heads"),
        n_kv_heads=hf.get("num_key_value_heads"),
        head_dim=hf.get("head_dim"),
        d_ff=need(hf, "intermediate_size"),
        max_seq_len=hf.get("max_position_embeddings", 2048),
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        rope_theta=need(_rope(hf), "rope_theta"),
        rope_scaling=_rope_scaling(_rope(hf)),
        tied_embeddings=hf.get("tie_word_embeddings", False),
        init_std=hf.get("initializer_range", 0.02),
    )


def _rope(hf: Json) -> Json:
    """`rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` before."""
    return hf.get("rope_parameters") or {**(hf.get("rope_scaling") or {}), "rope_theta": hf.get("rope_theta", 10_000.0)}


def _rope_scaling(rope: Json) -> RopeScalingConfig:
    match rope.get("rope_type", rope.get("type", "default")):
        case "default":
            return RopeScalingConfig()
        case "linear":
            return RopeScalingConfig(kind="linear", factor=need(rope, "factor"))
        case "llama3":
            keys = {key: need(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor")}
            return RopeScalingConfig(kind="llama3", **keys, original_max_seq_len=need(rope, "original_max_position_embeddings"))
        case other:
            raise CheckpointError(f"rotary positions of rope_type={other} are not supported, only default, linear or llama3")


def _rope_parameters(m: ModelConfig) -> Json:
    s = m.rope_scaling
    rope: Json = {"rope_type": "default" if s.kind == "none" else s.kind, "rope_theta": m.rope_theta}
    if s.kind != "none":
        rope["factor"] = s.factor
    if s.kind == "llama3":
        rope |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
        rope["original_max_position_embeddings"] = s.original_max_seq_len
    return rope


def hf_config(m: ModelConfig) -> Json:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": m.vocab_size,
        "num_hidden_layers": m.n_layers,
        "hidden_size": m.d_model,
        "num_attention_heads": m.n_heads,
        "num_key_value_heads": m.kv_heads,
        "head_dim": m.d_head,
        "intermediate_size": m.d_hidden,
        "max_position_embeddings": m.max_seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": m.norm_eps,
        "rope_parameters": _rope_parameters(m),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": m.tied_embeddings,
        "initializer_range": m.init_std,
    }


def gguf_table(m: ModelConfig) -> Table:
    blk = "blk.{layer}."
    head = () if m.tied_embeddings else (Entry("output.weight", ("head/tokens",), "V D -> V D"),)
    return (
        Entry("token_embd.weight", ("embedding/tokens",), "V D -> V D"),
        Entry(blk + "attn_norm.weight", ("blocks/attn_norm/scale",), "D -> D"),
        Entry(blk + "attn_q.weight", ("blocks/attn/query",), "D H K -> (H K) D", (interleaved(),)),
        Entry(blk + "attn_k.weight", ("blocks/attn/key",), "D G K -> (G K) D", (interleaved(),)),
        Entry(blk + "attn_v.weight", ("blocks/attn/value",), "D G K -> (G K) D"),
        Entry(blk + "attn_output.weight", ("blocks/attn/out",), "H K D -> D (H K)"),
        Entry(blk + "ffn_norm.weight", ("blocks/mlp_norm/scale",), "D -> D"),
        Entry(blk + "ffn_gate.weight", ("blocks/mlp/gate",), "D F -> F D"),
        Entry(blk + "ffn_up.weight", ("blocks/mlp/up",), "D F -> F D"),
        Entry(blk + "ffn_down.weight", ("blocks/mlp/down",), "F D -> D F"),
        Entry("output_norm.weight", ("final_norm/scale",), "D -> D"),
        *head,
    )


def gguf_model_config(metadata: Metadata) -> ModelConfig:
    require(metadata, "rope.scaling.type", "none")
    require(metadata, "expert_count", 0)
    model = ModelConfig(
        **_PARTS,
        vocab_size=need(metadata, "vocab_size"),
        n_layers=need(metadata, "block_count"),
        d_model=need(metadata, "embedding_length"),
        n_heads=need(metadata, "attention.head_count"),
        n_kv_heads=metadata.get("attention.head_count_kv"),
        head_dim=metadata.get("attention.key_length"),
        d_ff=need(metadata, "feed_forward_length"),
        max_seq_len=need(metadata, "context_length"),
        norm_eps=need(metadata, "attention.layer_norm_rms_epsilon"),
        rope_theta=metadata.get("rope.freq_base", 10_000.0),
        tied_embeddings="output.weight" not in need(metadata, "tensors"),
    )
    require(metadata, "rope.dimension_count", model.d_head)
    return model


FAMILY = Family(
    name="Llama",
    model_type="llama",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="model.",
    ignored=("lm_head.weight", "*.rotary_emb.inv_freq"),
    gguf=Gguf("llama", gguf_table, gguf_model_config),
)
