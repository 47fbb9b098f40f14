"""Parameter counts from a config alone, without JAX: what `qianyi recipes` shows."""

from qianyi.config.schema import ModelConfig


def parameter_count(m: ModelConfig) -> int:
    """Number of parameters; equal to the sum over the model's declarations."""
    D, H, G, K, F = m.d_model, m.n_heads, m.kv_heads, m.d_head, m.d_hidden
    norm = D * (2 if m.norm == "layernorm" and m.bias else 1)
    attention = 2 * D * H * K + 2 * D * G * K + (H * K + 2 * G * K + D if m.bias else 0)
    mlp = (3 if m.mlp == "swiglu" else 2) * D * F + (F + D if m.bias else 0)
    tables = m.vocab_size * D * (1 if m.tied_embeddings else 2) + (m.max_seq_len * D if m.position == "learned" else 0)
    return tables + m.n_layers * (2 * norm + attention + mlp) + norm
