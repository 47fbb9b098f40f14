"""Golden programs: of full-size recipes, on as many H100 as their layouts ask for, the shardings of the state and what a step sends, as
compiled. `python tests/programs.py [RECIPE ...]` writes them anew; their diff is for review. It needs the compilers of `make pods`."""

import sys
from pathlib import Path

from qianyi.compile.inventory import inventory
from qianyi.compile.outcome import Outcome, compile_recipe
from qianyi.compile.target import Target, target
from qianyi.config import recipes
from qianyi.config.counts import parameter_count
from qianyi.config.load import load

DIRECTORY = Path(__file__).parent / "golden" / "programs"
FULL_SIZE = 1e9
"""Parameters from which a recipe counts as full-size."""


JAX = "0.10.2"
"""Whose programs they are."""


SLOW = {"bloom-176b", "deepseek-v3", "glm-130b", "megatron-530b", "megatron-1t", "qwen3-235b-a22b"}
"""Full-size recipes that are not recorded: XLA's backend for GPUs takes minutes for their programs (attention by blocks under a pipeline,
experts)."""


def full_size() -> list[str]:
    return [name for name in recipes.names() if parameter_count(load(name, []).config.model) >= FULL_SIZE]


def compiled(recipe: str) -> Outcome:
    """The step of a recipe, for hosts of 8 H100."""
    return compile_recipe(recipe, [], target_of(recipe))


def target_of(recipe: str) -> Target:
    return target(f"h100:{load(recipe, []).config.layout.n_devices // 8}x8")


def main(names: list[str]) -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name in names or sorted(set(full_size()) - SLOW):
        outcome = compiled(name)
        (DIRECTORY / f"{name}.txt").write_text(inventory(outcome))
        found = outcome.as_json()
        print(
            f"{name:18} {found['compile_seconds']:5.0f} s, {outcome.peak_bytes / 1e9:.1f} GB, plan {outcome.memory_error:+.0%}; "
            f"step {found['step_seconds']:.3g} s, plan {outcome.plan.seconds:.3g}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
