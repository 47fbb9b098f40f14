"""The engine: one function, run on each of a list of units."""

import os
from collections.abc import Callable, Iterator

from qianyi.data.stage import Json

Task = Callable[[Json], Json]


def worker_count(wanted: int, n_units: int) -> int:
    """Workers to use: not more than units; 0 stands for one on each core that this process may use."""
    return max(1, min(wanted or len(os.sched_getaffinity(0)), n_units))


def map_units(task: Task, units: list[Json], workers: int, engine: str, memory_bytes: int | None) -> Iterator[Json]:
    """Results of `task` as they finish, in no particular order."""
    for unit in units:
        yield task(unit)
