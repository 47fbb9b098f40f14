"""Normalization over the last dim, computed in float32 (Ba et al. 2016; Zhang & Sennrich 2019)."""

import jax.numpy as jnp
from jax import Array, lax


def layer_norm(x: Array, scale: Array, bias: Array | None, eps: float) -> Array:
    """[..., D] -> [..., D] with zero mean and unit variance, then scale and bias; the type of `x` is kept."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps) * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """[..., D] -> [..., D] with unit mean square, then scale; the type of `x` is kept."""
    y = x.astype(jnp.float32)
    return (y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps) * scale).astype(x.dtype)
