"""The engine: one function, run on each of a list of units.

One worker is this process. More are Daft's: processes on this machine, or actors on an existing Ray cluster (whose machines must see the
same files). Either way the units and what they write are the same; results come as they are ready, in any order.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from importlib import import_module
from typing import Any

import psutil

from qianyi import errors
from qianyi.data.stage import Json
from qianyi.errors import ConfigError, QianyiError, ResourceError

Task = Callable[[Json], Json]
"""Of JSON to JSON; must be a function of a module, or a partial of one, so that workers can find it."""

ENGINES = ("auto", "native", "ray")


class WorkerError(RuntimeError):
    """A worker failed in a way that is no user's fault; holds its traceback."""


def worker_count(wanted: int, n_units: int) -> int:
    """Workers to use: not more than units; 0 stands for one on each core that this process may use."""
    return max(1, min(wanted or len(os.sched_getaffinity(0)), n_units))


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


def map_units(task: Task, units: list[Json], workers: int, engine: str, memory_bytes: int | None = None) -> Iterator[Json]:
    """Results of `task` as they are ready.

    Args:
        task: the function.
        units: what it is run on.
        workers: how many run at a time; 0 for one on each core.
        engine: see `ENGINES`.
        memory_bytes: what a worker process may hold.

    Raises:
        QianyiError: as the task raised it.
        MemoryError, OSError: likewise.
        ResourceError: a worker was ended by the system.
        WorkerError: the task raised anything else in a worker.
    """
    n = worker_count(workers, len(units))
    if engine_of(engine) == "native" and n == 1 and memory_bytes is None:
        yield from map(task, units)
    elif units:
        with closing(_map_daft(task, units, n, engine_of(engine), memory_bytes)) as answers:
            yield from _results(answers)


def _map_daft(task: Task, units: list[Json], workers: int, engine: str, memory_bytes: int | None) -> Generator[str]:
    """The adapter: all that is said to Daft."""
    daft = _daft(engine)

    @daft.cls(max_concurrency=workers, use_process=True)
    class Pool(Worker):
        @daft.method(return_dtype=daft.DataType.string())
        def answer(self, unit: str) -> str:
            return self.do(unit)

    pool = Pool(import_module("daft.pickle").dumps(task), sys.path, memory_bytes)
    frame = daft.from_pydict({"unit": [json.dumps(unit) for unit in units]}).into_batches(1)
    try:
        answers = frame.select(pool.answer(daft.col("unit"))).to_arrow_iter(results_buffer_size=None)
        with daft.execution_config_ctx(maintain_order=False), closing(answers):
            for batch in answers:
                yield from batch.column(0).to_pylist()
    except BaseException as error:
        _end_processes()
        if not any(sign in str(error) for sign in _WORKER_ENDED):
            raise
        raise ResourceError("a worker was ended by the system, as happens when memory runs out; use fewer workers") from None


def _end_processes() -> None:
    """End Daft's processes and let its threads notice: one that wakes up while Python shuts down would abort it."""
    workers = [p for p in psutil.Process().children() if "daft.execution.udf_worker" in _arguments(p)]
    for worker in workers:
        worker.kill()
    if workers:
        psutil.wait_procs(workers, SETTLE_SECONDS)
        time.sleep(SETTLE_SECONDS)


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


SETTLE_SECONDS = 0.5
_WORKER_ENDED = ("UDF process", "ActorDiedError", "WorkerCrashedError", "OutOfMemoryError")


def _daft(engine: str) -> Any:
    """Daft with its runner set: one for the life of a process."""
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
    return daft


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


class Worker:
    """Lives in a process of its own and does one unit after another."""

    def __init__(self, pickled: bytes, path: list[str], memory_bytes: int | None):
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first ends the others
        sys.path.extend(p for p in path if p not in sys.path)
        if memory_bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        self._task: Task = import_module("daft.pickle").loads(pickled)
        self._failed = False

    def do(self, unit: str) -> str:
        """The answer to one unit: a result, or an error as a value, after which there are no more."""
        if self._failed:
            return json.dumps({"skipped": True})
        try:
            return json.dumps({"result": self._task(json.loads(unit))})
        except Exception as error:
            self._failed = True
            return json.dumps(_described(error))


def _described(error: Exception) -> Json:
    if isinstance(error, OSError):
        return {"os_error": [error.errno, error.strerror, error.filename and str(error.filename)]}
    if isinstance(error, MemoryError):
        return {"error": "MemoryError", "message": str(error)}
    if isinstance(error, QianyiError) and type(error).__module__ == errors.__name__:
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": "WorkerError", "message": "\n" + "".join(traceback.format_exception(error))}


def _results(answers: Iterator[str]) -> Iterator[Json]:
    """Answers without wrapping; the first error is raised."""
    for answer in map(json.loads, answers):
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        if "error" in answer:
            kinds: dict[str, type[Exception]] = {"MemoryError": MemoryError, "WorkerError": WorkerError}
            raise (kinds.get(answer["error"]) or getattr(errors, answer["error"]))(answer["message"])
        if "result" in answer:
            yield answer["result"]
