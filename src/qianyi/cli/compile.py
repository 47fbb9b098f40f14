"""`qianyi compile`."""

import math
import sys
from pathlib import Path
from typing import Any

from qianyi.cli.layout import layout_overrides
from qianyi.cli.plan import axes as plan_axes
from qianyi.compile.outcome import Outcome, compile_recipe
from qianyi.compile.report import sentence, write_report
from qianyi.compile.search import compile_best, step_seconds
from qianyi.compile.target import target as parse_target
from qianyi.config.counts import MFU_CONVENTION, parameter_count
from qianyi.config.summary import readable
from qianyi.data.stage import write_json
from qianyi.errors import ConfigError, QianyiError
from qianyi.plan.search import search

KEEP = 4
"""Layouts that a search compiles."""


class TooLargeError(QianyiError):
    """The step does not fit."""


def run(recipe: str, overrides: list[str], target: str, layout: str | None, json: Path | None, directory: Path | None) -> None:
    """Compiles one layout, prints what was read, writes the report."""
    on = parse_target(target)
    if layout:
        overrides = [*overrides, *layout_overrides(layout)]
    print(f"compiling for {on.n_devices:,} devices ({on.cluster.name}); none of them is needed ...", file=sys.stderr, flush=True)
    outcome = compile_recipe(recipe, overrides, on)
    _finish(outcome, json, directory)


def run_search(
    recipe: str, overrides: list[str], target: str, layout: str | None, json: Path | None, directory: Path | None
) -> None:
    """Compiles the planner's best layouts, prints them, and of the best all."""
    on = parse_target(target)
    found = compile_best(recipe, overrides, on, dict(plan_axes(layout)), KEEP, _say)
    print(
        f"the plan's memory is off by {found.memory_error:+.0%} at worst against the compiler (below 0: planned too small); "
        f"it was allowed {found.usable:.0%} of the chip's\n"
    )
    _finish(found.best, json, directory)


def _say(outcome: Outcome) -> None:
    seconds = step_seconds(outcome)
    time = f"{seconds:.3g} s by the program, " if math.isfinite(seconds) else ""
    print(
        f"{outcome.config.layout.words:44} {time}{outcome.plan.seconds:.3g} s by the plan; {sentence(outcome)} "
        f"(planned {outcome.planned_bytes / 1e9:.1f})",
        flush=True,
    )


def _finish(outcome: Outcome, json: Path | None, directory: Path | None) -> None:
    found = outcome.as_json()
    if json is not None:
        write_json(json, found)
    where = directory or Path("compiled") / _name(outcome)
    write_report(outcome, where)
    print("\n".join(describe(outcome, found)))
    print(f"wrote {where / 'compile.html'}, {where / 'compile.json'}")
    if not outcome.fits:
        raise TooLargeError(f"{sentence(outcome)}. {_nearest(outcome)}")


def _name(outcome: Outcome) -> str:
    """`gpt3-175b-tpu-v5p-4x8x8`."""
    recipe = Path(outcome.recipe).name.removesuffix(".yaml").removesuffix(".yml")
    return f"{recipe}-{outcome.target.cluster.name.translate(str.maketrans(':*', '-_'))}"


def _nearest(outcome: Outcome) -> str:
    """What would fit."""
    free = [o for o in outcome.overrides if not o.startswith(("layout.", "train.accumulation=", "model.remat="))]
    try:
        best = search(outcome.recipe, outcome.target.cluster, free, keep=1).choices[0]
    except ConfigError as error:
        return f"No layout is planned to fit either: {error}"
    if best.config.layout == outcome.config.layout and best.config.train.accumulation == outcome.config.train.accumulation:
        return "The plan has this layout too; `--search` compiles others"
    return f"Planned to fit: {' '.join(best.overrides)}; `--search` compiles it and others"


def describe(outcome: Outcome, found: dict[str, Any]) -> list[str]:
    """The reading in words and tables."""
    name = f"{outcome.recipe} ({readable(parameter_count(outcome.config.model))} parameters) on {outcome.target.cluster.name}"
    lines = [
        f"{name}: {sentence(outcome)}",
        f"  layout       {outcome.config.layout.words}, {outcome.config.train.accumulation} microbatches",
    ]
    if found["step_seconds"] is None:
        return [*lines, *_findings(found)]
    flops, plan, (low, high) = found["flops"], found["plan"], found["step_seconds_range"]
    lines += [
        f"  memory       arguments {_gb(found['argument_bytes'])}, temporary {_gb(found['temp_bytes'])}, peak {_gb(found['peak_bytes'])}; "
        f"the plan said {_gb(plan['memory_bytes'])} ({plan['memory_error']:+.0%})",
        f"  FLOPs        {flops['program'] / 1e15:.3g} PFLOP per device, {flops['program'] / flops['model']:.2f} of the model's; "
        f"recomputed {flops['recompute'] / flops['program']:.0%}",
        f"  step         {found['step_seconds']:.3g} s by the program ({low:.3g} to {high:.3g}; not measured), "
        f"{plan['step_seconds']:.3g} s by the plan; at the chip's peak {found['floor_seconds']:.3g} s",
        f"  MFU          {found['mfu']:.1%} so read ({MFU_CONVENTION})",
        f"  compiled in  {found['compile_seconds']:.0f} s, {found['compiler_rss_bytes'] / 1e9:.1f} GB",
        "",
        "Time of a step as read, s        program       plan",
        *(f"  {term:28} {t['program']:9.3g}  {t['plan']:9.3g}" for term, t in plan["beside"].items()),
        "",
        "A device sends in a step",
        *(
            f"  {c['kind']:18} over {c['axes']:22} {c['count']:6,} x {c['bytes_per_device'] / 1e9:9.3g} GB, {c['seconds']:.3g} s on "
            f"{c['link']}, {c['hidden_share']:.0%} hidden"
            for c in found["collectives"]
        ),
        "",
        "Largest buffers",
        *(f"  {_gb(b['bytes']):>9}  {b['count']:3} x {b['shape']:32} {b['what']:28} {b['source']}" for b in found["buffers"][:8]),
    ]
    return [*lines, *_findings(found), ""]


def _findings(found: dict[str, Any]) -> list[str]:
    return ["", "Findings", *(f"  {f['severity']:8} {f['message']}" for f in found["findings"])] if found["findings"] else []


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
