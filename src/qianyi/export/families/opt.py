"""OPT (Zhang et al. 2022): `OPTForCausalLM`. Learned positions begin at the third row of their table."""

from qianyi.config.schema import ModelConfig
from qianyi.export.families.family import Family, Json, need, require
from qianyi.export.names import Entry, Table, skip_rows

FIRST_POSITION = 2


def table(m: ModelConfig) -> Table:
    h = "model.decoder.layers.{layer}."
    linear = (
        ("self_attn.q_proj", "attn/query", "D H K -> (H K) D", "H K -> (H K)"),
        ("self_attn.k_proj", "attn/key", "D H K -> (H K) D", "H K -> (H K)"),
        ("self_attn.v_proj", "attn/value", "D H K -> (H K) D", "H K -> (H K)"),
        ("self_attn.out_proj", "attn/out", "H K D -> D (H K)", "D -> D"),
        ("fc1", "mlp/up", "D F -> F D", "F -> F"),
        ("fc2", "mlp/down", "F D -> D F", "D -> D"),
    )
    norms = (
        (h + "self_attn_layer_norm", "blocks/attn_norm"),
        (h + "final_layer_norm", "blocks/mlp_norm"),
        ("model.decoder.final_layer_norm", "final_norm"),
    )
    return (
        Entry("model.decoder.embed_tokens.weight", ("embedding/tokens",), "V D -> V D"),
        Entry("model.decoder.embed_positions.weight", ("embedding/positions",), "T D -> T D", (skip_rows(FIRST_POSITION),)),
        *(Entry(f"{h}{theirs}.weight", (f"blocks/{ours}",), dims) for theirs, ours, dims, _ in linear),
        *(Entry(f"{h}{theirs}.bias", (f"blocks/{ours}_bias",), dims) for theirs, ours, _, dims in linear),
        *(Entry(f"{theirs}.weight", (f"{ours}/scale",), "D -> D") for theirs, ours in norms),
        *(Entry(f"{theirs}.bias", (f"{ours}/bias",), "D -> D") for theirs, ours in norms),
    )


def model_config(hf: Json) -> ModelConfig:
    require(hf, "activation_function", "relu")
    require(hf, "do_layer_norm_before", True)
    require(hf, "_remove_final_layer_norm", False)
    require(hf, "enable_bias", True)
    require(hf, "layer_norm_elementwise_affine", True)
    require(hf, "tie_word_embeddings", True)
    require(hf, "word_embed_proj_dim", need(hf, "hidden_size"), None)
    return ModelConfig(
        mlp="relu",
        vocab_size=need(hf, "vocab_size"),
        n_layers=need(hf, "num_hidden_layers"),
        d_model=need(hf, "hidden_size"),
        n_heads=need(hf, "num_attention_heads"),
        d_ff=need(hf, "ffn_dim"),
        max_seq_len=need(hf, "max_position_embeddings"),
        init_std=hf.get("init_std", 0.02),
    )


def hf_config(m: ModelConfig) -> Json:
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "vocab_size": m.vocab_size,
        "num_hidden_layers": m.n_layers,
        "hidden_size": m.d_model,
        "word_embed_proj_dim": m.d_model,
        "num_attention_heads": m.n_heads,
        "ffn_dim": m.d_hidden,
        "max_position_embeddings": m.max_seq_len,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
        "init_std": m.init_std,
        "dropout": 0.0,
    }


FAMILY = Family(
    name="OPT",
    model_type="opt",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="model.",
    ignored=("lm_head.weight",),
)
