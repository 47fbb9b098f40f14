"""One recipe on one target: compiled, read, and set beside the plan."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qianyi.compile.compilers import Compiled, CompileError, compile_step
from qianyi.compile.findings import Finding
from qianyi.compile.fingerprint import fingerprint
from qianyi.compile.read import Reading, read
from qianyi.compile.target import Target
from qianyi.config.load import load
from qianyi.config.schema import Config
from qianyi.errors import ConfigError
from qianyi.plan.search import Choice, cost, search

_FULL = re.compile(r"Ran out of memory in memory space hbm\. Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
_TEMPORARIES = re.compile(
    r"Ran out of memory on HBM, the total memory required for HLO temporaries "
    r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"
)
"""Said before anything is laid out, when temporaries alone are too much."""
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
TERMS = {
    "products": ("products", "head"),
    "attention": ("attention",),
    "elementwise and copies": ("elementwise", "optimizer"),
    "communication": ("tensor", "context", "experts", "stages", "weights", "gradients"),
    "bubble, overhead, jitter": ("bubble", "overhead", "jitter"),
}
"""Terms of a program, and of the plan those that they are beside."""


@dataclass(frozen=True)
class TooLarge:
    """What the TPU compiler says of a program that it refuses for its memory."""

    argument_bytes: int
    needed_bytes: int
    hbm_bytes: int
    """That the compiler gives to programs."""


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    recipe: str
    overrides: tuple[str, ...]
    config: Config
    target: Target
    plan: Choice
    """By the cost model, of the same layout."""
    compiled: Compiled | None
    result: Reading | TooLarge

    @property
    def fits(self) -> bool:
        return isinstance(self.result, Reading) and self.result.fits

    @property
    def peak_bytes(self) -> int:
        return self.result.peak_bytes if isinstance(self.result, Reading) else self.result.needed_bytes

    @property
    def planned_bytes(self) -> float:
        """By the plan, without what drivers and communicators take, which no program holds."""
        return self.plan.memory_bytes - self.plan.memory["runtime"]

    @property
    def memory_error(self) -> float:
        """Of the plan, relative to the compiler."""
        return self.planned_bytes / self.peak_bytes - 1

    def as_json(self) -> dict[str, Any]:
        head = {
            "recipe": self.recipe,
            "overrides": list(self.overrides),
            "target": self.target.cluster.name,
            "n_devices": self.target.n_devices,
            "layout": self.config.layout.words,
        }
        plan = {"step_seconds": self.plan.seconds, "memory_bytes": self.planned_bytes, "memory_error": self.memory_error}
        if isinstance(self.result, TooLarge):
            return head | refused_json(self.result, self.target) | {"plan": plan}
        assert self.compiled is not None
        return (
            head
            | self.result.as_json()
            | {
                "compile_seconds": self.compiled.compile_seconds,
                "lower_seconds": self.compiled.lower_seconds,
                "compiler_rss_bytes": self.compiled.compiler_rss_bytes,
                "versions": self.compiled.versions,
                "options": self.compiled.options,
                "plan": plan | {"terms": self.plan.terms, "memory": self.plan.memory, "beside": beside(self.result, self.plan)},
            }
        )

    def fingerprint(self) -> dict[str, Any]:
        """For `train` to compare.

        Raises:
            ValueError: nothing was compiled.
        """
        if self.compiled is None:
            raise ValueError("nothing was compiled")
        return fingerprint(
            self.config, self.compiled.device_kind, self.target.n_devices, self.compiled.options, self.compiled.versions
        )


def refused_json(refused: TooLarge, target: Target) -> dict[str, Any]:
    """The same keys as of a program that fits; what is not known is null."""
    return {
        "argument_bytes": refused.argument_bytes,
        "temp_bytes": refused.needed_bytes - refused.argument_bytes,
        "peak_bytes": refused.needed_bytes,
        "hbm_bytes": refused.hbm_bytes,
        "fits": False,
        "step_seconds": None,
        "mfu": None,
        "compile_seconds": None,
        "collectives": [],
        "findings": [vars(too_large_finding(refused, target))],
    }


def too_large_finding(refused: TooLarge, target: Target) -> Finding:
    over = refused.needed_bytes - refused.hbm_bytes
    return Finding(
        "error",
        "memory",
        f"does not fit: {refused.needed_bytes / 1e9:.1f} GB of {refused.hbm_bytes / 1e9:.1f} GB per {target.cluster.chip.name}, "
        f"{over / 1e9:.1f} too many, of which {refused.argument_bytes / 1e9:.1f} are parameters and optimizer state",
    )


def compile_recipe(recipe: str, overrides: Sequence[str], target: Target, options: Mapping[str, Any] | None = None) -> Outcome:
    """Compiles the step of a recipe for a target, with the recipe's layout if that is of as many devices, else the planner's best.

    Raises:
        ConfigError: the recipe, its layout or the target is not possible.
        CompileError: the compiler refuses the program for another reason than memory.
        ResourceError: there is no compiler.
    """
    overrides = with_layout(recipe, overrides, target)
    config = load(recipe, list(overrides)).config
    plan = cost(config, target.cluster)
    try:
        compiled = compile_step(recipe, overrides, target, options)
    except CompileError as error:
        refused = too_large(str(error), error.argument_bytes)
        if refused is None:
            raise
        return Outcome(recipe, tuple(overrides), config, target, plan, None, refused)
    return Outcome(recipe, tuple(overrides), config, target, plan, compiled, read(compiled, config, target))


def with_layout(recipe: str, overrides: Sequence[str], target: Target) -> tuple[str, ...]:
    """Overrides that make a recipe's layout one of so many devices."""
    config = load(recipe, list(overrides)).config
    if config.layout.n_devices == target.n_devices:
        return tuple(overrides)
    if any(o.startswith("layout.") for o in overrides):
        raise ConfigError(
            f"layout {config.layout.words} is of {config.layout.n_devices:,} devices, {target.cluster.name} has {target.n_devices:,}"
            f"{' (two for each chip)' if target.n_devices > target.cluster.n_chips else ''}; change either, or leave the layout to the plan"
        )
    return (*overrides, *search(recipe, target.cluster, list(overrides), keep=1).choices[0].overrides)


def too_large(message: str, argument_bytes: int) -> TooLarge | None:
    """What a compiler's message says of memory, if that is what it is about."""
    all_of_it, temporaries = _FULL.search(message), _TEMPORARIES.search(message)
    found = all_of_it or temporaries
    if found is None:
        return None
    used, limit = float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]]
    return TooLarge(argument_bytes, int(used) + (0 if all_of_it else argument_bytes), int(limit))


def beside(reading: Reading, plan: Choice) -> dict[str, dict[str, float]]:
    """Seconds by the program and by the plan, term by term. A program has its pipeline's idle ticks among its products."""
    program = dict.fromkeys(TERMS, 0.0)
    for term, seconds in reading.terms.items():
        at = term if term in {"products", "attention"} else "communication" if " over " in term else "elementwise and copies"
        program[at] += seconds
    return {name: {"program": program[name], "plan": sum(plan.terms.get(t, 0.0) for t in terms)} for name, terms in TERMS.items()}
