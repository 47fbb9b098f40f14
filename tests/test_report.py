"""The report is one page that loads nothing, says what the run's files say, and names the file that is damaged."""

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qianyi.config.load import dump, load
from qianyi.errors import DataError, ResourceError
from qianyi.events import EvalEvent, StepEvent
from qianyi.monitor.charts import MAX_POINTS, Series, chart, smooth, thin, ticks
from qianyi.monitor.record import read_run
from qianyi.monitor.report import summary, write_report
from qianyi.monitor.sinks import JsonLines

ATTACK = "<script>alert(1)</script><img src=x onerror=y> & \"quoted\" '天下'"


def step(n: int) -> StepEvent:
    seconds = 20.0 if n in {1, 101} else 0.5
    return StepEvent(
        step=n, tokens=n * 100, loss=8 - n / 50, z_loss=1e-5, balance_loss=None, sentence_loss=None, grad_norm=0.1 + n % 7,
        grad_noise_scale=None, learning_rate=1e-3, step_seconds=seconds, tokens_per_second=100 / seconds, mfu=0.4, memory_bytes=3 * 2**29,
        time=1.7e9 + n,
    )  # fmt: skip


def evaluation(n: int) -> EvalEvent:
    return EvalEvent(
        step=n, loss=4.5678, perplexity=96.3, bits_per_byte=1.2345, accuracy=0.25, tokens=1000, bytes=3700, seconds=0.5, time=1.7e9 + n
    )  # fmt: skip


def start(step: int) -> dict[str, Any]:
    return {
        "host": ATTACK,
        "start_step": step,
        "devices": 8,
        "device_kind": "cpu",
        "memory_bytes": 2**34,
        "packages": {"jax": "0.10.2"},
    }


@pytest.fixture
def least(tmp_path: Path) -> Path:
    """The files that every run has: steps, and an empty list of validations."""
    run = tmp_path / "least"
    sink = JsonLines(run, 0)
    for n in range(1, 11):
        sink.step(step(n))
    sink.close()
    return run


@pytest.fixture
def full(tmp_path: Path) -> Path:
    run = tmp_path / "all of it"
    sink = JsonLines(run, 0)
    for n in range(1, 201):
        sink.step(step(n))
        if n % 50 == 0:
            sink.evaluation(evaluation(n))
    sink.close()
    (run / "config.yaml").write_text(dump(load("quickstart", ["train.steps=200", "model.d_model=96"])), encoding="utf-8")
    write_json(run / "environment.json", [start(0), start(100)])
    write_json(run / "summary.json", {"baselines": {"uniform": 4.0, "gzip": 1.1}, "corpus": "plays"})
    counts = {"documents": 4321, "tokens": 1_000_000, "bytes": 3_140_000}
    write_json(run / "data.json", {"sources": {ATTACK: {"train": counts, "validation": {**counts, "tokens": 54_321}}}})
    how = {"temperature": 0.8, "top_p": 0.95, "seed": 7, "step": 200}
    samples = [{"prompt": f"第{n}回 却说曹操", "text": ATTACK if n == 9 else "引兵至城下", **how} for n in range(1, 10)]
    (run / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples), encoding="utf-8")
    return run


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


class Page(HTMLParser):
    """What a browser makes of the page: elements, attributes, text."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.sections: list[str] = []
        self.text = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in {"meta", "path"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        # <path><title>..</title></path> closes what was not put on the stack.
        if tag != "path":
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["h2"], ["summary"]):
            self.sections.append(data)
        if self.open[-1:] != ["style"]:
            self.text += data

    def values(self, attribute: str) -> list[str]:
        return [value for name, value in self.attributes if name == attribute]


def test_the_page_loads_nothing(full: Path) -> None:
    page = Page(write_report(full))
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "use", "image"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"src", "href", "xlink:href", "srcset", "data", "poster", "action", "background"} & names
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"https?:|//\w|@import|url\(", page.source)


def test_the_page_has_every_part(full: Path) -> None:
    page = Page(write_report(full))
    assert page.sections == [
        "Curves",
        "Bits per byte of held-out text",
        "Samples",
        "Data",
        "What the numbers mean",
        "The resolved recipe, and where each value came from",
        "The environment of each start",
    ]
    assert page.tags.count("svg") == 6
    for said in (
        *("all of it", "14 November 2023, 22:13 to 22:16 UTC", "A bilingual model", "data 4 × model 2"),
        *("1.2345", "4.5678", "96.3", "4.0000", "20.0k", "1.50 GiB", "40.0%"),
        *("median 200", "median 0.5", "at most 1.50", "last 0.001", "mean of 5 steps"),
        *(
            "continued from the checkpoint of step 100.",
            "validation, step 150: 4.568",
            "step 200, temperature 0.8, top-p 0.95, seed 7",
        ),
        *("4,321", "1,000,000", "3.14", "54,321", "d_model: 96", "# command line", "16.00 GiB", "jax 0.10.2", "plays"),
        "MFU counts model FLOPs",
    ):
        assert said in page.text, said


def test_steps_that_compile_are_left_out_of_speed_alone(full: Path) -> None:
    page = Page(write_report(full))
    curves = [value.count(",") for value in page.values("d") if value.count(",") > 4]
    # Loss (each step, mean), learning rate, gradient norm, throughput, step time, memory.
    assert curves == [200, 200, 200, 200, 198, 198, 200]


def test_what_files_say_is_text_not_markup(full: Path) -> None:
    page = Page(write_report(full))
    assert page.text.count(ATTACK) == 4, "a sample, a source and the host of two starts"
    assert "onerror" not in [name for name, _ in page.attributes]


def test_samples_are_typeset_by_language_and_the_newest_are_shown(full: Path) -> None:
    with (full / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "ROMEO:\n", "text": "But soft"}) + "\n")
    page = Page(write_report(full))
    assert page.values("lang").count("zh-Hans") == 6 and "ROMEO:\nBut soft" in page.text
    assert "第3回" in page.text and "第2回" not in page.text and "The newest 8 of 10" in page.text


def test_summary_in_plain_words(full: Path) -> None:
    assert summary(read_run(full)) == (
        "all of it trained a model of 1.08M parameters for 200 steps, 20,000 tokens, on 8 cpu devices, in 2 min 19 s of training "
        "over 2 starts.",
        "The training loss went from 7.980 to 4.000 nats per token.",
        "Held-out text takes the model 1.234 bits per byte, fewer than uniform (4.000), but no fewer than gzip (1.100).",
    )


def test_what_is_missing_is_left_out(least: Path) -> None:
    page = Page(write_report(least))
    assert page.sections == ["Curves", "What the numbers mean"]
    assert page.tags.count("svg") == 6 and "nan" not in page.text and "None" not in page.text
    assert "No held-out text was scored." in page.text and "trained a model for 10 steps, 1,000 tokens, in 24 s" in page.text


def test_one_step_with_neither_mfu_nor_memory(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path, 0)
    sink.step(replace(step(1), mfu=None, memory_bytes=None))
    sink.close()
    page = Page(write_report(tmp_path))
    assert page.tags.count("svg") == 5 and "for 1 step, 100 tokens" in page.text
    assert "run.peak_flops sets it" in page.text and "of the peak" not in page.text and "memory, at most" not in page.text


def test_a_loss_that_is_not_finite_is_said_and_is_a_gap(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path, 0)
    for n in range(1, 21):
        sink.step(replace(step(n), loss=math.nan if n == 7 else math.inf if n == 20 else 3.0))
    sink.close()
    page = Page(write_report(tmp_path))
    assert "not a finite number at step 7" in page.text and "are gaps" in page.text
    curve = next(value for value in page.values("d") if value.count(",") == 18)
    assert curve.count("M") == 2


def test_a_run_of_another_version_has_a_report(full: Path) -> None:
    (full / "config.yaml").write_text("model:\n  flavour: umami   # old.yaml:2\n", encoding="utf-8")
    page = Page(write_report(full))
    assert "flavour: umami" in page.text and "trained a model for 200 steps" in page.text


def test_the_same_run_gives_the_same_page_and_nothing_else(full: Path) -> None:
    before = {path.name for path in full.iterdir()}
    first = write_report(full).read_bytes()
    assert write_report(full).read_bytes() == first
    assert {path.name for path in full.iterdir()} - before == {"report.html"}


def test_a_last_line_cut_short_by_a_kill_is_passed_over(full: Path) -> None:
    whole = write_report(full).read_bytes()
    for name in ("events.jsonl", "evals.jsonl", "samples.jsonl"):
        with (full / name).open("ab") as file:
            file.write('{"step": 201, "text": "天'.encode()[:-1])
    assert write_report(full).read_bytes() == whole


def test_no_run(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "events.jsonl").touch()
    for path, message in (
        ("nowhere", "nowhere: no step recorded, there is no such directory"),
        ("empty", "empty/events.jsonl: no step recorded, there is no such file"),
        ("begun", "begun/events.jsonl: no step recorded, it is empty"),
    ):
        with pytest.raises(DataError, match=f"{message}; give the run.dir") as error:
            write_report(tmp_path / path)
        assert error.value.exit_code == 1
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("events.jsonl", json.dumps(asdict(step(1))) + "\nnot json\n", "events.jsonl:2: not a JSON object"),
        ("events.jsonl", '{"step": 1}\n', "events.jsonl:1: no number `tokens`"),
        ("events.jsonl", json.dumps({**asdict(step(1)), "loss": "high"}) + "\n", "events.jsonl:1: no number `loss`"),
        ("evals.jsonl", "[1]\n", "evals.jsonl:1: not a JSON object"),
        ("evals.jsonl", "\xff\n", "evals.jsonl:1: not a JSON object"),
        ("samples.jsonl", '{"prompt": 3, "text": "x"}\n', "samples.jsonl:1: no `prompt` and `text`"),
        ("environment.json", "{}", "environment.json: not a list"),
        ("summary.json", "[]", "summary.json: damaged"),
        ("summary.json", '{"baselines": {"gzip": null}}', "summary.json: damaged"),
        ("data.json", "{", "data.json: damaged"),
        ("data.json", '{"sources": {"a": {"train": {}}}}', "data.json: damaged"),
    ],
)
def test_damage_names_its_place(full: Path, name: str, content: str, message: str) -> None:
    (full / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError) as error:
        write_report(full)
    assert f"{full}/{message}" in str(error.value)
    assert not (full / "report.html").exists()


def test_a_page_that_cannot_be_written_leaves_the_old_one(full: Path) -> None:
    page = write_report(full)
    old = page.read_bytes()
    (full / ".report.html.partial").mkdir()  # stands in the way of the temporary file
    with pytest.raises(ResourceError, match=r"report\.html: cannot be written: Is a directory"):
        write_report(full)
    assert page.read_bytes() == old


def test_command_line(full: Path) -> None:
    def qianyi(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "qianyi", "report", str(path)], capture_output=True, text=True, check=False)

    done = qianyi(full)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [*summary(read_run(full)), f"report: {full / 'report.html'}"]
    missing = qianyi(full / "nowhere")
    assert (
        missing.returncode == 1 and missing.stderr.startswith(f"error: {full}/nowhere: no step recorded") and not missing.stdout
    )


def test_thinning_keeps_extremes_ends_and_gaps() -> None:
    points = [(float(n), math.sin(n)) for n in range(1_000_000)]
    odd = {12_345: -99.0, 54_321: 99.0, 700_000: math.nan}
    for n, value in odd.items():
        points[n] = (float(n), value)
    thinned = thin(points)
    assert len(thinned) <= MAX_POINTS and thinned == sorted(thinned, key=lambda p: p[0])
    assert {points[n] for n in (0, *odd, len(points) - 1)} <= set(thinned)
    assert thin(points[:MAX_POINTS]) == points[:MAX_POINTS]
    spikes = [(float(n), float(n % 2)) for n in range(MAX_POINTS + 1)]
    assert len(thin(spikes)) <= MAX_POINTS


def test_the_mean_keeps_a_slope_and_passes_over_gaps() -> None:
    line = [(float(n), 2.0 * n) for n in range(5000)]
    assert all(y == pytest.approx(2 * x) for x, y in smooth(line, 50))
    assert smooth(line, 50)[0] == line[0] and smooth(line, 50)[-1] == line[-1]
    assert [y for _, y in smooth([(0, 1.0), (1, math.nan), (2, 4.0)], 1)] == [1.0, 2.5, 4.0]


def test_a_chart_puts_values_where_they_belong() -> None:
    drawn = chart("t", "u", "n", [Series("s", [(0, 0.0), (50, 100.0)])], 100, marks=[50, 200], from_zero=True)
    assert drawn is not None
    assert drawn.curves[0].path == "M0,1000 500,56.6"
    assert [(tick.at, tick.label) for tick in drawn.x_ticks] == [(n * 10.0, str(n)) for n in range(0, 101, 20)]
    assert [mark.at for mark in drawn.marks] == [500.0]
    labels = {tick.label: tick.at for tick in drawn.y_ticks}
    assert labels["100"] == 56.6 and labels["0"] == 1000
    assert chart("t", "u", "n", [Series("s", [(0, math.nan)])], 100) is None


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 3.2, ["0", "1", "2", "3"]),
        (2.00001, 2.00004, ["2.00001", "2.00002", "2.00003", "2.00004"]),
        (0, 3e-4, ["0", "0.0001", "0.0002", "0.0003"]),
        (0, 6e-6, ["0", "2e-6", "4e-6", "6e-6"]),
        (0, 3400, ["0", "1,000", "2,000", "3,000"]),
        (0, 1e6, ["0", "0.2M", "0.4M", "0.6M", "0.8M", "1.0M"]),
        (0, 4e4, ["0", "10k", "20k", "30k", "40k"]),
        (-1, 1, ["-1.0", "-0.5", "0", "0.5", "1.0"]),
    ],
)
def test_ticks_are_round_and_told_apart(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in ticks(low, high)] == labels
