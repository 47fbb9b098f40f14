"""The Transformer of Vaswani et al. 2017, as Marian (Junczys-Dowmunt et al. 2018) has it: `MarianMTModel`. Linear layers are stored output
first; source, target and output share the embedding; positions are sines and cosines and are not stored."""

import numpy as np

from qianyi.config.schema import ModelConfig
from qianyi.export.families.family import ACTIVATIONS, Family, Json, need, require, their_activation
from qianyi.export.names import Constant, Entry, Table


def table(m: ModelConfig) -> Table:
    decoder = "model.decoder.layers.{layer}."
    return (
        Entry("model.shared.weight", ("embedding/tokens",), "V D -> V D"),
        *_layer("model.encoder.layers.{layer}.", "encoder_blocks"),
        *_layer(decoder, "blocks"),
        *_attention(f"{decoder}encoder_attn", "blocks/cross"),
        Constant("final_logits_bias", np.zeros((1, m.vocab_size), np.float32)),
    )


def _layer(theirs: str, ours: str) -> Table:
    return (
        *_attention(f"{theirs}self_attn", f"{ours}/attn"),
        Entry(f"{theirs}fc1.weight", (f"{ours}/mlp/up",), "D F -> F D"),
        Entry(f"{theirs}fc1.bias", (f"{ours}/mlp/up_bias",), "F -> F"),
        Entry(f"{theirs}fc2.weight", (f"{ours}/mlp/down",), "F D -> D F"),
        Entry(f"{theirs}fc2.bias", (f"{ours}/mlp/down_bias",), "D -> D"),
        *_norm(f"{theirs}final_layer_norm", f"{ours}/mlp_norm"),
    )


def _attention(theirs: str, ours: str) -> Table:
    return (
        Entry(f"{theirs}.q_proj.weight", (f"{ours}/query",), "D H K -> (H K) D"),
        Entry(f"{theirs}.q_proj.bias", (f"{ours}/query_bias",), "H K -> (H K)"),
        Entry(f"{theirs}.k_proj.weight", (f"{ours}/key",), "D H K -> (H K) D"),
        Entry(f"{theirs}.k_proj.bias", (f"{ours}/key_bias",), "H K -> (H K)"),
        Entry(f"{theirs}.v_proj.weight", (f"{ours}/value",), "D H K -> (H K) D"),
        Entry(f"{theirs}.v_proj.bias", (f"{ours}/value_bias",), "H K -> (H K)"),
        Entry(f"{theirs}.out_proj.weight", (f"{ours}/out",), "H K D -> D (H K)"),
        Entry(f"{theirs}.out_proj.bias", (f"{ours}/out_bias",), "D -> D"),
        *_norm(f"{theirs}_layer_norm", f"{ours}_norm"),
    )


def _norm(theirs: str, ours: str) -> Table:
    return (
        Entry(f"{theirs}.weight", (f"{ours}/scale",), "D -> D"),
        Entry(f"{theirs}.bias", (f"{ours}/bias",), "D -> D"),
    )


def model_config(hf: Json) -> ModelConfig:
    vocab_size, heads, width = (need(hf, key) for key in ("vocab_size", "decoder_attention_heads", "decoder_ffn_dim"))
    require(hf, "activation_function", *ACTIVATIONS)
    require(hf, "share_encoder_decoder_embeddings", True)
    require(hf, "tie_word_embeddings", True)
    require(hf, "decoder_vocab_size", vocab_size, None)
    require(hf, "encoder_attention_heads", heads)
    require(hf, "encoder_ffn_dim", width)
    return ModelConfig(
        kind="encoder_decoder",
        vocab_size=vocab_size,
        n_layers=need(hf, "decoder_layers"),
        n_encoder_layers=need(hf, "encoder_layers"),
        d_model=need(hf, "d_model"),
        n_heads=heads,
        d_ff=width,
        max_seq_len=need(hf, "max_position_embeddings"),
        norm_at="post",
        mlp=ACTIVATIONS[hf.get("activation_function", "gelu")],
        position="sinusoidal",
        scale_embeddings=hf.get("scale_embedding", False),
        init="normal",
        init_std=hf.get("init_std", 0.02),
    )


def hf_config(m: ModelConfig) -> Json:
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "vocab_size": m.vocab_size,
        "encoder_layers": m.encoder_layers or m.n_layers,
        "decoder_layers": m.n_layers,
        "d_model": m.d_model,
        "encoder_attention_heads": m.n_heads,
        "decoder_attention_heads": m.n_heads,
        "encoder_ffn_dim": m.d_hidden,
        "decoder_ffn_dim": m.d_hidden,
        "max_position_embeddings": m.max_seq_len,
        "activation_function": their_activation(m),
        "scale_embedding": m.scale_embeddings,
        "init_std": m.init_std,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


FAMILY = Family(
    name="Marian",
    model_type="marian",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="model.",
    ignored=("lm_head.weight", "*.embed_tokens.weight", "*.embed_positions.weight"),
)
