"""Time of one training step, term by term.

The busiest stage of the pipeline sets the pace: seconds are of its chips. `terms` gives every part by name; their sum is the step.
"""

import numpy as np

from qianyi.plan.case import Case, Number
from qianyi.plan.compute import (
    HALF,
    attention_seconds,
    dense_layer_seconds,
    elementwise_seconds,
    head_seconds,
    moe_layer_seconds,
    routing_seconds,
)
from qianyi.plan.constants import Constants
from qianyi.plan.network import exchange_seconds, gather_seconds, hop_seconds, reduce_seconds

Terms = dict[str, Number]
BACKWARD = 0.6
"""Share of a microbatch's time that its backward pass takes, at least."""


def terms(case: Case, k: Constants) -> Terms:
    """Seconds of a step by what they are spent on."""
    busy = _per_microbatch(case, k)
    layout = case.layout
    m = layout.microbatches
    out: Terms = {name: m * seconds for name, seconds in busy.items()}
    work = sum(out.values())
    out["weights"] = _weights_seconds(case, k, work)
    out["bubble"] = (work + out["weights"]) / m * (layout.stage - 1) / layout.chunks
    out["gradients"] = _gradients_seconds(case, k, work)
    out["optimizer"] = _optimizer_seconds(case, k)
    share = case.model.moe_layers / case.model.n_layers
    per_layer = k.layer_seconds + share * k.moe_layer_seconds
    out["overhead"] = k.step_seconds + m * layers_per_stage(case) * per_layer * (3 + case.method.recompute)
    so_far = sum(out.values())
    together = np.where(case.machine.switched > 0, 8, case.machine.domain)
    out["jitter"] = so_far * k.jitter * np.log2(np.maximum(layout.n_chips / together, 1))
    pace = k.chip_pace * k.lineage_pace * k.stack_pace * k.pair_pace
    return {name: seconds * pace for name, seconds in out.items()}


def step_seconds(case: Case, k: Constants) -> Number:
    """Their sum."""
    return sum(terms(case, k).values())


def layers_per_stage(case: Case) -> Number:
    """Layers of the stage with most, where the output projection counts as layers; stages are balanced as far as whole layers allow."""
    m, stage = case.model, case.layout.stage
    places = stage * case.layout.chunks
    head = m.vocab_size * m.d_model
    units = m.n_layers + case.method.balances * m.n_layers * head / (m.active_matmul_params - head)
    return np.where(stage > 1, np.ceil(units / places - 1e-6) * case.layout.chunks, m.n_layers)


def _per_microbatch(case: Case, k: Constants) -> Terms:
    m = case.model
    layers = layers_per_stage(case)
    dense, experts = layers * m.dense_layers / m.n_layers, layers * m.moe_layers / m.n_layers
    products = m.layer_share * (dense * dense_layer_seconds(case, k) + experts * moe_layer_seconds(case, k))
    attention = m.layer_share * layers * attention_seconds(case, k)
    elementwise = m.layer_share * layers * elementwise_seconds(case, k) + experts * routing_seconds(case, k)
    head = m.head_share * head_seconds(case, k)
    # A stage that has the output projection may have fewer layers for it: only what does not fit evenly is paid.
    even = (m.n_layers / case.layout.stage) * (products + attention + elementwise) / layers + head / case.layout.stage
    full = products + attention + elementwise
    divides = np.isclose(m.n_layers % (case.layout.stage * case.layout.chunks), 0)
    on_last = np.where(divides & (case.method.balances == 0), head, np.maximum(even - full, 0.0))
    return {
        "products": products,
        "attention": attention,
        "elementwise": elementwise,
        "head": np.where(case.layout.stage > 1, on_last, head),
        "tensor": m.layer_share * layers * _tensor_seconds(case, k),
        "context": layers * _context_seconds(case, k, attention / layers),
        "experts": experts * _expert_seconds(case, k),
        "stages": _stage_seconds(case, k),
    }


def _tensor_seconds(case: Case, k: Constants) -> Number:
    """Of a layer: two gathers and two scatters forward, as many backward, one forward part again where it is recomputed (Korthikanti et al.
    2022, section 4.2.2); two all-reduces are the same bytes."""
    layout = case.layout
    stream = HALF * layout.micro_tokens * case.model.d_model
    once = gather_seconds(case.machine, k, layout.tensor, 1.0, stream)
    times = 8 + 4 * case.method.recompute * 0.75
    # Beyond a domain nothing hides it: kernels that overlap it with products send over the fast network alone.
    exposed = np.where((case.machine.switched > 0) & (layout.tensor > case.machine.domain), 1.0, k.tensor_exposed)
    return np.where(layout.tensor > 1, times * once * exposed, 0.0)


def _context_seconds(case: Case, k: Constants, attention: Number) -> Number:
    """Keys and values of the whole sequence, forward and again backward, and their gradients; attention to what came hides what comes."""
    layout = case.layout
    whole = HALF * layout.micro_tokens * layout.context * case.model.kv_width / layout.tensor
    seconds = 3 * gather_seconds(case.machine, k, layout.context, layout.tensor, whole)
    return np.where(layout.context > 1, _beyond(attention, seconds, k.contention), 0.0)


def _expert_seconds(case: Case, k: Constants) -> Number:
    """Tokens to their experts and back, forward, backward, and again where the forward part is recomputed. A token goes once to a device
    (or host) of several of its experts."""
    m, layout = case.model, case.layout
    chosen = np.maximum(m.experts_per_token, 1)
    sent = HALF * layout.micro_tokens / layout.tensor * m.d_model
    # Experts may be spread over the tensor axis too; then they begin there.
    inside = np.where(layout.expert > layout.data, 1.0, layout.tensor * layout.context)
    once = exchange_seconds(case.machine, k, layout.expert, inside, sent, chosen)
    return np.where(layout.expert > 1, (4 + 2 * case.method.recompute) * once * k.expert_exposed, 0.0)


def _stage_seconds(case: Case, k: Constants) -> Number:
    """Activations forward and gradients backward, for each chunk."""
    layout = case.layout
    stream = HALF * layout.micro_tokens * case.model.d_model / layout.tensor
    inside = layout.tensor * layout.context * layout.data
    return 2 * layout.chunks * hop_seconds(case.machine, k, layout.stage, inside, stream) * k.stage_exposed


def stage_params(case: Case) -> tuple[Number, Number]:
    """Parameters of a stage's chip: those that all data ranks have, and the routed experts that ranks of `expert` divide."""
    m, layout = case.model, case.layout
    share = layers_per_stage(case) / m.n_layers
    fixed = share * (m.dense_layers * m.dense_params + m.moe_layers * m.moe_fixed_params)
    # With stages, the first has the embedding and the last the output projection.
    apart = (layout.stage > 1) & (case.method.shares_tables == 0)
    tables = np.where(apart, m.vocab_size * m.d_model, m.table_params)
    experts = share * m.moe_layers * m.expert_params / (layout.tensor * layout.expert)
    return (fixed + tables) / layout.tensor, experts


def _weights_seconds(case: Case, k: Constants, work: Number) -> Number:
    """ZeRO-3: weights gathered forward and backward, gradients scattered, while the chip computes."""
    layout, method = case.layout, case.method
    fixed, experts = stage_params(case)
    times = np.where(layout.gather_each > 0, layout.microbatches, 1.0)
    inner, layers = layout.tensor, layers_per_stage(case)
    moved = 0.0
    for params, ranks, stride in ((fixed, layout.shard, inner), (experts, layout.expert_shard, inner * layout.expert)):
        gather = gather_seconds(case.machine, k, ranks, stride, params * method.gather_bytes, layers)
        scatter = gather_seconds(case.machine, k, ranks, stride, params * method.reduce_bytes, layers)
        moved = moved + times * (2 * gather + scatter)
    return np.where((layout.zero >= 3) & (layout.shard > 1), _beyond(work, moved, k.contention), 0.0)


def _gradients_seconds(case: Case, k: Constants, work: Number) -> Number:
    """Gradients summed over data ranks (and, where the optimizer's state is sharded, updated weights gathered): once per step, under the
    last microbatch's backward pass; ZeRO-2 scatters those of every microbatch."""
    layout, method = case.layout, case.method
    fixed, experts = stage_params(case)
    ranks, layers = layout.data * layout.context, layers_per_stage(case)
    scatters = np.where((layout.zero == 2) & (layout.gather_each > 0), layout.microbatches, 1.0)
    total = 0.0
    kinds = (
        (fixed, ranks, layout.shard, layout.tensor),
        (experts, np.maximum(ranks / layout.expert, 1), layout.expert_shard, layout.tensor * layout.expert),
    )
    for params, over, shard, stride in kinds:
        scatter = gather_seconds(case.machine, k, over, stride, params * method.reduce_bytes, layers)
        back = np.where(
            layout.zero >= 1, gather_seconds(case.machine, k, over, stride, params * method.gather_bytes, layers), scatter
        )
        # Under ZeRO-3 only copies of the shards are summed.
        copies = np.maximum(over / shard, 1)
        shards = params / shard
        summed = reduce_seconds(case.machine, k, copies, stride * shard, shards * method.reduce_bytes, layers)
        total = total + np.where(layout.zero >= 3, summed, scatters * scatter + back)
    # Updated weights are gathered under the next step's first forward pass.
    window = np.where((layout.zero >= 1) & (layout.shard > 1), 1.0, BACKWARD) * work / layout.microbatches
    # Interleaved chunks finish their last microbatches one after the other, as many microbatches apart as there are stages; a pipeline
    # that is one loop (this program's) reduces them all at its end.
    spread = (layout.stage * (layout.chunks - 1) + 1) / layout.chunks
    window = window * np.where(method.stage_remat > 0, 1.0, np.minimum(spread, layout.microbatches / scatters))
    return np.where(layout.data * layout.context > 1, _beyond(scatters * window, total, k.contention), 0.0)


def _optimizer_seconds(case: Case, k: Constants) -> Number:
    """State, gradient and weights read, state and weights written."""
    fixed, experts = stage_params(case)
    sharded = case.layout.zero >= 1
    params = fixed / np.where(sharded, case.layout.shard, 1.0) + experts / np.where(sharded, case.layout.expert_shard, 1.0)
    moved = params * (2 * case.method.optimizer_bytes + case.method.gradient_bytes + 2 * case.method.stored_bytes)
    return moved / (case.machine.hbm_bytes_per_second * k.memory_efficiency)


def _beyond(hidden_by: Number, seconds: Number, contention: Number) -> Number:
    """What `seconds` of communication add to computation: what is longer than it, and a share of what they do at once."""
    return np.maximum(hidden_by, seconds) + contention * np.minimum(hidden_by, seconds) - hidden_by
