"""Products in 8 bits: the numbers of the published rules, on every layout the same, and training that goes on as in float32."""

from functools import cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from models import GPT, LLAMA, host_batch, make_config, place

from qianyi.config.check import check
from qianyi.config.model import MoEConfig
from qianyi.config.schema import LayoutConfig, ModelConfig
from qianyi.errors import ConfigError
from qianyi.ops.matmul import FIRST_AMAX, HISTORY, Operands, Product, multiply, next_history
from qianyi.parallel.collectives import max_over, sum_over, vary
from qianyi.parallel.mesh import AXES, make_mesh
from qianyi.train.state import TrainState, init_state
from qianyi.train.step import make_loss_and_gradients, make_train_step
from qianyi.verify.certificate import _of_weights
from qianyi.verify.compare import Runner, compare_trees

E4M3, E5M2, INT8 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.int8
LARGEST = {E4M3: 448, E5M2: 57344, INT8: 127}
SPARSE = LLAMA.model_copy(update={"moe": MoEConfig(n_experts=4)})


def operands(rows: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input, weight, gradient: outliers in a channel and in a row, and a row of zeros."""
    random = np.random.default_rng(0)
    x, w, g = (random.normal(size=shape).astype(np.float32) for shape in ((rows, 32), (32, 48), (rows, 48)))
    x[:, 3] *= 30
    x[5] *= 100
    x[7] = 0
    return x, 0.02 * w, 1e-5 * g


def grid(a: np.ndarray, dtype: Any, axis: int | None, amax: float | None = None) -> np.ndarray:
    """`a` on the grid of an 8-bit type, by NumPy and ml_dtypes alone, in float64."""
    largest = LARGEST[dtype]
    top = np.abs(a).max(axis=axis, keepdims=True) if amax is None else np.full((1, 1), amax, np.float32)
    scale = np.where(top == 0, 1, top / np.float32(largest)).astype(np.float32)
    values = np.clip(a / scale, -largest, largest)
    return (np.rint(values) if dtype is INT8 else values).astype(dtype).astype(np.float64) * scale


def expected(kind: str, x: np.ndarray, w: np.ndarray, g: np.ndarray) -> list[np.ndarray]:
    """Output and gradients of input and weight."""
    if kind == "fp8_delayed":
        qx, qw, qg = (grid(a, t, None, amax) for a, t, amax in zip((x, w, g), (E4M3, E4M3, E5M2), FIRST_AMAX, strict=True))
        return [qx @ qw, qg @ qw.T, qx.T @ qg]
    forward, gradient = (INT8, INT8) if kind == "int8" else (E4M3, E5M2)
    d_w = x.T.astype(np.float64) @ g if kind == "int8" else grid(x, E4M3, 0).T @ grid(g, E5M2, 0)
    return [
        grid(x, forward, 1) @ grid(w, forward, 0),
        grid(g, gradient, 1) @ grid(w, forward, 1).T,
        d_w,
    ]


def on_mesh(layout: LayoutConfig, f: Any, in_specs: Any, out_specs: Any, *arrays: Any) -> Any:
    mesh = make_mesh(layout, jax.devices()[: layout.n_devices])
    with jax.set_mesh(mesh):
        placed = [
            None if a is None else jax.device_put(a, jax.NamedSharding(mesh, s)) for a, s in zip(arrays, in_specs, strict=True)
        ]
        return jax.device_get(jax.jit(jax.shard_map(f, in_specs=in_specs, out_specs=out_specs))(*placed))


def product(how: Product, layout: LayoutConfig) -> tuple[np.ndarray, ...]:
    """Output, gradients of input and weight, and the reported magnitudes, of operands that are split as the layout says."""
    tokens, model = ("data" if layout.data > 1 else None), ("model" if layout.model > 1 else None)
    columns = how.split == "output"
    of_x, of_g = (P(tokens, None), P(tokens, model)) if columns else (P(tokens, model), P(tokens, None))
    of_w = P(None, model) if columns else P(model, None)
    history = np.zeros((3, HISTORY), np.float32) if how.kind == "fp8_delayed" else None

    def on_device(x: jax.Array, w: jax.Array, g: jax.Array, history: jax.Array | None) -> Any:
        x, w, g = vary(x), vary(w), vary(g)
        history = None if history is None else vary(history)
        y, pull = jax.vjp(lambda x, w, h: multiply(Operands(x, w, None, h), how), x, w, history)
        d_x, d_w, seen = pull(g)
        seen = None if seen is None else max_over(seen, AXES)
        y, d_x = (y, sum_over(d_x, ("model",))) if columns else (sum_over(y, ("model",)), d_x)
        return y, d_x, sum_over(d_w, ("data",)), seen

    specs = (of_x, of_w, of_g, P())
    return on_mesh(layout, on_device, specs, (of_g, of_x, of_w, P()), *operands(), history)


@pytest.mark.parametrize("kind", ["fp8", "fp8_delayed", "int8"])
def test_numbers_are_those_of_the_rule(kind: Any) -> None:
    """8-bit operands bit for bit: what differs is the order of float32 sums."""
    x, w, g = operands()
    ours = product(Product(kind, "output"), LayoutConfig())
    for a, b in zip(ours, expected(kind, x, w, g), strict=False):
        assert np.linalg.norm(a - b) <= 3e-7 * np.linalg.norm(b)
    if kind == "fp8_delayed":
        np.testing.assert_array_equal(ours[3][:, 0], [np.abs(a).max() for a in (x, w, g)])
        assert not ours[3][:, 1:].any()


@pytest.mark.parametrize("split", ["output", "input"])
@pytest.mark.parametrize("kind", ["fp8", "fp8_delayed", "int8"])
def test_scales_are_of_the_whole(kind: Any, split: Any) -> None:
    """Rows and columns that devices share have one scale: outliers sit on one of them."""
    how = Product(kind, split)
    for layout in (LayoutConfig(model=4), LayoutConfig(data=2, model=2), LayoutConfig(data=4)):
        for a, b in zip(product(how, layout), product(how, LayoutConfig()), strict=True):
            assert a is b is None or np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b)


@pytest.mark.parametrize("kind", ["fp8", "fp8_delayed", "int8"])
def test_experts_are_dense_layers_one_by_one(kind: Any) -> None:
    """Rows sorted by expert, and rows of experts in boxes, against the product of each expert's rows. In the weight gradient of sorted rows
    fp8 has one scale for a channel of all experts: the errors of both are compared with the exact product's."""
    sizes, rows = np.array([16, 0, 40], np.int32), 64
    x, w, g = operands(rows)
    w = np.stack([w, 2 * w, w[::-1]])
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def sorted_rows(x: jax.Array, w: jax.Array, g: jax.Array, sizes: jax.Array | None) -> Any:
        history = jnp.zeros((3, HISTORY)) if kind == "fp8_delayed" else None
        how = Product(kind, "output")
        y, pull = jax.vjp(lambda x, w: multiply(Operands(x, w, sizes, history), how), x, w)
        return y, *pull(g)

    y, d_x, d_w = on_mesh(LayoutConfig(), sorted_rows, (P(),) * 4, P(), x, w, g, sizes)
    assert not y[starts[-1] :].any()
    for e, (start, stop) in enumerate(pairwise(starts)):
        own = x[start:stop], w[e], g[start:stop]
        if start == stop:
            assert not d_w[e].any()
            continue
        ours, reference = (y[start:stop], d_x[start:stop], d_w[e]), expected(kind, *own)
        exact = own[0].T.astype(np.float64) @ own[2]
        for a, b in zip(ours[:2], reference[:2], strict=True):
            assert np.linalg.norm(a - b) <= 3e-7 * np.linalg.norm(b)
        assert np.linalg.norm(ours[2] - exact) <= 1.5 * np.linalg.norm(reference[2] - exact) + 1e-6 * np.linalg.norm(exact)

    boxes = x[:48].reshape(3, 16, -1), w, g[:48].reshape(3, 16, -1)
    ours = on_mesh(LayoutConfig(), sorted_rows, (P(),) * 4, P(), *boxes, None)
    for e in range(3):
        for a, b in zip((part[e] for part in ours), expected(kind, *(a[e] for a in boxes)), strict=True):
            assert np.linalg.norm(a - b) <= 3e-7 * np.linalg.norm(b)


def test_nan_does_not_become_a_number() -> None:
    x, w, _ = operands()
    x[0, 0] = np.nan

    def on_device(x: jax.Array, w: jax.Array) -> jax.Array:
        return multiply(Operands(x, w), Product("int8", "output"))

    y = on_mesh(LayoutConfig(), on_device, (P(), P()), P(), x, w)
    assert np.isnan(y[0]).all() and np.isfinite(y[1:]).all()


BOXES = LLAMA.model_copy(update={"moe": MoEConfig(n_experts=4, capacity_factor=2.0, group_tokens=8)})


@cache
def alone(model: ModelConfig, kind: Any, accumulation: int) -> Runner:
    model = model.model_copy(update={"matmul": kind, "n_layers": 2})
    return Runner(make_config(model, LayoutConfig(), accumulation=accumulation))


@pytest.mark.parametrize(
    ("kind", "model", "layout", "accumulation"),
    [
        ("fp8", LLAMA, LayoutConfig(data=2, model=2), 2),
        ("fp8", LLAMA, LayoutConfig(stage=2, data=2), 2),
        ("fp8", BOXES, LayoutConfig(expert=2, data=2), 1),
        ("fp8_delayed", LLAMA, LayoutConfig(context=2, data=2, zero=2), 1),
        ("fp8_delayed", SPARSE, LayoutConfig(expert=2, model=2), 1),
        ("int8", LLAMA, LayoutConfig(data=2, model=2, gather="layer"), 2),
        ("int8", SPARSE, LayoutConfig(expert=2, model=2), 1),
    ],
    ids=lambda value: value.words if isinstance(value, LayoutConfig) else None,
)
def test_layout_equals_one_device(kind: str, model: ModelConfig, layout: LayoutConfig, accumulation: int) -> None:
    """Up to single values that float32 rounding takes over the edge between two 8-bit numbers: measured against what 8 bits do to gradients
    (the error of one device), the error of a layout is like that of parameters that are changed by 1e-7, some hundredths. A scale of a part
    instead of the whole changes most values, and the ratio is near one."""
    ours = Runner(make_config(alone(model, kind, accumulation).config.model, layout, accumulation=accumulation))
    reference, exact = alone(model, kind, accumulation), alone(model, "native", accumulation)
    assert ours.value("loss") == pytest.approx(reference.value("loss"), rel=1e-5)
    of_8_bits = {leaf.name: leaf.error for leaf in compare_trees(_of_weights(reference.gradients()), exact.gradients(), 1e-2)}
    leaves = compare_trees(ours.gradients(), reference.gradients(), 1e-2)
    ratios = [leaf.error / of_8_bits[leaf.name] for leaf in leaves if leaf.name in of_8_bits]
    assert np.median(ratios) <= 0.1 and max(ratios) <= 0.5, leaves
    assert all(leaf.error <= 1e-2 for leaf in leaves if leaf.name.endswith("_amax"))


def test_delayed_scales_follow_the_magnitudes() -> None:
    """A history holds the largest magnitude of each step over microbatches and devices, newest first, and the optimizer leaves it alone."""
    model = GPT.model_copy(update={"matmul": "fp8_delayed", "n_layers": 2})

    def train(layout: LayoutConfig, accumulation: int) -> tuple[TrainState, list[Any]]:
        config = make_config(model, layout, accumulation=accumulation)
        mesh = make_mesh(layout, jax.devices()[: layout.n_devices])
        with jax.set_mesh(mesh):
            state, step = init_state(config, mesh), make_train_step(config)
            gradients = jax.jit(make_loss_and_gradients(config))
            seen: list[Any] = []
            for seed in range(3):
                batch = place(host_batch(seed), config, mesh)
                seen.append(jax.device_get(gradients(state.params, batch).gradients["blocks"]["mlp"]["up_amax"]))
                state, _ = step(state, batch)
            return jax.device_get(state), seen

    state, seen = train(LayoutConfig(), 1)
    history = state.params["blocks"]["mlp"]["up_amax"]
    np.testing.assert_allclose(history[..., :3], np.stack([s[..., 0] for s in seen[::-1]], axis=-1), rtol=1e-6)
    assert (history[..., :3] > 0).all() and not history[..., 3:].any()
    other = train(LayoutConfig(data=2, model=2), 2)[0]
    # Magnitudes of gradients are those of the batch's mean in both; a microbatch's rows are part of the same sum.
    np.testing.assert_allclose(other.params["blocks"]["mlp"]["up_amax"], history, rtol=0.05)


def test_history_forgets() -> None:
    history = jnp.zeros((3, HISTORY))
    for n in range(HISTORY + 2):
        history = next_history(history, jnp.full((3, HISTORY), float(n)))
    np.testing.assert_array_equal(history[0], np.arange(HISTORY + 1, 1, -1))


def test_delayed_scales_are_refused_in_a_pipeline() -> None:
    config = make_config(LLAMA.model_copy(update={"matmul": "fp8_delayed"}), LayoutConfig(stage=2), accumulation=2)
    with pytest.raises(ConfigError, match=r"model\.matmul=fp8_delayed .* use model\.matmul=fp8"):
        check(config)
