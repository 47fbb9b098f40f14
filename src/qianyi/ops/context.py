"""Causal attention over sequences that are split over the devices of axis `context`.

Device i of C holds parts i and 2C - 1 - i of 2C (zig-zag: Brandon et al. 2023, "Striped Attention"; Llama 3, section 3.3.2), so that each
has the same share of the causal triangle. Its queries meet its own keys and those of the C - 1 others; whichever comes, exactly two
of the four products between halves are visible, and they are visible whole:

    keys of an earlier device: (low queries, low keys) and (high queries, low keys)
    keys of a later device:    (high queries, low keys) and (high queries, high keys)

so every device does the same work at every step, without masks. Keys and values come around a ring (Liu et al. 2023, "Ring Attention":
memory and messages of one part) or are gathered at once (memory of the whole sequence, one collective, allowed inside a
pipeline's branches).

Dims as in `qianyi.ops.attention`; T is the local length, two parts of c tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from qianyi.ops.attention import (
    NEVER,
    Context,
    Heads,
    Pattern,
    attend_backward,
    attend_forward,
    gradient_of,
    join_heads,
    row_inner,
    split_heads,
)
from qianyi.ops.fused import Kernel, fused_attention
from qianyi.parallel.collectives import index_on, send

Held = tuple[Array, Array, Array | None, Array | None]
"""Keys, values, documents and positions of one device."""
AXIS = "context"


def sequence_positions(length: int) -> Array:
    """int32 [length / C]: the positions that this device holds of sequences of `length` tokens."""
    n = lax.axis_size(AXIS)
    if n == 1:
        return jnp.arange(length)
    c, i = length // (2 * n), index_on(AXIS)
    return jnp.concatenate([i * c + jnp.arange(c), (2 * n - 1 - i) * c + jnp.arange(c)])


def context_attention(
    q: Array, k: Array, v: Array, pattern: Pattern, context: Context, ring: bool, kernel: Kernel = "auto"
) -> Array:
    """As `fused_attention`; where a device holds a part of the sequence, causal and without a prefix or a bias by distance."""
    if lax.axis_size(AXIS) == 1:
        return fused_attention(q, k, v, pattern, context, kernel)
    assert pattern.causal and context.prefix is None and context.bias is None, "refused by config.check"
    return join_heads(_attend(ring, pattern, split_heads(q, k, v, context)), q.shape[:3])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(ring: bool, pattern: Pattern, heads: Heads) -> Array:
    return _forward(ring, pattern, heads)[0]


def _forward(ring: bool, pattern: Pattern, heads: Heads) -> tuple[Array, tuple[Heads, Array, Array]]:
    mine, whole = _held(heads), pattern._replace(causal=False)
    fetch = _fetcher(mine, ring)

    def visit(carry: tuple[Held, Array, Array], step: Array) -> tuple[tuple[Held, Array, Array], None]:
        held, out, log_sum = carry
        held = fetch(held, step)
        earlier = index_on(AXIS) >= step
        outs, log_sums = attend_forward(whole, _visible_pairs(earlier, heads, held))
        (high, other), (log_high, log_other) = jnp.split(outs, 2), jnp.split(log_sums, 2)
        out, log_sum = _merge(out, log_sum, _to_half(False, high), _to_half(False, log_high, NEVER))
        return (held, *_merge(out, log_sum, _to_half(earlier, other), _to_half(earlier, log_other, NEVER))), None

    first = attend_forward(pattern, heads)
    (_, out, log_sum), _ = lax.scan(visit, (mine, *first), jnp.arange(1, lax.axis_size(AXIS)))
    out, log_sum = checkpoint_name(out.astype(heads.v.dtype), "attn_out"), checkpoint_name(log_sum, "attn_out")
    return out, (heads, out, log_sum)


def _backward(ring: bool, pattern: Pattern, saved: tuple[Heads, Array, Array], d_out: Array) -> tuple[Heads]:
    heads, out, log_sum = saved
    mine, whole = _held(heads), pattern._replace(causal=False)
    fetch, inner = _fetcher(mine, ring), row_inner(d_out, out)
    n = lax.axis_size(AXIS)

    def visit(carry: tuple[Held, Array, Any], step: Array) -> tuple[tuple[Held, Array, Any], None]:
        held, d_q, d_held = carry
        held = fetch(held, step)
        earlier = index_on(AXIS) >= step
        log_sums, inners, d_outs = (_queries(earlier, a) for a in (log_sum, inner, d_out))
        d_qs, d_ks, d_vs, _ = attend_backward(whole, _visible_pairs(earlier, heads, held), log_sums, inners, d_outs)
        high, other = jnp.split(d_qs, 2)
        d_q = d_q + _to_half(False, high) + _to_half(earlier, other)
        d_kv = [_to_half(True, low) + _to_half(earlier, half) for low, half in (jnp.split(d, 2) for d in (d_ks, d_vs))]
        # Gradients of keys and values travel with them around the ring, or wait in the place of their owner.
        if ring:
            return (held, d_q, [a + b for a, b in zip(send(d_held, AXIS, 1), d_kv, strict=True)]), None
        owner = (index_on(AXIS) - step) % n
        return (held, d_q, [a.at[owner].add(b) for a, b in zip(d_held, d_kv, strict=True)]), None

    d_q, d_k, d_v, _ = attend_backward(pattern, heads, log_sum, inner, d_out)
    d_kv = [d_k, d_v]
    if not ring:
        d_kv = [jnp.zeros((n, *d.shape), d.dtype).at[index_on(AXIS)].set(d) for d in d_kv]
    (_, d_q, d_kv), _ = lax.scan(visit, (mine, d_q, d_kv), jnp.arange(1, n))
    d_k, d_v = send(d_kv, AXIS, 1) if ring else [lax.psum_scatter(d, AXIS) for d in d_kv]
    return (gradient_of(heads, d_q, d_k, d_v),)


_attend.defvjp(_forward, _backward)


def _held(heads: Heads) -> Held:
    return heads.k, heads.v, heads.k_documents, heads.k_positions


def _fetcher(mine: Held, ring: bool) -> Callable[[Held, Array], Held]:
    """(what is held, step) -> keys and values of the device `step` before this one."""
    if ring:
        return lambda held, step: send(held, AXIS, 1)
    everyone = jax.tree.map(lambda a: lax.all_gather(a, AXIS), mine)
    return lambda held, step: jax.tree.map(lambda a: a[(index_on(AXIS) - step) % lax.axis_size(AXIS)], everyone)


def _visible_pairs(earlier: Array, heads: Heads, held: Held) -> Heads:
    """The two visible products, one after the other along N."""
    k, v, k_documents, k_positions = held

    def twice(a: Array | None) -> Array | None:
        return None if a is None else jnp.concatenate([a, a])

    def queries(a: Array | None) -> Array | None:
        return None if a is None else _queries(earlier, a, -1)

    def keys(a: Array | None) -> Array | None:
        return None if a is None else _keys(earlier, a, -1)

    return Heads(
        *(_queries(earlier, heads.q), _keys(earlier, k), _keys(earlier, v)),
        *(queries(heads.q_documents), keys(k_documents), queries(heads.q_positions), keys(k_positions)),
        slopes=twice(heads.slopes),
    )


def _queries(earlier: Array, a: Array, axis: int = -2) -> Array:
    """The high half; then the low half if the keys are of an earlier device, else the high half again."""
    low, high = jnp.split(a, 2, axis)
    return jnp.concatenate([high, jnp.where(earlier, low, high)])


def _keys(earlier: Array, a: Array, axis: int = -2) -> Array:
    """The low half; then the low half again if the keys are of an earlier device, else the high half."""
    low, high = jnp.split(a, 2, axis)
    return jnp.concatenate([low, jnp.where(earlier, low, high)])


def _to_half(in_low: Array | bool, a: Array, other: float = 0.0) -> Array:
    """[..., c, K] -> [..., 2 c, K]: `a` in the low or the high half, `other` in the other."""
    return jnp.concatenate([jnp.where(in_low, a, other), jnp.where(in_low, other, a)], axis=-2)


def _merge(out: Array, log_sum: Array, more: Array, log_more: Array) -> tuple[Array, Array]:
    """Attention over two sets of keys from that over each."""
    total = jnp.logaddexp(log_sum, log_more)
    return out * jnp.exp(log_sum - total) + more * jnp.exp(log_more - total), total
