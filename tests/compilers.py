"""Compilers for chips that are not here; tests that need one are skipped where there is none.

They are packages that ordinary environments do without (a CUDA plugin complains wherever there is no GPU), so they are looked for in
`.venv-pods` beside this repository's other environments too, where `make pods` puts them.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from qianyi.compile.compilers import PACKAGES, WHERE, Compiled, compile_step
from qianyi.compile.target import target
from qianyi.config.schema import Config

BESIDE = Path(__file__).parents[1] / ".venv-pods"


def find_compilers() -> None:
    """Tells Qianyi and the commands that tests start where compilers are, unless that is said already."""
    if BESIDE.is_dir():
        os.environ.setdefault(WHERE, str(BESIDE))


def need(platform: str) -> None:
    """Skips the test where there is no compiler for a platform, `tpu` or `cuda`."""
    paths = [os.environ.get(WHERE, ""), *sys.path]
    missing = [package for package in PACKAGES[platform] if not any(Path(path, package).is_dir() for path in paths)]
    if missing:
        pytest.skip(f"no compiler for {platform}: {', '.join(missing)} not found in {BESIDE.name}, {WHERE} or this environment")


def write_recipe(config: Config, directory: Path) -> str:
    """The path of a recipe that says all."""
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return str(path)


def compile_apart(
    config: Config, on: str, directory: Path, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> Compiled:
    """The step of a recipe, compiled for a target in a process in which warnings are errors."""
    need(target(on).platform)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "error")
        return compile_step(write_recipe(config, directory), overrides, target(on), options)
