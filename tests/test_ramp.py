"""A batch-size ramp changes how many sequences a step takes, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from corpora import two_sources
from jax.sharding import NamedSharding
from models import GPT, make_config

from qianyi.config.ramp import at_batch_size, batch_size_of, ramp_stages, sequences_before, tokens_before
from qianyi.config.schema import BatchStage, Config, DataConfig, LayoutConfig
from qianyi.data.load import TrainingData
from qianyi.events import StepEvent
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.rules import batch_spec
from qianyi.train.checkpoint import Checkpoints, make_record
from qianyi.train.loop import Hooks, TrainStep, train_loop
from qianyi.train.state import TrainState, abstract_state, init_state
from qianyi.train.step import make_train_step

RAMP = (BatchStage(batch_size=8, sequences=16), BatchStage(batch_size=12, sequences=20))
SIZES = [8, 8, 12, 12, 16, 16, 16]
"""What that makes of 7 steps: the second stage is rounded up to 24 sequences."""


def recipe(layout: LayoutConfig | None = None) -> Config:
    model = GPT.model_copy(update={"vocab_size": 400, "n_layers": 2, "d_model": 32, "n_heads": 4})
    return make_config(model, layout, batch_ramp=RAMP, accumulation=4, steps=len(SIZES))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return two_sources(tmp_path_factory.mktemp("data"))


def test_steps_sequences_and_tokens() -> None:
    train = recipe().train
    assert [batch_size_of(train, step) for step in range(len(SIZES))] == SIZES
    assert [sequences_before(train, step) for step in range(len(SIZES) + 1)] == [0, *np.cumsum(SIZES)]
    assert tokens_before(train, 1000) == (16 + 24 + 996 * 16) * train.seq_len
    assert [tuple(stage) for stage in ramp_stages(train)] == [(0, 0, 8), (2, 16, 12), (4, 40, 16)]
    assert [at_batch_size(recipe(), size).train.accumulation for size in (8, 12, 16)] == [2, 3, 4]


def test_the_order_of_sequences_is_that_without_a_ramp(data: DataConfig) -> None:
    train = recipe().train
    ramped, plain = TrainingData(data, train), TrainingData(data, train.model_copy(update={"batch_ramp": ()}))
    sharding = NamedSharding(make_mesh(LayoutConfig(data=4), jax.devices()[:4]), batch_spec(LayoutConfig(data=4)))
    batches = [np.asarray(batch["targets"]) for batch in ramped.batches(sharding, 0, len(SIZES))]
    assert [len(batch) for batch in batches] == SIZES
    expected = np.concatenate([plain.rows(step, range(16))["targets"] for step in range(6)])
    np.testing.assert_array_equal(np.concatenate(batches), expected[: sum(SIZES)])
    (resumed, *_) = ramped.batches(sharding, 3, 7)
    np.testing.assert_array_equal(resumed["targets"], batches[3])
    assert ramped.epochs(4) == {name: pytest.approx(2.5 * epochs) for name, epochs in plain.epochs(1).items()}
    assert ramped.record != plain.record


STEPS: dict[str, TrainStep] = {}


def compiled(config: Config) -> TrainStep:
    return STEPS.setdefault(config.model_dump_json(exclude={"run"}), make_train_step(config))


def train(
    config: Config, data: DataConfig, directory: Path, stop: Callable[[int], bool] = lambda _: False
) -> tuple[TrainState, list[StepEvent]]:
    """Begin or continue the run in a directory; returns its state, on the host, and the events of this start."""
    mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
    events: list[StepEvent] = []
    source = TrainingData(data, config.train)
    record = make_record(config, source.record)
    checkpoints = Checkpoints(directory, config.checkpoint)
    with jax.set_mesh(mesh):
        new = checkpoints.latest_step() is None
        state = init_state(config, mesh) if new else checkpoints.restore(abstract_state(config, mesh), record)
        batches = source.batches(NamedSharding(mesh, batch_spec(config.layout)), int(state.step), config.train.steps)
        hooks = Hooks(
            emit=events.append, evaluate=lambda *_: None, save=lambda s, step: checkpoints.save(s, step, record), stop=stop
        )
        state = train_loop(config, compiled(config), state, batches, None, hooks)
        checkpoints.close()
        return jax.device_get(state), events


@pytest.fixture(scope="module")
def whole(data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainState, list[StepEvent]]:
    return train(recipe(), data, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_resumed_across_stages_is_bitwise_the_same(
    at: int, data: DataConfig, whole: tuple[TrainState, list[StepEvent]], tmp_path: Path
) -> None:
    _, before = train(recipe(), data, tmp_path, lambda step: step == at)
    state, after = train(recipe(), data, tmp_path)
    events = before + after
    assert [event.tokens for event in events] == [32 * int(n) for n in np.cumsum(SIZES)]
    assert [event.loss for event in events] == [event.loss for event in whole[1]]
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole[0]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layout", [LayoutConfig(data=2, model=2), LayoutConfig(stage=2, data=2)], ids=["fsdp", "pipeline"])
def test_layouts_equal_one_device(
    layout: LayoutConfig, data: DataConfig, whole: tuple[TrainState, list[StepEvent]], tmp_path: Path
) -> None:
    _, events = train(recipe(layout), data, tmp_path, lambda step: step == 3)  # two batch sizes
    np.testing.assert_allclose([e.loss for e in events], [e.loss for e in whole[1][:3]], rtol=1e-5)
    np.testing.assert_allclose([e.grad_norm for e in events], [e.grad_norm for e in whole[1][:3]], rtol=1e-4)
