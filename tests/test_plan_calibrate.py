"""Constants: those that ship are the fit of the runs that ship, and a user's runs change them as they should."""

import csv
import json
import subprocess
import sys
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import yaml

from qianyi.cli.layout import layout_overrides
from qianyi.config.load import dump, load
from qianyi.errors import ConfigError, DataError
from qianyi.plan.calibrate import MEMORY_CONSTANTS, memory_problem, modelled_errors, time_constants, time_problem
from qianyi.plan.chips import chips
from qianyi.plan.cluster import cluster
from qianyi.plan.constants import PRIORS, constants, fitted
from qianyi.plan.plan import Question, answer
from qianyi.plan.rows import CannotPredictError, published, published_rows
from qianyi.plan.search import cost
from qianyi.plan.stack import OURS, stack, stack_of_run

ON = cluster("h100:1x8")


def residuals() -> dict[tuple[str, str], dict[str, str]]:
    text = (files("qianyi.plan.data") / "residuals.csv").read_text()
    return {(row["kind"], row["id"]): row for row in csv.DictReader(text.splitlines())}


@pytest.mark.parametrize("kind", ["time", "memory"])
def test_constants_that_ship_are_the_fit_of_the_runs_that_ship(kind: str) -> None:
    """A step of the fit from them leads nowhere, and the errors that ship are theirs: data, model and constants belong together."""
    make, names = {"time": (time_problem, time_constants()), "memory": (memory_problem, MEMORY_CONSTANTS)}[kind]
    problem, stored = make(published_rows()), residuals()
    ours = [key.split("@")[0] in names for key in problem.keys]
    x = np.array(
        [np.log(fitted()[key]) if own else mean for key, mean, own in zip(problem.keys, problem.mean, ours, strict=True)]
    )
    every = np.ones(len(problem.observed), np.bool_)
    better = problem.improved(x, problem.jacobian(x), every)
    assert problem.loss(better, every) > problem.loss(x, every) * (1 - 1e-3)
    for o, error in zip(problem.observed, problem.errors(x), strict=True):
        assert float(stored[kind, o.id]["fitted_error"]) == pytest.approx(error, abs=0.002)


def test_held_out_errors_do_not_see_their_series() -> None:
    """A series whose times are doubled is predicted as before: nothing of it reaches its own prediction."""
    few = [row for row in published_rows() if row["source_group"] in {"mpt_foundry", "maxtext_readme"}]
    problem = time_problem(few)
    left = np.array([o.series == "maxtext_TPUv4_MaxText-22B" for o in problem.observed])
    assert left.sum() > 1
    honest = problem.held_out(problem.fit())
    problem.published[left] *= 2
    changed = problem.held_out(problem.fit())
    np.testing.assert_allclose(changed[left] + np.log(2), honest[left], atol=0.01)


def test_constants_are_physical() -> None:
    for key, value in fitted().items():
        name = key.split("@")[0]
        assert name in PRIORS
        if name.endswith("efficiency"):
            assert 0.1 < value < 1.2, key
    for chip in chips():
        k = constants(stack(OURS), chip, "bf16")
        assert all(getattr(k, f.name) < 1 for f in fields(k) if f.name.endswith("efficiency"))
    assert all(error == pytest.approx(0, abs=0.08) for error in modelled_errors(published_rows()).values())


def test_every_published_row_has_a_stack_and_a_prediction_or_a_reason() -> None:
    for row in published_rows():
        assert stack_of_run(row).name
        try:
            run = published(row)
        except CannotPredictError as error:
            assert str(error)
        else:
            layout = run.case.layout
            assert layout.n_chips == pytest.approx(run.cluster.n_chips)
            assert layout.microbatches >= 1


def write_run(directory: Path, layout: str, factor: float, *overrides: str) -> float:
    """A run whose steps take so many times what is predicted; returns that time."""
    resolved = load("llama3-8b", ["train.batch_size=64", *overrides, *layout_overrides(layout)])
    seconds = factor * cost(resolved.config, ON).seconds
    directory.mkdir()
    (directory / "config.yaml").write_text(dump(resolved))
    (directory / "environment.json").write_text(json.dumps([{"start_step": 0}]))
    steps = [{"step": i, "step_seconds": seconds * (20 if i < 3 else 1)} for i in range(1, 12)]
    (directory / "events.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return seconds


def test_a_users_runs_refit_the_constants(tmp_path: Path) -> None:
    true = write_run(tmp_path / "run", "data=8", 1.25)
    out = tmp_path / "own.yaml"
    command = [sys.executable, "-m", "qianyi", "plan"]
    told = [*command, "--calibrate", str(tmp_path / "run"), "--cluster", "h100:1x8", "--out", str(out)]
    said = subprocess.run(told, capture_output=True, text=True, check=True).stdout
    assert f"{true:.4g} s per step; predicted {true / 1.25:.4g} s (-20.0%), refitted" in said
    own = yaml.safe_load(out.read_text())["constants"]
    assert {key.split("@")[0] for key in own} <= set(time_constants())
    # That run is now predicted, and one of another layout is slower by about as much: what was learned carries over.
    here = cost(load(str(tmp_path / "run" / "config.yaml")).config, ON, own=own)
    assert here.seconds == pytest.approx(true, rel=0.05)
    other = load("llama3-8b", ["train.batch_size=64", *layout_overrides("data=4,model=2")]).config
    ratio = cost(other, ON, own=own).seconds / cost(other, ON).seconds
    assert ratio == pytest.approx(1.25, rel=0.08)
    asked = Question(recipe="llama3-8b", cluster="h100:1x8", own=own)
    assert answer(asked).best.seconds > answer(Question(recipe="llama3-8b", cluster="h100:1x8")).best.seconds * 1.1


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    from qianyi.plan.refit import read_constants, refit

    with pytest.raises(DataError, match=r"there is no config\.yaml"):
        refit([tmp_path], ON)
    write_run(tmp_path / "run", "data=8", 1.0)
    with pytest.raises(ConfigError, match=r"ran on 8 devices, h100:2x8 has 16 chips"):
        refit([tmp_path / "run"], cluster("h100:2x8"))
    (tmp_path / "run" / "events.jsonl").write_text('{"step": 1, "step_seconds": 1.0}\n')
    with pytest.raises(DataError, match="0 steps after the first 3 of each start; 5 or more are needed"):
        refit([tmp_path / "run"], ON)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("constants: {matmul: 0.8}\n")
    with pytest.raises(ConfigError, match="unknown constant `matmul`"):
        read_constants(wrong)
