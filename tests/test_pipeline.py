"""A pipeline computes what one device computes, with the traffic and the memory that its table says."""

import re
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from models import GPT, LLAMA, make_config

from qianyi.config.schema import Config, LayoutConfig, ModelConfig
from qianyi.config.stages import EMPTY, layer_places, layers_of_virtual_stages
from qianyi.parallel.mesh import make_mesh
from qianyi.train.checkpoint import Checkpoints, make_record
from qianyi.train.state import abstract_state, init_state, reorder_layers
from qianyi.train.step import make_train_step
from qianyi.verify.compare import Runner, compare_trees

RTOL = 1e-5
SCHEDULES = [("gpipe", 1), ("1f1b", 1), ("1f1b", 2)]


def small(model: ModelConfig, layout: LayoutConfig, microbatches: int) -> Config:
    rows = 2 * microbatches * layout.batch_shards
    return make_config(model, layout, accumulation=microbatches, batch_size=rows)


@cache
def alone(model: ModelConfig, microbatches: int, shards: int) -> Runner:
    config = small(model, LayoutConfig(), microbatches)
    return Runner(config.model_copy(update={"train": config.train.model_copy(update={"batch_size": 2 * microbatches * shards})}))


def assert_equal(config: Config) -> Runner:
    ours = Runner(config)
    reference = alone(config.model, config.train.accumulation, config.layout.batch_shards)
    expected = reference.gradients()
    worst = compare_trees(ours.gradients(), expected, 1e-2)[0]
    assert worst.error <= RTOL, worst
    for name in ("loss", "z_loss", "grad_norm"):
        assert ours.value(name) == pytest.approx(reference.value(name), rel=RTOL)
    return ours


@pytest.mark.parametrize(("kind", "chunks"), SCHEDULES)
@pytest.mark.parametrize("microbatches", [4, 7, 8])
@pytest.mark.parametrize("stages", [2, 4])
def test_schedule_equals_one_device(stages: int, microbatches: int, kind: str, chunks: int) -> None:
    model = GPT.model_copy(update={"n_layers": 9, "d_model": 32, "n_heads": 4})  # 9 layers are uneven for all of them
    layout = LayoutConfig(stage=stages, schedule=kind, chunks=chunks)  # pyright: ignore[reportArgumentType]
    ours = assert_equal(small(model, layout, microbatches))
    permutes = re.findall(r"= \S+ collective-permute(?:-start)?\(", ours.text())
    assert len(permutes) == 2  # whatever the schedule: one of activations, one of gradients
    assert len(re.findall(r" conditional\(", ours.text())) >= 2  # idle stages branch around the work


@pytest.mark.parametrize(
    "layout",
    [
        LayoutConfig(stage=2, data=2, model=2),
        LayoutConfig(stage=2, data=4, zero=1),
        LayoutConfig(stage=2, data=2, gather="layer"),
        LayoutConfig(stage=2, replica=2, data=2, zero=0),
        LayoutConfig(stage=2, context=2, model=2, chunks=2),
    ],
    ids=str,
)
def test_other_axes_stay_on_inside_a_stage(layout: LayoutConfig) -> None:
    assert_equal(small(LLAMA.model_copy(update={"n_layers": 5}), layout, 4))


def test_one_reduction_over_data_per_step() -> None:
    config = small(GPT, LayoutConfig(stage=2, data=2, zero=1), 4)
    ours = Runner(config)
    over_data = {c.kind: c.count for c in ours.collectives() if c.axes == "data"}
    n_matrices = len(jax.tree.leaves(ours.gradients()))
    assert over_data["reduce-scatter"] <= n_matrices
    assert over_data["reduce-scatter"] < 2 * config.train.accumulation * n_matrices / 4


def test_memory_follows_the_schedule() -> None:
    """Of the compiled program: flat in the number of microbatches for 1F1B, one more input for each of them for GPipe."""

    def temp_bytes(kind: str, microbatches: int) -> int:
        layout = LayoutConfig(stage=4, schedule=kind)  # pyright: ignore[reportArgumentType]
        config = make_config(
            GPT.model_copy(update={"n_layers": 4}), layout, accumulation=microbatches, batch_size=4 * microbatches
        )
        mesh = make_mesh(layout, jax.devices()[:4])
        with jax.set_mesh(mesh):
            shape = (config.train.batch_size, config.train.seq_len)
            batch = {name: jax.ShapeDtypeStruct(shape, "int32") for name in ("inputs", "targets")}
            compiled = make_train_step(config).lower(abstract_state(config, mesh), batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    activation = 4 * 32 * GPT.d_model * 4
    flat = temp_bytes("1f1b", 32) - temp_bytes("1f1b", 8)
    growing = temp_bytes("gpipe", 32) - temp_bytes("gpipe", 8)
    assert flat < 2 * activation  # tokens and the table
    assert growing >= 24 * activation


def test_layers_are_spread_evenly_counting_the_loss() -> None:
    """Llama 3's own choice (section 3.3.2): 126 layers on 16 stages, one less on the first and on the last."""
    model = LLAMA.model_copy(update={"n_layers": 126, "d_model": 16384, "vocab_size": 128256, "d_ff": 53248, "n_heads": 128})
    config = make_config(model, LayoutConfig(stage=16), accumulation=16)
    assert layers_of_virtual_stages(config) == [7, *[8] * 14, 7]
    places = layer_places(config)
    assert sorted(p for p in places if p != EMPTY) == list(range(126))
    assert len(places) == 128


def test_checkpoint_moves_between_pipelines(tmp_path: Path) -> None:
    """Layers are stored in the order of their stages; a restore onto another layout brings each to its place."""
    model = GPT.model_copy(update={"n_layers": 5})
    layouts = [
        LayoutConfig(stage=2, chunks=2),
        LayoutConfig(),
        LayoutConfig(stage=4, data=2, zero=1),
        LayoutConfig(stage=2, chunks=2),
    ]
    natural = []
    for n, layout in enumerate(layouts):
        config = make_config(model, layout, accumulation=4)
        mesh = make_mesh(layout, jax.devices()[: layout.n_devices])
        record = make_record(config, {})
        with jax.set_mesh(mesh):
            if n == 0:
                state = init_state(config, mesh)
            else:
                before = Checkpoints(tmp_path / str(n - 1), config.checkpoint)
                state = before.restore(abstract_state(config, mesh), record)
                before.close()
            checkpoints = Checkpoints(tmp_path / str(n), config.checkpoint)
            checkpoints.save(state, 1, record)
            checkpoints.close()
            blocks = reorder_layers(jax.device_get(state.params["blocks"]), layer_places(config), range(5))
            natural.append(jax.device_get(blocks))
    for other in natural[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, natural[0])
