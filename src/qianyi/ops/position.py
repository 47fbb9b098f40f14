"""Positions that are not rotary: sinusoidal embeddings, slopes of ALiBi, biases by distance of T5."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from qianyi.config.counts import DISTANCE_BUCKETS

FARTHEST = 128
"""Of the buckets of T5 (Raffel et al. 2020, section 2.1), the last is for this distance and all larger ones."""


def sinusoids(length: int, width: int) -> NDArray[np.float32]:
    """[length, width]: sines in the first half, cosines in the second (Vaswani et al. 2017, section 3.5; they interleave both, which is
    the same up to the order of the dims)."""
    angles = np.arange(length)[:, None] / 10_000 ** (2 * np.arange(width // 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def alibi_slopes(n_heads: int) -> NDArray[np.float32]:
    """[n_heads]: a geometric series; where n_heads is no power of two, every other one of the next finer series is added (Press et al.
    2022, section 3, and their implementation)."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * (n_heads - power), 2) / power)
    return np.concatenate([slopes, between]).astype(np.float32)


def distance_bias(table: Array, n_queries: int, n_keys: int, *, both_ways: bool) -> Array:
    """[H, T + S - 1] from a table [DISTANCE_BUCKETS, H]: entry t - s + S - 1 is for query t and key s."""
    distances = np.arange(-(n_keys - 1), n_queries)  # query minus key
    return table.astype(jnp.float32)[jnp.asarray(_buckets(distances, both_ways))].T


def _buckets(distances: NDArray[np.int64], both_ways: bool) -> NDArray[np.int32]:
    """The bucket of query minus key: each small distance has its own, larger ones share in steps that grow (Raffel et al. 2020)."""
    n, first = DISTANCE_BUCKETS, np.zeros_like(distances)
    if both_ways:
        n //= 2
        first = np.where(distances < 0, n, 0)
        distances = np.abs(distances)
    distances = np.maximum(distances, 0)
    exact = n // 2
    far = np.log(np.maximum(distances, 1).astype(np.float32) / exact) / np.float32(math.log(FARTHEST / exact)) * (n - exact)
    return (first + np.where(distances < exact, distances, np.minimum(exact + far.astype(np.int64), n - 1))).astype(np.int32)
