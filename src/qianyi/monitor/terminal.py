"""The screen: a live view on a terminal, plain lines on a pipe."""

import math
import sys
from threading import Thread
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qianyi.events import EvalEvent, StepEvent
from qianyi.monitor.words import count, duration, gibibytes

_LINES = 20
"""Lines on a pipe for a short run."""
_SILENCE_SECONDS = 60.0
"""A long run says something at least this often."""
_PATIENCE_SECONDS = 2.0
"""Given to the screen for its last picture."""


class Terminal:
    """Progress and the figures that matter; it never holds training up and never ends it.

    On a terminal a thread of its own draws the newest event four times a second: a screen that is scrolled back or
    stopped with Ctrl-S stops that thread alone. On a pipe it prints the first and the last step, about twenty between
    them (more on a long run) and every validation; a reader that went away is forgotten.
    """

    def __init__(self, total_steps: int, resume_step: int, stream: TextIO | None = None):
        """
        Args:
            total_steps: of the whole run.
            resume_step: steps done before this start.
            stream: where to write; standard output by default.
        """
        self._stream = stream or sys.stdout
        self._total = total_steps
        self._done = resume_step
        self._every = max((total_steps - resume_step) // _LINES, 1)
        self._last: StepEvent | None = None
        self._printed: StepEvent | None = None
        self._validation = ""
        self._alarm = ""
        self._loss = _Average()
        self._step_seconds = _Average()
        self._live: Live | None = None
        console = Console(file=self._stream, highlight=False)
        if self._stream.isatty() and not console.is_dumb_terminal:
            self._live = Live(get_renderable=self._view, console=console, refresh_per_second=4)
            self._live.start()

    def step(self, event: StepEvent) -> None:
        if self._last is not None:  # the first step of a process includes compilation
            self._step_seconds.add(event.step_seconds)
        self._loss.add(event.loss)
        self._last, self._done = event, event.step
        first_alarm = not self._alarm and not math.isfinite(event.loss)
        if first_alarm:
            self._alarm = f"the loss became {event.loss} at step {event.step}"
        if self._live is None and (first_alarm or self._is_due(event)):
            self._print_step(event)

    def evaluation(self, event: EvalEvent) -> None:
        worth = f"accuracy {event.accuracy:.1%}" if event.bits_per_byte is None else f"{event.bits_per_byte:.4f} bits per byte"
        self._validation = f"validation at step {event.step}: loss {event.loss:.4f}, perplexity {event.perplexity:.1f}, {worth}"
        if self._live is None:
            self._print(f"{self._validation} ({event.tokens:,} tokens, {duration(event.seconds)})")

    def close(self) -> None:
        """Show the last step, whatever it was."""
        if self._live is not None:
            # A stopped screen keeps `stop` waiting, and must not keep the run from its end.
            stop = Thread(target=self._live.stop, daemon=True)
            stop.start()
            stop.join(_PATIENCE_SECONDS)
        elif self._last is not None and self._last is not self._printed:
            self._print_step(self._last)

    def _is_due(self, event: StepEvent) -> bool:
        if self._printed is None or event.step % self._every == 0 or event.step == self._total:
            return True
        return event.time - self._printed.time >= _SILENCE_SECONDS

    def _print_step(self, event: StepEvent) -> None:
        self._printed = event
        step = f"step {event.step:>{len(str(self._total))}}/{self._total}"
        self._print("  ".join([step, *self._figures(event), self._remaining()]))

    def _print(self, line: str) -> None:
        try:
            print(line, file=self._stream, flush=True)
        except (OSError, ValueError):  # the reader closed the pipe: the files still get everything
            self._print = lambda line: None

    def _figures(self, event: StepEvent) -> list[str]:
        finite = math.isfinite(event.loss)
        figures = [
            f"loss {event.loss:.4f} (mean {self._loss.value:.4f})" if finite else f"!!! LOSS {event.loss} !!!",
            f"{event.tokens_per_second:,.0f} tokens/s",
            "MFU n/a" if event.mfu is None else f"MFU {event.mfu:.1%}",
        ]
        if event.memory_bytes is not None:
            figures.append(gibibytes(event.memory_bytes))
        return figures

    def _remaining(self) -> str:
        if self._done >= self._total:
            return "done"
        if math.isnan(self._step_seconds.value):
            return "ETA after the next step"
        return f"ETA {duration((self._total - self._done) * self._step_seconds.value)}"

    def _view(self) -> RenderableType:
        """What the thread draws. It reads attributes that `step` replaces whole, so it needs no lock."""
        event = self._last
        line = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(total=self._total, completed=self._done, width=24)
        line.add_row(bar, f"step {self._done}/{self._total}", self._remaining() if event else "compiling ...")
        parts: list[RenderableType] = [line]
        if event is not None:
            parts.append(Text("  ".join([*self._figures(event), f"{count(event.tokens)} tokens"])))
        if self._validation:
            parts.append(Text(self._validation, style="cyan"))
        if self._alarm:
            parts.append(Text(f" {self._alarm} ", style="bold white on red"))
        return Group(*parts)


class _Average:
    """Mean over about the last ten values, of those that are finite."""

    def __init__(self) -> None:
        self.value = math.nan

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.value = value if math.isnan(self.value) else 0.9 * self.value + 0.1 * value
