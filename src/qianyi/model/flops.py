"""Model FLOPs: the work that the mathematics asks for, whatever the program really does.

Convention (stated wherever an MFU is shown): 2 per multiply-add; every matmul parameter used once forward and twice
backward (6 per parameter and token, the output projection included, the embedding lookup free); causal attention counted at half of
the square; recomputation not counted (Chowdhery et al. 2022, appendix B, with the causal half).
"""

from qianyi.config.schema import ModelConfig
from qianyi.model.decoder import decoder_params

MFU_CONVENTION = "model FLOPs: 6 per matmul parameter and token + causal attention at half; recomputation not counted"


def matmul_parameters(m: ModelConfig) -> int:
    """Parameters that enter a matmul once per token."""
    params = decoder_params(m)
    blocks = sum(p.size for part in params["blocks"].values() for p in part.values() if p.kind == "matrix")
    return blocks + m.vocab_size * m.d_model


def flops_per_token(m: ModelConfig, seq_len: int) -> float:
    """Forward and backward FLOPs per token at a sequence length."""
    attention = 12 * m.n_layers * m.n_heads * m.d_head * seq_len / 2
    return 6 * matmul_parameters(m) + attention
