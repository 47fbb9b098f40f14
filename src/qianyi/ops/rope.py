"""Rotary position embedding (Su et al. 2021), in the half-split form of Llama: pair (i, i + K/2) is turned by position * theta^(-2i/K)."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from qianyi.config.model import RopeScalingConfig


def frequencies(width: int, theta: float, scaling: RopeScalingConfig) -> NDArray[np.float32]:
    """[width / 2]: radians per position."""
    half = width // 2
    plain = np.float32(theta) ** (-np.arange(half, dtype=np.float32) / np.float32(half))
    if scaling.kind == "none":
        return plain
    slow = plain / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return slow
    # Llama 3.1: by how many turns a pair makes over the sequence that was trained on.
    turns = scaling.original_max_seq_len * plain / (2 * math.pi)
    keep = np.clip((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0, 1)
    return (keep * plain + (1 - keep) * slow).astype(np.float32)


def rotate(x: Array, positions: Array, frequencies: Array) -> Array:
    """Turn queries or keys by their positions.

    Args:
        x: [B, T, H, K], K even.
        positions: [T] or [B, T].
        frequencies: [K / 2], radians per position.

    Returns:
        [B, T, H, K] of the type of `x`; angles are computed in float32.
    """
    half = x.shape[-1] // 2
    angles = (positions[..., None].astype(jnp.float32) * frequencies)[..., None, :]  # T 1 K/2 or B T 1 K/2
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
