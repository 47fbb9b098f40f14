"""Every pattern of attention, by blocks and with its own backward pass, equals the textbook's formula and JAX's derivative of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from qianyi.ops.attention import Context, Pattern, attention, reference_attention
from qianyi.ops.position import alibi_slopes, distance_bias, sinusoids

RANDOM = np.random.default_rng(0)
B, T, H, G, K, U = 2, 150, 4, 2, 8, 6  # two blocks of queries, the second short; values narrower than keys


def arrays(n_keys: int = T) -> tuple[Array, Array, Array, Array]:
    shapes = ((B, T, H, K), (B, n_keys, G, K), (B, n_keys, G, U), (B, T, H, U))
    return tuple(jnp.asarray(RANDOM.standard_normal(shape), jnp.float32) for shape in shapes)  # type: ignore[return-value]


def distance(n_keys: int = T) -> np.ndarray:
    return np.arange(T)[:, None] - np.arange(n_keys)[None, :]


POSITIONS = jnp.arange(T, dtype=jnp.int32)
DOCUMENTS = jnp.asarray(np.cumsum(RANDOM.random((B, T)) < 0.05, axis=1), jnp.int32)
SAME = np.asarray(DOCUMENTS)[:, :, None] == np.asarray(DOCUMENTS)[:, None, :]
SLOPES = jnp.asarray(alibi_slopes(H))
PREFIX = jnp.asarray([30, 140], jnp.int32)
IN_PREFIX = np.arange(T)[None, None, :] < np.asarray(PREFIX)[:, None, None]
BEFORE = distance() >= 0

CASES = {
    "causal": (Pattern(), Context(), BEFORE, None),
    "both ways": (Pattern(causal=False), Context(), np.ones((T, T), bool), None),
    "documents": (Pattern(), Context(documents=DOCUMENTS), BEFORE & SAME, None),
    "padding both ways": (Pattern(causal=False), Context(documents=DOCUMENTS), SAME, None),
    "window": (Pattern(window=20), Context(positions=POSITIONS), BEFORE & (distance() < 20), None),
    "window over a block": (Pattern(window=135), Context(positions=POSITIONS), BEFORE & (distance() < 135), None),
    "prefix": (Pattern(), Context(prefix=PREFIX), BEFORE | IN_PREFIX, None),
    "slopes": (Pattern(), Context(positions=POSITIONS, slopes=SLOPES), BEFORE, -SLOPES[:, None, None] * distance()),
    "capped": (Pattern(cap=1.5), Context(documents=DOCUMENTS), BEFORE & SAME, None),
}


@pytest.mark.parametrize(("pattern", "context", "mask", "bias"), CASES.values(), ids=CASES.keys())
def test_pattern(pattern: Pattern, context: Context, mask: np.ndarray, bias: Array | None) -> None:
    q, k, v, d_out = arrays()
    ours, pull = jax.vjp(jax.jit(lambda *qkv: attention(*qkv, pattern, context)), q, k, v)
    expected, pull_expected = jax.vjp(lambda *qkv: reference_attention(*qkv, jnp.asarray(mask), bias, pattern.cap), q, k, v)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    for a, b in zip(pull(d_out), pull_expected(d_out), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(("causal", "n_keys"), [(True, T), (False, T), (False, 70)], ids=["causal", "both ways", "other keys"])
def test_bias_by_distance_is_learned(causal: bool, n_keys: int) -> None:
    """Also its own gradient, a sum along diagonals."""
    q, k, v, d_out = arrays(n_keys)
    bias = jnp.asarray(RANDOM.standard_normal((H, T + n_keys - 1)), jnp.float32)
    rows = distance(n_keys) + n_keys - 1
    mask = jnp.asarray(distance(n_keys) >= 0) if causal else jnp.ones((T, n_keys), bool)

    def ours(q: Array, k: Array, v: Array, bias: Array) -> Array:
        return attention(q, k, v, Pattern(causal), Context(bias=bias))

    def textbook(q: Array, k: Array, v: Array, bias: Array) -> Array:
        return reference_attention(q, k, v, mask, bias[:, rows])

    out, pull = jax.vjp(jax.jit(ours), q, k, v, bias)
    expected, pull_expected = jax.vjp(textbook, q, k, v, bias)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for a, b in zip(pull(d_out), pull_expected(d_out), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_a_cross_pattern_sees_other_tokens() -> None:
    q, k, v, _ = arrays(70)
    padding = jnp.asarray(np.arange(70)[None] >= np.asarray([[50], [70]]), jnp.int32)
    context = Context(documents=jnp.zeros((B, T), jnp.int32), key_documents=padding)
    out = attention(q, k, v, Pattern(causal=False), context)
    expected = reference_attention(q, k, v, jnp.broadcast_to(padding[:, None] == 0, (B, T, 70)))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_window_skips_keys() -> None:
    """Of 2,048 keys a block of 128 queries meets 128 + 127 at most, not all before it."""
    shape = jax.ShapeDtypeStruct((1, 2048, 1, 8), jnp.float32)
    context = Context(positions=jnp.arange(2048, dtype=jnp.int32))

    def flops(pattern: Pattern) -> float:
        compiled = jax.jit(lambda q, k, v: attention(q, k, v, pattern, context)).lower(shape, shape, shape).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(Pattern(window=128)) < flops(Pattern()) / 3.5


def test_sinusoids_and_slopes() -> None:
    """Section 3.5 of Vaswani et al. 2017, and the series of Press et al. 2022 for 8 and for 12 heads."""
    table = sinusoids(50, 8)
    np.testing.assert_allclose(table[7, 2], np.sin(7 / 10_000 ** (4 / 8)), rtol=1e-6)
    np.testing.assert_allclose(table[7, 6], np.cos(7 / 10_000 ** (4 / 8)), rtol=1e-6)
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(12)[8:], [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5], rtol=1e-6)


def test_buckets_of_distance() -> None:
    """Near distances have their own rows of the table, the farthest share the last; only one way where attention looks back."""
    table = jnp.arange(32, dtype=jnp.float32)[:, None]
    back = np.asarray(distance_bias(table, 300, 300, both_ways=False))[0]
    assert list(back[299 : 299 + 16]) == list(range(16)) and back[-1] == 31 and set(back[:300]) == {0}
    both = np.asarray(distance_bias(table, 300, 300, both_ways=True))[0]
    assert list(both[299 : 299 + 8]) == list(range(8)) and both[-1] == 15
    assert list(both[298:290:-1]) == list(range(17, 25)) and both[0] == 31
