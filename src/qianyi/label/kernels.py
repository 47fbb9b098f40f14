"""Loops over bytes and numbers, compiled by numba; they hold no lock, so threads run them side by side."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """Compiled at the first call with its types, and kept on disk."""
    return cast(Function, njit(cache=True, nogil=True)(function))


def fast_kernel(function: Function) -> Function:
    """Likewise, where sums of floats may be reordered: the same on one machine, rounded otherwise on another."""
    return cast(Function, njit(cache=True, nogil=True, fastmath=True)(function))
