"""Where events go: JSON lines that other tools read, TensorBoard, and (in `qianyi.monitor.terminal`) the screen."""

import errno
import json
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from qianyi.errors import DataError, ResourceError
from qianyi.events import EvalEvent, StepEvent
from qianyi.monitor.terminal import Terminal

__all__ = ["FanOut", "JsonLines", "Sink", "TensorBoard", "Terminal", "append_json_line"]


class Sink(Protocol):
    """Takes every event of a run, in order."""

    def step(self, event: StepEvent) -> None: ...

    def evaluation(self, event: EvalEvent) -> None: ...

    def close(self) -> None: ...


class FanOut:
    """One sink that is several."""

    def __init__(self, sinks: Sequence[Sink]):
        self._sinks = sinks

    def step(self, event: StepEvent) -> None:
        for sink in self._sinks:
            sink.step(event)

    def evaluation(self, event: EvalEvent) -> None:
        for sink in self._sinks:
            sink.evaluation(event)

    def close(self) -> None:
        """Close all, also when one of them fails."""
        _close_all([sink.close for sink in self._sinks])


class JsonLines:
    """`events.jsonl` and `evals.jsonl`: one object per step and per validation.

    However often a run restarts, each step is there exactly once. Floats keep their full precision; those that JSON
    cannot hold (NaN, infinities) are null.

    Raises:
        DataError: a file that is there is not the record of a run; it is left as it is.
        ResourceError: a file cannot be written.
    """

    def __init__(self, run_dir: Path, resume_step: int):
        """Open for appending after `resume_step`.

        Later lines (of steps that will be done again) and a torn last one are dropped.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self._events_path, self._evals_path = run_dir / "events.jsonl", run_dir / "evals.jsonl"
        # Both are read before either is cut: an error leaves all as it was.
        kept = {path: _kept_bytes(path, resume_step) for path in (self._events_path, self._evals_path)}
        self._events, self._evals = (_open_at(path, size_bytes) for path, size_bytes in kept.items())

    def step(self, event: StepEvent) -> None:
        _write_line(self._events, self._events_path, asdict(event))

    def evaluation(self, event: EvalEvent) -> None:
        _write_line(self._evals, self._evals_path, asdict(event))

    def close(self) -> None:
        _close_all([lambda: _close(self._events, self._events_path), lambda: _close(self._evals, self._evals_path)])


class TensorBoard:
    """TensorBoard event files in `RUN/tensorboard`, one for every start of the run.

    tensorboardX's SummaryWriter hands events to a thread: a full disk ends that thread unseen, which then blocks
    training for ever, and a kill loses what it had not written. So records are written here, in the step that they
    belong to; that takes microseconds.

    Raises:
        ResourceError: the file cannot be written.
    """

    def __init__(self, run_dir: Path, resume_step: int):
        """Steps after `resume_step` that an earlier start wrote are dropped by TensorBoard when it reads."""
        # Imported late: it takes a second, and may be switched off.
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415
        from tensorboardX.proto import event_pb2, summary_pb2  # noqa: PLC0415

        # Protocol buffers make their classes when imported, unseen by a type checker.
        event_types: Any = event_pb2
        summary_types: Any = summary_pb2
        self._event, self._summary = event_types.Event, summary_types.Summary
        self._directory = run_dir / "tensorboard"
        with _writing(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            # The name holds the time in seconds; the suffix keeps quick restarts apart.
            self._writer = EventsWriter(str(self._directory / "events"), f".{os.getpid()}.{resume_step}")
            start = event_types.SessionLog(status=event_types.SessionLog.START)
            self._writer.write_event(self._event(step=resume_step + 1, session_log=start))

    def step(self, event: StepEvent) -> None:
        values = {
            "train/loss": event.loss,
            "train/z_loss": event.z_loss,
            "train/balance_loss": event.balance_loss,
            "train/sentence_loss": event.sentence_loss,
            "train/grad_norm": event.grad_norm,
            "train/grad_noise_scale": event.grad_noise_scale,
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
            "validation/accuracy": event.accuracy,
            "validation/bits_per_byte": event.bits_per_byte,
        }
        self._write(values, event.step, event.time)

    def close(self) -> None:
        with _writing(self._directory):
            self._writer.close()

    def _write(self, values: Mapping[str, float | None], step: int, time: float) -> None:
        given = {tag: value for tag, value in values.items() if value is not None}
        summary = self._summary(value=[self._summary.Value(tag=tag, simple_value=v) for tag, v in given.items()])
        with _writing(self._directory):
            self._writer.write_event(self._event(wall_time=time, step=step, summary=summary))
            self._writer.flush()


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """One more line in a file of JSON objects.

    Raises:
        ResourceError: it cannot be written.
    """
    with _writing(path), path.open("ab") as file:
        file.write(_json_line(value))


def _kept_bytes(path: Path, resume_step: int) -> int:
    """Length of the whole lines of steps up to `resume_step`."""
    kept_bytes = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                # A line without an end was cut short when the process was killed.
                if not line.endswith(b"\n") or _step_of(path, number, line) > resume_step:
                    break
                kept_bytes += len(line)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); mend that, or use another run.dir") from None
    return kept_bytes


def _step_of(path: Path, number: int, line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{path}:{number}: not an event of a run, which is a JSON object with a `step`; nothing was changed. "
            "Move the file away, or use another run.dir"
        ) from None


def _open_at(path: Path, size_bytes: int) -> BinaryIO:
    """Cutting a file is one operation of the file system: it needs no room, and a kill finds it done or not done."""
    with _writing(path):
        file = path.open("ab")
        file.truncate(size_bytes)
        return file


def _write_line(file: BinaryIO, path: Path, value: dict[str, Any]) -> None:
    with _writing(path):
        file.write(_json_line(value))
        file.flush()


def _json_line(value: dict[str, Any]) -> bytes:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in value.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _close(file: BinaryIO, path: Path) -> None:
    with _writing(path):
        file.close()


def _close_all(closes: Sequence[Callable[[], None]]) -> None:
    """Call every one, then raise the first error."""
    errors: list[ResourceError] = []
    for close in closes:
        try:
            close()
        except ResourceError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        reason = "the disk is full; free some room" if full else f"{error.strerror or error}; make it writable"
        raise ResourceError(
            f"{path}: cannot be written: {reason} and run the same command, which continues from the newest checkpoint"
        ) from error
