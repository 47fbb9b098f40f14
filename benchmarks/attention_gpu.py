"""cuDNN's attention, as training uses it, beside ordinary operations, on this machine's NVIDIA GPU.

    python benchmarks/attention_gpu.py

Forward and backward of four shapes in bfloat16: the largest error of the output and of the three gradients, as a share of the largest value
of the same in float32; then milliseconds. Results are Markdown.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qianyi.ops.attention import Context, Pattern
from qianyi.ops.cudnn import attend

SHAPES = (
    (2, 1024, 16, 16, 64, Pattern()),
    (2, 2048, 32, 8, 128, Pattern()),
    (2, 2048, 8, 2, 128, Pattern(window=512)),
    (2, 512, 12, 12, 64, Pattern(causal=False)),
)
"""Batch, tokens, heads, heads of keys and values, width of a head, and who sees whom."""
TIMES = 20


def both_ways(pattern: Pattern, implementation: str, d_out: Array, *qkv: Array) -> tuple[Array, ...]:
    """The output and the gradients of queries, keys and values."""
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, pattern, Context(), implementation=implementation), *qkv)
    return out, *pull(d_out.astype(out.dtype))


def errors(found: tuple[Array, ...], exact: tuple[Array, ...]) -> str:
    pairs = [(np.asarray(a, np.float32), np.asarray(b)) for a, b in zip(found, exact, strict=True)]
    return ", ".join(f"{np.abs(a - b).max() / np.abs(b).max():.1e}" for a, b in pairs)


def milliseconds(run: Callable[..., Any], *inputs: Array) -> float:
    jax.block_until_ready(run(*inputs))
    began = time.perf_counter()
    jax.block_until_ready([run(*inputs) for _ in range(TIMES)])
    return (time.perf_counter() - began) / TIMES * 1e3


def main() -> None:
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}\n")
    print(
        "| batch, tokens, heads, of keys, width | pattern | errors of cuDNN | of XLA | cuDNN, ms | XLA, ms |\n" + "|---" * 6 + "|"
    )
    rng = np.random.default_rng(0)
    for batch, tokens, heads, of_keys, width, pattern in SHAPES:
        q, k, v, d_out = (
            jnp.asarray(rng.normal(size=(batch, tokens, n, width)) * scale, jnp.bfloat16)
            for n, scale in ((heads, width**-0.5), (of_keys, 1), (of_keys, 1), (heads, 1))
        )
        fast, slow = (jax.jit(partial(both_ways, pattern, name)) for name in ("cudnn", "xla"))
        exact = slow(*(x.astype(jnp.float32) for x in (d_out, q, k, v)))
        given = (d_out, q, k, v)
        print(
            f"| {batch}, {tokens}, {heads}, {of_keys}, {width} | {pattern} | {errors(fast(*given), exact)} | {errors(slow(*given), exact)} "
            f"| {milliseconds(fast, *given):.2f} | {milliseconds(slow, *given):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
