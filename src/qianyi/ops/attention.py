"""Causal attention with grouped key/value heads.

Dims: B batch, T query position, S key position, H query heads, G key/value heads, R = H / G, K head width.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

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


def causal_attention(q: Array, k: Array, v: Array, documents: Array | None = None) -> Array:
    """Attention of each position to itself and those before it; q [B, T, H, K], k and v [B, T, G, K].

    Queries go block by block, each block against just the keys that it may see: half the work of a masked square. Scores are
    not kept but computed again from the normalizer in the backward pass, so memory is linear in T (Dao et al. 2022,
    algorithms 1 and 4).

    Args:
        documents: int32 [B, T]; where given, a query sees only keys of the same number.
    """
    return join_heads(_attend(split_heads(q, k, v, documents)), q.shape)


class Heads(NamedTuple):
    """What attends to what, an entry per row and key/value head: N = B * G."""

    q: Array
    """[N, R, T, K], scaled."""
    k: Array
    """[N, S, K]."""
    v: Array
    q_documents: Array | None
    """int32 [N, T]; where given, a query sees only keys of the same number."""
    k_documents: Array | None


def split_heads(q: Array, k: Array, v: Array, documents: Array | None) -> Heads:
    """From [B, T, heads, K]."""
    B, T, H, K = q.shape
    G = k.shape[2]
    q = (q * K**-0.5).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(B * G, H // G, T, K)
    k, v = (a.transpose(0, 2, 1, 3).reshape(B * G, -1, K) for a in (k, v))
    documents = None if documents is None else jnp.repeat(documents, G, axis=0)
    return Heads(q, k, v, documents, documents)


def join_heads(out: Array, shape: tuple[int, ...]) -> Array:
    """[N, R, T, K] -> [B, T, H, K]."""
    B, T, H, K = shape
    return out.reshape(B, H // out.shape[1], out.shape[1], T, K).transpose(0, 3, 1, 2, 4).reshape(shape)


@jax.custom_vjp
def _attend(heads: Heads) -> Array:
    return _attend_forward(heads)[0]


def _attend_forward(heads: Heads) -> tuple[Array, tuple[Heads, Array, Array]]:
    # What the backward pass needs beside its inputs; a rematerialization policy that keeps `attn_out` keeps both.
    out, log_sum = attend_forward(heads, causal=True)
    out, log_sum = checkpoint_name(out.astype(heads.v.dtype), "attn_out"), checkpoint_name(log_sum, "attn_out")
    return out, (heads, out, log_sum)


def _attend_backward(saved: tuple[Heads, Array, Array], d_out: Array) -> tuple[Heads]:
    heads, out, log_sum = saved
    return (gradient_of(heads, *attend_backward(heads, log_sum, row_inner(d_out, out), d_out, causal=True)),)


_attend.defvjp(_attend_forward, _attend_backward)


def gradient_of(heads: Heads, d_q: Array, d_k: Array, d_v: Array) -> Any:
    """Gradients in the types of what they belong to; documents have none."""
    return Heads(d_q.astype(heads.q.dtype), d_k.astype(heads.k.dtype), d_v.astype(heads.v.dtype), None, None)


def row_inner(d_out: Array, out: Array) -> Array:
    """[N, R, T, 1]: what the softmax's gradient subtracts in each row."""
    return (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1, keepdims=True)


def attend_forward(heads: Heads, *, causal: bool) -> tuple[Array, Array]:
    """Attention to all keys, or causal with S = T.

    Returns:
        float32 outputs [N, R, T, K] and the logarithms of the softmax's normalizers [N, R, T, 1], with which outputs over other
        keys can be merged.
    """
    return _per_head(partial(_head_forward, causal=causal), heads)


def attend_backward(heads: Heads, log_sum: Array, inner: Array, d_out: Array, *, causal: bool) -> tuple[Array, Array, Array]:
    """float32 gradients of q, k and v, from the normalizers over all keys (these and others)."""
    return _per_head(partial(_head_backward, causal=causal), heads, log_sum, inner, d_out)


def _per_head(f: Callable[..., Any], *of_heads: Any) -> Any:
    """Apply `f`, which treats one key/value head, to all of them: at once where there are thousands of units to fill, but on a
    CPU a few at a time, so that their scores stay in cache."""

    def few_at_a_time(*of_heads: Any) -> Any:
        return lax.map(lambda head: f(*head), of_heads, batch_size=CPU_HEADS)

    return lax.platform_dependent(*of_heads, cpu=few_at_a_time, default=jax.vmap(f))


def _head_forward(head: Heads, causal: bool) -> tuple[Array, Array]:
    """Of one head (no N): output [R, T, K] and the logarithm of the softmax's normalizer [R, T, 1]."""
    outs: list[Array] = []
    log_sums: list[Array] = []
    for start, stop in _blocks(head.q.shape[1]):
        seen = stop if causal else head.k.shape[0]
        scores = _scores(head, start, stop, seen, causal)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum("rts,sk->rtk", weights.astype(head.v.dtype), head.v[:seen], preferred_element_type=jnp.float32)
        outs.append(out / total)
        log_sums.append(top + jnp.log(total))
    return jnp.concatenate(outs, axis=1), jnp.concatenate(log_sums, axis=1)


def _head_backward(head: Heads, log_sum: Array, inner: Array, d_out: Array, causal: bool) -> tuple[Array, Array, Array]:
    """float32 gradients of q, k and v."""
    q, k, v, _, _ = head
    d_qs: list[Array] = []
    d_k, d_v = jnp.zeros_like(k, jnp.float32), jnp.zeros_like(v, jnp.float32)
    for start, stop in _blocks(q.shape[1]):
        rows, seen = slice(start, stop), stop if causal else k.shape[0]
        weights = jnp.exp(_scores(head, start, stop, seen, causal) - log_sum[:, rows])
        d_weights = jnp.einsum("rtk,sk->rts", d_out[:, rows], v[:seen], preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - inner[:, rows])).astype(k.dtype)
        d_qs.append(jnp.einsum("rts,sk->rtk", d_scores, k[:seen], preferred_element_type=jnp.float32))
        d_kb = jnp.einsum("rts,rtk->sk", d_scores, q[:, rows], preferred_element_type=jnp.float32)
        d_vb = jnp.einsum("rts,rtk->sk", weights.astype(v.dtype), d_out[:, rows], preferred_element_type=jnp.float32)
        d_k, d_v = d_k.at[:seen].add(d_kb), d_v.at[:seen].add(d_vb)
    return jnp.concatenate(d_qs, axis=1), d_k, d_v


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, QUERY_BLOCK):
        yield start, min(start + QUERY_BLOCK, length)


def _scores(head: Heads, start: int, stop: int, seen: int, causal: bool) -> Array:
    """float32 [R, stop - start, seen]: scores of a block of queries; keys that a query may not see are masked."""
    scores = jnp.einsum("rtk,sk->rts", head.q[:, start:stop], head.k[:seen], preferred_element_type=jnp.float32)
    visible: Array | bool = jnp.arange(start, stop)[:, None] >= jnp.arange(seen)[None, :] if causal else True
    if head.q_documents is not None and head.k_documents is not None:
        visible &= head.q_documents[start:stop, None] == head.k_documents[None, :seen]
    return scores if visible is True else jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
