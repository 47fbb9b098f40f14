"""Sinks: each step exactly once, whatever happened; TensorBoard reads what was written; the screen never holds training up."""

import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from qianyi.errors import DataError, QianyiError, ResourceError
from qianyi.events import EvalEvent, StepEvent
from qianyi.monitor.environment import record_start
from qianyi.monitor.sinks import FanOut, JsonLines, TensorBoard, append_json_line
from qianyi.monitor.terminal import Terminal
from qianyi.monitor.words import count, duration


def step_event(step: int, **values: Any) -> StepEvent:
    usual = {
        "tokens": 2048 * step,
        "loss": 10 / (1 + step / 7),
        "z_loss": 1e-4 / step,
        "balance_loss": 0.01,
        "sentence_loss": 0.6,
        "grad_norm": math.pi / step,
        "grad_noise_scale": None,
        "learning_rate": 3e-4 / 7,
        "step_seconds": 0.5,
        "tokens_per_second": 4096.0,
        "mfu": 1 / 3,
        "memory_bytes": 3 << 30,
        "time": 1.7e9 + step / 3,
    }
    return StepEvent(step=step, **{**usual, **values})


def eval_event(step: int) -> EvalEvent:
    return EvalEvent(
        step=step,
        loss=2 / 3,
        perplexity=1.95,
        bits_per_byte=0.9,
        accuracy=0.25,
        tokens=1000,
        bytes=3000,
        seconds=1.5,
        time=1.7e9 + step,
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def record(run_dir: Path, resume_step: int, last_step: int) -> None:
    """A start of the run that does the steps after `resume_step`, with a validation every second step."""
    sink = JsonLines(run_dir, resume_step)
    for step in range(resume_step + 1, last_step + 1):
        sink.step(step_event(step))
        if step % 2 == 0:
            sink.evaluation(eval_event(step))
    sink.close()


def assert_complete(run_dir: Path, last_step: int) -> None:
    assert rows(run_dir / "events.jsonl") == [asdict(step_event(step)) for step in range(1, last_step + 1)]
    assert rows(run_dir / "evals.jsonl") == [asdict(eval_event(step)) for step in range(2, last_step + 1, 2)]


def test_resume_keeps_each_step_once(tmp_path: Path) -> None:
    record(tmp_path, 0, 10)
    assert_complete(tmp_path, 10)
    record(tmp_path, 6, 12)  # killed after step 10, its checkpoint was of step 6
    assert_complete(tmp_path, 12)
    record(tmp_path, 12, 12)  # finished: nothing to do, nothing changes
    assert_complete(tmp_path, 12)
    record(tmp_path, 0, 3)  # no checkpoint left: from the beginning
    assert_complete(tmp_path, 3)


def test_a_last_line_torn_at_any_byte_is_dropped(tmp_path: Path) -> None:
    record(tmp_path, 0, 4)
    whole = (tmp_path / "events.jsonl").read_bytes()
    start = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(start, len(whole)):
        (tmp_path / "events.jsonl").write_bytes(whole[:end])
        sink = JsonLines(tmp_path, 100)
        sink.step(step_event(4))
        sink.close()
        assert (tmp_path / "events.jsonl").read_bytes() == whole


def test_a_killed_process_loses_no_step(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from test_monitor_sinks import *\n"
        "sink = JsonLines(Path(sys.argv[2]), 0); step = 0\n"
        "while True: step += 1; sink.step(step_event(step)); print(step, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    seen = 0
    while seen < 50:
        seen = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    JsonLines(tmp_path, seen).close()
    assert rows(tmp_path / "events.jsonl") == [asdict(step_event(step)) for step in range(1, seen + 1)]


@pytest.mark.parametrize("damage", [b"not json\n", b'{"loss": 1.0}\n', b"[1]\n", b"\xff\xfe\n"])
@pytest.mark.parametrize("name", ["events.jsonl", "evals.jsonl"])
def test_a_damaged_record_is_an_error_and_stays_as_it_is(tmp_path: Path, damage: bytes, name: str) -> None:
    record(tmp_path, 0, 6)
    lines = (tmp_path / name).read_bytes().splitlines(keepends=True)
    (tmp_path / name).write_bytes(lines[0] + damage + b"".join(lines[1:]))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match=rf"{name}:2: not an event"):
        JsonLines(tmp_path, 4)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_directory_in_the_place_of_the_record(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(DataError, match=r"events\.jsonl: cannot be read"):
        JsonLines(tmp_path, 0)


def test_json_holds_no_nan(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path, 0)
    sink.step(step_event(1, loss=math.nan, grad_norm=math.inf, mfu=None))
    sink.close()
    text = (tmp_path / "events.jsonl").read_text(encoding="utf-8")
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (row["loss"], row["grad_norm"], row["mfu"]) == (None, None, None)


def test_append_json_line_keeps_chinese_readable(tmp_path: Path) -> None:
    append_json_line(tmp_path / "samples.jsonl", {"text": "却说曹操"})
    append_json_line(tmp_path / "samples.jsonl", {"text": "two\nlines\u2028"})
    assert (tmp_path / "samples.jsonl").read_bytes().startswith('{"text": "却说曹操"}\n'.encode())
    lines = (tmp_path / "samples.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["text"] for line in lines[:-1]] == ["却说曹操", "two\nlines\u2028"]


@contextmanager
def files_no_longer_than(size_bytes: int) -> Iterator[None]:
    """As on a full disk, the kernel refuses writes beyond that length."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("make", "file"), [(JsonLines, "events.jsonl"), (TensorBoard, "tensorboard")])
def test_a_sink_that_cannot_write_names_its_file_and_training_can_go_on_later(tmp_path: Path, make: Any, file: str) -> None:
    sinks = FanOut([make(tmp_path, 0), other := Closing()])
    with files_no_longer_than(2000):
        with pytest.raises(ResourceError, match=rf"{file}: cannot be written: .* run the same command"):
            for step in range(1, 1000):
                sinks.step(step_event(step))
        with pytest.raises(ResourceError):
            sinks.close()
    assert other.closed
    sinks.close()  # there is room again
    record(tmp_path, 2, 5)
    assert [row["step"] for row in rows(tmp_path / "events.jsonl")][-3:] == [3, 4, 5]


class Closing:
    """A sink that notes that it was closed."""

    closed = False

    def step(self, event: StepEvent) -> None: ...

    def evaluation(self, event: EvalEvent) -> None: ...

    def close(self) -> None:
        self.closed = True


def test_tensorboard_reads_what_was_written_across_a_kill(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path, 0)
    for step in range(1, 9):
        first.step(step_event(step, loss=99.0 if step > 5 else float(step), mfu=None))
    first.evaluation(eval_event(4))
    first.evaluation(eval_event(8))  # no close: it was killed, in the middle of a record
    (file,) = (tmp_path / "tensorboard").iterdir()
    os.truncate(file, file.stat().st_size - 7)
    second = TensorBoard(tmp_path, 5)
    for step in range(6, 11):
        second.step(step_event(step, loss=float(step)))
    second.evaluation(eval_event(8))
    second.close()
    first.close()  # for this process, which was not really killed, to leave no file open

    read = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    loss = read.Scalars("train/loss")
    assert [(e.step, e.value) for e in loss] == [(step, float(step)) for step in range(1, 11)]
    assert [e.wall_time for e in loss] == [step_event(step).time for step in range(1, 11)]
    assert [e.step for e in read.Scalars("perf/mfu")] == list(range(6, 11)), "an unknown MFU is left out"
    assert [(e.step, e.value) for e in read.Scalars("validation/loss")] == [(s, pytest.approx(2 / 3)) for s in (4, 8)]
    shown = {"train/z_loss", "train/grad_norm", "train/learning_rate", "perf/tokens_per_second", "perf/step_seconds"}
    shown |= {"train/loss", "train/balance_loss", "train/sentence_loss", "perf/mfu", "perf/memory_bytes"}
    shown |= {"validation/loss", "validation/bits_per_byte", "validation/perplexity", "validation/accuracy"}
    assert set(read.Tags()["scalars"]) == shown
    assert read.Scalars("perf/memory_bytes")[0].value == 3 << 30


def test_terminal_on_a_pipe_is_brief_and_complete() -> None:
    stream = io.StringIO()
    terminal = Terminal(1000, 100, stream)
    for step in range(101, 1001):
        terminal.step(step_event(step, mfu=None if step < 500 else 0.4123))
        if step == 500:
            terminal.evaluation(eval_event(step))
    terminal.close()
    lines = stream.getvalue().splitlines()
    assert 20 <= len(lines) <= 24
    assert lines[0].startswith("step  101/1000  loss ")
    assert "MFU n/a" in lines[0] and "4,096 tokens/s" in lines[0] and "3.00 GiB" in lines[0]
    assert lines[1].endswith("ETA 7 min 12 s"), "865 steps of half a second"
    assert lines[-1].startswith("step 1000/1000") and lines[-1].endswith("MFU 41.2%  3.00 GiB  done")
    assert "validation at step 500: loss 0.6667, perplexity 1.9, 0.9000 bits per byte (1,000 tokens, 1.5 s)" in lines
    assert "\x1b" not in stream.getvalue()


def test_terminal_on_a_pipe_speaks_once_a_minute_on_a_long_run_and_shows_where_it_stopped() -> None:
    stream = io.StringIO()
    terminal = Terminal(1_000_000, 0, stream)
    for step in range(1, 101):
        terminal.step(step_event(step, time=20.0 * step))
    terminal.close()
    steps = [int(line.split()[1].split("/")[0]) for line in stream.getvalue().splitlines()]
    assert steps == list(range(1, 101, 3))
    terminal = Terminal(1_000_000, 0, stream := io.StringIO())
    for step in range(1, 5):
        terminal.step(step_event(step))
    terminal.close()
    assert "step       4/1000000" in stream.getvalue().splitlines()[-1]


def test_terminal_is_loud_about_a_loss_that_is_not_finite_and_recovers() -> None:
    stream = io.StringIO()
    terminal = Terminal(1000, 0, stream)
    for step in range(1, 51):
        terminal.step(step_event(step, loss=math.nan if step == 7 else 2.0))
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if "!!! LOSS nan !!!" in line and " 7/1000" in line]
    assert "loss 2.0000 (mean 2.0000)" in lines[-1]


def test_a_reader_that_went_away_does_not_stop_training() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    terminal = Terminal(10, 0, stream)
    for step in range(1, 11):
        terminal.step(step_event(step))
    terminal.close()
    with pytest.raises(BrokenPipeError):
        stream.close()


@contextmanager
def pseudo_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, Any]]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w") as stream:
        yield ours, stream
    os.close(ours)


def drain(terminal: int) -> str:
    text = b""
    try:
        while chunk := os.read(terminal, 65536):
            text += chunk
    except BlockingIOError:
        return text.decode()
    return text.decode()


def test_live_view_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as (screen, stream):
        terminal = Terminal(200, 0, stream)
        seen, deadline = "", time.monotonic() + 10  # it is drawn four times a second
        while "compiling ..." not in seen and time.monotonic() < deadline:
            seen += drain(screen)
            time.sleep(0.05)
        assert "compiling ..." in seen
        terminal.step(step_event(1, loss=math.inf))
        for step in range(2, 101):
            terminal.step(step_event(step, loss=3.25))
        terminal.evaluation(eval_event(100))
        terminal.close()
        last = drain(screen)
    for text in (
        "step 100/200  ETA 50 s",
        "loss 3.2500 (mean 3.2500)  4,096 tokens/s  MFU 33.3%  3.00 GiB  205k tokens",
        "validation at step 100: loss 0.6667, perplexity 1.9, 0.9000 bits per byte",
        "the loss became inf at step 1",
    ):
        assert text in last


def test_a_stopped_screen_does_not_stop_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal(monkeypatch) as (screen, stream):
        terminal = Terminal(100, 0, stream)
        flood = os.open(os.ttyname(stream.fileno()), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(flood, b"x" * 1024)
        os.close(flood)
        began = time.monotonic()
        for step in range(1, 51):
            terminal.step(step_event(step))
            terminal.evaluation(eval_event(step))
        assert time.monotonic() - began < 1
        time.sleep(0.5)  # the thread that draws is stuck by now
        terminal.step(step_event(51))
        terminal.close()
        assert time.monotonic() - began < 5
        while threading.active_count() > 1 and time.monotonic() - began < 20:
            drain(screen)
            time.sleep(0.05)


def test_every_start_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_some=1")
    monkeypatch.setattr(sys, "argv", ["qianyi", "train", "a file.yaml"])
    record_start(tmp_path, {"start_step": 0, "devices": 8})
    record_start(tmp_path, {"start_step": 20, "devices": 4})
    starts = json.loads((tmp_path / "environment.json").read_text(encoding="utf-8"))
    assert [(start["start_step"], start["devices"]) for start in starts] == [(0, 8), (20, 4)]
    assert starts[0]["command"] == "qianyi train 'a file.yaml'"
    assert starts[0]["variables"]["XLA_FLAGS"] == "--xla_some=1"
    assert starts[0]["packages"]["jax"] and starts[0]["cores"] >= 1 and starts[0]["memory_bytes"] > 1 << 28
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


def test_a_damaged_environment_is_an_error_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text("[{]", encoding="utf-8")
    with pytest.raises(QianyiError, match=r"environment\.json: not a list"):
        record_start(tmp_path, {})
    assert (tmp_path / "environment.json").read_text(encoding="utf-8") == "[{]"


def test_monitor_never_imports_jax() -> None:
    code = (
        "import sys, qianyi.monitor.sinks, qianyi.monitor.report, qianyi.monitor.environment as e; e.environment()\n"
        "sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_words() -> None:
    assert [duration(s) for s in (0.4312, 48, 59.7, 200, 4320, 3600 * 75)] == [
        *("0.43 s", "48 s", "1 min 0 s", "3 min 20 s", "1 h 12 min", "3 d 3 h")
    ]
    assert [count(n) for n in (0, 950, 1000, 12_345, 999_700, 2_097_152, 174.6e9, 15.6e12)] == [
        *("0", "950", "1.00k", "12.3k", "1.00M", "2.10M", "175B", "15.6T")
    ]
