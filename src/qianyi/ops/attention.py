"""Causal attention with grouped key/value heads.

Dims: B batch, T query position, S key position, H query heads, G key/value heads, R = H / G, K head width.
"""

import jax
import jax.numpy as jnp
from jax import Array

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

    Queries go block by block, each block against just the keys that it may see: half the work of a masked square.
    A block's scores are recomputed in the backward pass, so memory is linear in T (Dao et al. 2022, section 3.1).
    """
    T = q.shape[1]
    block = jax.checkpoint(reference_attention)
    outputs = []
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        mask = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
        outputs.append(block(q[:, start:stop], k[:, :stop], v[:, :stop], mask))
    return jnp.concatenate(outputs, axis=1)
