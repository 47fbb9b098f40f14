"""What `train`, `eval`, `generate` and `export` share: a checked recipe on a running backend, and its data."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
from jax.sharding import Mesh, NamedSharding
from tokenizers import Tokenizer

from qianyi.config.check import check
from qianyi.config.load import Resolved, load
from qianyi.config.schema import Config, LayoutConfig
from qianyi.data.load import TrainingData, ValidationData
from qianyi.data.prepare import tokenizer_path
from qianyi.data.tokenizer import load_tokenizer, token_bytes
from qianyi.errors import CheckpointError
from qianyi.model.param import Tree
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.rules import batch_spec
from qianyi.parallel.runtime import initialize
from qianyi.train.checkpoint import Checkpoints, Record, make_record
from qianyi.train.offload import require_host_memory
from qianyi.train.state import abstract_state


@dataclass(frozen=True)
class Session:
    """A recipe, ready to run."""

    resolved: Resolved

    @property
    def config(self) -> Config:
        return self.resolved.config

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run.dir)

    @cached_property
    def mesh(self) -> Mesh:
        return make_mesh(self.config.layout)

    @property
    def batch_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, batch_spec(self.config.layout))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(tokenizer_path(self.config.data))

    @cached_property
    def training_data(self) -> TrainingData:
        return TrainingData(self.config.data, self.config.train)

    @cached_property
    def validation_data(self) -> ValidationData:
        return ValidationData(self.config.data, self.config.train, token_bytes(self.tokenizer))

    @cached_property
    def record(self) -> Record:
        """What a checkpoint of this run must match."""
        return make_record(self.config, self.training_data.record)

    def checkpoints(self, *, must_exist: bool) -> Checkpoints:
        directory = self.run_dir / "checkpoints"
        if must_exist and not directory.exists():
            raise CheckpointError(
                f"{directory}: no checkpoint there; `qianyi train` writes one, or set run.dir to the run's directory"
            )
        return Checkpoints(directory, self.config.checkpoint)


def restore_params(session: Session, mesh: Mesh) -> tuple[Tree, int]:
    """The newest parameters, whole on the one device of the mesh, and the steps that they were trained."""
    checkpoints = session.checkpoints(must_exist=True)
    one_device = session.config.model_copy(update={"layout": LayoutConfig()})
    record = make_record(one_device, session.training_data.record)
    state = checkpoints.restore(abstract_state(one_device, mesh), record)
    checkpoints.close()
    return state.params, int(state.step)


def begin(recipe: str, overrides: list[str]) -> Session:
    """Resolve and check a recipe and bring the backend up."""
    resolved = load(recipe, overrides)
    check(resolved.config)
    initialize(resolved.config.run)
    check(resolved.config, jax.device_count())
    require_host_memory(resolved.config, jax.devices())
    return Session(resolved)
