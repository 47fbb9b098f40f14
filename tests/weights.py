"""Real weights, where `make weights` has put them."""

from pathlib import Path

import pytest

_DIRECTORY = Path(__file__).parents[1] / "build" / "weights"


def real_weights(name: str) -> Path:
    """A file or directory of the packages in requirements-weights.txt; without it the test is skipped."""
    path = _DIRECTORY / name
    if not path.exists():
        pytest.skip(f"needs real weights, {name}: `make weights` downloads them")
    return path
