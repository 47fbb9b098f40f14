"""Where events go: JSON lines that other tools read, TensorBoard, and the terminal."""

import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from qianyi.errors import DataError, ResourceError
from qianyi.events import EvalEvent, StepEvent


class Sink(Protocol):
    """Takes every event of a run, in order."""

    def step(self, event: StepEvent) -> None: ...

    def evaluation(self, event: EvalEvent) -> None: ...

    def close(self) -> None: ...


class FanOut:
    """One sink that is several.

    Raises:
        ResourceError: one of them cannot write.
    """

    def __init__(self, sinks: Sequence[Sink]):
        self._sinks = sinks

    def step(self, event: StepEvent) -> None:
        self._each(lambda sink: sink.step(event))

    def evaluation(self, event: EvalEvent) -> None:
        self._each(lambda sink: sink.evaluation(event))

    def close(self) -> None:
        self._each(lambda sink: sink.close())

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in self._sinks:
            try:
                call(sink)
            except OSError as error:
                reason = "the disk is full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else error.strerror or str(error)
                raise ResourceError(
                    f"{type(sink).__name__}: an event could not be written: {reason}; free some room in run.dir and run the same "
                    "command, which continues from the newest checkpoint"
                ) from error


class JsonLines:
    """`events.jsonl` and `evals.jsonl`: one object per step and per validation, each step exactly once however often a run restarts."""

    def __init__(self, run_dir: Path, resume_step: int):
        """Open for appending after `resume_step`; later lines (of steps that will be done again) and a torn last one are dropped."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self._events = _open_after(run_dir / "events.jsonl", resume_step)
        self._evals = _open_after(run_dir / "evals.jsonl", resume_step)

    def step(self, event: StepEvent) -> None:
        self._events.write(json.dumps(asdict(event)) + "\n")
        self._events.flush()

    def evaluation(self, event: EvalEvent) -> None:
        self._evals.write(json.dumps(asdict(event)) + "\n")
        self._evals.flush()

    def close(self) -> None:
        self._events.close()
        self._evals.close()


def _open_after(path: Path, resume_step: int) -> TextIO:
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for number, line in enumerate(lines, 1) if _step_of(path, number, line, last=number == len(lines)) <= resume_step]
        if len(kept) < len(lines):
            partial = path.with_name(f".{path.name}.partial")
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
    return path.open("a", encoding="utf-8")


def _step_of(path: Path, number: int, line: str, last: bool) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else float("inf")
    except (json.JSONDecodeError, KeyError, TypeError):
        if last:
            return float("inf")  # cut short when the process was killed
        raise DataError(f"{path}:{number}: not an event of a run; move the file away, or use another run.dir") from None


class TensorBoard:
    """TensorBoard event files in `RUN/tensorboard`."""

    def __init__(self, run_dir: Path, resume_step: int):
        from tensorboardX import SummaryWriter  # noqa: PLC0415 - imports slowly, may be switched off

        self._writer = SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=resume_step + 1, filename_suffix=f".from{resume_step}"
        )

    def step(self, event: StepEvent) -> None:
        values = {
            "train/loss": event.loss,
            "train/z_loss": event.z_loss,
            "train/grad_norm": event.grad_norm,
            "train/learning_rate": event.learning_rate,
            "perf/step_seconds": event.step_seconds,
            "perf/tokens_per_second": event.tokens_per_second,
            "perf/mfu": event.mfu,
            "perf/memory_bytes": event.memory_bytes,
        }
        self._write(values, event.step, event.time)

    def evaluation(self, event: EvalEvent) -> None:
        values = {
            "validation/loss": event.loss,
            "validation/perplexity": event.perplexity,
            "validation/bits_per_byte": event.bits_per_byte,
        }
        self._write(values, event.step, event.time)

    def close(self) -> None:
        self._writer.close()

    def _write(self, values: dict[str, float | None], step: int, time: float) -> None:
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, step, walltime=time)


class Terminal:
    """A progress bar with the figures that matter; on a pipe, about twenty lines and every validation."""

    def __init__(self, total_steps: int, resume_step: int, stream: TextIO = sys.stdout):
        self._console = Console(file=stream, highlight=False)
        self._total = total_steps
        self._every = max((total_steps - resume_step) // 20, 1)
        self._smooth_loss: float | None = None
        self._last: StepEvent | None = None
        self._live: Progress | None = None
        if self._console.is_terminal:
            self._live = Progress(
                BarColumn(30),
                TextColumn("{task.completed:>6}/{task.total} {task.description}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._live.add_task("compiling ...", total=total_steps, completed=resume_step)
            self._live.start()

    def step(self, event: StepEvent) -> None:
        self._last = event
        before = event.loss if self._smooth_loss is None else self._smooth_loss
        self._smooth_loss = 0.9 * before + 0.1 * event.loss
        if self._live:
            self._live.update(self._task, completed=event.step, description=self._figures(event))
        elif event.step % self._every == 0 or event.step == self._total:
            self._console.print(f"step {event.step:>6}/{self._total} {self._figures(event)}", soft_wrap=True)

    def evaluation(self, event: EvalEvent) -> None:
        self._console.print(
            f"step {event.step:>6}/{self._total} validation: loss {event.loss:.4f}, perplexity {event.perplexity:.1f}, "
            f"{event.bits_per_byte:.4f} bits per byte ({event.tokens:,} tokens, {event.seconds:.1f} s)",
            soft_wrap=True,
        )

    def close(self) -> None:
        if self._live:
            self._live.stop()

    def _figures(self, event: StepEvent) -> str:
        mfu = "" if event.mfu is None else f", MFU {event.mfu:.1%}"
        memory = "" if event.memory_bytes is None else f", {event.memory_bytes / 2**30:.2f} GiB"
        return f"loss {event.loss:.4f} (mean {self._smooth_loss:.4f}), {event.tokens_per_second:,.0f} tokens/s{mfu}{memory}"


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """One more line in a file of JSON objects."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")
