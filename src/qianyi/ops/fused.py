"""Attention by the kernels of the platform: splash attention on TPUs, cuDNN's on GPUs. What they cannot do, and attention everywhere else,
goes by blocks of ordinary operations."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal

import jax
from jax import Array

from qianyi.errors import ConfigError
from qianyi.ops.attention import Context, Pattern, attention

Kernel = Literal["auto", "blockwise", "fused"]
"""As `model.attention.kernel`."""
KERNELS = {"tpu": "splash", "gpu": "cudnn"}
"""By platform: modules beside this one, with `lacks` and `attend`."""


def fused_attention(q: Array, k: Array, v: Array, pattern: Pattern, context: Context, kernel: Kernel = "auto") -> Array:
    """As `qianyi.ops.attention.attention`, of whole sequences, whose positions count up by one.

    Raises:
        ConfigError: `kernel` is "fused", and there is none for this.
    """
    platform = target_platform()
    reason = why_not(platform, q, k, v, pattern, context)
    if kernel == "fused" and reason:
        raise ConfigError(f"model.attention.kernel=fused, but {reason}; use model.attention.kernel=auto")
    if kernel == "blockwise" or reason:
        return attention(q, k, v, pattern, context)
    return _module(platform).attend(q, k, v, pattern, context)


def why_not(platform: str, q: Array, k: Array, v: Array, pattern: Pattern, context: Context) -> str | None:
    """Why a platform's kernels do not compute an attention; None: they do."""
    return next(_lacks(platform, q, k, v, pattern, context), None)


def _lacks(platform: str, q: Array, k: Array, v: Array, pattern: Pattern, context: Context) -> Iterator[str]:
    if platform not in KERNELS:
        yield f"there is no fused attention for {platform}"
        return
    for name in ("slopes", "bias", "prefix"):
        if getattr(context, name) is not None:
            yield f"fused attention has no {name}"
    if pattern.window is not None and not pattern.causal:
        yield "fused attention has no window that looks ahead"
    if pattern.causal and q.shape[1] != k.shape[1]:
        yield f"causal attention is of as many queries as keys, not {q.shape[1]} and {k.shape[1]}"
    yield from _module(platform).lacks(q, k, v, pattern, context)


def _module(platform: str) -> Any:
    # Where it is needed: to import Pallas takes half a second.
    return import_module(f"qianyi.ops.{KERNELS[platform]}")


def target_platform() -> str:
    """What the program is compiled for: the platform of the mesh's devices, which may be absent, or else that of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()
