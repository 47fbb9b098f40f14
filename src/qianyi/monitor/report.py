"""One self-contained HTML page on a run: what ran, what came out, and what it ran on."""

import json
import statistics
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment

from qianyi.errors import DataError
from qianyi.monitor.charts import Series, line_chart

Json = dict[str, Any]


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html from what is in RUN; only events.jsonl must be there.

    Raises:
        DataError: there is no run in that directory.
    """
    events = _json_lines(run_dir / "events.jsonl")
    if not events:
        raise DataError(f"{run_dir / 'events.jsonl'}: no step recorded there; RUN is the run.dir of `qianyi train`")
    evals = _json_lines(run_dir / "evals.jsonl")
    starts = _json_if_any(run_dir / "environment.json") or []
    summary = _json_if_any(run_dir / "summary.json") or {}
    restarts = [s["start_step"] for s in starts if s.get("start_step")]
    template = Environment(autoescape=True).from_string(
        resources.files("qianyi.monitor").joinpath("report.html").read_text(encoding="utf-8")
    )
    page = template.render(
        title=run_dir.resolve().name,
        lead=_lead(events, evals, starts, summary),
        figures=_figures(events, evals),
        charts=_charts(events, evals, restarts),
        restarts=restarts,
        scores=_scores(evals, summary),
        samples=_json_lines(run_dir / "samples.jsonl")[-8:],
        sources=(_json_if_any(run_dir / "data.json") or {}).get("sources"),
        mfu_note=_mfu_note(events),
        recipe=(run_dir / "config.yaml").read_text(encoding="utf-8") if (run_dir / "config.yaml").exists() else None,
        starts=json.dumps(starts, indent=1, ensure_ascii=False) if starts else None,
    )
    path = run_dir / "report.html"
    partial = path.with_name(".report.html.partial")
    partial.write_text(page, encoding="utf-8")
    partial.rename(path)
    return path


def headline(run_dir: Path) -> str:
    """The report's first paragraph."""
    summary = _json_if_any(run_dir / "summary.json") or {}
    starts = _json_if_any(run_dir / "environment.json") or []
    return _lead(_json_lines(run_dir / "events.jsonl"), _json_lines(run_dir / "evals.jsonl"), starts, summary)


def _lead(events: list[Json], evals: list[Json], starts: list[Json], summary: Json) -> str:
    last = events[-1]
    text = f"{last['step']:,} steps over {last['tokens']:,} tokens"
    if starts:
        where = starts[-1]
        text += f" on {where['devices']} {where['device_kind']} device(s) of {where['host']}"
        text += f", in {len(starts)} starts" if len(starts) > 1 else ""
    text += f". The training loss went from {events[0]['loss']:.3f} to {last['loss']:.3f} nats per token."
    if evals:
        text += f" On held-out text the model needs {evals[-1]['bits_per_byte']:.3f} bits per byte"
        baselines = summary.get("baselines", {})
        text += f" ({', '.join(f'{name} {value:.3f}' for name, value in baselines.items())})." if baselines else "."
    return text


def _figures(events: list[Json], evals: list[Json]) -> list[tuple[str, str]]:
    steady = _steady(events)
    seconds = sum(e["step_seconds"] for e in events)
    figures = [("training loss, last step", f"{events[-1]['loss']:.4f}")]
    if evals:
        figures += [
            ("validation loss", f"{evals[-1]['loss']:.4f}"),
            ("perplexity per token", f"{evals[-1]['perplexity']:.1f}"),
            ("bits per byte", f"{evals[-1]['bits_per_byte']:.4f}"),
        ]
    figures += [
        ("tokens per second", f"{statistics.median(e['tokens_per_second'] for e in steady):,.0f}"),
        ("seconds per step", f"{statistics.median(e['step_seconds'] for e in steady):.3g}"),
        ("minutes of training", f"{seconds / 60:.1f}"),
    ]
    mfus = [e["mfu"] for e in steady if e["mfu"] is not None]
    memory = [e["memory_bytes"] for e in events if e["memory_bytes"] is not None]
    if mfus:
        figures.append(("MFU", f"{statistics.median(mfus):.1%}"))
    if memory:
        figures.append(("memory, most", f"{max(memory) / 2**30:.2f} GiB"))
    return figures


def _steady(events: list[Json]) -> list[Json]:
    """Events without those that include compilation: many times the median step."""
    limit = 5 * statistics.median(e["step_seconds"] for e in events)
    return [e for e in events if e["step_seconds"] <= limit]


def _charts(events: list[Json], evals: list[Json], restarts: list[int]) -> list[str]:
    steady = _steady(events)

    def points(rows: list[Json], key: str, scale: float = 1.0) -> list[tuple[float, float]]:
        return [(row["step"], row[key] * scale) for row in rows if row[key] is not None]

    loss = [Series("training", points(events, "loss"))]
    if evals:
        loss.append(Series("validation", points(evals, "loss"), dots=True))
    return [
        line_chart("Loss", "nats per token", loss, restarts),
        line_chart("Gradient norm", "before clipping", [Series("norm", points(events, "grad_norm"))], restarts, from_zero=True),
        line_chart("Learning rate", "", [Series("rate", points(events, "learning_rate"))], restarts, from_zero=True),
        line_chart(
            "Throughput",
            "tokens per second",
            [Series("rate", points(steady, "tokens_per_second"))],
            restarts,
            from_zero=True,
        ),
        line_chart("Step time", "seconds", [Series("time", points(steady, "step_seconds"))], restarts, from_zero=True),
        line_chart("Memory", "GiB", [Series("memory", points(events, "memory_bytes", 2**-30))], restarts, from_zero=True),
    ]


def _scores(evals: list[Json], summary: Json) -> list[Json]:
    baselines = summary.get("baselines", {})
    if not evals or not baselines:
        return []
    rows = [
        ("this model", evals[-1]["bits_per_byte"], True),
        *((name, value, False) for name, value in baselines.items()),
    ]
    top = max(value for _, value, _ in rows)
    return [{"name": name, "value": value, "ours": ours, "share": value / top} for name, value, ours in rows]


def _mfu_note(events: list[Json]) -> str:
    if all(e["mfu"] is None for e in events):
        return "MFU is not shown: the peak of this device is not known."
    return (
        "MFU counts model FLOPs: 6 per matmul parameter and token, and causal attention at half of the square; recomputation is not "
        "counted. The peak is the vendor's dense bf16 figure, or run.peak_flops."
    )


def _json_lines(path: Path) -> list[Json]:
    if not path.exists():
        return []
    rows: list[Json] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):  # the last may be cut short by a kill
                raise DataError(f"{path}:{number}: broken JSON; mend or delete that line") from None
    return rows


def _json_if_any(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: broken JSON; delete the file to leave its part out") from None
