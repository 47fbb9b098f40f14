"""bfloat16 parameters and reductions: rounding is right on average and the same on every layout; training goes on where nearest rounding
stalls."""

import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from models import GPT, LLAMA, host_batch, make_config, place

from qianyi.config.schema import Config, LayoutConfig, ScheduleConfig
from qianyi.config.stages import layer_places
from qianyi.parallel.mesh import make_mesh
from qianyi.train import update
from qianyi.train.checkpoint import Checkpoints, make_record
from qianyi.train.footprint import held
from qianyi.train.state import TrainState, abstract_state, init_state, reorder_layers
from qianyi.train.step import make_loss_and_gradients, make_train_step
from qianyi.train.update import round_stochastically
from qianyi.verify.compare import compare_trees

SMALL = LLAMA.model_copy(update={"n_layers": 2})


def start(config: Config) -> tuple[TrainState, Any]:
    mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
    with jax.set_mesh(mesh):
        return init_state(config, mesh), mesh


def run(config: Config, steps: int, seeds: int = 1000) -> tuple[TrainState, list[float]]:
    state, mesh = start(config)
    losses: list[float] = []
    with jax.set_mesh(mesh):
        step = make_train_step(config)
        for n in range(steps):
            state, metrics = step(state, place(host_batch(n % seeds), config, mesh))
            losses.append(float(metrics.loss))
    return jax.device_get(state), losses


def test_the_mean_of_roundings_is_the_value() -> None:
    """Over all dithers, exactly."""
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(size=20), 1e-20 * random.normal(size=4), [0.0, 1.0, -1.5, 3e38]]).astype(np.float32)
    dither = np.arange(2**16, dtype=np.uint16)
    rounded = np.asarray(round_stochastically(jnp.asarray(values)[:, None], jnp.asarray(dither)[None, :])).astype(np.float64)
    np.testing.assert_array_equal(rounded.mean(axis=1), values)
    ulp = np.maximum(np.abs(values) * 2.0**-7, np.finfo(np.float32).tiny)
    assert (np.abs(rounded - values[:, None]) <= ulp[:, None]).all()
    exact = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    held_exactly = np.asarray(round_stochastically(jnp.asarray(exact)[:, None], jnp.asarray(dither)[None, :])).astype(np.float32)
    np.testing.assert_array_equal(held_exactly, np.broadcast_to(exact[:, None], held_exactly.shape))
    special = np.array([np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(
        np.asarray(round_stochastically(jnp.asarray(special), jnp.full(3, 65535, jnp.uint16))).astype(np.float32), special
    )


def test_training_follows_float32_where_nearest_rounding_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a tenth of the spacing of bfloat16 numbers."""

    def fall(param_dtype: str) -> float:
        config = make_config(GPT.model_copy(update={"n_layers": 1, "init_std": 0.25}), steps=1000, param_dtype=param_dtype)
        slow = {"optimizer": config.optimizer.model_copy(update={"learning_rate": 1e-4, "weight_decay": 0.0})}
        losses = run(config.model_copy(update=slow | {"schedule": ScheduleConfig(kind="constant")}), 40, seeds=1)[1]
        return losses[0] - losses[-1]

    expected = fall("float32")
    assert fall("bfloat16") == pytest.approx(expected, rel=0.1)
    monkeypatch.setattr(update, "round_stochastically", lambda a, dither: a.astype(jnp.bfloat16))
    assert fall("bfloat16") < 0.3 * expected


@pytest.mark.parametrize(
    "layout",
    [LayoutConfig(data=4), LayoutConfig(data=2, model=2, zero=1), LayoutConfig(stage=2, data=2)],
    ids=lambda at: at.words,
)
def test_layouts_round_alike(layout: LayoutConfig) -> None:
    """Dither is drawn by parameter and layer. A few values differ, by one step of bfloat16: those that float32 rounding takes over an edge,
    which Adam makes a share of the learning rate, 1e-2, where a gradient is near zero."""
    model = SMALL.model_copy(update={"n_layers": 3})  # uneven over stages
    config = make_config(model, layout, accumulation=2, param_dtype="bfloat16")
    alone = run(make_config(model, LayoutConfig(), accumulation=2, param_dtype="bfloat16"), 2)[0].params
    ours = run(config, 2)[0].params
    ours = {**ours, "blocks": jax.device_get(reorder_layers(ours["blocks"], layer_places(config), range(3)))}
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(alone), strict=True):
        if a.dtype == ml_dtypes.bfloat16:
            assert (a == b).mean() >= 0.99, path
            np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=2.0**-7, atol=1e-5, err_msg=str(path))
        else:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_are_float32() -> None:
    """Of layers that are gathered one by one: those of float32 parameters with the same values."""
    config = make_config(SMALL, LayoutConfig(data=4, gather="layer"), param_dtype="bfloat16")
    wide = make_config(SMALL, LayoutConfig(data=4, gather="layer"))
    state, mesh = start(config)
    with jax.set_mesh(mesh):
        batch = place(host_batch(), config, mesh)
        ours = jax.jit(make_loss_and_gradients(config))(state.params, batch)
        same = jax.tree.map(lambda a: a.astype(jnp.float32), state.params)
        reference = jax.jit(make_loss_and_gradients(wide))(same, batch)
    assert {a.dtype for a in jax.tree.leaves(ours.gradients)} == {jnp.dtype("float32")}
    assert compare_trees(jax.device_get(ours.gradients), jax.device_get(reference.gradients), 1e-2)[0].error <= 1e-6


@pytest.mark.parametrize(
    "layout", [LayoutConfig(data=4, gather="layer"), LayoutConfig(data=4, zero=1), LayoutConfig(replica=2, data=2)], ids=str
)
def test_gradients_are_reduced_in_the_type_that_is_said(layout: LayoutConfig) -> None:
    """Those of matrices, added over microbatches in float32; rounding to bfloat16 is all that differs."""
    train: dict[str, Any] = {"accumulation": 2, "batch_size": 8}
    config, wide = make_config(SMALL, layout, **train, reduce_dtype="bfloat16"), make_config(SMALL, layout, **train)
    state, mesh = start(config)
    with jax.set_mesh(mesh):
        batch = place(host_batch(), config, mesh)
        step = jax.jit(make_loss_and_gradients(config))
        ours = step(state.params, batch)
        reference = jax.jit(make_loss_and_gradients(wide))(state.params, batch)
        text = step.lower(state.params, batch).as_text()
    reductions = re.findall(r"stablehlo\.(?:reduce_scatter|all_reduce).*?\}\) : \(tensor<([^>]*)>\)", text, re.DOTALL)
    large = [shape for shape in reductions if math.prod(map(int, re.findall(r"(\d+)x", shape))) >= SMALL.d_model**2]
    assert large and all(shape.endswith("bf16") for shape in large)
    assert {a.dtype for a in jax.tree.leaves(ours.gradients)} == {jnp.dtype("float32")}
    error = compare_trees(jax.device_get(ours.gradients), jax.device_get(reference.gradients), 1e-2)[0].error
    assert 1e-4 < error <= 2.0**-7


def test_state_takes_what_is_said() -> None:
    config = make_config(SMALL, LayoutConfig(data=4), param_dtype="bfloat16")
    state, _ = start(config)
    assert sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(state.params)) == held(config).parameters
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(state.opt_state) if a.ndim)
    wide = held(make_config(SMALL, LayoutConfig(data=4)))
    assert 0.5 < held(config).parameters / wide.parameters < 0.55


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    """Bit for bit, over a checkpoint and on another type of parameters than float32."""
    config = make_config(SMALL, LayoutConfig(data=2), param_dtype="bfloat16")
    state, mesh = start(config)
    record = make_record(config, {})
    with jax.set_mesh(mesh):
        step = make_train_step(config)
        batches = [place(host_batch(n), config, mesh) for n in range(3)]
        state, _ = step(state, batches[0])
        checkpoints = Checkpoints(tmp_path, config.checkpoint)
        checkpoints.save(state, 1, record)
        checkpoints.finish()
        resumed = checkpoints.restore(abstract_state(config, mesh), record)
        checkpoints.close()
        for batch in batches[1:]:
            state, _ = step(state, batch)
            resumed, _ = step(resumed, batch)
    for a, b in zip(jax.tree.leaves(jax.device_get(resumed)), jax.tree.leaves(jax.device_get(state)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
