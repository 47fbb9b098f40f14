"""Which window of which source each element of the endless training sequence is: computed at random access, from weights alone.

Within a stretch of constant weights, sources are told apart one after the other: of n elements, floor(n (1 - w)) are not of the first
source, and so on with the rest. So of any first n elements each source has its share, less than one element off for each source before it.
A source goes on in a stretch where it stopped in the one before.
"""

from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from qianyi.config.mixture import Stretch

_PARTS = 1 << 40
"""Weights are whole numbers of such parts: their errors show after about as many elements."""


class Draw(NamedTuple):
    """An element of the sequence: the `number`-th that is drawn of a source, counted from 0."""

    source: str
    number: int


class Mixture:
    """The order in which sources are drawn from."""

    def __init__(self, stretches: list[Stretch]):
        self._firsts = [stretch.first for stretch in stretches]
        self._parts = [_parts(stretch.weights) for stretch in stretches]
        self._before: list[dict[str, int]] = [dict.fromkeys(stretches[0].weights, 0)]
        for (first, following), parts in zip(pairwise(self._firsts), self._parts, strict=False):
            counts = _counts(following - first, parts)
            self._before.append({name: n + counts.get(name, 0) for name, n in self._before[-1].items()})

    def __getitem__(self, element: int) -> Draw:
        stretch = bisect_right(self._firsts, element) - 1
        source, number = _draw(element - self._firsts[stretch], self._parts[stretch])
        return Draw(source, self._before[stretch][source] + number)

    def counts(self, elements: int) -> dict[str, int]:
        """How many of the first elements are of each source."""
        stretch = bisect_right(self._firsts, max(elements - 1, 0)) - 1
        here = _counts(elements - self._firsts[stretch], self._parts[stretch])
        return {name: n + here.get(name, 0) for name, n in self._before[stretch].items()}


def _parts(weights: Mapping[str, float]) -> dict[str, int]:
    parts = {name: round(weight * _PARTS) for name, weight in weights.items() if weight > 0}
    return {name: max(n, 1) for name, n in parts.items()}


def _draw(element: int, parts: Mapping[str, int]) -> Draw:
    """Element of a stretch -> source, and how many were drawn of it before, in that stretch."""
    rest, before, after = sum(parts.values()), element, element + 1
    for name, n in parts.items():
        others_before, others_after = before * (rest - n) // rest, after * (rest - n) // rest
        if before - others_before < after - others_after:
            return Draw(name, before - others_before)
        rest, before, after = rest - n, others_before, others_after
    raise AssertionError("the last source takes what is left")


def _counts(elements: int, parts: Mapping[str, int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    rest, left = sum(parts.values()), elements
    for name, n in parts.items():
        others = left * (rest - n) // rest
        counts[name] = left - others
        rest, left = rest - n, others
    return counts
