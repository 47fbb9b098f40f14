"""`qianyi plan`."""

import csv
import json
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path

from qianyi.config.explain import nearest
from qianyi.config.load import load
from qianyi.config.schema import AXES
from qianyi.errors import ConfigError, DataError
from qianyi.plan.describe import describe, explain
from qianyi.plan.money import parse_price
from qianyi.plan.output import plan_yaml, summary_json
from qianyi.plan.plan import Question, answer, days
from qianyi.plan.refit import read_constants
from qianyi.plan.size import amount

PRECISIONS = {"bf16": ("native",), "fp8": ("fp8",), "int8": ("int8",), "auto": ("native", "fp8", "int8")}
"""Values of model.matmul to choose among."""


def question(
    recipe: str | None,
    overrides: list[str],
    cluster: str | None,
    *,
    params: str | None = None,
    tokens: str | None = None,
    layout: str | None = None,
    precision: str | None = None,
    deadline: str | None = None,
    budget: str | None = None,
    price: str | None = None,
    constants: Path | None = None,
    keep_layout: bool = False,
) -> Question:
    """What the options of the command line ask.

    Raises:
        ConfigError: an option is not what it should be.
    """
    if cluster is None:
        raise ConfigError("plan: say where, such as --cluster h100:128x8, tpu-v5p:8x8x16 or tpu-v6e:16x16*4")
    if precision is not None and precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision}: expected {', '.join(PRECISIONS)}{nearest(precision, list(PRECISIONS))}")
    if recipe is not None:
        load(recipe, overrides)
    return Question(
        recipe=recipe,
        params=None if params is None else amount(params, "--params"),
        tokens=None if tokens is None else amount(tokens, "--tokens"),
        cluster=cluster,
        overrides=tuple(overrides),
        axes=axes(layout),
        deadline_days=None if deadline is None else days(deadline, date.today()),
        budget_dollars=None if budget is None else amount(budget.removeprefix("$"), "--budget"),
        price=None if price is None else parse_price(price),
        own=None if constants is None else read_constants(constants),
        precisions=PRECISIONS[precision] if precision else (),
        keeps_layout=keep_layout,
    )


def axes(layout: str | None) -> tuple[tuple[str, int], ...]:
    """Mesh axes that `--layout` decides.

    Raises:
        ConfigError: it is not a list of AXIS=N.
    """
    found: list[tuple[str, int]] = []
    for pair in (layout or "").split(","):
        axis, equals, size = (part.strip() for part in pair.partition("="))
        if not pair.strip():
            continue
        if axis not in AXES:
            raise ConfigError(f"--layout {pair}: unknown axis `{axis}`{nearest(axis, AXES)} (axes: {', '.join(AXES)})")
        if not equals or not size.isdigit() or int(size) < 1:
            raise ConfigError(f"--layout {pair}: expected {axis}=N with N of 1 or more")
        found.append((axis, int(size)))
    return tuple(found)


def run(asked: Question, out: Path | None, as_json: bool, explains: bool, picture: Path | None) -> None:
    """Answers, prints and writes."""
    plan = answer(asked)
    if out is not None:
        out.write_text(plan_yaml(plan))
    if picture is not None:
        from qianyi.plan.picture import picture as draw  # noqa: PLC0415

        picture.write_text(draw(plan))
    if as_json:
        print(json.dumps(summary_json(plan), indent=1))
        return
    print(describe(plan), end="")
    if explains:
        print("\n" + explain(plan), end="")
    for written in (out, picture):
        if written is not None:
            print(f"wrote {written}", file=sys.stderr)


def rows(table: Path, out: Path) -> None:
    """Predicts every row of a table."""
    from qianyi.plan.predict import ADDED, predict  # noqa: PLC0415
    from qianyi.plan.rows import read_rows  # noqa: PLC0415

    found = read_rows(table)
    if not found:
        raise DataError(f"{table}: no rows")
    predicted = [predict(row) for row in found]
    columns = [c for c in found[0] if c not in ADDED]
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *ADDED], lineterminator="\n")
        writer.writeheader()
        for row, extra in zip(found, predicted, strict=True):
            writer.writerow({c: row.get(c, "") for c in columns} | asdict(extra))
    refused = sum(bool(p.reason) for p in predicted)
    print(f"{len(found) - refused} of {len(found)} rows predicted; {refused} with a reason why not: {out}")


def calibrate(runs: list[Path], cluster: str | None, out: Path) -> None:
    """Refits the constants of the cost model from runs."""
    from qianyi.plan.cluster import cluster as parse  # noqa: PLC0415
    from qianyi.plan.refit import refit, write_constants  # noqa: PLC0415

    if cluster is None:
        raise ConfigError("--calibrate: say with --cluster what the runs ran on; a machine that is not known is a YAML file")
    on = parse(cluster)
    found = refit(runs, on)
    write_constants(out, found, on)
    for name, measured, before, after in zip(found.runs, found.measured, found.before, found.after, strict=True):
        print(
            f"{name}: {measured:.4g} s per step; predicted {before:.4g} s ({before / measured - 1:+.1%}), "
            f"refitted {after:.4g} s ({after / measured - 1:+.1%})"
        )
    print(f"{len(found.table)} constants changed: {out} (use it with `qianyi plan --constants {out}`)")
