"""Checkpoints: Orbax underneath (asynchronous, committed atomically, restored onto any layout), our rules on top.

A checkpoint holds the whole `TrainState` (step, parameters, optimizer state, random key) and a record of what it belongs to:
the model's shape, the data position and the optimizer. A record that does not match the recipe is refused before anything is restored.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import checkpoint_managers as policies

from qianyi.config.schema import CheckpointConfig, Config
from qianyi.config.stages import layer_places
from qianyi.errors import CheckpointError, ResourceError
from qianyi.train.state import TrainState, reorder_layers

Record = dict[str, Any]
"""What a checkpoint belongs to: JSON values under `model`, `data`, `optimizer` and `layers`."""

_SHAPE_FREE = {"dtype", "remat", "init_std", "max_seq_len", "matmul"}
"""Model settings that may change between save and restore (max_seq_len only where no table depends on it, matmul only where it keeps no
histories)."""


def make_record(config: Config, data: Record) -> Record:
    """The record of a recipe and the data position (`data`: what fixes the order of batches, such as a fingerprint), what the optimizer
    remembers, and in which order layers are stored (`layers`), which a pipeline changes."""
    model, o = config.model.model_dump(mode="json"), config.optimizer
    bound = {"max_seq_len": config.model.position == "learned", "matmul": config.model.matmul == "fp8_delayed"}
    free = _SHAPE_FREE - {name for name, counts in bound.items() if counts}
    return {
        "model": {k: v for k, v in model.items() if k not in free},
        "data": data,
        "optimizer": {"kind": o.kind, "factored": o.factored, "has_momentum": o.moment_decay > 0, "decay_power": o.decay_power},
        "layers": list(layer_places(config)),
    }


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: Path, config: CheckpointConfig):
        self.directory = directory.absolute()
        keep: list[policies.PreservationPolicy] = [policies.LatestN(config.keep_last)]
        if config.keep_every_steps:
            keep.append(policies.EveryNSteps(config.keep_every_steps))
        if config.keep_every_minutes:
            keep.append(policies.EveryNSeconds(int(60 * config.keep_every_minutes)))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                save_decision_policy=policies.FixedIntervalPolicy(1),  # The loop decides when to save.
                step_format_fixed_length=8,
                cleanup_tmp_directories=True,
            ),
        )

    def latest_step(self) -> int | None:
        """Steps completed in the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, record: Record) -> None:
        """Copy the state and write it in the background; a save that is already there is left alone.

        Raises:
            ResourceError: the disk has no room, or the previous save failed.
        """
        if step in self._manager.all_steps():
            return
        self._require_room(state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
        try:
            self._manager.save(step, args=args)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error

    def restore(self, abstract: TrainState, record: Record) -> TrainState:
        """The newest state, placed as `abstract` says.

        Raises:
            CheckpointError: there is none, it is damaged, or it belongs to another model or other data.
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"{self.directory}: no checkpoint; `qianyi train` writes one")
        try:
            saved = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        except Exception as error:
            raise self._damaged(step, error) from error
        _require_match(self.directory / f"{step:08d}", saved, record)
        try:
            stored = _with_layers(abstract, len(saved["layers"]))
            args = ocp.args.Composite(state=ocp.args.StandardRestore(stored))
            state = self._manager.restore(step, args=args)["state"]
        except Exception as error:
            raise self._damaged(step, error) from error
        return _reorder(state, abstract, saved["layers"], record["layers"])

    def finish(self) -> None:
        """Wait for what is being written.

        Raises:
            ResourceError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failure(error) from error

    def close(self) -> None:
        self.finish()
        self._manager.close()

    def _require_room(self, state: TrainState) -> None:
        needed_bytes = sum(a.nbytes for a in jax.tree.leaves(state)) // jax.process_count()
        free_bytes = shutil.disk_usage(self.directory).free
        if free_bytes < 1.1 * needed_bytes:
            raise ResourceError(
                f"{self.directory}: a checkpoint needs {needed_bytes / 2**30:.1f} GiB, {free_bytes / 2**30:.1f} GiB are free; "
                "free some room or lower checkpoint.keep_last; earlier checkpoints are untouched and the same command continues"
            )

    def _failure(self, error: Exception) -> ResourceError:
        return ResourceError(
            f"{self.directory}: a checkpoint could not be written ({_first_line(error)}); "
            "free some room there; earlier checkpoints are untouched and the same command continues from the newest"
        )

    def _damaged(self, step: int, error: Exception) -> CheckpointError:
        path = self.directory / f"{step:08d}"
        return CheckpointError(
            f"{path}: cannot be restored ({_first_line(error)}); delete that directory to continue from the one before"
        )


def _with_layers(abstract: TrainState, n: int) -> TrainState:
    """The same with n places for layers, over stages where they divide them."""

    def stored(path: Any, leaf: Any) -> Any:
        if not _is_stacked(path) or leaf.shape[0] == n:
            return leaf
        mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
        spec = spec if n % mesh.shape["stage"] == 0 else P(None, *spec[1:])
        return jax.ShapeDtypeStruct((n, *leaf.shape[1:]), leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(stored, abstract)


def _reorder(state: TrainState, abstract: TrainState, saved: list[int], wanted: list[int]) -> TrainState:
    """Layers in the order of this run's pipeline."""
    if saved == wanted:
        return state

    def move(path: Any, leaf: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
        if not _is_stacked(path):
            return leaf
        spec: Any = target.sharding.spec  # pyright: ignore[reportOptionalMemberAccess]
        within = P(None, *spec[1:])  # layers move between stages: for a moment, each has all of its part
        return jax.reshard(reorder_layers(jax.reshard(leaf, within), saved, wanted, within), spec)

    return jax.jit(lambda s: jax.tree_util.tree_map_with_path(move, s, abstract))(state)


def _is_stacked(path: Any) -> bool:
    return any(getattr(key, "key", None) == "blocks" for key in path)


def _require_match(path: Path, saved: Record, wanted: Record) -> None:
    for part, advice in (
        ("model", "use the recipe that the run began with, or another run.dir"),
        ("optimizer", "its state is another; use the optimizer that the run began with, or another run.dir"),
        ("data", "batches would come in another order; put the data back as it was, or use another run.dir"),
    ):
        differing = [k for k in saved[part].keys() | wanted[part].keys() if saved[part].get(k) != wanted[part].get(k)]
        if differing:
            details = ", ".join(
                f"{part}.{k}: checkpoint {json.dumps(saved[part].get(k))}, recipe {json.dumps(wanted[part].get(k))}"
                for k in sorted(differing)
            )
            raise CheckpointError(f"{path} does not match the recipe: {details}; {advice}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no message'}"
