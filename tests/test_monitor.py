"""What the sinks write, the report reads: one run, from its first event to its page."""

import math
import random
import re
from dataclasses import replace
from pathlib import Path

from qianyi.events import EvalEvent, StepEvent
from qianyi.monitor.environment import record_start
from qianyi.monitor.record import read_run
from qianyi.monitor.report import write_report
from qianyi.monitor.sinks import FanOut, JsonLines


def step(n: int, loss: float) -> StepEvent:
    return StepEvent(
        step=n, tokens=n * 100, loss=loss, z_loss=1e-5, balance_loss=None, sentence_loss=None, grad_norm=0.1 + n, grad_noise_scale=None,
        learning_rate=1e-3 / 7, step_seconds=0.5, tokens_per_second=200.0, mfu=0.4, memory_bytes=2**30, time=1.7e9 + n,
    )  # fmt: skip


def evaluation(n: int) -> EvalEvent:
    return EvalEvent(
        step=n, loss=2.5, perplexity=math.exp(2.5), accuracy=0.25, bits_per_byte=1.2345, tokens=1000, bytes=3000, seconds=1.0,
        time=1.7e9 + n,
    )  # fmt: skip


def start(run: Path, after: int, last: int, loss: float) -> FanOut:
    """A start of the run, left open as a kill leaves it."""
    sinks = FanOut([JsonLines(run, after)])
    record_start(run, {"start_step": after, "devices": 8, "device_kind": "cpu"})
    for n in range(after + 1, last + 1):
        sinks.step(step(n, loss))
        if n % 10 == 0:
            sinks.evaluation(evaluation(n))
    return sinks


def test_a_killed_and_continued_run_is_one_run_on_its_page(tmp_path: Path) -> None:
    killed = start(tmp_path, 0, 33, loss=5.0)
    start(tmp_path, 20, 40, loss=1 / 3).close()
    run = read_run(tmp_path)
    assert list(run.events["step"]) == list(range(1, 41))
    assert list(run.events["loss"]) == [5.0] * 20 + [1 / 3] * 20
    assert list(run.evals["step"]) == [10, 20, 30, 40]
    assert run.restarts == [20] and run.bits_per_byte == 1.2345
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "over 2 starts. The training loss went from 5.000 to 0.333" in page
    assert "continued from the checkpoint of step 20." in page
    killed.close()


def test_the_mean_of_a_long_curve_does_not_end_in_one_steps_noise(tmp_path: Path) -> None:
    noise = random.Random(0)
    sink = JsonLines(tmp_path, 0)
    for n in range(1, 3001):
        sink.step(replace(step(n, noise.gauss(3.0, 0.1)), loss=9.0) if n in {1, 3000} else step(n, noise.gauss(3.0, 0.1)))
    sink.close()
    page = write_report(tmp_path).read_text(encoding="utf-8")
    each, mean = (re.findall(rf'class="curve {style}" d="M([^"]+)"', page)[0].split() for style in ("faint", "line"))
    heights = {curve: [float(point.split(",")[1]) for point in points] for curve, points in (("each", each), ("mean", mean))}
    assert heights["each"][0] == heights["each"][-1] == min(heights["each"]), "every step is still drawn"
    # A thousand units are over six nats: the mean, of noise of a tenth of a nat, stays within 0.7 of them.
    assert max(heights["mean"]) - min(heights["mean"]) < 120
