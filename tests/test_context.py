"""Attention over split sequences equals attention over whole ones, and needs its share of the memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import LayoutConfig
from qianyi.ops.attention import Context, Pattern, attention, reference_attention
from qianyi.ops.context import context_attention, sequence_positions
from qianyi.parallel.collectives import vary
from qianyi.parallel.mesh import make_mesh

N = 4


def split(f, n: int = N):
    """`f` of whole sequences, computed in n parts of the zig-zag order."""
    mesh = make_mesh(LayoutConfig(context=n), jax.devices()[:n])
    order = np.concatenate([[i, 2 * n - 1 - i] for i in range(n)])

    def run(*arrays: Array):
        length = arrays[0].shape[1]
        places = (order[:, None] * (length // (2 * n)) + np.arange(length // (2 * n))).reshape(-1)
        local = jax.shard_map(f, in_specs=P(None, "context"), out_specs=P(None, "context"))
        with jax.set_mesh(mesh):
            out = jax.jit(local)(*(jax.device_put(a[:, places], jax.NamedSharding(mesh, P(None, "context"))) for a in arrays))
        return jax.tree.map(lambda a: np.asarray(a)[:, np.argsort(places)], out)

    return run


def tensors(length: int) -> tuple[Array, ...]:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(2, length, 4, 8), (2, length, 2, 8), (2, length, 2, 8), (2, length, 4, 8)]
    return tuple(jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))


@pytest.mark.parametrize("kind", ["plain", "documents", "window", "slopes and cap"])
@pytest.mark.parametrize("ring", [True, False], ids=["ring", "gather"])
def test_split_equals_whole(ring: bool, kind: str) -> None:
    q, k, v, d_out = tensors(64)
    documents = jnp.cumsum(jax.random.bernoulli(jax.random.key(1), 0.1, (2, 64)), axis=1).astype(jnp.int32)
    distance = jnp.arange(64)[:, None] - jnp.arange(64)[None, :]
    slopes = jnp.asarray([0.5, 0.25, 0.1, 0.01])
    mask, bias = (distance >= 0)[None], None
    if kind == "documents":
        mask = mask & (documents[:, :, None] == documents[:, None, :])
    if kind == "window":
        mask = mask & (distance < 11)
    if kind == "slopes and cap":
        bias = -slopes[:, None, None] * distance
    pattern = Pattern(window=11 if kind == "window" else None, cap=2.0 if kind == "slopes and cap" else None)

    def reference(q: Array, k: Array, v: Array) -> Array:
        return reference_attention(q, k, v, mask, bias, pattern.cap)

    def part(q: Array, k: Array, v: Array, d_out: Array, documents: Array) -> tuple[Array, ...]:
        context = Context(
            documents=documents if kind == "documents" else None,
            positions=sequence_positions(64) if kind in {"window", "slopes and cap"} else None,
            slopes=slopes if kind == "slopes and cap" else None,
        )
        out, pull = jax.vjp(lambda *qkv: context_attention(*qkv, pattern, context, ring), q, k, v)
        return out, *pull(d_out)

    expected, pull = jax.vjp(reference, q, k, v)
    for ours, theirs in zip(split(part)(q, k, v, d_out, documents), (expected, *pull(d_out)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_positions_are_those_of_the_zigzag() -> None:
    out = split(lambda x: x + vary(sequence_positions(64))[None, :, None, None])(jnp.zeros((1, 64, 1, 1)))
    np.testing.assert_array_equal(out.reshape(-1), np.arange(64))


def test_documents_on_one_device() -> None:
    q, k, v, _ = tensors(300)  # several query blocks
    documents = jnp.repeat(jnp.arange(6, dtype=jnp.int32), 50)[None].repeat(2, axis=0)
    mask = jnp.tril(jnp.ones((300, 300), bool)) & (documents[:, :, None] == documents[:, None, :])
    np.testing.assert_allclose(
        attention(q, k, v, Pattern(), Context(documents)), reference_attention(q, k, v, mask), rtol=1e-4, atol=1e-5
    )


def test_long_sequence_needs_an_eighth_of_the_scores() -> None:
    """32,768 tokens: scores of a block of queries meet 32,768 keys on one device, 4,096 at most on each of eight."""
    n, length = 8, 32768

    def score_bytes(n: int) -> int:
        mesh = make_mesh(LayoutConfig(context=n), jax.devices()[:n])
        sharding = jax.NamedSharding(mesh, P(None, "context" if n > 1 else None))
        whole = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32, sharding=sharding)
        local = jax.shard_map(
            lambda q, k, v: context_attention(q, k, v, Pattern(), Context(), True),
            in_specs=sharding.spec,
            out_specs=sharding.spec,
        )
        with jax.set_mesh(mesh):
            text = jax.jit(local).lower(whole, whole, whole).as_text()
        sizes = [int(np.prod([int(d) for d in s.split("x")])) for s in set(re.findall(r"tensor<((?:\d+x)+128x\d+)xf32>", text))]
        return max(sizes)

    assert score_bytes(n) <= score_bytes(1) / n
