"""Attention on TPUs by the splash kernels of JAX (Pallas), which skip blocks of which nothing is seen.

They compute scores block by block forward and backward (Dao et al. 2022) and know causal masks, windows, documents, caps, grouped heads,
and values of another width than keys. Dims as in `qianyi.ops.attention`.
"""

from collections.abc import Iterator
from functools import reduce
from typing import Any

import jax
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from qianyi.ops.attention import Context, Pattern
from qianyi.parallel.collectives import unchecked, vary_as

LANES = 128
"""Numbers side by side in a vector register of a TPU: blocks are whole multiples."""
LARGEST_BLOCK = 512
"""Queries, and keys, of a block, whose scores are 1 MiB in float32. Not tuned."""


def lacks(q: Array, k: Array, v: Array, pattern: Pattern, context: Context) -> Iterator[str]:
    """What the kernels cannot do of an attention."""
    del v, pattern, context
    if q.shape[1] % LANES or k.shape[1] % LANES:
        yield f"splash attention takes multiples of {LANES} tokens, not {q.shape[1]} queries and {k.shape[1]} keys"


def attend(q: Array, k: Array, v: Array, pattern: Pattern, context: Context, *, interpret: bool = False) -> Array:
    """As `qianyi.ops.attention.attention`, where it lacks nothing; positions count up by one. The output and the logarithms of the
    normalizers are named `attn_out`: a rematerialization policy that keeps them does not run the forward kernel twice.

    Args:
        interpret: run the kernels as ordinary operations, on any platform.
    """
    keys = context.documents if context.key_documents is None else context.key_documents
    documents = None if context.documents is None or keys is None else splash.SegmentIds(context.documents, keys)

    # The kernels declare outputs without saying over which axes they vary, so that JAX's tracking must stop at their border: inside, the
    # result of any operation, such as of swapping heads, counts as the same everywhere. The vector-Jacobian product is taken inside, too,
    # and kept with what it holds for the backward pass.
    @unchecked
    def run(q: Array, k: Array, v: Array, documents: Any) -> tuple[Array, Any]:
        kernel = jax.vmap(_kernel(pattern, q.shape[2], q.shape[1], k.shape[1], interpret))
        out, pull = jax.vjp(lambda *qkv: kernel(*qkv, documents), *map(_swap_heads, (q, k, v)))
        return _swap_heads(out), pull

    @unchecked
    def pull_back(pull: Any, d_out: Array) -> tuple[Array, ...]:
        return tuple(map(_swap_heads, pull(_swap_heads(d_out))))

    def forward(q: Array, k: Array, v: Array, documents: Any) -> tuple[Array, Any]:
        out, pull = run(q, k, v, documents)
        return vary_as(out, q), pull

    def backward(pull: Any, d_out: Array) -> tuple[Any, ...]:
        return *(vary_as(gradient, d_out) for gradient in pull_back(pull, d_out)), None

    attention = jax.custom_vjp(lambda *inputs: forward(*inputs)[0])
    attention.defvjp(forward, backward)
    return attention(*(reduce(vary_as, (q, k, v), a) for a in (q, k, v)), documents)


def _swap_heads(a: Array) -> Array:
    """[B, T, heads, width] <-> [B, heads, T, width]."""
    return a.swapaxes(1, 2)


def _kernel(pattern: Pattern, n_heads: int, length: int, n_keys: int, interpret: bool) -> Any:
    rows, keys = _block(length), _block(n_keys)
    blocks = splash.BlockSizes(
        block_q=rows,
        block_kv=keys,
        block_q_dkv=rows,
        block_kv_dkv=keys,
        # A kernel for the gradients of queries and another for those of keys: the one for both writes a part of the former for each block
        # of keys, which is memory quadratic in the length.
        block_q_dq=rows,
        block_kv_dq=keys,
    )
    return splash.make_splash_mha(
        masks.MultiHeadMask([_mask(pattern, length, n_keys)] * n_heads),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=pattern.cap,
        residual_checkpoint_name="attn_out",
        interpret=interpret,
    )


def _mask(pattern: Pattern, length: int, n_keys: int) -> masks.Mask:
    if not pattern.causal:
        return masks.FullMask((length, n_keys))
    if pattern.window is None:
        return masks.CausalMask((length, n_keys))
    return masks.LocalMask((length, n_keys), window_size=(pattern.window - 1, 0), offset=0)


def _block(length: int) -> int:
    """The largest block that divides a sequence."""
    return next(size for size in range(LARGEST_BLOCK, 0, -LANES) if length % size == 0)
