"""The best layout that really fits: the planner's best few, each compiled."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qianyi.compile.outcome import Outcome, compile_recipe
from qianyi.compile.read import Reading
from qianyi.compile.target import Target
from qianyi.errors import ConfigError
from qianyi.plan.search import USABLE, Choice, search

ROUNDS = 3
"""Of a search whose candidates are all too large: each allows the planner as much less as the last ones were over."""


@dataclass(frozen=True)
class Searched:
    """What came of it."""

    outcomes: tuple[Outcome, ...]
    """Compiled, in the order of the plan."""
    usable: float
    """Share of the memory that the plan was last allowed to fill."""

    @property
    def best(self) -> Outcome:
        """The fastest that fits, by the compiled programs."""
        return min((o for o in self.outcomes if o.fits), key=step_seconds)

    @property
    def memory_error(self) -> float:
        """Of the plan against the compiler: of all that were compiled the one that was planned too small by most."""
        return min(o.memory_error for o in self.outcomes)


def step_seconds(outcome: Outcome) -> float:
    """By the compiled program; infinite where there is none."""
    return outcome.result.step_seconds if isinstance(outcome.result, Reading) else math.inf


def compile_best(
    recipe: str,
    overrides: Sequence[str],
    target: Target,
    fixed: dict[str, int],
    keep: int,
    say: Callable[[Outcome], None],
) -> Searched:
    """Compiles the planner's best layouts. Where none fits, plans again, with as much less memory as was missing.

    Raises:
        ConfigError: nothing fits, by the plan or by the compiler.
    """
    usable, done = USABLE, list[Outcome]()
    for _ in range(ROUNDS):
        choices = search(recipe, target.cluster, list(overrides), fixed, keep=keep, usable=usable).choices
        new = [c for c in choices if not any(c.overrides == o.plan.overrides for o in done)]
        for choice in new:
            done.append(_compiled(recipe, overrides, target, choice))
            say(done[-1])
        if any(o.fits for o in done) or not new:
            break
        usable *= min([0.95, *(target.hbm_bytes_per_device / o.peak_bytes for o in done)])
    if not any(o.fits for o in done):
        least = min(done, key=lambda o: o.peak_bytes)
        raise ConfigError(
            f"{target.cluster.name}: none of {len(done)} layouts fits; the smallest, {least.config.layout.words}, needs "
            f"{least.peak_bytes / 1e9:.1f} GB of {target.hbm_bytes_per_device / 1e9:.0f}: take more chips"
        )
    return Searched(tuple(done), usable)


def _compiled(recipe: str, overrides: Sequence[str], target: Target, choice: Choice) -> Outcome:
    found = compile_recipe(recipe, [*overrides, *choice.overrides], target)
    return Outcome(found.recipe, found.overrides, found.config, found.target, choice, found.compiled, found.result)
