"""Fits the planner's constants to published runs and says how far off it is: `make calibrate`.

    python benchmarks/calibrate.py

Writes src/qianyi/plan/data/constants.yaml (the constants), src/qianyi/plan/data/residuals.csv (every run: published, fitted and held-out
prediction), docs/accuracy.md and docs/accuracy.svg. Held out means: predicted by constants that were fitted without the run's series.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import compiled_time
import numpy as np
import yaml

from qianyi.plan.calibrate import (
    MEMORY_CONSTANTS,
    Observed,
    Problem,
    memory_problem,
    modelled_errors,
    time_constants,
    time_problem,
)
from qianyi.plan.rows import published_rows

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "src" / "qianyi" / "plan" / "data"
WORST = 25
"""Misses that are listed."""
COLUMNS = ("id", "kind", "source_group", "chip", "stack", "series", "published", "fitted_error", "held_out_error")


@dataclass(frozen=True)
class Result:
    """A run and the errors of its prediction, log(predicted / published)."""

    observed: Observed
    kind: str
    fitted: float
    held_out: float

    @property
    def chip(self) -> str:
        return self.observed.run.cluster.chip.name

    @property
    def source(self) -> str:
        return self.observed.run.row["source_group"]


def results(problem: Problem, kind: str) -> tuple[list[Result], dict[str, float]]:
    """Of all runs of a problem, and its constants."""
    x = problem.fit()
    errors, without = problem.errors(x), problem.held_out(x)
    found = [Result(o, kind, float(e), float(h)) for o, e, h in zip(problem.observed, errors, without, strict=True)]
    return found, problem.table(x, MEMORY_CONSTANTS if kind == "memory" else time_constants())


def main() -> None:
    rows = published_rows()
    times, constants = results(time_problem(rows), "time")
    memories, more = results(memory_problem(rows), "memory")
    write_constants(constants | more)
    write_residuals([*times, *memories])
    (ROOT / "docs" / "accuracy.svg").write_text(picture(times))
    (ROOT / "docs" / "accuracy.md").write_text(page(times, memories, modelled_errors(rows)))
    print(summary("time", times))
    print(summary("memory", memories))


def write_constants(table: dict[str, float]) -> None:
    head = (
        "# Written by `make calibrate`: constants of the cost model by name@scope (qianyi.plan.constants says what they are).\n"
    )
    values = {key: float(f"{value:.5g}") for key, value in sorted(table.items())}
    (DATA / "constants.yaml").write_text(head + yaml.safe_dump({"constants": values}))


def write_residuals(found: Sequence[Result]) -> None:
    with (DATA / "residuals.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for r in found:
            o = r.observed
            where = (r.source, r.chip, o.run.stack.name, o.series)
            writer.writerow((o.id, r.kind, *where, f"{o.value:.6g}", f"{r.fitted:.4f}", f"{r.held_out:.4f}"))


# The page.


def spread(errors: Sequence[float]) -> tuple[float, float, float]:
    """Median, 90th percentile and bias of errors, as shares."""
    off = np.abs(np.expm1(np.asarray(errors)))
    return float(np.median(off)), float(np.quantile(off, 0.9)), float(np.expm1(np.median(errors)))


def summary(name: str, found: Sequence[Result]) -> str:
    fit, held = spread([r.fitted for r in found]), spread([r.held_out for r in found])
    return (
        f"{name}, {len(found)} runs: fitted median {fit[0]:.1%}, 90th percentile {fit[1]:.1%}; "
        f"held out median {held[0]:.1%}, 90th percentile {held[1]:.1%}"
    )


def table(found: Sequence[Result], key: Callable[[Result], str], name: str) -> list[str]:
    groups: dict[str, list[Result]] = {}
    for r in found:
        groups.setdefault(key(r), []).append(r)
    lines = [f"| {name} | runs | held out: median | 90th percentile | bias | fitted: median |", "|---|---:|---:|---:|---:|---:|"]
    for group, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        held, fit = spread([r.held_out for r in members]), spread([r.fitted for r in members])
        lines.append(f"| {group} | {len(members)} | {held[0]:.1%} | {held[1]:.1%} | {held[2]:+.1%} | {fit[0]:.1%} |")
    return lines


def page(times: Sequence[Result], memories: Sequence[Result], modelled: dict[str, float]) -> str:
    def of(kind: Callable[[Result], bool]) -> list[Result]:
        return [r for r in times if kind(r)]

    slices = {
        "all": times,
        "configuration wholly known (tier A)": of(lambda r: r.observed.run.row["tier"] == "A"),
        "TPU": of(lambda r: r.chip.startswith("tpu")),
        "GPU": of(lambda r: not r.chip.startswith("tpu")),
        "dense models": of(lambda r: not r.observed.run.case.model.n_experts),
        "mixtures of experts": of(lambda r: bool(r.observed.run.case.model.n_experts)),
    }
    lines = [
        *_INTRODUCTION,
        "## Time of a step",
        "",
        "| runs | number | held out: median | 90th percentile | bias | fitted: median | 90th percentile |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, members in slices.items():
        held, fit = spread([r.held_out for r in members]), spread([r.fitted for r in members])
        lines.append(
            f"| {name} | {len(members)} | {held[0]:.1%} | {held[1]:.1%} | {held[2]:+.1%} | {fit[0]:.1%} | {fit[1]:.1%} |"
        )
    lines += ["", *_TARGETS, "", "![Predicted against published time of a step](accuracy.svg)", ""]
    lines += [*table(times, lambda r: r.chip, "chip"), "", *table(times, lambda r: r.source, "source"), ""]
    lines += [*_calculon(times), "## Peak memory", "", summary("Measured peaks", memories) + ".", ""]
    lines += table(memories, lambda r: r.source, "source")
    words = ", ".join(f"{name} {np.expm1(error):+.1%}" for name, error in modelled.items())
    lines += ["", f"Bytes that Korthikanti et al. 2022 state by their own formulas, against ours: {words}.", ""]
    lines += _misses([*times, *memories])
    if compiled := list(compiled_time.read_table().values()):
        lines += ["", *_COMPILED, "", *compiled_time.page(compiled)]
    return "\n".join(lines) + "\n"


_COMPILED = (
    "## Beside compiled programs",
    "",
    "`python benchmarks/compiled_time.py`: Qianyi's step, compiled for the chips of published runs (`qianyi compile`), with what it",
    "says of its time; the published programs are other ones. In brackets the ratio to the published time. Below, every estimator that",
    "was tried: its constants are fitted on the other rows of the same kind of chip.",
)


def _calculon(times: Sequence[Result]) -> list[str]:
    """The runs of Korthikanti et al. 2022, on which Calculon (Isaev et al. 2023) is validated."""
    found = [r for r in times if r.source == "korthikanti22"]
    fit, held = ([abs(np.expm1(e)) for e in errors] for errors in ([r.fitted for r in found], [r.held_out for r in found]))
    return [
        "## Beside Calculon",
        "",
        "Calculon's own validation, on eight A100 configurations of Korthikanti et al. 2022, has a mean error of 3.65% and "
        "a largest of 8.87%",
        f"(run from its repository). On the {len(found)} of them that are in our table ours is {np.mean(fit):.2%} and "
        f"{max(fit):.2%} as fitted, and",
        f"{np.mean(held):.2%} and {max(held):.2%} where none of the {len(found)} was seen.",
        "",
    ]


def _misses(found: Sequence[Result]) -> list[str]:
    reasons: dict[str, str] = yaml.safe_load((files("qianyi.plan.data") / "misses.yaml").read_text())
    worst = sorted(found, key=lambda r: -abs(r.held_out))[:WORST]
    lines = [
        "## The worst misses",
        "",
        "| run | model | what | held out | fitted | why, as far as known |",
        "|---|---|---|---:|---:|---|",
    ]
    for r in worst:
        row = r.observed.run.row
        where = f"{row['model']}, {r.observed.run.cluster.name}, {r.observed.run.precision}"
        why = next((reason for start, reason in reasons.items() if r.observed.id.startswith(start)), "not known")
        lines.append(
            f"| {r.observed.id} | {where} | {r.kind} | {np.expm1(r.held_out):+.0%} | {np.expm1(r.fitted):+.0%} | {why} |"
        )
    return lines


_INTRODUCTION = [
    "# How far off the planner is",
    "",
    "`make calibrate` fits the constants of the cost model to published runs and writes this page. *Held out* is the "
    "prediction by constants",
    "that were fitted without the run's whole series (one model and stack on one machine, at several sizes): what to expect of a run that",
    "nobody has seen. *Fitted* is by the constants that ship. Runs: `src/qianyi/plan/data/published_runs.csv`, with their "
    "sources; errors of",
    "each: `residuals.csv` beside it. Rows that do not give a step's time (averages over whole runs, times that include "
    "evaluation) or leave",
    "out too much (tier C) are predicted by `qianyi plan --rows` but not counted here.",
    "",
]
_TARGETS = [
    "The aim is a median of 5% and a 90th percentile of 15%, held out. What is above it is said in the table; the causes are below.",
]

# The picture.

SIZE, LEFT, TOP = 640, 70, 60
COLORS = (
    *("#2f6db3", "#c0392b", "#3f8f5f", "#d9822b", "#7a4fb5", "#0f7b7b", "#8a6d3b", "#b03a77"),
    *("#57606a", "#1f2328", "#5b9bd5", "#e0a030", "#00a0c0", "#a0c040", "#d06060", "#606000"),
)


def picture(found: Sequence[Result]) -> str:
    """Held-out predictions against published times, both logarithmic; lines at 15%."""
    seconds = [v for r in found for v in (r.observed.value, r.observed.value * np.exp(r.held_out))]
    low, high = np.log10(min(seconds)) - 0.1, np.log10(max(seconds)) + 0.1

    def at(value: float) -> float:
        return (np.log10(value) - low) / (high - low) * SIZE

    chips = list(dict.fromkeys(sorted(r.chip for r in found)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIZE + LEFT + 190}" height="{SIZE + TOP + 60}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="{SIZE + LEFT + 190}" height="{SIZE + TOP + 60}" fill="#ffffff"/>',
        '<text x="16" y="28" font-size="17" font-weight="bold">Time of a step: predicted without the run\'s series, and published</text>',
        f'<rect x="{LEFT}" y="{TOP}" width="{SIZE}" height="{SIZE}" fill="none" stroke="#d0d7de"/>',
    ]
    for factor, dash in ((1.0, ""), (1.15, ' stroke-dasharray="4 4"'), (1 / 1.15, ' stroke-dasharray="4 4"')):
        shift = np.log10(factor) / (high - low) * SIZE
        begin, end = max(0.0, -shift), min(float(SIZE), SIZE - shift)
        parts.append(
            f'<line x1="{LEFT + begin:.1f}" y1="{TOP + SIZE - begin - shift:.1f}" x2="{LEFT + end:.1f}" '
            f'y2="{TOP + SIZE - end - shift:.1f}" stroke="#9aa4af"{dash}/>'
        )
    for tick in (0.3, 1, 3, 10, 30, 100, 300):
        if low < np.log10(tick) < high:
            x = at(tick)
            parts.append(f'<text x="{LEFT + x:.0f}" y="{TOP + SIZE + 18}" text-anchor="middle">{tick:g} s</text>')
            parts.append(f'<text x="{LEFT - 8}" y="{TOP + SIZE - x + 4:.0f}" text-anchor="end">{tick:g} s</text>')
    for r in found:
        x, y = at(r.observed.value), at(r.observed.value * np.exp(r.held_out))
        color = COLORS[chips.index(r.chip) % len(COLORS)]
        title = escape(f"{r.observed.id}: {np.expm1(r.held_out):+.0%}")
        place = f'cx="{LEFT + x:.1f}" cy="{TOP + SIZE - y:.1f}" r="3"'
        parts.append(f'<circle {place} fill="{color}" fill-opacity="0.75"><title>{title}</title></circle>')
    for i, chip in enumerate(chips):
        y = TOP + 14 + 19 * i
        parts.append(f'<circle cx="{LEFT + SIZE + 20}" cy="{y - 4}" r="4" fill="{COLORS[i % len(COLORS)]}"/>')
        parts.append(f'<text x="{LEFT + SIZE + 30}" y="{y}">{chip}</text>')
    parts.append(
        f'<text x="{LEFT + SIZE / 2}" y="{TOP + SIZE + 42}" text-anchor="middle" fill="#57606a">published; dashed: 15% off</text>'
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
