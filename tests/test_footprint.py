"""What `qianyi show --layout` says is what arrays take and what the compiled program sends."""

from typing import Any

import jax
import pytest
from models import GPT, LLAMA, make_config

from qianyi.config.model import MoEConfig
from qianyi.config.schema import LayoutConfig, ModelConfig
from qianyi.parallel.mesh import make_mesh
from qianyi.train.footprint import held, sends
from qianyi.train.state import init_state
from qianyi.verify.compare import Runner

SPARSE = LLAMA.model_copy(update={"moe": MoEConfig(n_experts=4)})
LAYOUTS = [
    (GPT, LayoutConfig(data=8), 1),
    (GPT, LayoutConfig(data=8), 4),
    (GPT, LayoutConfig(data=8, zero=2), 2),
    (LLAMA, LayoutConfig(data=4, zero=1, replica=2), 1),
    (LLAMA, LayoutConfig(data=2, model=2, stage=2, zero=1), 4),
    (SPARSE, LayoutConfig(data=2, expert=2, model=2), 1),
]


@pytest.mark.parametrize(("model", "layout", "accumulation"), LAYOUTS, ids=str)
def test_state_takes_what_is_said(model: ModelConfig, layout: LayoutConfig, accumulation: int) -> None:
    config = make_config(model, layout, accumulation=accumulation)
    mesh = make_mesh(layout, jax.devices()[: layout.n_devices])
    with jax.set_mesh(mesh):
        state = init_state(config, mesh)

    def on_a_device(tree) -> int:
        return sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))

    said = held(config)
    assert on_a_device(state.params) == said.parameters
    moments = [part for part in state.opt_state[0] if isinstance(part, dict)]
    assert sum(map(on_a_device, moments)) == said.optimizer


@pytest.mark.parametrize(
    ("layout", "train"),
    [
        (LayoutConfig(data=8), {}),
        (LayoutConfig(data=8), {"accumulation": 2}),
        (LayoutConfig(data=8), {"accumulation": 2, "noise_scale": True}),
        (LayoutConfig(data=8, zero=1), {}),
        (LayoutConfig(data=8, zero=2), {"accumulation": 2}),
        (LayoutConfig(data=8, zero=0), {}),
        (LayoutConfig(replica=2, data=4), {}),
    ],
    ids=str,
)
def test_the_program_sends_what_is_said(layout: LayoutConfig, train: dict[str, Any]) -> None:
    config = make_config(LLAMA, layout, **train)
    said = sum(s.bytes_per_device for s in sends(config))
    sent = sum(c.bytes_per_device for c in Runner(config).collectives())
    assert sent == pytest.approx(said, rel=0.01)  # beside weights: a few scalars


def test_every_level_of_zero_changes_the_program() -> None:
    programs = [Runner(make_config(LLAMA, LayoutConfig(data=8, zero=zero))) for zero in (0, 1, 2, 3)]  # pyright: ignore[reportArgumentType]
    assert len({runner.text() for runner in programs}) == 4
    kept = [held(runner.config) for runner in programs]
    assert kept[0].optimizer == pytest.approx(8 * kept[1].optimizer, rel=0.1)
    assert kept[1].gradients > 4 * kept[2].gradients
    assert kept[2].parameters > 4 * kept[3].parameters
