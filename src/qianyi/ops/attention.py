"""Causal attention with grouped key/value heads.

Dims: B batch, T query position, S key position, H query heads, G key/value heads, R = H / G, K head width.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

QUERY_BLOCK = 128
"""Queries treated at one time: scores of a block stay in cache, and keys after its last query are never touched."""
CPU_HEADS = 4
"""Key/value heads treated at one time on a CPU."""


def reference_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Softmax attention as the textbook writes it, softmax in float32.

    Args:
        q: [B, T, H, K].
        k: [B, S, G, K].
        v: [B, S, G, K].
        mask: broadcastable to [B, T, S]; True where a query may look.

    Returns:
        [B, T, H, K] of the type of `q`.
    """
    B, T, H, K = q.shape
    G = k.shape[2]
    q = (q * K**-0.5).reshape(B, T, G, H // G, K)
    scores = jnp.einsum("btgrk,bsgk->bgrts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[..., None, None, :, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bgrts,bsgk->btgrk", weights, v).reshape(B, T, H, K)


def causal_attention(q: Array, k: Array, v: Array) -> Array:
    """Attention of each position to itself and those before it; q [B, T, H, K], k and v [B, T, G, K].

    Queries go block by block, each block against just the keys that it may see: half the work of a masked square. Scores are
    not kept but computed again from the normalizer in the backward pass, so memory is linear in T (Dao et al. 2022,
    algorithms 1 and 4).
    """
    B, T, H, K = q.shape
    G = k.shape[2]
    q = (q * K**-0.5).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(B * G, H // G, T, K)
    k, v = (a.transpose(0, 2, 1, 3).reshape(B * G, T, K) for a in (k, v))
    return _attend(q, k, v).reshape(B, G, H // G, T, K).transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array) -> Array:
    """For N key/value heads: q [N, R, T, K], k and v [N, T, K] -> [N, R, T, K]."""
    return _per_head(_head_forward, q, k, v)[0]


def _attend_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    # What the backward pass needs beside its inputs; a rematerialization policy that keeps `attn_out` keeps both.
    out, log_sum = (checkpoint_name(a, "attn_out") for a in _per_head(_head_forward, q, k, v))
    return out, (q, k, v, out, log_sum)


def _attend_backward(saved: tuple[Array, ...], d_out: Array) -> tuple[Array, ...]:
    return _per_head(_head_backward, *saved, d_out)


_attend.defvjp(_attend_forward, _attend_backward)


def _per_head(f: Callable[..., tuple[Array, ...]], *heads: Array) -> tuple[Array, ...]:
    """Apply `f`, which treats one key/value head, to all of them: at once where there are thousands of units to fill, but on a
    CPU a few at a time, so that their scores stay in cache."""

    def few_at_a_time(*heads: Array) -> tuple[Array, ...]:
        return lax.map(lambda head: f(*head), heads, batch_size=CPU_HEADS)

    return lax.platform_dependent(*heads, cpu=few_at_a_time, default=jax.vmap(f))


def _head_forward(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """q [R, T, K], k and v [T, K] -> output [R, T, K] and the logarithm of the softmax's normalizer [R, T, 1]."""
    outs: list[Array] = []
    log_sums: list[Array] = []
    for start, stop in _blocks(q.shape[1]):
        scores = _scores(q, k, start, stop)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum("rts,sk->rtk", weights.astype(v.dtype), v[:stop], preferred_element_type=jnp.float32)
        outs.append((out / total).astype(v.dtype))
        log_sums.append(top + jnp.log(total))
    return jnp.concatenate(outs, axis=1), jnp.concatenate(log_sums, axis=1)


def _head_backward(q: Array, k: Array, v: Array, out: Array, log_sum: Array, d_out: Array) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v."""
    inner = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1, keepdims=True)  # R T 1
    d_qs: list[Array] = []
    d_k, d_v = jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    for start, stop in _blocks(q.shape[1]):
        rows = slice(start, stop)
        weights = jnp.exp(_scores(q, k, start, stop) - log_sum[:, rows])
        d_weights = jnp.einsum("rtk,sk->rts", d_out[:, rows], v[:stop], preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - inner[:, rows])).astype(k.dtype)
        d_qs.append(jnp.einsum("rts,sk->rtk", d_scores, k[:stop]))
        d_kb = jnp.einsum("rts,rtk->sk", d_scores, q[:, rows], preferred_element_type=jnp.float32)
        d_vb = jnp.einsum("rts,rtk->sk", weights.astype(v.dtype), d_out[:, rows], preferred_element_type=jnp.float32)
        d_k, d_v = d_k.at[:stop].add(d_kb), d_v.at[:stop].add(d_vb)
    return jnp.concatenate(d_qs, axis=1), d_k.astype(k.dtype), d_v.astype(v.dtype)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, QUERY_BLOCK):
        yield start, min(start + QUERY_BLOCK, length)


def _scores(q: Array, k: Array, start: int, stop: int) -> Array:
    """float32 [R, stop - start, stop]: scores of a block of queries, keys after a query masked."""
    scores = jnp.einsum("rtk,sk->rts", q[:, start:stop], k[:stop], preferred_element_type=jnp.float32)
    visible = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
    return jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
