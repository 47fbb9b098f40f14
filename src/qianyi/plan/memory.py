"""Bytes on one chip, by what they hold. The fullest chip of a pipeline counts: the first stage's."""

import numpy as np

from qianyi.plan.case import Case, Number
from qianyi.plan.compute import FULL, HALF
from qianyi.plan.constants import Constants
from qianyi.plan.step import Terms, layers_per_stage, stage_params

LOGIT_BYTES = 2 * (FULL + HALF)
"""Of a logit and of its gradient: in float32, and in the type of the product that made it."""


def memory(case: Case) -> Terms:
    """Bytes per chip, without what a runtime takes for itself (`qianyi.plan.constants`)."""
    layout, method = case.layout, case.method
    fixed, experts = stage_params(case)

    def held(bytes_each: Number, sharded: Number) -> Number:
        return bytes_each * (fixed / np.where(sharded, layout.shard, 1.0) + experts / np.where(sharded, layout.expert_shard, 1.0))

    # Gradients are whole where they are reduced once per step, after the last microbatch.
    gradients_sharded = (layout.zero == 2) | ((layout.zero >= 3) & (layout.gather_each > 0))
    working, activations = _working_set(case) + _layer_gradients(case), _activations(case)
    in_use = _weights_in_use(case, fixed + experts)
    logits = np.minimum(
        layout.micro_tokens, method.loss_tokens
    ) * case.model.vocab_size / layout.tensor * LOGIT_BYTES + _output_table(case)
    # No layer is at work while the loss is; in this program none is gathered then either.
    layer = working + np.where((method.shares_tables > 0) & (layout.gather_each > 0), in_use, 0.0)
    # The last stage, which has the logits, holds the activations of one microbatch.
    apart = (layout.stage > 1) & (method.shares_tables == 0)
    fewer = np.where(apart, activations * (1 - 1 / _in_flight(case)), 0.0)
    return {
        "weights": held(method.stored_bytes, layout.zero >= 3),
        "weights in use": in_use,
        "gradients": held(method.gradient_bytes, gradients_sharded),
        "new gradients": _new_gradients(case, fixed + experts, held(method.gradient_bytes, gradients_sharded)),
        "optimizer": held(method.optimizer_bytes, layout.zero >= 1),
        "activations": activations,
        "working set": working,
        "logits": np.maximum(logits - layer - fewer, 0.0),
    }


def total_bytes(case: Case, k: Constants) -> Number:
    """With what the runtime and its allocator take."""
    return k.runtime_bytes + sum(memory(case).values()) * k.allocation


def _weights_in_use(case: Case, params: Number) -> Number:
    """Copies in the type of computation: of all weights where they are gathered (or cast) once per step, else of two layers, the one at
    work and the next."""
    layout, method = case.layout, case.method
    two_layers = 2 * params / layers_per_stage(case)
    copied = ((layout.zero >= 3) & (layout.shard > 1)) | (method.stored_bytes > method.weight_bytes)
    return np.where(copied, method.weight_bytes * np.where(layout.gather_each > 0, two_layers, params), 0.0)


def _output_table(case: Case) -> Number:
    """Where the loss goes by chunks of tokens, over a table that is gathered for it: the table, its gradient, and that of a chunk."""
    layout, method = case.layout, case.method
    gathered = (method.shares_tables > 0) & (layout.gather_each > 0) & (layout.zero >= 3) & (layout.shard > 1)
    table = case.model.vocab_size * case.model.d_model / layout.tensor
    return np.where(gathered, (method.weight_bytes + 2 * method.gradient_bytes) * table, 0.0)


def _new_gradients(case: Case, params: Number, whole: Number) -> Number:
    """Those of one microbatch, before they are added to the others': all of them, or a chunk's where a pipeline runs its stages again."""
    layout, method = case.layout, case.method
    tables = case.model.table_params / layout.tensor
    chunk = method.gradient_bytes * (tables + (params - tables) / layout.chunks)
    in_pipeline = np.where(method.stage_remat > 0, chunk, 0.0)
    # Weights that were gathered once have gradients of their own type until these are added.
    narrow = np.where(layout.gather_each > 0, 1.0, method.weight_bytes / method.gradient_bytes)
    added = np.where(method.adds_gradients > 0, whole * narrow, 0.0)
    return np.where(layout.stage > 1, in_pipeline, np.where(layout.microbatches > 1, added, 0.0))


def _stream(case: Case) -> Number:
    """Elements per token of the residual stream between products."""
    return case.model.d_model / np.where(case.method.sequence_parallel > 0, case.layout.tensor, 1.0)


def kept_elements(case: Case) -> Number:
    """Elements per token that a layer keeps for its backward pass (Korthikanti et al. 2022, section 4, without constants of one
    architecture)."""
    m, method, tensor = case.model, case.method, case.layout.tensor
    stream = _stream(case)
    dense, routed = m.dense_layers / m.n_layers, m.moe_layers / m.n_layers
    width = dense * m.d_ff + routed * m.d_expert * (m.experts_per_token + m.shared_experts)
    products = (m.qkv_width + m.n_heads * m.d_value + (m.ff_matrices - 1) * width) / tensor + stream
    products = products + routed * 2 * m.experts_per_token * m.d_model / tensor
    others = 2 * stream + width / tensor + method.dropout * stream
    scores = np.where(method.flash > 0, 0.0, 2.5 * m.n_heads * case.layout.seq_len / tensor)
    kept = method.keep_products * products + method.keep_elementwise * others
    return stream + kept + method.keep_elementwise * (1 - np.minimum(method.recompute_attention, 1.0)) * scores


def _in_flight(case: Case) -> Number:
    """Microbatches whose activations the first stage holds (Narayanan et al. 2021, section 2.2)."""
    layout = case.layout
    stages = layout.stage + np.where(layout.chunks > 1, (layout.stage - 1) / layout.chunks, 0.0)
    return np.where(layout.stage > 1, np.minimum(stages, layout.microbatches), 1.0)


def _activations(case: Case) -> Number:
    """Kept for the backward pass, on the device."""
    layout, method = case.layout, case.method
    tokens, layers = layout.micro_tokens, layers_per_stage(case)
    whole = case.model.layer_share * layers * method.weight_bytes * tokens * kept_elements(case) * (1 - method.offload)
    # Inputs of every chunk, and all of one microbatch at a time.
    ahead = 2 * (layout.stage - 1) + (layout.chunks - 1) * layout.stage + 1
    inputs = method.weight_bytes * tokens * _stream(case) * np.minimum(ahead, layout.microbatches * layout.chunks)
    return np.where((method.stage_remat > 0) & (layout.stage > 1), inputs + whole / layout.chunks, whole * _in_flight(case))


def _layer_gradients(case: Case) -> Number:
    """Where gradients are scattered layer by layer: those of its larger part, attention or feed-forward, whole until then."""
    m, layout = case.model, case.layout
    attention = m.d_model * (m.qkv_width + m.n_heads * m.d_value)
    dense = np.where(m.dense_layers > 0, m.d_ff, 0.0)
    routed = np.where(m.moe_layers > 0, m.d_expert * (m.n_experts / layout.expert + m.shared_experts), 0.0)
    largest = np.maximum(attention, m.d_model * m.ff_matrices * np.maximum(dense, routed)) / layout.tensor
    scattered = (layout.zero >= 2) & (layout.gather_each > 0) & (layout.shard > 1)
    return np.where(scattered, case.method.reduce_bytes * largest, 0.0)


def _working_set(case: Case) -> Number:
    """What one layer makes on its way backward and drops again: what it did not keep, and gradients of as much; whole
    sequences where tensor parallelism gathers them."""
    m, tensor = case.model, case.layout.tensor
    dense, routed = m.dense_layers > 0, m.moe_layers > 0
    width = np.maximum(dense * m.d_ff, routed * m.d_expert * (m.experts_per_token + m.shared_experts))
    everything = 2 * m.d_model + (m.qkv_width + m.n_heads * m.d_value + m.ff_matrices * width) / tensor
    return 2 * case.method.weight_bytes * case.layout.micro_tokens * everything
