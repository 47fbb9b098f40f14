"""Events are recorded exactly once, read back equal, and the report is one page that needs nothing else."""

import io
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from qianyi.errors import DataError
from qianyi.events import EvalEvent, StepEvent
from qianyi.monitor.sinks import FanOut, JsonLines, TensorBoard, Terminal


def step(n: int, loss: float = 1 / 3) -> StepEvent:
    return StepEvent(
        step=n, tokens=n * 100, loss=loss, z_loss=1e-5, grad_norm=0.1 + n, learning_rate=1e-3 / 7, step_seconds=0.5 if n > 1 else 20.0,
        tokens_per_second=200.0, mfu=0.4, memory_bytes=2**30, time=1e9 + n,
    )  # fmt: skip


def evaluation(n: int) -> EvalEvent:
    return EvalEvent(
        step=n,
        loss=2.5,
        perplexity=math.exp(2.5),
        bits_per_byte=1.2345,
        tokens=1000,
        bytes=3000,
        seconds=1.0,
        time=1e9 + n,
    )


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_keep_full_precision(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path, 0)
    events = [step(n, loss=1 / n) for n in range(1, 6)]
    for event in events:
        sink.step(event)
    sink.evaluation(evaluation(5))
    sink.close()
    assert rows(tmp_path / "events.jsonl") == [asdict(e) for e in events]
    assert rows(tmp_path / "evals.jsonl") == [asdict(evaluation(5))]


def test_each_step_once_after_a_kill(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path, 0)
    for n in range(1, 8):
        sink.step(step(n))
        sink.evaluation(evaluation(n))
    sink.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a kill in the middle of a line
    again = JsonLines(tmp_path, 4)
    again.step(step(5, loss=9.0))
    again.close()
    assert [r["step"] for r in rows(tmp_path / "events.jsonl")] == [1, 2, 3, 4, 5]
    assert rows(tmp_path / "events.jsonl")[-1]["loss"] == 9.0
    assert [r["step"] for r in rows(tmp_path / "evals.jsonl")] == [1, 2, 3, 4]


def test_foreign_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("my notes\nmore\n")
    with pytest.raises(DataError, match=r"events\.jsonl:1: not an event"):
        JsonLines(tmp_path, 3)
    assert (tmp_path / "events.jsonl").read_text() == "my notes\nmore\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_back_equal(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = TensorBoard(tmp_path, 0)
    for n in range(1, 6):
        first.step(step(n, loss=float(n)))
    first.close()
    second = TensorBoard(tmp_path, 3)  # continued after step 3: 4 and 5 are done again
    for n in range(4, 7):
        second.step(step(n, loss=float(10 * n)))
    second.evaluation(evaluation(6))
    second.close()
    accumulator = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    read = [(s.step, s.value) for s in accumulator.Scalars("train/loss")]
    assert read == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]
    assert accumulator.Scalars("validation/bits_per_byte")[0].value == pytest.approx(1.2345)
    assert accumulator.Scalars("perf/mfu")[0].value == pytest.approx(0.4)


def test_terminal_on_a_pipe_is_short(tmp_path: Path) -> None:
    out = io.StringIO()
    sink = FanOut([Terminal(1000, 0, out), JsonLines(tmp_path, 0)])
    for n in range(1, 1001):
        sink.step(step(n))
    sink.evaluation(evaluation(1000))
    sink.close()
    lines = out.getvalue().splitlines()
    assert 15 <= len(lines) <= 30
    assert "1000/1000" in lines[-2] and "MFU 40.0%" in lines[-2] and "200 tokens/s" in lines[-2]
    assert "1.2345 bits per byte" in lines[-1]
