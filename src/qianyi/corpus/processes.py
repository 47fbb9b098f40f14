"""All that is said to Daft: worker processes on this machine, and actors on a Ray cluster.

Processes take seconds to start, so those on this machine stay: theirs is a query without an end, whose rows come as they are asked for.
"""

import asyncio
import atexit
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import daft
import psutil
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch

from qianyi.corpus.worker import Worker
from qianyi.errors import ResourceError

SETTLE_SECONDS = 0.5
_LOOK_SECONDS = 0.2
_AHEAD = 2  # rows for each worker that wait for it or are done by it: it never waits, and the largest still come first
_WORKER_ENDED = ("UDF process", "ActorDiedError", "WorkerCrashedError", "OutOfMemoryError")
_SCHEMA = daft.Schema.from_field_name_and_types([("task", daft.DataType.binary()), ("unit", daft.DataType.string())])


def answers_here(task: bytes, units: list[str], workers: int) -> Generator[str]:
    """Answers of processes on this machine, as they are ready; of `workers`, no more are started than there are units."""
    size = min(workers, len(units))
    while _idle and not (_idle[-1].limit == workers and _idle[-1].size >= size):
        _idle.pop().close()
    pool = _idle.pop() if _idle else _Processes(size, workers)
    with _ending_all(pool.rows.end):
        yield from pool.answers(task, units)
    _idle.append(pool)


def answers_on_ray(task: bytes, units: list[str], workers: int) -> Generator[str]:
    """Answers of actors that live as long as this call, as they are ready."""
    answers = _answers(daft.from_pydict({"unit": units}), daft.lit(task), min(workers, len(units)))
    with _ending_all(answers.close):
        yield from answers


class _Processes:
    """Processes that wait for units."""

    def __init__(self, size: int, limit: int):
        self.size, self.limit = size, limit
        self.rows = _Rows()
        self._answers = _answers(_Source(self.rows).read(), daft.col("task"), size)
        Thread(target=self._watch_start, args=(set(psutil.Process().children()),), daemon=True).start()

    def _watch_start(self, others: set[psutil.Process]) -> None:
        """Until all processes have called Daft: where one ends before, nothing else would tell it."""
        called: set[psutil.Process] = set()
        while not self.rows.ended and len(called) < self.size:
            time.sleep(_LOOK_SECONDS)
            for process in set(psutil.Process().children()) - others - called:
                with suppress(psutil.Error):
                    if process.status() == psutil.STATUS_ZOMBIE:
                        _call_daft()
                        return
                    if _is_worker(process) and process.net_connections("unix"):
                        called.add(process)

    def answers(self, task: bytes, units: list[str]) -> Iterator[str]:
        waiting = iter(units)
        for unit in islice(waiting, _AHEAD * self.size):
            self.rows.put(task, unit)
        for _ in units:
            yield next(self._answers)
            for unit in islice(waiting, 1):
                self.rows.put(task, unit)

    def close(self) -> None:
        self.rows.end()
        for _ in self._answers:
            pass


_idle: list[_Processes] = []


@atexit.register
def _close_idle() -> None:
    while _idle:
        _idle.pop().close()


def _answers(frame: Any, task: Any, workers: int) -> Generator[str]:
    """The query."""

    @daft.cls(max_concurrency=workers, use_process=True)
    class Pool(Worker):
        @daft.method(return_dtype=daft.DataType.string())
        def answer(self, task: bytes, unit: str) -> str:
            return self.do(task, unit)

    daft.set_execution_config(maintain_order=False)
    answered = frame.into_batches(1).select(Pool(sys.path).answer(task, daft.col("unit")))
    with closing(answered.to_arrow_iter(results_buffer_size=None)) as batches:
        for batch in batches:
            yield from batch.column(0).to_pylist()


class _Rows(DataSourceTask):
    """A list that grows: each row comes with the promise of the next."""

    def __init__(self) -> None:
        self._first: Future[Any] = Future()
        self._next = self._first

    def put(self, task: bytes, unit: str) -> None:
        promised, self._next = self._next, Future()
        promised.set_result(({"task": [task], "unit": [unit]}, self._next))

    def end(self) -> None:
        self._next.set_result((None, None))

    @property
    def ended(self) -> bool:
        return self._next.done()

    @property
    def schema(self) -> daft.Schema:
        return _SCHEMA

    async def read(self) -> AsyncIterator[RecordBatch]:
        row, after = await asyncio.wrap_future(self._first)
        while row is not None:
            yield RecordBatch.from_pydict(row)
            row, after = await asyncio.wrap_future(after)


class _Source(DataSource):
    """What Daft reads rows from."""

    def __init__(self, rows: _Rows):
        self._rows = rows

    @property
    def name(self) -> str:
        return "units"

    @property
    def schema(self) -> daft.Schema:
        return _SCHEMA

    async def get_tasks(self, pushdowns: Any) -> AsyncIterator[DataSourceTask]:
        yield self._rows


@contextmanager
def _ending_all(end: Callable[[], None]) -> Generator[None]:
    """Nothing goes on where something went wrong."""
    try:
        yield
    except BaseException as error:
        end()
        _end_processes()
        if not isinstance(error, (EOFError, ConnectionError)) and not any(sign in str(error) for sign in _WORKER_ENDED):
            raise
        raise ResourceError("a worker was ended by the system, as happens when memory runs out; use fewer workers") from None


def _end_processes() -> None:
    """End Daft's processes and let its threads notice: one that wakes up while Python shuts down would abort it."""
    _close_idle()
    workers = [p for p in psutil.Process().children() if _is_worker(p)]
    for worker in workers:
        worker.kill()
    if workers:
        _call_daft()
        psutil.wait_procs(workers, SETTLE_SECONDS)
        time.sleep(SETTLE_SECONDS)


def _call_daft() -> None:
    """Call and hang up, at each socket where Daft may wait for a process: without end, if that ended before it called."""
    pattern = str(Path(tempfile.gettempdir(), "tmp*"))
    for address in {c.laddr for c in psutil.Process().net_connections("unix") if fnmatch(str(c.laddr), pattern)}:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as caller:
            caller.setblocking(False)  # where nothing waits for calls any more, no room is left for them either
            caller.connect(address)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "daft.execution.udf_worker" in process.cmdline()
    except psutil.Error:
        return False
