"""Counts from a config alone, without JAX: what `qianyi recipes` shows and layers are balanced by."""

from qianyi.config.schema import ModelConfig


def parameter_count(m: ModelConfig) -> int:
    """Number of parameters; equal to the sum over the model's declarations."""
    D = m.d_model
    norm = D * (2 if m.norm == "layernorm" and m.bias else 1)
    tables = m.vocab_size * D * (1 if m.tied_embeddings else 2) + (m.max_seq_len * D if m.position == "learned" else 0)
    return tables + m.n_layers * (2 * norm + _attention(m) + _feed_forward(m)) + norm


def _attention(m: ModelConfig) -> int:
    D, H, G, K = m.d_model, m.n_heads, m.kv_heads, m.d_head
    return 2 * D * H * K + 2 * D * G * K + (H * K + 2 * G * K + D if m.bias else 0)


def _feed_forward(m: ModelConfig) -> int:
    D, F, moe = m.d_model, m.d_hidden, m.mixture
    if moe is None:
        return _mlp(m, F)
    matrices = 3 if m.mlp == "swiglu" else 2
    shared = _mlp(m, moe.n_shared * F) if moe.n_shared else 0
    bias = moe.n_experts if moe.balance == "bias" else 0
    return moe.n_experts * matrices * D * F + D * moe.n_experts + bias + shared


def _mlp(m: ModelConfig, F: int) -> int:
    D = m.d_model
    return (3 if m.mlp == "swiglu" else 2) * D * F + (F + D if m.bias else 0)


def flops_per_token(m: ModelConfig, seq_len: int) -> float:
    """Model FLOPs of a token, forward and backward: the work that the mathematics asks for, whatever the program really does.

    Convention (`MFU_CONVENTION`, stated wherever an MFU is shown): 2 per multiply-add; every matmul parameter that a token meets is used
    once forward and twice backward (6 per parameter, the output projection included, the embedding lookup free); causal attention at half
    of the square; recomputation not counted (Chowdhery et al. 2022, appendix B, with the causal half).
    """
    return m.n_layers * layer_flops_per_token(m, seq_len) + 6 * m.vocab_size * m.d_model


def layer_flops_per_token(m: ModelConfig, seq_len: int) -> float:
    D, F, moe = m.d_model, m.d_hidden, m.mixture
    matrices = 3 if m.mlp == "swiglu" else 2
    attention = 2 * D * m.d_head * (m.n_heads + m.kv_heads)
    visited = 1 if moe is None else moe.experts_per_token + moe.n_shared
    router = 0 if moe is None else D * moe.n_experts
    return 6 * (attention + visited * matrices * D * F + router) + 12 * m.n_heads * m.d_head * seq_len / 2


MFU_CONVENTION = "model FLOPs: 6 per matmul parameter and token + causal attention at half; recomputation not counted"


def head_cost_in_layers(m: ModelConfig, seq_len: int) -> float:
    """What the output projection costs, in layers."""
    return 6 * m.vocab_size * m.d_model / layer_flops_per_token(m, seq_len)
