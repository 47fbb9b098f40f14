"""Fits the constants of the cost model to published runs: `make calibrate`.

Least squares of log(predicted / published), robust to outliers, with a prior on every constant (in logarithms, so that a constant stays
positive). What is fitted is physical: efficiencies by generation of chips, habits by lineage of software, and paces of chips and stacks
that are held near 1. `held_out` predicts each series of runs with constants that were fitted without it: the error to expect for a run
that nobody has seen.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from qianyi.plan.case import Case, Number
from qianyi.plan.constants import PRIORS, Constants, Table, possible, scope_key
from qianyi.plan.memory import memory, total_bytes
from qianyi.plan.rows import CannotPredictError, Published, Row, published
from qianyi.plan.step import step_seconds

NOISE = 0.05
"""Spread of a well-described run about a perfect model, in logarithms: repeated runs of one configuration and hidden settings."""
POORER = 1.3
"""The same of runs that leave out a part of their configuration, relative to those that do not (tier B of the table)."""
MICRO = 1e-4
"""Step of numerical derivatives."""
STEPS = 60
REFITS = 4
"""Steps to the constants without one series, from those with it; derivatives change little on the way."""
LONGEST_STEP = 0.7
"""That the logarithm of a constant may change by at once."""
KINDS = ("bench", "production")
"""Rows that give the time of a step; others are averages over whole runs, or include evaluation."""
TIERS = ("A", "B")
"""Rows whose configuration is known, wholly or but for settings that a stack has by default."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Prediction = Callable[[Case, Constants], Number]


@dataclass(frozen=True)
class Observed:
    """A run and what was published of it."""

    run: Published
    value: float

    @property
    def id(self) -> str:
        return self.run.row["id"]

    @property
    def series(self) -> str:
        """Runs that are not independent of each other: one model and stack on one machine, at several sizes."""
        return self.run.row.get("series") or self.id


def step_times(rows: Iterable[Row]) -> list[Observed]:
    """Runs whose step time is known well enough to fit."""
    found: list[Observed] = []
    for row in rows:
        if row.get("row_kind") in KINDS and row.get("tier") in TIERS and not row.get("excluded"):
            run = _published(row)
            if run is not None and run.seconds is not None:
                found.append(Observed(run, run.seconds))
    return found


def peak_bytes(rows: Iterable[Row]) -> list[Observed]:
    """Runs whose peak memory was measured (not modelled)."""
    found: list[Observed] = []
    for row in rows:
        if row.get("published_mem_gb") and "modelled" not in row.get("mem_kind", "") and row.get("tier") in TIERS:
            run = _published(row)
            if run is not None and not row.get("excluded"):
                found.append(Observed(run, 1e9 * float(row["published_mem_gb"])))
    return found


def _published(row: Row) -> Published | None:
    try:
        return published(row)
    except CannotPredictError:
        return None


class Problem:
    """Runs as one case of arrays, and which entry of the vector of constants each run uses."""

    def __init__(self, observed: Sequence[Observed], predicted: Prediction, start: Table | None = None) -> None:
        self.observed = list(observed)
        self.predicted = predicted
        self.case = Case.stack([o.run.case for o in observed])
        self.published = np.array([o.value for o in observed], np.float64)
        entries: dict[str, int] = {}
        self.index = {f.name: np.array([self._entry(f.name, o, entries) for o in observed]) for f in fields(Constants)}
        self.keys = list(entries)
        priors = [PRIORS[key.split("@")[0]].of(key) for key in self.keys]
        self.mean = np.log(np.array([(start or {}).get(key, mean) for key, (mean, _) in zip(self.keys, priors, strict=True)]))
        self.spread = np.array([spread for _, spread in priors])
        self.noise = np.array([NOISE if o.run.row.get("tier") == "A" else NOISE * POORER for o in observed])

    @staticmethod
    def _entry(name: str, observed: Observed, entries: dict[str, int]) -> int:
        run = observed.run
        return entries.setdefault(scope_key(name, run.stack, run.cluster.chip, run.group), len(entries))

    def constants(self, x: Floats) -> Constants:
        values = np.exp(x)
        return possible(Constants(**{name: values[at] for name, at in self.index.items()}))

    def errors(self, x: Floats) -> Floats:
        """log(predicted / published) of every run."""
        return np.log(self.predicted(self.case, self.constants(x)) / self.published)

    def jacobian(self, x: Floats) -> Floats:
        """Derivatives of the errors, [runs, entries]. A run uses one entry of each constant, so all entries of one are moved at once."""
        here, out = self.errors(x), np.zeros((len(self.observed), len(x)))
        rows = np.arange(len(self.observed))
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
        errors = self.errors(x)
        weights = np.where(use, 1 / (np.sqrt(1 + (errors / self.noise) ** 2) * self.noise**2), 0.0)
        left = slopes.T @ (weights[:, None] * slopes) + np.diag(1 / self.spread**2)
        right = slopes.T @ (weights * errors) + (x - self.mean) / self.spread**2
        step = -np.linalg.solve(left, right)
        step *= min(1.0, LONGEST_STEP / float(np.abs(step).max()))
        before = self.loss(x, use)
        for shorter in (1.0, 0.5, 0.25, 0.1, 0.03):
            if self.loss(x + shorter * step, use) < before:
                return x + shorter * step
        return x

    def fit(self) -> Floats:
        """The logarithms of the constants."""
        every = np.ones(len(self.observed), np.bool_)
        x = self.mean
        for _ in range(STEPS):
            better = self.improved(x, self.jacobian(x), every)
            if np.abs(better - x).max() < 1e-4:
                break
            x = better
        return x

    def held_out(self, x: Floats) -> Floats:
        """log(predicted / published) of every run, by constants that were fitted without its series; `x`: those of all runs."""
        slopes = self.jacobian(x)
        series = np.array([o.series for o in self.observed])
        out = np.zeros(len(self.observed))
        for name in np.unique(series):
            left = series == name
            without = x
            for _ in range(REFITS):
                without = self.improved(without, slopes, ~left)
            out[left] = self.errors(without)[left]
        return out

    def table(self, x: Floats, names: Iterable[str]) -> Table:
        """The entries of some constants."""
        wanted = set(names)
        found = zip(self.keys, np.exp(x), strict=True)
        return {key: float(value) for key, value in found if key.split("@")[0] in wanted}


MEMORY_CONSTANTS = ("runtime_bytes", "allocation")


def time_problem(rows: Iterable[Row]) -> Problem:
    return Problem(step_times(rows), step_seconds)


def memory_problem(rows: Iterable[Row]) -> Problem:
    return Problem(peak_bytes(rows), total_bytes)


def time_constants() -> list[str]:
    return [f.name for f in fields(Constants) if f.name not in MEMORY_CONSTANTS]


def modelled_errors(rows: Iterable[Row]) -> dict[str, float]:
    """log(predicted / modelled) where a source gives bytes by its own formulas, without a runtime's."""
    out: dict[str, float] = {}
    for row in rows:
        if "modelled" in row.get("mem_kind", "") and row.get("published_mem_gb"):
            run = _published(row)
            if run is not None:
                bytes_ = float(np.sum([np.ravel(v)[0] for v in memory(run.case).values()]))
                out[row["id"]] = float(np.log(bytes_ / (1e9 * float(row["published_mem_gb"]))))
    return out
