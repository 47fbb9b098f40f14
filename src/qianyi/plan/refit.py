"""Constants refitted from a user's own runs: `qianyi plan --calibrate RUN`.

The constants that ship are the prior, so few runs move them little where they agree and as far as they must where they do not.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from qianyi.config.load import load
from qianyi.errors import ConfigError, DataError
from qianyi.plan.build import case_of, precision_of
from qianyi.plan.calibrate import Observed, Problem, time_constants
from qianyi.plan.cluster import Cluster
from qianyi.plan.constants import Table, fitted
from qianyi.plan.rows import Published
from qianyi.plan.stack import OURS, stack
from qianyi.plan.step import step_seconds

WARM_UP = 3
"""First steps of a start that are not counted: compilation, caches."""
FEWEST = 5
"""Steps that a run must have beside those."""
KEPT = 1e-3
"""Relative change below which a constant counts as unchanged."""


@dataclass(frozen=True)
class Refit:
    """What changed."""

    runs: tuple[str, ...]
    measured: tuple[float, ...]
    """Median seconds of a step."""
    before: tuple[float, ...]
    """The same as predicted by the constants that ship."""
    after: tuple[float, ...]
    table: Table
    """Constants that changed."""


def refit(runs: Sequence[Path], on: Cluster) -> Refit:
    """Constants from runs that were made on a cluster.

    Raises:
        DataError: a directory is not a run, or has too few steps.
        ConfigError: a run used another number of devices than the cluster has.
    """
    observed = [_observed(run, on) for run in runs]
    problem = Problem(observed, step_seconds, fitted())
    x = problem.fit()
    old, new = problem.table(problem.mean, time_constants()), problem.table(x, time_constants())
    return Refit(
        runs=tuple(map(str, runs)),
        measured=tuple(o.value for o in observed),
        before=_seconds(problem, problem.mean),
        after=_seconds(problem, x),
        table={key: value for key, value in new.items() if abs(value / old[key] - 1) > KEPT},
    )


def _seconds(problem: Problem, x: Any) -> tuple[float, ...]:
    return tuple(float(s) for s in np.ravel(step_seconds(problem.case, problem.constants(x))))


def _observed(run: Path, on: Cluster) -> Observed:
    recipe = run / "config.yaml"
    if not recipe.exists():
        raise DataError(f"{run}: not the directory of a run: there is no config.yaml")
    config = load(str(recipe)).config
    if config.layout.n_devices != on.n_chips:
        raise ConfigError(f"{run} ran on {config.layout.n_devices:,} devices, {on.name} has {on.n_chips:,} chips")
    row = {"id": str(run), "series": str(run), "tier": "A"}
    published = Published(row, case_of(config, on), stack(OURS), on, precision_of(config))
    return Observed(published, _median_step_seconds(run))


def _median_step_seconds(run: Path) -> float:
    """Of the steps at the full batch, without those right after a start."""
    events = run / "events.jsonl"
    try:
        lines = [json.loads(line) for line in events.read_text().splitlines() if line.strip()]
        starts = [start.get("start_step", 0) for start in json.loads((run / "environment.json").read_text())]
        seconds = {event["step"]: float(event["step_seconds"]) for event in lines}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{events}: cannot be read as events of steps: {error}") from None
    fresh = {start + i for start in starts for i in range(1, WARM_UP + 1)}
    counted = [value for step, value in seconds.items() if step not in fresh]
    if len(counted) < FEWEST:
        raise DataError(f"{events}: {len(counted)} steps after the first {WARM_UP} of each start; {FEWEST} or more are needed")
    return statistics.median(counted)


def write_constants(path: Path, found: Refit, on: Cluster) -> None:
    """For `qianyi plan --constants FILE`."""
    head = f"# Refitted from {', '.join(found.runs)} on {on.name}, for `qianyi plan --constants`.\n"
    path.write_text(head + yaml.safe_dump({"constants": {k: float(f"{v:.5g}") for k, v in sorted(found.table.items())}}))


def read_constants(path: Path) -> Table:
    """What `write_constants` wrote.

    Raises:
        ConfigError: unreadable, or not such a file.
    """
    try:
        found: Any = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    table = found.get("constants") if isinstance(found, dict) else None
    if not isinstance(table, dict) or not all(isinstance(v, int | float) and v > 0 for v in table.values()):
        raise ConfigError(
            f"{path}: expected constants as `qianyi plan --calibrate` writes them: name@scope with a number above 0"
        )
    unknown = sorted(str(key) for key in table if str(key).split("@", maxsplit=1)[0] not in time_constants())
    if unknown:
        raise ConfigError(f"{path}: unknown constant `{unknown[0]}`")
    return {str(key): float(value) for key, value in table.items()}
