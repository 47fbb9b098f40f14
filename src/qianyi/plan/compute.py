"""Time of a chip's own work: products, attention, and what only moves memory.

All functions give seconds for one layer (or the output projection) and one microbatch, forward and backward together, on one chip.
"""

import numpy as np

from qianyi.plan.case import Case, Number
from qianyi.plan.constants import Constants

TILE_ROWS, TILE_COLUMNS = 128, 256
"""Tile of the output that a core makes at a time: large products of cuBLAS and XLA."""
HALF, FULL = 2, 4
"""Bytes of bfloat16 and of float32."""
FORWARD_READS = 10
"""Passes over the residual stream, forward: two norms read and write it (4), two sums read two and write one (6)."""
BACKWARD_READS = 1.6
"""Bytes that elementwise operations move backward, relative to forward: their input again, the gradient in, the gradient out."""
LOSS_READS = 5
"""Passes over float32 logits: written, read for the maximum and the sum, probabilities' gradient written, read by two products."""


def product_seconds(case: Case, k: Constants, rows: Number, inner: Number, columns: Number, eight_bit: Number) -> Number:
    """One product [rows, inner] x [inner, columns], in tiles, bound by computation or by memory."""
    machine = case.machine
    rows, inner, columns = (np.maximum(n, 1.0) for n in (rows, inner, columns))
    tall, wide = np.ceil(rows / TILE_ROWS), np.ceil(columns / TILE_COLUMNS)
    tiles = tall * wide
    cores = np.maximum(machine.cores, 1)
    waves = 1 + np.where(machine.cores > 0, k.wave_loss * (np.ceil(tiles / cores) * cores / tiles - 1), 0.0)
    flops = 2 * tall * TILE_ROWS * inner * np.ceil(columns / (TILE_COLUMNS / 2)) * (TILE_COLUMNS / 2)
    peak = np.where(eight_bit > 0, machine.peak_flops * k.eight_bit_efficiency, machine.peak_bf16_flops * k.matmul_efficiency)
    compute = flops * waves / peak * (1 + k.matmul_depth / inner)
    moved = HALF * (rows * inner + inner * columns + rows * columns)
    cast = eight_bit * k.eight_bit_passes * HALF * (rows * inner + inner * columns)
    bandwidth = machine.hbm_bytes_per_second * k.memory_efficiency
    return np.maximum(compute, moved / bandwidth) + cast / bandwidth


def linear_seconds(
    case: Case, k: Constants, rows: Number, inner: Number, columns: Number, eight_bit: Number, forwards: Number
) -> Number:
    """A linear layer: `forwards` times forward, then the gradients of its input and of its weights."""
    forward = product_seconds(case, k, rows, inner, columns, eight_bit)
    to_input = product_seconds(case, k, rows, columns, inner, eight_bit)
    to_weights = product_seconds(case, k, inner, rows, columns, eight_bit)
    return forwards * forward + to_input + to_weights


def dense_layer_seconds(case: Case, k: Constants) -> Number:
    """Products of attention's projections and of a dense feed-forward part."""
    m, tensor = case.model, case.layout.tensor
    rows, forwards = case.layout.micro_tokens, 1 + case.method.recompute
    up = linear_seconds(case, k, rows, m.d_model, (m.ff_matrices - 1) * m.d_ff / tensor, case.method.eight_bit, forwards)
    down = linear_seconds(case, k, rows, m.d_ff / tensor, m.d_model, case.method.eight_bit, forwards)
    return projections_seconds(case, k) + up + down


def projections_seconds(case: Case, k: Constants) -> Number:
    """Products that make queries, keys and values, and attention's output."""
    m, tensor, eight_bit = case.model, case.layout.tensor, case.method.eight_bit
    rows, forwards = case.layout.micro_tokens, 1 + case.method.recompute
    out_width = m.n_heads * m.d_value
    into = (m.attention_params - out_width * m.d_model) / m.d_model
    return linear_seconds(case, k, rows, m.d_model, into / tensor, eight_bit, forwards) + linear_seconds(
        case, k, rows, out_width / tensor, m.d_model, eight_bit, forwards
    )


def moe_layer_seconds(case: Case, k: Constants) -> Number:
    """Products of a layer with experts: each has its even share of the tokens."""
    m, layout, eight_bit = case.model, case.layout, case.method.eight_bit
    forwards = 1 + case.method.recompute
    local = np.maximum(m.n_experts / layout.expert, 1)
    rows = layout.micro_tokens / layout.tensor * m.experts_per_token / local
    d_expert = np.maximum(m.d_expert, 1)
    wide = (m.ff_matrices - 1) * d_expert
    experts = linear_seconds(case, k, rows, m.d_model, wide, eight_bit, forwards)
    experts = experts + linear_seconds(case, k, rows, d_expert, m.d_model, eight_bit, forwards)
    shared_width = np.maximum(m.shared_experts, 1) * d_expert / layout.tensor
    shared = linear_seconds(case, k, layout.micro_tokens, m.d_model, (m.ff_matrices - 1) * shared_width, eight_bit, forwards)
    shared = shared + linear_seconds(case, k, layout.micro_tokens, shared_width, m.d_model, eight_bit, forwards)
    both = projections_seconds(case, k) + local * experts + np.where(m.shared_experts > 0, shared, 0.0)
    return np.where(m.n_experts > 0, both, 0.0)


def attention_seconds(case: Case, k: Constants) -> Number:
    """Products with keys and values. A fused kernel computes what is seen (5 products backward, 2 forward; Dao 2023, section 3.1); others
    the whole square, and move its scores."""
    m, layout, machine, method = case.model, case.layout, case.machine, case.method
    heads, widths = m.n_heads / layout.tensor, m.d_key + m.d_value
    forwards = 1 + method.recompute_attention
    fused_flops = layout.micro_tokens * heads * 2 * widths * m.seen * (forwards + 2.5)
    at_width = 1 + k.attention_width / m.d_key
    fused = fused_flops / (machine.peak_bf16_flops * k.attention_efficiency) * at_width * k.attention_pace
    pairs = layout.micro_tokens * heads * layout.seq_len
    products = pairs * 2 * widths * (forwards + 2) / (machine.peak_bf16_flops * k.matmul_efficiency)
    products = products * (1 + k.matmul_depth / m.d_key) * _padding(m.d_key)
    moved = HALF * pairs * k.score_passes * (forwards + 1.5) * (1 + 0.5 * method.dropout)
    plain = products + moved / (machine.hbm_bytes_per_second * k.memory_efficiency)
    return np.where(method.flash > 0, fused, plain)


def _padding(width: Number) -> Number:
    """Heads whose width is no multiple of 8 halfwords miss the units for matrices in part."""
    return np.where(width % 8 == 0, 1.0, 3.0)


def elementwise_seconds(case: Case, k: Constants) -> Number:
    """Norms, sums, activation functions, positions and dropout of a dense layer."""
    m, layout, method = case.model, case.layout, case.method
    stream = layout.micro_tokens * m.d_model / np.where(method.sequence_parallel > 0, layout.tensor, 1.0)
    inside = layout.micro_tokens / layout.tensor
    d_ff = np.where(m.dense_layers > 0, m.d_ff, m.d_expert * (m.experts_per_token + m.shared_experts))
    moved = HALF * (stream * (FORWARD_READS + 6 * method.dropout) + inside * (m.ff_matrices * d_ff + 2 * m.qkv_width))
    forwards = 1 + np.maximum(method.recompute, 1 - method.keep_elementwise) + BACKWARD_READS
    return moved * forwards * k.elementwise / (case.machine.hbm_bytes_per_second * k.memory_efficiency)


def routing_seconds(case: Case, k: Constants) -> Number:
    """Tokens put in the order of their experts and back, weighted and summed."""
    m, layout = case.model, case.layout
    moved = HALF * layout.micro_tokens / layout.tensor * m.experts_per_token * m.d_model * k.routing_passes
    forwards = 1 + case.method.recompute + BACKWARD_READS
    return moved * forwards / (case.machine.hbm_bytes_per_second * k.memory_efficiency)


def head_seconds(case: Case, k: Constants) -> Number:
    """The output projection and the loss, of one microbatch."""
    m, layout = case.model, case.layout
    columns = m.vocab_size / layout.tensor
    zero = np.zeros_like(np.asarray(columns))
    product = linear_seconds(case, k, layout.micro_tokens, m.d_model, columns, zero, 1.0)
    moved = FULL * layout.micro_tokens * columns * LOSS_READS
    return product + moved * k.elementwise / (case.machine.hbm_bytes_per_second * k.memory_efficiency)
