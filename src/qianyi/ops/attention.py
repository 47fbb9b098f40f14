"""Attention by blocks of queries, with grouped key/value heads.

Dims: B batch, T query position, S key position, H query heads, G key/value heads, R = H / G, K head width, U width of a value,
N = B * G. What a query may see, and how scores are shaped, is said by a `Pattern` (the same for all tokens) and by arrays in `Heads`.
"""

from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

QUERY_BLOCK = 128
"""Queries treated at one time: scores of a block stay in cache, and keys after its last query are never touched."""
CPU_HEADS = 4
"""Key/value heads treated at one time on a CPU."""
NEVER = float(jnp.finfo(jnp.float32).min)
"""The score of a key that is not seen."""


class Pattern(NamedTuple):
    """How queries look at keys."""

    causal: bool = True
    """A query sees only its own position and those before it."""
    window: int | None = None
    """It sees only the last so many positions, its own included."""
    cap: float | None = None
    """Scores are bent to cap * tanh(score / cap) (Gemma 2: Team Gemma 2024, section 2)."""


class Context(NamedTuple):
    """Arrays that say what belongs together, and what is added to scores."""

    documents: Array | None = None
    """int32 [B, T]; where given, a query sees only keys of the same number."""
    key_documents: Array | None = None
    """int32 [B, S], where keys are other tokens than queries."""
    positions: Array | None = None
    """int32 [T], of queries and keys; needed by windows and slopes."""
    prefix: Array | None = None
    """int32 [B]; tokens before it are seen by all, whatever `causal` says (Raffel et al. 2020, section 3.2.1)."""
    slopes: Array | None = None
    """float32 [H]: a score goes down by the slope times the distance (ALiBi: Press et al. 2022)."""
    bias: Array | None = None
    """float32 [H, T + S - 1]: added to the score of query t and key s at entry t - s + S - 1."""


class Heads(NamedTuple):
    """What attends to what, an entry per row and key/value head."""

    q: Array
    """[N, R, T, K], scaled."""
    k: Array
    """[N, S, K]."""
    v: Array
    """[N, S, U]."""
    q_documents: Array | None = None
    """int32 [N, T]."""
    k_documents: Array | None = None
    """int32 [N, S]."""
    q_positions: Array | None = None
    """int32 [N, T]."""
    k_positions: Array | None = None
    """int32 [N, S]."""
    prefix: Array | None = None
    """int32 [N]."""
    slopes: Array | None = None
    """[N, R]."""
    bias: Array | None = None
    """[N, R, T + S - 1]."""


def reference_attention(q: Array, k: Array, v: Array, mask: Array, bias: Array | None = None, cap: float | None = None) -> Array:
    """Softmax attention as the textbook writes it, softmax in float32.

    Args:
        q: [B, T, H, K], scaled.
        k: [B, S, G, K].
        v: [B, S, G, U].
        mask: broadcastable to [B, T, S]; True where a query may look.
        bias: broadcastable to [B, H, T, S]; added to scores.
        cap: as `Pattern.cap`.

    Returns:
        [B, T, H, U] of the type of `v`.
    """
    B, T, H, K = q.shape
    S, G = k.shape[1:3]
    scores = jnp.einsum("btgrk,bsgk->bgrts", q.reshape(B, T, G, H // G, K), k, preferred_element_type=jnp.float32)
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    scores = scores if bias is None else scores + jnp.broadcast_to(bias, (B, H, T, S)).reshape(scores.shape)
    scores = jnp.where(mask[..., None, None, :, :], scores, NEVER)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bgrts,bsgk->btgrk", weights, v).reshape(B, T, H, v.shape[-1])


def attention(q: Array, k: Array, v: Array, pattern: Pattern, context: Context) -> Array:
    """Attention of q [B, T, H, K], scaled, to k [B, S, G, K] and v [B, S, G, U]: [B, T, H, U]; causal with S = T.

    Queries go block by block, each block against just the keys that it may see: half the work of a masked square, less with a window.
    Scores are not kept but computed again from the normalizer in the backward pass, so memory is linear in T (Dao et al. 2022,
    algorithms 1 and 4).
    """
    return join_heads(_attend(pattern, split_heads(q, k, v, context)), q.shape[:3])


def split_heads(q: Array, k: Array, v: Array, context: Context) -> Heads:
    """From [B, T, heads, K]."""
    B, T, H, K = q.shape
    G = k.shape[2]
    q = q.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(B * G, H // G, T, K)
    k, v = (a.transpose(0, 2, 1, 3).reshape(B * G, a.shape[1], a.shape[3]) for a in (k, v))

    def of_rows(a: Array | None) -> Array | None:
        return None if a is None else jnp.repeat(a, G, axis=0)

    def of_heads(a: Array | None) -> Array | None:
        return None if a is None else jnp.tile(a.reshape(G, H // G, *a.shape[1:]), (B, *[1] * a.ndim))

    keys = context.documents if context.key_documents is None else context.key_documents
    positions = None if context.positions is None else jnp.broadcast_to(context.positions, (B * G, T))
    return Heads(
        *(q, k, v, of_rows(context.documents), of_rows(keys), positions, positions),
        *(of_rows(context.prefix), of_heads(context.slopes), of_heads(context.bias)),
    )


def join_heads(out: Array, shape: tuple[int, ...]) -> Array:
    """[N, R, T, U] -> [B, T, H, U]; `shape` is (B, T, H)."""
    B, T, H = shape
    return out.reshape(B, H // out.shape[1], *out.shape[1:]).transpose(0, 3, 1, 2, 4).reshape(B, T, H, -1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(pattern: Pattern, heads: Heads) -> Array:
    return _attend_forward(pattern, heads)[0]


def _attend_forward(pattern: Pattern, heads: Heads) -> tuple[Array, tuple[Heads, Array, Array]]:
    # What the backward pass needs beside its inputs; a rematerialization policy that keeps `attn_out` keeps both.
    out, log_sum = attend_forward(pattern, heads)
    out, log_sum = checkpoint_name(out.astype(heads.v.dtype), "attn_out"), checkpoint_name(log_sum, "attn_out")
    return out, (heads, out, log_sum)


def _attend_backward(pattern: Pattern, saved: tuple[Heads, Array, Array], d_out: Array) -> tuple[Heads]:
    heads, out, log_sum = saved
    return (gradient_of(heads, *attend_backward(pattern, heads, log_sum, row_inner(d_out, out), d_out)),)


_attend.defvjp(_attend_forward, _attend_backward)


def gradient_of(heads: Heads, d_q: Array, d_k: Array, d_v: Array, d_bias: Array | None = None) -> Any:
    """Gradients in the types of what they belong to; slopes and integers have none."""
    slopes = None if heads.slopes is None else jnp.zeros_like(heads.slopes)
    none: Any = Heads(heads.q, heads.k, heads.v)._replace(slopes=slopes, bias=d_bias)
    return none._replace(q=d_q.astype(heads.q.dtype), k=d_k.astype(heads.k.dtype), v=d_v.astype(heads.v.dtype))


def row_inner(d_out: Array, out: Array) -> Array:
    """[N, R, T, 1]: what the softmax's gradient subtracts in each row."""
    return (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1, keepdims=True)


def attend_forward(pattern: Pattern, heads: Heads) -> tuple[Array, Array]:
    """float32 outputs [N, R, T, U] and the logarithms of the softmax's normalizers [N, R, T, 1], with which outputs over other keys can be
    merged."""
    return _per_head(partial(_head_forward, pattern), heads)


def attend_backward(
    pattern: Pattern, heads: Heads, log_sum: Array, inner: Array, d_out: Array
) -> tuple[Array, Array, Array, Array | None]:
    """float32 gradients of q, k, v and bias, from the normalizers over all keys (these and others)."""
    return _per_head(partial(_head_backward, pattern), heads, log_sum, inner, d_out)


def _per_head(f: Callable[..., Any], *of_heads: Any) -> Any:
    """Apply `f`, which treats one key/value head, to all of them: at once where there are thousands of units to fill, but on a
    CPU a few at a time, so that their scores stay in cache."""

    def few_at_a_time(*of_heads: Any) -> Any:
        return lax.map(lambda head: f(*head), of_heads, batch_size=CPU_HEADS)

    return lax.platform_dependent(*of_heads, cpu=few_at_a_time, default=jax.vmap(f))


def _head_forward(pattern: Pattern, head: Heads) -> tuple[Array, Array]:
    """Of one head (no N): output [R, T, U] and the logarithm of the softmax's normalizer [R, T, 1]."""
    outs: list[Array] = []
    log_sums: list[Array] = []
    for rows, keys in _blocks(pattern, head):
        scores, _ = _scores(pattern, head, rows, keys)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum("rts,sk->rtk", weights.astype(head.v.dtype), head.v[keys], preferred_element_type=jnp.float32)
        outs.append(out / total)
        log_sums.append(top + jnp.log(total))
    return jnp.concatenate(outs, axis=1), jnp.concatenate(log_sums, axis=1)


def _head_backward(
    pattern: Pattern, head: Heads, log_sum: Array, inner: Array, d_out: Array
) -> tuple[Array, Array, Array, Array | None]:
    """float32 gradients of q, k, v and bias."""
    q, k, v = head[:3]
    d_qs: list[Array] = []
    # Of keys and values, positions last: so a CPU's matrix kernels take all operands as they lie.
    d_k, d_v = jnp.zeros_like(k.T, jnp.float32), jnp.zeros_like(v.T, jnp.float32)
    d_bias = None if head.bias is None else jnp.zeros_like(head.bias)
    for rows, keys in _blocks(pattern, head):
        scores, slope = _scores(pattern, head, rows, keys)
        weights = jnp.exp(scores - log_sum[:, rows])
        d_weights = jnp.einsum("rtk,sk->rts", d_out[:, rows], v[keys], preferred_element_type=jnp.float32)
        d_scores = weights * (d_weights - inner[:, rows])
        if head.bias is not None:
            d_bias += jax.vjp(partial(_by_distance, rows=rows, keys=keys, n_keys=k.shape[0]), head.bias)[1](d_scores)[0]
        d_scores = (d_scores if slope is None else d_scores * slope).astype(k.dtype)
        d_qs.append(jnp.einsum("rts,sk->rtk", d_scores, k[keys], preferred_element_type=jnp.float32))
        d_kb = _over_rows(q[:, rows], d_scores)
        d_vb = _over_rows(d_out[:, rows], weights.astype(v.dtype))
        d_k, d_v = d_k.at[:, keys].add(d_kb), d_v.at[:, keys].add(d_vb)
    return jnp.concatenate(d_qs, axis=1), d_k.T, d_v.T, d_bias


def _over_rows(a: Array, b: Array) -> Array:
    """[R, rows, K] and [R, rows, S] -> float32 [K, S]. As matrices: a CPU has no kernel for a bfloat16 product over two dims."""
    a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    return jnp.matmul(a.T, b, preferred_element_type=jnp.float32)


def _blocks(pattern: Pattern, head: Heads) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, each with the keys of which it may see some."""
    length, n_keys = head.q.shape[1], head.k.shape[0]
    for start in range(0, length, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, length)
        first = max(0, start - pattern.window + 1) if pattern.causal and pattern.window else 0
        yield slice(start, stop), slice(first, stop if pattern.causal and head.prefix is None else n_keys)


def _scores(pattern: Pattern, head: Heads, rows: slice, keys: slice) -> tuple[Array, Array | None]:
    """float32 [R, rows, keys]: scores, and how they change with the products of queries and keys (None: one to one)."""
    scores = jnp.einsum("rtk,sk->rts", head.q[:, rows], head.k[keys], preferred_element_type=jnp.float32)
    slope = None
    if pattern.cap is not None:
        bent = jnp.tanh(scores / pattern.cap)
        scores, slope = pattern.cap * bent, 1 - bent * bent
    if head.slopes is not None:
        scores -= head.slopes[:, None, None] * _distance(head, rows, keys)
    if head.bias is not None:
        scores += _by_distance(head.bias, rows, keys, head.k.shape[0])
    visible = _visible(pattern, head, rows, keys)
    return scores if visible is None else jnp.where(visible, scores, NEVER), slope


def _visible(pattern: Pattern, head: Heads, rows: slice, keys: slice) -> Array | None:
    """bool [rows, keys], or None: all."""
    conditions = (_before(pattern, head, rows, keys), _in_window(pattern, head, rows, keys), _same_document(head, rows, keys))
    given = [condition for condition in conditions if condition is not None]
    return reduce(jnp.logical_and, given) if given else None


def _before(pattern: Pattern, head: Heads, rows: slice, keys: slice) -> Array | None:
    if not pattern.causal:
        return None
    key = jnp.arange(keys.start, keys.stop)[None, :]
    before = jnp.arange(rows.start, rows.stop)[:, None] >= key
    return before if head.prefix is None else before | (key < head.prefix)


def _in_window(pattern: Pattern, head: Heads, rows: slice, keys: slice) -> Array | None:
    return None if pattern.window is None else _distance(head, rows, keys) < pattern.window


def _same_document(head: Heads, rows: slice, keys: slice) -> Array | None:
    if head.q_documents is None or head.k_documents is None:
        return None
    return head.q_documents[rows, None] == head.k_documents[None, keys]


def _distance(head: Heads, rows: slice, keys: slice) -> Array:
    assert head.q_positions is not None and head.k_positions is not None, "windows and slopes need positions"
    return head.q_positions[rows, None] - head.k_positions[None, keys]


def _by_distance(bias: Array, rows: slice, keys: slice, n_keys: int) -> Array:
    """[R, T + S - 1] -> [R, rows, keys] with entry t - s + S - 1 at (t, s). Reading rows one entry longer than the stored ones shifts each
    row by one, without a gather, whose gradient would be a slow scatter."""
    n, m = rows.stop - rows.start, keys.stop - keys.start
    first = rows.start - (keys.stop - 1) + n_keys - 1
    part = jnp.broadcast_to(bias[:, None, first : first + n + m - 1], (bias.shape[0], n, n + m - 1))
    flat = jnp.pad(part.reshape(bias.shape[0], -1), ((0, 0), (0, n)))
    return flat.reshape(bias.shape[0], n, n + m)[:, :, m - 1 :: -1]
