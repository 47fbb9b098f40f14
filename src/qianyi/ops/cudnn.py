"""Attention on NVIDIA GPUs by cuDNN's fused kernels, through `jax.nn.dot_product_attention`.

They compute scores block by block forward and backward (Dao et al. 2022) and know causal masks, windows and grouped heads. Documents would
need a mask of all pairs of tokens, which is memory quadratic in the length; there is no cap. Dims as in `qianyi.ops.attention`.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax._src.cudnn import fused_attention_stablehlo
from jax.ad_checkpoint import checkpoint_name

from qianyi.ops.attention import Context, Pattern

WIDEST_HEAD = 128
"""JAX admits wider heads, to 256, where a Hopper GPU is present. They are left out, so that programs for absent GPUs are those they run."""
TOKENS = 64
"""Sequences are multiples of so many tokens."""


def lacks(q: Array, k: Array, v: Array, pattern: Pattern, context: Context) -> Iterator[str]:
    """What the kernels cannot do of an attention."""
    if context.documents is not None:
        yield "cuDNN's attention has no documents"
    if pattern.cap is not None:
        yield "cuDNN's attention has no cap on scores"
    if q.dtype not in {jnp.dtype("bfloat16"), jnp.dtype("float16")}:
        yield f"cuDNN's attention takes bfloat16 and float16, not {q.dtype}"
    if q.shape[-1] != v.shape[-1] or q.shape[-1] % 8 or q.shape[-1] > WIDEST_HEAD:
        wanted = f"one width of keys and values, a multiple of 8 up to {WIDEST_HEAD}"
        yield f"cuDNN's attention takes {wanted}, not {q.shape[-1]} and {v.shape[-1]}"
    if q.shape[1] % TOKENS or k.shape[1] % TOKENS:
        yield f"cuDNN's attention takes multiples of {TOKENS} tokens, not {q.shape[1]} queries and {k.shape[1]} keys"


def attend(q: Array, k: Array, v: Array, pattern: Pattern, context: Context, *, implementation: Any = "cudnn") -> Array:
    """As `qianyi.ops.attention.attention`, where it lacks nothing; positions count up by one. The output and the statistics of the softmax
    are named `attn_out`: a rematerialization policy that keeps them does not run the forward kernel twice.

    On one H200 values and gradients were as near to float32 as those of ordinary operations in bfloat16 (`benchmarks/attention_gpu.py`).
    Where there is no cuDNN to compile with, the compiler's count of memory leaves out their workspace.

    Args:
        implementation: as of `jax.nn.dot_product_attention`; `xla` computes the same by ordinary operations, on any platform.
    """
    del context
    call = partial(
        jax.nn.dot_product_attention,
        scale=1.0,
        is_causal=pattern.causal,
        local_window_size=None if pattern.window is None else (pattern.window - 1, 0),
        implementation=implementation,
    )

    def forward(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        with _version_unasked():
            out, pull = jax.vjp(call, q, k, v)
        output = checkpoint_name(out, "attn_out")

        def keep(held: Array) -> Array:
            """What the vector-Jacobian product holds: its inputs, the output and the statistics."""
            if held is out:
                return output
            return held if any(held is given for given in (q, k, v)) else checkpoint_name(held, "attn_out")

        return output, jax.tree.map(keep, pull)

    attention = jax.custom_vjp(lambda *qkv: forward(*qkv)[0])
    attention.defvjp(forward, lambda pull, d_out: pull(d_out))
    return attention(q, k, v)


@contextmanager
def _version_unasked() -> Generator[None]:
    """JAX asks cuDNN for its version before it writes down a call of it. Where there is no GPU to run it, there need be no cuDNN."""
    if jax.default_backend() == "gpu":
        yield
        return
    ask = fused_attention_stablehlo.check_cudnn_version
    fused_attention_stablehlo.check_cudnn_version = lambda: 0
    try:
        yield
    finally:
        fused_attention_stablehlo.check_cudnn_version = ask
