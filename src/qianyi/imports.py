"""Imports that libraries make only because something is installed, kept out where they would cost most of the start."""

import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without(*names: str) -> Generator[None]:
    """While packages that are not imported yet cannot be."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
