"""The recipes that ship with Qianyi: `src/qianyi/recipes/*.yaml`."""

from importlib import resources
from pathlib import Path


def names() -> list[str]:
    """Every shipped recipe, sorted."""
    return sorted(p.stem for p in _directory().glob("*.yaml"))


def path(name: str) -> Path:
    """The file of a shipped recipe."""
    return _directory() / f"{name}.yaml"


def _directory() -> Path:
    return Path(str(resources.files("qianyi.recipes")))
