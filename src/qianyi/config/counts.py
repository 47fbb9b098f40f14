"""Counts from a config alone, without JAX: what `qianyi recipes` shows and layers are balanced by."""

from qianyi.config.schema import ModelConfig

DISTANCE_BUCKETS = 32
"""Rows of a table of biases by distance (`qianyi.ops.position`)."""


def parameter_count(m: ModelConfig) -> int:
    """Number of parameters; equal to the sum over the model's declarations."""
    D = m.d_model
    both = m.kind == "encoder_decoder"
    main = m.n_blocks * _layer(m, cross=both) + (m.n_layers - m.n_blocks) * _layer(m.dense) + m.encoder_layers * _layer(m)
    distances = DISTANCE_BUCKETS * m.n_heads * (2 if both else 1) if m.position == "relative" else 0
    final = _norm(m) * (2 if both else 1) if m.final_norm else 0
    sentence = D * D + D + 2 * D + 2 if m.sentence_head else 0
    return _embedding(m) + main + distances + final + _head(m) + sentence


def _embedding(m: ModelConfig) -> int:
    rows = m.vocab_size + (m.max_seq_len if m.position == "learned" else 0) + m.segments
    return rows * m.d_model + (_norm(m) if m.embedding_norm else 0)


def _head(m: ModelConfig) -> int:
    D = m.d_model
    table = 0 if m.tied_embeddings else m.vocab_size * D
    return table + (D * D + D + _norm(m) + m.vocab_size if m.kind == "encoder" and m.mlm_head else 0)


def _norm(m: ModelConfig) -> int:
    return m.d_model * (2 if m.norm == "layernorm" and m.bias else 1)


def _layer(m: ModelConfig, *, cross: bool = False) -> int:
    per_sublayer = _norm(m) * (2 if m.norm_at == "sandwich" else 1)
    sublayers = 1 if m.parallel else 3 if cross else 2
    return sublayers * per_sublayer + (2 if cross else 1) * _attention(m) + _feed_forward(m)


def _attention(m: ModelConfig) -> int:
    D, H, G, K = m.d_model, m.n_heads, m.kv_heads, m.d_head
    if m.latent is not None:
        C, Q, R = m.latent.kv_rank, m.latent.query_rank, m.latent.rope_dim
        query = D * Q + Q + Q * H * (K + R) if Q else D * H * (K + R)
        return query + D * (C + R) + C + 2 * C * H * K + H * K * D
    norms = 2 * K if m.attention.qk_norm else 0
    return 2 * D * H * K + 2 * D * G * K + (H * K + 2 * G * K + D if m.bias else 0) + norms


def _feed_forward(m: ModelConfig) -> int:
    D, F, moe = m.d_model, m.d_expert, m.mixture
    if moe is None:
        return _mlp(m, m.d_hidden)
    shared = _mlp(m, moe.n_shared * F) if moe.n_shared else 0
    bias = moe.n_experts if moe.balance == "bias" else 0
    return moe.n_experts * _matrices(m) * D * F + D * moe.n_experts + bias + shared


def _mlp(m: ModelConfig, F: int) -> int:
    D = m.d_model
    return _matrices(m) * D * F + ((_matrices(m) - 1) * F + D if m.bias else 0)


def _matrices(m: ModelConfig) -> int:
    return 3 if m.gated else 2


def active_parameter_count(m: ModelConfig) -> int:
    """Parameters that a token meets: all but those of the experts that it does not visit."""
    moe = m.mixture
    if moe is None:
        return parameter_count(m)
    return parameter_count(m) - m.n_blocks * (moe.n_experts - moe.experts_per_token) * _matrices(m) * m.d_model * m.d_expert


def flops_per_token(m: ModelConfig, seq_len: int) -> float:
    """Model FLOPs of a token, forward and backward: the work that the mathematics asks for, whatever the program really does.

    Convention (`MFU_CONVENTION`, stated wherever an MFU is shown): 2 per multiply-add; every matmul parameter that a token meets is used
    once forward and twice backward (6 per parameter, the output projection included, the embedding lookup free); causal attention at half
    of the square, within a window at the window; recomputation not counted (Chowdhery et al. 2022, appendix B, with the causal half). Of an
    encoder-decoder, of a target token with one source token to each.
    """
    dense = m.n_layers - m.n_blocks
    layers = m.n_blocks * layer_flops_per_token(m, seq_len) + dense * layer_flops_per_token(m.dense, seq_len)
    local = sum(m.local_layers) * _attention_flops(m, seen_keys(m, seq_len) - seen_keys(m, seq_len, m.attention.window))
    encoder = m.encoder_layers * layer_flops_per_token(m, seq_len)
    if m.encoder_layers:
        encoder += m.encoder_layers * _attention_flops(m, seq_len / 2)  # both ways: the other half
        encoder += m.n_layers * (
            6 * attention_matmul_params(m) + _attention_flops(m, seq_len)
        )  # the decoder looks at the encoder
    head = m.vocab_size * m.d_model + (m.d_model**2 if m.kind == "encoder" and m.mlm_head else 0)
    return layers - local + encoder + 6 * head


def layer_flops_per_token(m: ModelConfig, seq_len: int) -> float:
    """Of a layer that sees all tokens."""
    D, moe = m.d_model, m.mixture
    visited = _matrices(m) * D * m.d_hidden
    if moe is not None:
        visited = (moe.experts_per_token + moe.n_shared) * _matrices(m) * D * m.d_expert + D * moe.n_experts
    return 6 * (attention_matmul_params(m) + visited) + _attention_flops(m, seen_keys(m, seq_len))


def attention_matmul_params(m: ModelConfig) -> int:
    """Matmul parameters of attention."""
    D, H, K = m.d_model, m.n_heads, m.d_head
    if m.latent is None:
        return 2 * D * K * (H + m.kv_heads)
    C, Q, R = m.latent.kv_rank, m.latent.query_rank, m.latent.rope_dim
    return (D * Q + Q * H * (K + R) if Q else D * H * (K + R)) + D * (C + R) + 2 * C * H * K + H * K * D


def _attention_flops(m: ModelConfig, seen: float) -> float:
    """Of products with so many keys and values, forward and backward."""
    return 6 * m.n_heads * (m.d_key + m.d_head) * seen


def seen_keys(m: ModelConfig, seq_len: int, window: int | None = None) -> float:
    """Keys that a query sees on average."""
    if window is not None and window < seq_len:
        return window * (1 - window / (2 * seq_len))
    return seq_len if m.kind == "encoder" else seq_len / 2


MFU_CONVENTION = "model FLOPs: 6 per matmul parameter and token + causal attention at half; recomputation not counted"


def head_cost_in_layers(m: ModelConfig, seq_len: int) -> float:
    """What the output projection costs, in layers."""
    return 6 * m.vocab_size * m.d_model / layer_flops_per_token(m, seq_len)
