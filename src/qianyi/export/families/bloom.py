"""BLOOM (Scao et al. 2022): `BloomForCausalLM`. Queries, keys and values are one matrix, in which they take turns head by head."""

from qianyi.config.schema import ModelConfig
from qianyi.export.families.family import Family, Json, need, require
from qianyi.export.names import Entry, Table


def table(m: ModelConfig) -> Table:
    h = "transformer.h.{layer}."
    heads = ("blocks/attn/query", "blocks/attn/key", "blocks/attn/value")
    linear = (
        ("self_attention.query_key_value", heads, "D H K -> (H * K) D", "H K -> (H * K)"),
        ("self_attention.dense", ("blocks/attn/out",), "H K D -> D (H K)", "D -> D"),
        ("mlp.dense_h_to_4h", ("blocks/mlp/up",), "D F -> F D", "F -> F"),
        ("mlp.dense_4h_to_h", ("blocks/mlp/down",), "F D -> D F", "D -> D"),
    )
    norms = (
        ("transformer.word_embeddings_layernorm", "embedding/norm"),
        (h + "input_layernorm", "blocks/attn_norm"),
        (h + "post_attention_layernorm", "blocks/mlp_norm"),
        ("transformer.ln_f", "final_norm"),
    )
    return (
        Entry("transformer.word_embeddings.weight", ("embedding/tokens",), "V D -> V D"),
        *(Entry(f"{h}{theirs}.weight", ours, dims) for theirs, ours, dims, _ in linear),
        *(Entry(f"{h}{theirs}.bias", tuple(f"{path}_bias" for path in ours), dims) for theirs, ours, _, dims in linear),
        *(Entry(f"{theirs}.weight", (f"{ours}/scale",), "D -> D") for theirs, ours in norms),
        *(Entry(f"{theirs}.bias", (f"{ours}/bias",), "D -> D") for theirs, ours in norms),
    )


def model_config(hf: Json) -> ModelConfig:
    require(hf, "apply_residual_connection_post_layernorm", False)
    require(hf, "tie_word_embeddings", True)
    return ModelConfig(
        position="alibi",
        embedding_norm=True,
        vocab_size=need(hf, "vocab_size"),
        n_layers=need(hf, "n_layer", "num_hidden_layers"),
        d_model=need(hf, "hidden_size", "n_embed"),
        n_heads=need(hf, "n_head", "num_attention_heads"),
        max_seq_len=hf.get("seq_length", 2048),
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        init_std=hf.get("initializer_range", 0.02),
    )


def hf_config(m: ModelConfig) -> Json:
    return {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "vocab_size": m.vocab_size,
        "n_layer": m.n_layers,
        "hidden_size": m.d_model,
        "n_head": m.n_heads,
        "seq_length": m.max_seq_len,
        "layer_norm_epsilon": m.norm_eps,
        "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": True,
        "initializer_range": m.init_std,
    }


FAMILY = Family(
    name="BLOOM",
    model_type="bloom",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="transformer.",
    ignored=("lm_head.weight",),
)
