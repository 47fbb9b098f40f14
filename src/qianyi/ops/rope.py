"""Rotary position embedding (Su et al. 2021), in the half-split form of Llama: pair (i, i + K/2) is turned by position * theta^(-2i/K)."""

import jax.numpy as jnp
from jax import Array


def rotate(x: Array, positions: Array, theta: float) -> Array:
    """Turn queries or keys by their positions.

    Args:
        x: [B, T, H, K], K even.
        positions: [T] or [B, T].
        theta: base of the frequencies.

    Returns:
        [B, T, H, K] of the type of `x`; angles are computed in float32.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (positions[..., None].astype(jnp.float32) * frequencies)[..., None, :]  # T 1 K/2 or B T 1 K/2
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
