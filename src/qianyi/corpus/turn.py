"""Who may write to a corpus directory: one run at a time, and only its own workers.

A run that is killed may leave workers that are in the middle of a unit. The next run waits until they are through with it; what they would
begin after that is refused.
"""

import fcntl
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from qianyi.data.stage import lock

_RUN = ".lock"
_WORK = ".work.lock"


@contextmanager
def turn(out: Path, waiting: Callable[[], None]) -> Generator[str]:
    """Hold the directory against other runs; gives the token that workers of this run show."""
    token = secrets.token_hex(8)
    with lock(out / _RUN, waiting):
        (out / _RUN).write_text(token)
        with lock(out / _WORK, waiting):
            pass
        try:
            yield token
        finally:  # what a run leaves must not depend on chance
            (out / _RUN).write_text("")


@contextmanager
def working(out: Path, token: str) -> Generator[None]:
    """While a worker makes the files of a unit.

    Raises:
        InterruptedError: the run that this worker belongs to has ended, and another has begun.
    """
    with (out / _WORK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        if (out / _RUN).read_text() != token:
            raise InterruptedError(f"{out}: another run has begun")
        yield
