"""GPT-2 (Radford et al. 2019): `GPT2LMHeadModel`. Its linear layers are stored input first; the output projection is the embedding."""

from qianyi.config.schema import ModelConfig
from qianyi.export.families.family import Family, Gguf, Json, Metadata, need, require
from qianyi.export.names import Entry, Table

_HEADS = ("blocks/attn/query", "blocks/attn/key", "blocks/attn/value")
_HEAD_BIASES = ("blocks/attn/query_bias", "blocks/attn/key_bias", "blocks/attn/value_bias")


def table(m: ModelConfig) -> Table:
    h = "transformer.h.{layer}."
    return (
        Entry("transformer.wte.weight", ("embedding/tokens",), "V D -> V D"),
        Entry("transformer.wpe.weight", ("embedding/positions",), "T D -> T D"),
        Entry(h + "ln_1.weight", ("blocks/attn_norm/scale",), "D -> D"),
        Entry(h + "ln_1.bias", ("blocks/attn_norm/bias",), "D -> D"),
        Entry(h + "attn.c_attn.weight", _HEADS, "D H K -> D (* H K)"),
        Entry(h + "attn.c_attn.bias", _HEAD_BIASES, "H K -> (* H K)"),
        Entry(h + "attn.c_proj.weight", ("blocks/attn/out",), "H K D -> (H K) D"),
        Entry(h + "attn.c_proj.bias", ("blocks/attn/out_bias",), "D -> D"),
        Entry(h + "ln_2.weight", ("blocks/mlp_norm/scale",), "D -> D"),
        Entry(h + "ln_2.bias", ("blocks/mlp_norm/bias",), "D -> D"),
        Entry(h + "mlp.c_fc.weight", ("blocks/mlp/up",), "D F -> D F"),
        Entry(h + "mlp.c_fc.bias", ("blocks/mlp/up_bias",), "F -> F"),
        Entry(h + "mlp.c_proj.weight", ("blocks/mlp/down",), "F D -> F D"),
        Entry(h + "mlp.c_proj.bias", ("blocks/mlp/down_bias",), "D -> D"),
        Entry("transformer.ln_f.weight", ("final_norm/scale",), "D -> D"),
        Entry("transformer.ln_f.bias", ("final_norm/bias",), "D -> D"),
    )


def model_config(hf: Json) -> ModelConfig:
    require(hf, "activation_function", "gelu_new", "gelu_pytorch_tanh")
    require(hf, "scale_attn_weights", True)
    require(hf, "scale_attn_by_inverse_layer_idx", False)
    require(hf, "add_cross_attention", False)
    require(hf, "tie_word_embeddings", True)
    return ModelConfig(
        vocab_size=need(hf, "vocab_size"),
        n_layers=need(hf, "n_layer"),
        d_model=need(hf, "n_embd"),
        n_heads=need(hf, "n_head"),
        d_ff=hf.get("n_inner"),
        max_seq_len=need(hf, "n_positions"),
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        init_std=hf.get("initializer_range", 0.02),
    )


def hf_config(m: ModelConfig) -> Json:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": m.vocab_size,
        "n_layer": m.n_layers,
        "n_embd": m.d_model,
        "n_head": m.n_heads,
        "n_inner": m.d_hidden,
        "n_positions": m.max_seq_len,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": m.norm_eps,
        "initializer_range": m.init_std,
        "tie_word_embeddings": True,
    }


def gguf_table(m: ModelConfig) -> Table:
    """Linear layers are output first here."""
    blk = "blk.{layer}."
    return (
        Entry("token_embd.weight", ("embedding/tokens",), "V D -> V D"),
        Entry("position_embd.weight", ("embedding/positions",), "T D -> T D"),
        Entry(blk + "attn_norm.weight", ("blocks/attn_norm/scale",), "D -> D"),
        Entry(blk + "attn_norm.bias", ("blocks/attn_norm/bias",), "D -> D"),
        Entry(blk + "attn_qkv.weight", _HEADS, "D H K -> (* H K) D"),
        Entry(blk + "attn_qkv.bias", _HEAD_BIASES, "H K -> (* H K)"),
        Entry(blk + "attn_output.weight", ("blocks/attn/out",), "H K D -> D (H K)"),
        Entry(blk + "attn_output.bias", ("blocks/attn/out_bias",), "D -> D"),
        Entry(blk + "ffn_norm.weight", ("blocks/mlp_norm/scale",), "D -> D"),
        Entry(blk + "ffn_norm.bias", ("blocks/mlp_norm/bias",), "D -> D"),
        Entry(blk + "ffn_up.weight", ("blocks/mlp/up",), "D F -> F D"),
        Entry(blk + "ffn_up.bias", ("blocks/mlp/up_bias",), "F -> F"),
        Entry(blk + "ffn_down.weight", ("blocks/mlp/down",), "F D -> D F"),
        Entry(blk + "ffn_down.bias", ("blocks/mlp/down_bias",), "D -> D"),
        Entry("output_norm.weight", ("final_norm/scale",), "D -> D"),
        Entry("output_norm.bias", ("final_norm/bias",), "D -> D"),
    )


def gguf_model_config(metadata: Metadata) -> ModelConfig:
    return ModelConfig(
        vocab_size=need(metadata, "vocab_size"),
        n_layers=need(metadata, "block_count"),
        d_model=need(metadata, "embedding_length"),
        n_heads=need(metadata, "attention.head_count"),
        d_ff=need(metadata, "feed_forward_length"),
        max_seq_len=need(metadata, "context_length"),
        norm_eps=need(metadata, "attention.layer_norm_epsilon"),
    )


FAMILY = Family(
    name="GPT-2",
    model_type="gpt2",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="transformer.",
    ignored=("lm_head.weight", "*.attn.bias", "*.attn.masked_bias"),
    gguf=Gguf("gpt2", gguf_table, gguf_model_config),
)
