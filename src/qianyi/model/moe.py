"""A mixture of experts in place of the feed-forward layer.

The router chooses k of E experts for each token; their outputs are added, weighted by the router's probabilities. Experts are spread over
axis `expert`, their hidden dim over `model`. Two ways to bring tokens to experts, both with static shapes:

dropless     tokens of all devices of `expert` are gathered, sorted by expert and multiplied group by group (`ragged_dot`); outputs are
             reduced and scattered back. Nothing is ever dropped.
capacity     each group of tokens has so many slots per expert; an all-to-all brings slots to experts and back (Lepikhin et al. 2021,
             GShard). What finds no slot is dropped: it passes by on the residual stream. A group is a span of one sequence, so what
             is dropped does not depend on the layout.

Dims: N tokens of this device, D width, E experts, e local experts, k experts per token, F hidden width (local), X devices of `expert`.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from qianyi.config.model import MoEConfig
from qianyi.config.schema import ModelConfig
from qianyi.model.linear import activate, init_std, residual_std
from qianyi.model.param import Param, Tree, with_amax
from qianyi.ops.matmul import Operands, Product, multiply
from qianyi.parallel.collectives import all_gather, all_to_all, index_on, reduce_scatter, sum_over
from qianyi.parallel.mesh import TOKEN_AXES

BOX_AXES = tuple(axis for axis in TOKEN_AXES if axis != "expert")
"""Axes over which the tokens of one expert are split, where tokens have come to experts."""


def moe_params(m: ModelConfig, moe: MoEConfig) -> Tree:
    D, E, F, std = m.d_model, moe.n_experts, m.d_expert, init_std(m, m.d_model)
    params: Tree = {
        "router": Param((D, E), ("residual", "router"), std, kind="router"),
        "experts_up": Param((E, D, F), ("experts", "embed", "ffn"), std),
        "experts_down": Param((E, F, D), ("experts", "ffn", "embed"), residual_std(m, F)),
    }
    if m.gated:
        params["experts_gate"] = Param((E, D, F), ("experts", "embed", "ffn"), std)
    if moe.balance == "bias":
        params["balance"] = Param((E,), ("router",), kind="balance")
    return with_amax(params, m.matmul)


def experts(h: Array, w: Tree, m: ModelConfig, moe: MoEConfig) -> tuple[Array, Array]:
    """[B, T, D] -> partial sums [B, T, D] over the local hidden units, and the balancing loss of this device's tokens."""
    x = h.reshape(-1, h.shape[-1])
    probabilities, gates, chosen = route(x, w, moe)
    visit = _dropless if moe.capacity_factor is None else _with_capacity
    out = visit(x, gates, chosen, w, m, moe)
    return out.reshape(h.shape), _balance(probabilities, chosen, w, moe)


def route(x: Array, w: Tree, moe: MoEConfig) -> tuple[Array, Array, Array]:
    """Router, in float32: x [N, D] -> probabilities [N, E], and of the chosen experts gates [N, k] and ids [N, k]."""
    logits = x.astype(jnp.float32) @ w["router"]
    weights = jax.nn.softmax(logits, axis=-1) if moe.score == "softmax" else jax.nn.sigmoid(logits)
    scores = lax.stop_gradient(weights + w["balance"] if moe.balance == "bias" else weights)
    _, chosen = lax.top_k(_in_best_groups(scores, moe) if moe.groups > 1 else scores, moe.experts_per_token)
    gates = jnp.take_along_axis(weights, chosen, axis=-1)
    gates = gates / gates.sum(axis=-1, keepdims=True) if moe.normalize else gates
    return weights / weights.sum(axis=-1, keepdims=True), moe.scale * gates, chosen


def _in_best_groups(scores: Array, moe: MoEConfig) -> Array:
    """[N, E]: scores, very small outside of the groups with the largest sums of two (DeepSeek-V3, section 2.1.2)."""
    groups = scores.reshape(-1, moe.groups, moe.n_experts // moe.groups)
    two = lax.top_k(groups, min(2, groups.shape[-1]))[0].sum(axis=-1)
    _, best = lax.top_k(two, moe.groups_chosen)
    chosen = jax.nn.one_hot(best, moe.groups, dtype=bool).any(axis=1)
    return jnp.where(chosen[..., None], groups, jnp.finfo(jnp.float32).min).reshape(scores.shape)


def _balance(probabilities: Array, chosen: Array, w: Tree, moe: MoEConfig) -> Array:
    """This device's share of the balancing loss: summed over devices, E * sum_e (share of choices) * (mean probability) of Fedus et
    al. 2022, equation 4, over all tokens of a microbatch. With a bias, a loss of value zero that tells the bias its load."""
    N, E = probabilities.shape
    counts = jnp.zeros(E, jnp.float32).at[chosen.reshape(-1)].add(1.0)
    if moe.balance == "bias":
        loss = _report_load(w["balance"], counts - counts.mean())
    else:
        n_tokens = N * math.prod(lax.axis_size(axis) for axis in TOKEN_AXES)
        # The product of two means of the whole microbatch, not the mean of products on each device.
        share = sum_over(counts, TOKEN_AXES) / (n_tokens * moe.experts_per_token)
        loss = moe.balance_rate * E * (share * probabilities.sum(axis=0)).sum() / n_tokens
    # All devices of `model` have the same tokens, each counts them in part.
    return sum_over(loss / lax.axis_size("model"), ("model",))


@jax.custom_vjp
def _report_load(bias: Array, excess: Array) -> Array:
    """Zero, whose "gradient" is by how many tokens each expert has more than the mean: the optimizer steps the bias against its sign."""
    return 0.0 * (bias.sum() + excess.sum())


def _report_load_forward(bias: Array, excess: Array) -> tuple[Array, Array]:
    return _report_load(bias, excess), excess


def _report_load_backward(excess: Array, g: Array) -> tuple[Array, Array]:
    return g * excess, jnp.zeros_like(excess)


_report_load.defvjp(_report_load_forward, _report_load_backward)


def _dropless(x: Array, gates: Array, chosen: Array, w: Tree, m: ModelConfig, moe: MoEConfig) -> Array:
    """[N, D] -> [N, D]."""
    x, gates, chosen = (all_gather(a, "expert", 0) for a in (x, gates, chosen))
    n_local = w["experts_up"].shape[0]
    local = chosen.reshape(-1) - index_on("expert") * n_local
    local = jnp.where((local >= 0) & (local < n_local), local, n_local)  # [X N k]; n_local: some other device's
    order = jnp.argsort(local, stable=True)
    sizes = jnp.zeros(n_local + 1, jnp.int32).at[local].add(1)[:n_local]
    token = order // moe.experts_per_token
    rows = x[token]
    hidden = _hidden(rows, w, m, Product(m.matmul, "output"), sizes)
    out = multiply(_operands(hidden, w, "experts_down", sizes), Product(m.matmul, "input"))
    mine = (local[order] < n_local)[:, None]
    out = jnp.where(mine, checkpoint_name(out, "expert_out") * gates.reshape(-1)[order, None].astype(out.dtype), 0)
    return reduce_scatter(jnp.zeros_like(x).at[token].add(out), "expert", 0)


def _with_capacity(x: Array, gates: Array, chosen: Array, w: Tree, m: ModelConfig, moe: MoEConfig) -> Array:
    """[N, D] -> [N, D]."""
    E, k, g = moe.n_experts, moe.experts_per_token, moe.group_tokens
    n, D = x.shape[0] // g, x.shape[1]
    slots = capacity(moe, g)
    # Place in the queue of the chosen expert: all first choices of a group come before its second choices.
    queue = chosen.reshape(n, g, k).transpose(0, 2, 1).reshape(n, k * g)
    wanted = jax.nn.one_hot(queue, E, dtype=jnp.int32)
    place = ((jnp.cumsum(wanted, axis=1) - wanted) * wanted).sum(axis=-1)
    slot = jnp.where(place < slots, queue * slots + place, E * slots)  # [n, k g]; E * slots: dropped
    tokens = jnp.tile(x.reshape(n, g, D), (1, k, 1))
    group = jnp.arange(n)[:, None]
    boxes = jnp.zeros((n, E * slots, D), x.dtype).at[group, slot].set(tokens, mode="drop")
    boxes = boxes.reshape(n, E, slots, D).transpose(1, 0, 2, 3).reshape(E, n * slots, D)
    boxes = checkpoint_name(all_to_all(boxes, "expert", split_dim=0, concat_dim=1), "expert_tokens")  # [e, X n slots, D]
    hidden = _hidden(boxes, w, m, Product(m.matmul, "output", BOX_AXES))
    boxes = multiply(_operands(hidden, w, "experts_down"), Product(m.matmul, "input", BOX_AXES))
    boxes = checkpoint_name(all_to_all(boxes, "expert", split_dim=1, concat_dim=0), "expert_out")
    boxes = boxes.reshape(E, n, slots, D).transpose(1, 0, 2, 3).reshape(n, E * slots, D)
    out = boxes.at[group, slot].get(mode="fill", fill_value=0).reshape(n, k, g, D)
    weight = gates.reshape(n, g, k).transpose(0, 2, 1)[..., None].astype(out.dtype)
    return (out * weight).sum(axis=1).reshape(-1, D)


def capacity(moe: MoEConfig, group_tokens: int) -> int:
    """Slots per expert for a group of tokens."""
    assert moe.capacity_factor is not None
    return math.ceil(group_tokens * moe.experts_per_token * moe.capacity_factor / moe.n_experts)


def _hidden(x: Array, w: Tree, m: ModelConfig, how: Product, sizes: Array | None = None) -> Array:
    """The hidden layer of experts."""
    up = checkpoint_name(multiply(_operands(x, w, "experts_up", sizes), how), "mlp_up")
    gate = checkpoint_name(multiply(_operands(x, w, "experts_gate", sizes), how), "mlp_gate") if m.gated else None
    return activate(up, gate, m)


def _operands(x: Array, w: Tree, name: str, sizes: Array | None = None) -> Operands:
    return Operands(x, w[name], sizes, w.get(f"{name}_amax"))
