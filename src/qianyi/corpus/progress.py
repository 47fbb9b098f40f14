"""How far a stage is, on standard error: a bar on a terminal, else a line now and then for a log."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar

LOG_SECONDS = 30.0


class Progress:
    """Shows nothing; the base of what does."""

    def wait(self) -> None:
        """Another run holds the directory."""

    @contextmanager
    def shown(self, units: int, done: int, left_bytes: int) -> Generator[None]:
        """While units are done; `left_bytes` of input are in those to come."""
        yield

    def advance(self, n_bytes: int) -> None:
        """One more unit, with so much input, is finished."""


class _Shown(Progress):
    def __init__(self, stage: str):
        self._stage = stage
        self._units = self._done = self._bytes = self._left_bytes = self._now = 0
        self._began = 0.0

    def wait(self) -> None:
        print(f"{self._stage}: another run is at work on the same directory; waiting for it", file=sys.stderr)

    @contextmanager
    def shown(self, units: int, done: int, left_bytes: int) -> Generator[None]:
        self._units, self._done, self._left_bytes, self._began = units, done, left_bytes, time.monotonic()
        yield

    def advance(self, n_bytes: int) -> None:
        self._done += 1
        self._now += 1
        self._bytes += n_bytes

    def _words(self) -> str:
        """Units, rate and time left; by bytes if those are known, else by units."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        words = f"{self._stage}: {self._done:,} of {self._units:,} pieces"
        if self._now and self._left_bytes:
            rate = self._bytes / seconds
            left = (self._left_bytes - self._bytes) / max(rate, 1.0)
            return f"{words}, {self._bytes / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, {_duration(left)} left"
        if self._now:
            return f"{words}, {_duration((self._units - self._done) * seconds / self._now)} left"
        return words


class _OnTerminal(_Shown):
    def __init__(self, stage: str, console: Console):
        super().__init__(stage)
        self._bar = Bar(SpinnerColumn(), BarColumn(20), TextColumn("{task.description}"), console=console, transient=True)
        self._task = self._bar.add_task(stage)

    @contextmanager
    def shown(self, units: int, done: int, left_bytes: int) -> Generator[None]:
        with super().shown(units, done, left_bytes), self._bar:
            self._bar.update(self._task, total=units, completed=done)
            yield

    def advance(self, n_bytes: int) -> None:
        super().advance(n_bytes)
        self._bar.update(self._task, completed=self._done, description=self._words())


class _InLog(_Shown):
    def __init__(self, stage: str):
        super().__init__(stage)
        self._last = 0.0

    def advance(self, n_bytes: int) -> None:
        super().advance(n_bytes)
        now = time.monotonic()
        if now - max(self._last, self._began) >= LOG_SECONDS:
            self._last = now
            print(self._words(), file=sys.stderr, flush=True)


def progress_of(stage: str, shown: bool) -> Progress:
    """How a stage shows its progress."""
    if not shown:
        return Progress()
    console = Console(stderr=True)
    return _OnTerminal(stage, console) if console.is_terminal else _InLog(stage)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
