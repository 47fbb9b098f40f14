"""State and activations in host memory: the same numbers, elsewhere."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from models import LLAMA, host_batch, make_config, place

from qianyi.config.schema import Config, LayoutConfig
from qianyi.errors import ResourceError
from qianyi.parallel.mesh import make_mesh
from qianyi.train.checkpoint import Checkpoints, make_record
from qianyi.train.offload import require_host_memory
from qianyi.train.state import TrainState, abstract_state, init_state
from qianyi.train.step import make_eval_step, make_train_step

SMALL = LLAMA.model_copy(update={"n_layers": 2})
LAYOUT = LayoutConfig(data=2, zero=1)


def kinds(tree: Any) -> set[str]:
    return {a.sharding.memory_kind for a in jax.tree.leaves(tree) if a.ndim}


def train(config: Config, directory: Path | None = None) -> tuple[TrainState, float]:
    """Two steps, with a save and a restore between them if there is a directory, and a validation."""
    mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
    with jax.set_mesh(mesh):
        state, step = init_state(config, mesh), make_train_step(config)
        state, _ = step(state, place(host_batch(0), config, mesh))
        if directory is not None:
            checkpoints, record = Checkpoints(directory, config.checkpoint), make_record(config, {})
            checkpoints.save(state, 1, record)
            checkpoints.finish()
            state = checkpoints.restore(abstract_state(config, mesh), record)
            checkpoints.close()
        state, _ = step(state, place(host_batch(1), config, mesh))
        total, *_ = make_eval_step(config)(state.params, place(host_batch(2), config, mesh))
        return state, float(total)


def test_state_in_host_memory_is_the_same_state(tmp_path: Path) -> None:
    reference, expected = train(make_config(SMALL, LAYOUT))
    assert kinds(reference) == {"device"}
    ours, total = train(make_config(SMALL, LAYOUT, offload="optimizer"), tmp_path)
    assert kinds(ours.opt_state) == {"pinned_host"} and kinds(ours.params) == {"device"}
    assert total == expected
    for a, b in zip(jax.tree.leaves(jax.device_get(ours)), jax.tree.leaves(jax.device_get(reference)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_devices_without_host_memory_are_refused() -> None:
    class Device:
        device_kind = "abacus"

        def addressable_memories(self) -> list[Any]:
            return []

    config = make_config(SMALL.model_copy(update={"remat": {"query": "offload"}}), offload="optimizer")
    require_host_memory(config, jax.devices())
    require_host_memory(make_config(SMALL), [Device()])
    with pytest.raises(
        ResourceError, match=r"model\.remat\.query=offload, train\.offload=optimizer: abacus has no pinned_host memory"
    ):
        require_host_memory(config, [Device()])
