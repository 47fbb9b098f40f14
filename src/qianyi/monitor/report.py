"""One self-contained HTML page on a run: what ran, what came out, and what it ran on."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import resources
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, StrictUndefined

from qianyi import __version__
from qianyi.config.counts import parameter_count
from qianyi.config.ramp import ramp_stages
from qianyi.config.schema import Config
from qianyi.errors import ResourceError
from qianyi.monitor.charts import MAX_POINTS, Chart, Points, Series, chart, smooth
from qianyi.monitor.record import Columns, Run, read_run
from qianyi.monitor.words import count, duration, gibibytes

MAX_SAMPLES = 8
MAX_DOTS = 100
"""More validations than this are a line, not dots; more steps have their mean drawn."""


def write_report(directory: Path) -> Path:
    """Write RUN/report.html from what is in RUN.

    Raises:
        DataError: there is no run, or a file is damaged.
        ResourceError: the page cannot be written.
    """
    return write_page(read_run(directory))


def write_page(run: Run) -> Path:
    """Write RUN/report.html, whole or not at all; the same run gives the same page.

    Raises:
        ResourceError: it cannot be written.
    """
    path = run.directory / "report.html"
    partial = path.with_name(f".{path.name}.partial")
    page = _render(run).encode("utf-8", "replace")
    try:
        with partial.open("wb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise ResourceError(f"{path}: cannot be written: {error.strerror}; mend that and run `qianyi report` again") from None
    return path


def summary(run: Run) -> tuple[str, str, str]:
    """What ran, what the loss did, and what that is worth, in a sentence each."""
    return _what_ran(run), _what_the_loss_did(run), _what_it_is_worth(run)


def _what_ran(run: Run) -> str:
    model = f"a model of {count(parameter_count(run.config.model))} parameters" if run.config else "a model"
    of_all = f" of {run.config.train.steps:,}" if run.config and run.config.train.steps > run.steps else ""
    plural = "" if run.steps == 1 else "s"
    text = f"{run.name} trained {model} for {run.steps:,}{of_all} step{plural}, {run.events['tokens'][-1]:,.0f} tokens"
    if run.starts and "devices" in run.starts[-1]:
        start = run.starts[-1]
        text += f", on {start['devices']} {start.get('device_kind', '')} device{'s' if start['devices'] != 1 else ''}"
    text += f", in {duration(math.fsum(_finite(run.events['step_seconds'])))} of training"
    return text + (f" over {len(run.starts)} starts." if len(run.starts) > 1 else ".")


def _what_the_loss_did(run: Run) -> str:
    steps, losses = run.events["step"], run.events["loss"]
    broken = next((step for step, loss in zip(steps, losses, strict=True) if math.isnan(loss)), None)
    if broken is not None:
        return (
            f"The training loss was not a finite number at step {broken:,.0f}: lower the learning rate or lengthen the warm-up."
        )
    return f"The training loss went from {losses[0]:.3f} to {losses[-1]:.3f} nats per token."


def _what_it_is_worth(run: Run) -> str:
    ours = run.bits_per_byte
    if not run.evals["loss"]:
        return "No held-out text was scored."
    if math.isnan(ours):
        loss, accuracy = run.evals["loss"][-1], run.evals["accuracy"][-1]
        return f"On held-out text it is at {loss:.3f} nats per target token and has {accuracy:.1%} of them right."
    text = f"Held-out text takes the model {ours:.3f} bits per byte"
    more = [f"{name} ({value:.3f})" for name, value in run.baselines.items() if value > ours]
    fewer = [f"{name} ({value:.3f})" for name, value in run.baselines.items() if value <= ours]
    text += f", fewer than {_and(more)}" if more else ""
    return text + (f", but no fewer than {_and(fewer)}." if fewer else ".")


def _render(run: Run) -> str:
    template = resources.files("qianyi.monitor").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    begin, end = run.events["time"][0] - run.events["step_seconds"][0], run.events["time"][-1]
    return environment.from_string(template).render(
        run=run,
        version=__version__,
        when=_when(begin, end) if math.isfinite(begin + end) else "",
        summary=summary(run),
        diverged=any(map(math.isnan, run.events["loss"])),
        figures=_figures(run),
        setup=_setup(run.config) if run.config else {},
        charts=[c for c in _charts(run) if c],
        ranking=_ranking(run),
        samples=run.samples[-MAX_SAMPLES:],
        recipe=[line.rpartition(" # ") for line in run.recipe.splitlines()],
        mfu=_mfu(run),
        measured={name for name, column in run.events.items() if _finite(column)},
        starts=[{name: _shown(name, value) for name, value in start.items()} for start in run.starts],
    )


def _figures(run: Run) -> list[tuple[str, str]]:
    events, evals = run.events, run.evals
    mfu, memory = _steady(run, "mfu"), _finite(events["memory_bytes"])
    figures = [
        ("bits per byte, held out", f"{run.bits_per_byte:.4f}"),
        ("validation loss", f"{evals['loss'][-1]:.4f}" if evals["loss"] else "nan"),
        ("validation accuracy", f"{evals['accuracy'][-1]:.1%}" if evals["accuracy"] else "nan"),
        ("validation perplexity", f"{evals['perplexity'][-1]:,.1f}" if evals["perplexity"] else "nan"),
        ("training loss, last step", f"{events['loss'][-1]:.4f}"),
        ("tokens", count(events["tokens"][-1])),
        ("tokens per second", f"{_median(_steady(run, 'tokens_per_second')):,.0f}"),
        ("seconds per step", f"{_median(_steady(run, 'step_seconds')):.3g}"),
        ("of the peak FLOP/s (MFU)", f"{_median(mfu):.1%}" if mfu else "nan"),
        ("memory, at most", gibibytes(max(memory)) if memory else "nan"),
        *((name.replace("_", " "), _shown(name, value)) for name, value in run.facts.items()),
    ]
    return [(name, value) for name, value in figures if value != "nan"]


_OPTIMIZERS = {
    "adamw": "AdamW",
    "lamb": "LAMB",
    "lars": "LARS",
    "adafactor": "Adafactor",
    "lion": "Lion",
    "sgd": "SGD",
    "muon": "Muon",
}


def _setup(config: Config) -> dict[str, str]:
    m, t, layout = config.model, config.train, config.layout
    heads = f"{m.n_heads} heads" + (f" ({m.kv_heads} of keys and values)" if m.kv_heads != m.n_heads else "")
    return {
        "Model": f"{m.n_layers} layers of width {m.d_model:,}, {heads}, {m.mlp}, {m.norm}, {m.position} positions, "
        f"vocabulary {m.vocab_size:,}, {m.dtype}",
        "Batch": f"{t.batch_size:,} sequences of {t.seq_len:,} tokens: {t.batch_size * t.seq_len:,} tokens per step"
        + (f", in {t.accumulation} microbatches" if t.accumulation > 1 else "")
        + "".join(f"; {a.batch_size:,} up to step {b.first_step:,}" for a, b in pairwise(ramp_stages(t))),
        "Layout": f"{layout.words.replace(' x ', ' × ')}, ZeRO {layout.zero}",
        "Optimizer": f"{_OPTIMIZERS[config.optimizer.kind]}, learning rate {config.peak_learning_rate:g}, {config.schedule.kind} with "
        f"{config.schedule.warmup_steps:,} steps of warm-up",
    }


def _charts(run: Run) -> Iterator[Chart | None]:
    events = run.events

    def draw(title: str, unit: str, note: str, series: Sequence[Series]) -> Chart | None:
        return chart(title, unit, note, series, run.steps, run.restarts, from_zero=title != "Loss")

    def usual(title: str, unit: str, points: Points) -> Chart | None:
        return draw(title, unit, f"median {_number(_median(_finite(y for _, y in points)))}", _trend(points))

    rates, memory = _points(events, "learning_rate"), [(step, size / 2**30) for step, size in _points(events, "memory_bytes")]
    yield draw("Loss", "nats per token", f"last {_number(events['loss'][-1])}", _losses(run))
    yield draw("Learning rate", "", f"last {_number(rates[-1][1])}", [Series("", rates)])
    yield usual("Gradient norm", "", _points(events, "grad_norm"))
    yield usual("Gradient noise scale", "sequences", _points(events, "grad_noise_scale"))
    yield usual("Balance loss", "", _points(events, "balance_loss"))
    yield usual("Sentence loss", "nats per row", _points(events, "sentence_loss"))
    yield usual("Throughput", "tokens/s", _steady_points(run, "tokens_per_second"))
    yield usual("Step time", "seconds", _steady_points(run, "step_seconds"))
    yield draw("Memory", "GiB", f"at most {max(_finite(size for _, size in memory), default=0):.2f}", _trend(memory))


def _losses(run: Run) -> list[Series]:
    training, validation = _points(run.events, "loss"), _points(run.evals, "loss")
    single = Series("validation", validation, "dots" if len(validation) <= MAX_DOTS else "other")
    # The mean is drawn last, so that it stays visible among many validations.
    first, *rest = _trend(training, "training, ") if len(training) > MAX_DOTS else [Series("training", training)]
    return [first, *([single] if validation else []), *rest]


def _trend(points: Points, what: str = "") -> list[Series]:
    """Every step and, where there are too many to tell apart, the mean around it."""
    reach = len(points) // 100
    if not what and len(points) <= MAX_POINTS:
        return [Series("", points)]
    means = smooth(points, reach)
    if len(points) > MAX_POINTS:
        # The first and the last place have but one step to average: its noise would be read as where the run ended.
        means = means[1:-1]
    return [Series(f"{what}each step", points, "faint"), Series(f"{what}mean of {2 * reach + 1:,} steps", means)]


def _mfu(run: Run) -> str:
    if not _finite(run.events["mfu"]):
        return "Model FLOP/s utilization; not shown, because the peak of this device is not known (run.peak_flops sets it)."
    return (
        "Model FLOP/s utilization: the share of the devices' peak that the mathematics of the model needs. MFU counts model FLOPs, 6 per "
        "matmul parameter and token and causal attention at half of the square, and no recomputation. The peak is the vendor's dense "
        "bf16 figure, or run.peak_flops."
    )


def _ranking(run: Run) -> list[tuple[str, float, float]]:
    """Name, bits per byte and share of the largest, best first; only where there is something to compare."""
    if math.isnan(run.bits_per_byte) or not run.baselines:
        return []
    scores = {"this model": run.bits_per_byte} | run.baselines
    return [(name, value, value / max(scores.values())) for name, value in sorted(scores.items(), key=lambda s: s[1])]


def _points(columns: Columns, key: str) -> Points:
    return list(zip(columns["step"], columns[key], strict=True))


def _steady_points(run: Run, key: str) -> Points:
    """A column without the first step of every start, which includes compilation."""
    firsts = {start.get("start_step", 0) + 1 for start in run.starts} | {run.events["step"][0]}
    points = _points(run.events, key)
    return [p for p in points if p[0] not in firsts] or points


def _steady(run: Run, key: str) -> list[float]:
    return _finite(value for _, value in _steady_points(run, key))


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _median(values: list[float]) -> float:
    return median(values) if values else math.nan


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _and(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _when(begin_seconds: float, end_seconds: float) -> str:
    begin, end = (datetime.fromtimestamp(seconds, UTC) for seconds in (begin_seconds, end_seconds))
    first, last = (f"{day.day} {day:%B %Y}, " for day in (begin, end))
    return f"{first}{begin:%H:%M} to {'' if first == last else last}{end:%H:%M} UTC"


def _shown(name: str, value: Any) -> str:
    """A value of a JSON file in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(key, part)}" for key, part in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_shown(name, part) for part in value) or "none"
    if name.endswith("_bytes") and isinstance(value, int | float):
        return gibibytes(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else f"{value:,}" if type(value) is int else str(value)
