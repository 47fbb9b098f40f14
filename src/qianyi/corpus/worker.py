"""A worker: lives in a process of its own and does one unit after another. Errors travel as values."""

import atexit
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module

from qianyi import errors
from qianyi.data.stage import Json
from qianyi.errors import QianyiError

Task = Callable[[Json], Json]
"""Of JSON to JSON; must be a function of a module, or a partial of one, so that workers can find it."""


class WorkerError(RuntimeError):
    """A worker failed in a way that is no user's fault; holds its traceback."""


class Worker:
    """Does units of tasks."""

    def __init__(self, path: list[str]):
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first ends the others
        atexit.register(os._exit, 0)  # all is on disk: there is nothing to take down
        sys.path.extend(p for p in path if p not in sys.path)
        self._pickled = b""
        self._task: Task = dict
        self._failed = False

    def do(self, task: bytes, unit: str) -> str:
        """The answer to one unit: a result, or an error as a value, after which there are no more."""
        if self._failed:
            return json.dumps({"skipped": True})
        try:
            if task != self._pickled:
                self._pickled, self._task = task, import_module("daft.pickle").loads(task)
            return json.dumps({"result": self._task(json.loads(unit))})
        except Exception as error:
            self._failed = True
            return json.dumps(_described(error))


def results(answers: Iterator[str]) -> Iterator[Json]:
    """Answers without wrapping; the first error is raised."""
    for answer in map(json.loads, answers):
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        if "error" in answer:
            kinds: dict[str, type[Exception]] = {"MemoryError": MemoryError, "WorkerError": WorkerError}
            raise (kinds.get(answer["error"]) or getattr(errors, answer["error"]))(answer["message"])
        if "result" in answer:
            yield answer["result"]


def _described(error: Exception) -> Json:
    if isinstance(error, OSError):
        return {"os_error": [error.errno, error.strerror, error.filename and str(error.filename)]}
    if isinstance(error, MemoryError):
        return {"error": "MemoryError", "message": str(error)}
    if isinstance(error, QianyiError) and type(error).__module__ == errors.__name__:
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": "WorkerError", "message": "\n" + "".join(traceback.format_exception(error))}
