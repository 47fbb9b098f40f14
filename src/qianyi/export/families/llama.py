"""Llama (Touvron et al. 2023; Grattafiori et al. 2024), and SmolLM2, which is one: `LlamaForCausalLM`."""

from qianyi.config.schema import ModelConfig
from qianyi.export.families.family import Family, Gguf, Json, Metadata, need, require
from qianyi.export.families.parts import (
    PRE_NORMS,
    attention_rows,
    llama_keys,
    llama_settings,
    mlp_rows,
    norm_rows,
    outer_rows,
    rope_settings,
)
from qianyi.export.names import Entry, Table, interleaved


def table(m: ModelConfig) -> Table:
    return (*outer_rows(m), *norm_rows(PRE_NORMS), *attention_rows(m), *mlp_rows())


def model_config(hf: Json) -> ModelConfig:
    require(hf, "hidden_act", "silu")
    require(hf, "attention_bias", False)
    require(hf, "mlp_bias", False)
    return ModelConfig(**llama_settings(hf), **rope_settings(hf))


def hf_config(m: ModelConfig) -> Json:
    return llama_keys(m, "llama", "LlamaForCausalLM") | {"mlp_bias": False}


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
        norm="rmsnorm",
        mlp="swiglu",
        position="rope",
        bias=False,
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
