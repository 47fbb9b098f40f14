"""Fits the constants of the cost model to published runs: `make calibrate`.

Least squares of log(predicted / published), robust to outliers, with a prior on every constant (in logarithms, so that a constant stays
positive). What is fitted is physical: efficiencies by generation of chips, habits by software stack, one `pace` for each stack,
generation and
precision, shrunk to 1. `held_out` predicts each series of runs with constants fitted without it: the error to expect for a run nobody
has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from qianyi.plan.case import Case
from qianyi.plan.constants import PRIORS, Constants, Table, scope_key
from qianyi.plan.rows import Published
from qianyi.plan.step import step_seconds

NOISE = 0.03
"""Spread of a well-described run about a perfect model, in logarithms: runs of one configuration differ by about so much."""
POORER = 2.0
"""The same of runs that leave out a part of their configuration, relative to those that do not (tiers B and C of the table)."""
MICRO = 1e-4
"""Step of numerical derivatives."""

STEPS = 40
REFITS = 4
"""Steps to the constants without one series, from those with it; derivatives change little on the way."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Fit:
    """Constants and how they were found."""

    table: Table
    residuals: dict[str, float]
    """log(predicted / published) by row."""


class Problem:
    """Rows as one case of arrays, and which entry of the vector of constants each row uses."""

    def __init__(self, runs: Sequence[Published]) -> None:
        self.runs = list(runs)
        self.case = Case.stack([r.case for r in runs])
        self.seconds = np.array([r.seconds for r in runs], np.float64)
        self.names = [f.name for f in fields(Constants)]
        self.keys: list[str] = []
        index: dict[str, int] = {}
        self.index: dict[str, NDArray[np.int64]] = {}
        for name in self.names:
            at: list[int] = []
            for run in runs:
                key = scope_key(name, run.stack, run.cluster.chip, run.group)
                if key not in index:
                    index[key] = len(index)
                    self.keys.append(key)
                at.append(index[key])
            self.index[name] = np.array(at)
        priors = [PRIORS[key.split("@")[0]].of(key) for key in self.keys]
        self.mean = np.log(np.array([p[0] for p in priors]))
        self.spread = np.array([p[1] for p in priors])
        self.noise = np.array([NOISE if r.row.get("tier") == "A" else NOISE * POORER for r in runs])

    def constants(self, x: Floats) -> Constants:
        values = np.exp(x)
        return Constants(**{name: values[self.index[name]] for name in self.names})

    def errors(self, x: Floats) -> Floats:
        """log(predicted / published) of every row."""
        return np.log(step_seconds(self.case, self.constants(x)) / self.seconds)

    def jacobian(self, x: Floats) -> Floats:
        """Derivatives of the errors, [rows, entries]. A row uses one entry of each constant, so all entries of one are moved at once."""
        here, out = self.errors(x), np.zeros((len(self.runs), len(x)))
        rows = np.arange(len(self.runs))
        for at in self.index.values():
            moved = x.copy()
            moved[at] += MICRO
            out[rows, at] = (self.errors(moved) - here) / MICRO
        return out

    def loss(self, x: Floats, use: Bools) -> float:
        """Soft L1 of the errors, and squares of the distances from the priors."""
        scaled = self.errors(x)[use] / self.noise[use]
        return float(np.sum(2 * (np.sqrt(1 + scaled**2) - 1)) + np.sum(((x - self.mean) / self.spread) ** 2))

    def improved(self, x: Floats, slopes: Floats, use: Bools) -> Floats:
        """One step of Gauss and Newton from `x`, shortened until it is better."""
        scaled = self.errors(x) / self.noise
        weights = np.where(use, 1 / (np.sqrt(1 + scaled**2) * self.noise**2), 0.0)
        left = slopes.T @ (weights[:, None] * slopes) + np.diag(1 / self.spread**2)
        right = slopes.T @ (weights * self.errors(x)) + (x - self.mean) / self.spread**2
        step = -np.linalg.solve(left, right)
        step *= min(1.0, 0.7 / float(np.abs(step).max()))
        before = self.loss(x, use)
        for shorter in (1.0, 0.5, 0.25, 0.1, 0.03):
            if self.loss(x + shorter * step, use) < before:
                return x + shorter * step
        return x

    def fit(self, use: Bools | None = None) -> Floats:
        """The constants that fit the rows in `use`."""
        chosen = np.ones(len(self.runs), np.bool_) if use is None else use
        x = self.mean
        for _ in range(STEPS):
            better = self.improved(x, self.jacobian(x), chosen)
            if np.abs(better - x).max() < 1e-4:
                break
            x = better
        return x

    def table(self, x: Floats) -> Table:
        return {key: float(value) for key, value in zip(self.keys, np.exp(x), strict=True)}


def fit(runs: Sequence[Published]) -> Fit:
    """Constants from all of some runs."""
    problem = Problem(runs)
    x = problem.fit()
    return Fit(problem.table(x), {r.row["id"]: float(e) for r, e in zip(runs, problem.errors(x), strict=True)})


def held_out(runs: Sequence[Published]) -> dict[str, float]:
    """log(predicted / published) of every row, by constants that were fitted without its series."""
    problem = Problem(runs)
    x = problem.fit()
    slopes = problem.jacobian(x)
    series = np.array([r.row.get("series") or r.row["id"] for r in runs])
    out = np.zeros(len(runs))
    for name in np.unique(series):
        left = series == name
        without = x
        for _ in range(REFITS):
            without = problem.improved(without, slopes, ~left)
        out[left] = problem.errors(without)[left]
    return {r.row["id"]: float(e) for r, e in zip(runs, out, strict=True)}
