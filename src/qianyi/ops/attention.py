"""Causal attention with grouped key/value heads.

Dims: B batch, T query position, S key position, H query heads, G key/value heads, R = H / G, K head width.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

QUERY_BLOCK = 128
"""Queries treated at one time: scores of a block stay in cache, and keys after its last query are never touched."""


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
    q = (q * K**-0.5).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    out = _attend(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3))
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array) -> Array:
    """q [B, G, R, T, K], k and v [B, G, T, K] -> [B, G, R, T, K]."""
    return _attend_forward(q, k, v)[0]


def _attend_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    outs: list[Array] = []
    log_sums: list[Array] = []
    for start, stop in _blocks(q.shape[3]):
        scores = _scores(q, k, start, stop)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(v.dtype), v[:, :, :stop], preferred_element_type=jnp.float32)
        outs.append((out / total).astype(v.dtype))
        log_sums.append(top + jnp.log(total))
    # What the backward pass needs beside its inputs; a rematerialization policy that keeps `attn_out` keeps both.
    out = checkpoint_name(jnp.concatenate(outs, axis=3), "attn_out")
    log_sum = checkpoint_name(jnp.concatenate(log_sums, axis=3), "attn_out")
    return out, (q, k, v, out, log_sum)


def _attend_backward(saved: tuple[Array, ...], d_out: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, log_sum = saved
    inner = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1, keepdims=True)  # B G R T 1
    d_qs: list[Array] = []
    d_k, d_v = jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    for start, stop in _blocks(q.shape[3]):
        d_o, seen = d_out[..., start:stop, :], v[:, :, :stop]
        weights = jnp.exp(_scores(q, k, start, stop) - log_sum[..., start:stop, :])
        d_weights = jnp.einsum("bgrtk,bgsk->bgrts", d_o, seen, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - inner[..., start:stop, :])).astype(k.dtype)
        d_qs.append(jnp.einsum("bgrts,bgsk->bgrtk", d_scores, k[:, :, :stop]))
        d_kb = jnp.einsum("bgrts,bgrtk->bgsk", d_scores, q[..., start:stop, :], preferred_element_type=jnp.float32)
        d_vb = jnp.einsum("bgrts,bgrtk->bgsk", weights.astype(v.dtype), d_o, preferred_element_type=jnp.float32)
        d_k, d_v = d_k.at[:, :, :stop].add(d_kb), d_v.at[:, :, :stop].add(d_vb)
    return jnp.concatenate(d_qs, axis=3), d_k.astype(k.dtype), d_v.astype(v.dtype)


_attend.defvjp(_attend_forward, _attend_backward)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, QUERY_BLOCK):
        yield start, min(start + QUERY_BLOCK, length)


def _scores(q: Array, k: Array, start: int, stop: int) -> Array:
    """float32 [B, G, R, stop - start, stop]: scores of a block of queries, keys after a query masked."""
    scores = jnp.einsum("bgrtk,bgsk->bgrts", q[..., start:stop, :], k[:, :, :stop], preferred_element_type=jnp.float32)
    visible = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
    return jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
