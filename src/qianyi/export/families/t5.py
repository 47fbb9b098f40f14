"""T5 (Raffel et al. 2020) and T5 v1.1 (Shazeer 2020): `T5ForConditionalGeneration`. Linear layers are stored output first; the biases by
distance, which all layers share, are the first layer's."""

from typing import Any, Literal

from qianyi.config.counts import DISTANCE_BUCKETS
from qianyi.config.model import AttentionConfig
from qianyi.config.schema import ModelConfig
from qianyi.export.families.family import Family, Json, need, require
from qianyi.export.names import Entry, Table
from qianyi.ops.position import FARTHEST

_PARTS: dict[str, Any] = {
    "kind": "encoder_decoder",
    "norm": "rmsnorm",
    "bias": False,
    "position": "relative",
    "attention": AttentionConfig(scale=1.0),
    "init": "fan_in",
}
_MLP: dict[str, Literal["relu", "geglu"]] = {"relu": "relu", "gated-gelu": "geglu"}
"""Ours by their `feed_forward_proj`."""


def table(m: ModelConfig) -> Table:
    head = () if m.tied_embeddings else (Entry("lm_head.weight", ("head/tokens",), "V D -> V D"),)
    distance = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return (
        Entry("shared.weight", ("embedding/tokens",), "V D -> V D"),
        Entry(f"encoder.{distance}", ("relative/encoder",), "B H -> B H"),
        *_self_attention("encoder", "encoder_blocks"),
        *_feed_forward("encoder", "encoder_blocks", 1, m),
        Entry("encoder.final_layer_norm.weight", ("encoder_norm/scale",), "D -> D"),
        Entry(f"decoder.{distance}", ("relative/own",), "B H -> B H"),
        *_self_attention("decoder", "blocks"),
        *_attention("decoder.block.{layer}.layer.1.", "EncDecAttention", "blocks/cross"),
        *_feed_forward("decoder", "blocks", 2, m),
        Entry("decoder.final_layer_norm.weight", ("final_norm/scale",), "D -> D"),
        *head,
    )


def _self_attention(stack: str, ours: str) -> Table:
    return _attention(stack + ".block.{layer}.layer.0.", "SelfAttention", f"{ours}/attn")


def _attention(layer: str, name: str, ours: str) -> Table:
    return (
        Entry(f"{layer}layer_norm.weight", (f"{ours}_norm/scale",), "D -> D"),
        Entry(f"{layer}{name}.q.weight", (f"{ours}/query",), "D H K -> (H K) D"),
        Entry(f"{layer}{name}.k.weight", (f"{ours}/key",), "D H K -> (H K) D"),
        Entry(f"{layer}{name}.v.weight", (f"{ours}/value",), "D H K -> (H K) D"),
        Entry(f"{layer}{name}.o.weight", (f"{ours}/out",), "H K D -> D (H K)"),
    )


def _feed_forward(stack: str, ours: str, sublayer: int, m: ModelConfig) -> Table:
    layer = f"{stack}.block.{{layer}}.layer.{sublayer}."
    inputs = {"wi_0": "gate", "wi_1": "up"} if m.gated else {"wi": "up"}
    return (
        Entry(f"{layer}layer_norm.weight", (f"{ours}/mlp_norm/scale",), "D -> D"),
        *(
            Entry(f"{layer}DenseReluDense.{theirs}.weight", (f"{ours}/mlp/{part}",), "D F -> F D")
            for theirs, part in inputs.items()
        ),
        Entry(f"{layer}DenseReluDense.wo.weight", (f"{ours}/mlp/down",), "F D -> D F"),
    )


def model_config(hf: Json) -> ModelConfig:
    require(hf, "feed_forward_proj", *_MLP)
    require(hf, "relative_attention_num_buckets", DISTANCE_BUCKETS)
    require(hf, "relative_attention_max_distance", FARTHEST)
    # v1.1 says that its output projection is one of its own, or, written by transformers 5, just that logits are not scaled.
    tied = hf.get("tie_word_embeddings", True) and hf.get("scale_decoder_outputs", True)
    layers = need(hf, "num_layers")
    return ModelConfig(
        **_PARTS,
        vocab_size=need(hf, "vocab_size"),
        n_layers=hf.get("num_decoder_layers") or layers,
        n_encoder_layers=layers,
        d_model=need(hf, "d_model"),
        n_heads=need(hf, "num_heads"),
        head_dim=need(hf, "d_kv"),
        d_ff=need(hf, "d_ff"),
        max_seq_len=hf.get("n_positions", 512),
        norm_eps=hf.get("layer_norm_epsilon", 1e-6),
        mlp=_MLP[hf.get("feed_forward_proj", "relu")],
        tied_embeddings=tied,
        scale_logits=tied,
    )


def hf_config(m: ModelConfig) -> Json:
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": m.vocab_size,
        "num_layers": m.encoder_layers or m.n_layers,
        "num_decoder_layers": m.n_layers,
        "d_model": m.d_model,
        "num_heads": m.n_heads,
        "d_kv": m.d_head,
        "d_ff": m.d_hidden,
        "n_positions": m.max_seq_len,
        "layer_norm_epsilon": m.norm_eps,
        "feed_forward_proj": next((theirs for theirs, ours in _MLP.items() if ours == m.mlp), "relu"),
        "relative_attention_num_buckets": DISTANCE_BUCKETS,
        "relative_attention_max_distance": FARTHEST,
        "tie_word_embeddings": m.tied_embeddings,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


FAMILY = Family(
    name="T5",
    model_type="t5",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="",
    ignored=(
        "lm_head.weight",
        "*.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
)
