"""The engine: one function, run on each of a list of units.

One worker is this process. More are Daft's: processes on this machine, or actors on an existing Ray cluster (whose machines must see the
same files). Either way the units and what they write are the same; results come as they are ready, in any order.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from typing import Any

from qianyi.corpus.worker import Task, results
from qianyi.data.stage import Json
from qianyi.errors import ConfigError

ENGINES = ("auto", "native", "ray")


WORTH_BYTES = 32_000_000
"""Of text: with less, starting processes takes longer than one takes with the work (2 to 3 s, `benchmarks/data_scaling.py`)."""


def worker_count(wanted: int, n_units: int, n_bytes: int | None = None) -> int:
    """Workers to use: not more than units; 0 stands for one on each core that this process may use, or one if there is little to do."""
    if wanted == 0 and n_bytes is not None and n_bytes < WORTH_BYTES:
        return 1
    return max(1, min(_limit(wanted), n_units))


def _limit(wanted: int) -> int:
    return wanted or len(os.sched_getaffinity(0))


def engine_of(wanted: str) -> str:
    """`native` or `ray`.

    Raises:
        ConfigError: there is no such engine.
    """
    if wanted not in ENGINES:
        raise ConfigError(f"engine `{wanted}`: expected {', '.join(ENGINES)}")
    if wanted == "auto":
        return "ray" if os.environ.get("RAY_ADDRESS") else "native"
    return wanted


def map_units(task: Task, units: list[Json], workers: int, engine: str, n_bytes: int | None = None) -> Iterator[Json]:
    """Results of `task` as they are ready.

    Args:
        task: the function.
        units: what it is run on.
        workers: how many run at a time; 0: see `worker_count`.
        engine: see `ENGINES`.
        n_bytes: of text in all units, if known.

    Raises:
        QianyiError: as the task raised it.
        MemoryError, OSError: likewise.
        ResourceError: a worker was ended by the system.
        WorkerError: the task raised anything else in a worker.
    """
    kind = engine_of(engine)
    if kind == "native" and worker_count(workers, len(units), n_bytes) == 1:
        yield from map(task, units)
    elif units:
        processes = _processes(kind)
        pickled = import_module("daft.pickle").dumps(task)
        answers = processes.answers_on_ray if kind == "ray" else processes.answers_here
        with closing(answers(pickled, [json.dumps(unit) for unit in units], _limit(workers))) as found:
            yield from results(found)


def _processes(engine: str) -> Any:
    """The adapter to Daft, whose runner is set: one for the life of a process."""
    os.environ |= _QUIET
    # It leaves the pipes of its processes to the garbage collector.
    warnings.filterwarnings("ignore", "unclosed|subprocess", ResourceWarning)
    daft: Any = import_module("daft")
    try:
        if engine == "ray":
            _connect_to_ray()
            daft.set_runner_ray(noop_if_initialized=True)
        elif daft.runners.get_or_infer_runner_type() != "native":
            raise ConfigError(
                "engine `native`: Ray runs in this process already, or DAFT_RUNNER names it; start another process without"
            )
    except ImportError:
        raise ConfigError("engine `ray`: the package is not installed: pip install 'qianyi[ray]'") from None
    return import_module("qianyi.corpus.processes")


_QUIET = {"DAFT_PROGRESS_BAR": "0", "DAFT_ANALYTICS_ENABLED": "0", "DO_NOT_TRACK": "1", "RAY_DEDUP_LOGS": "0"}
"""Bars of our own, and nothing is reported to anyone."""


def _connect_to_ray() -> None:
    ray: Any = import_module("ray")
    address = os.environ.get("RAY_ADDRESS", "auto")
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except ConnectionError as error:
        raise ConfigError(
            f"engine `ray`: no cluster at RAY_ADDRESS={address} ({str(error).splitlines()[0]}); start one with `ray start --head`, "
            "and give a cluster with tokens RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
        ) from None
