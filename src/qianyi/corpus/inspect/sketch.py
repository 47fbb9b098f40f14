"""The distribution of a number over any many documents, in the memory of some hundred counters.

Counters are of intervals whose bounds grow by 1.1%, so that any quantile is known within that (the relative error of Masson, Rim and
Lee 2019, DDSketch, section 2), and any histogram can be drawn afterwards.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PER_OCTAVE = 64
_OFFSET = 1 << 20
"""Makes keys of positive numbers positive, below one too: zero has the key 0, and a negative number the key of its size, negated."""


class Sketch:
    """Counts of numbers."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.total = 0
        self.sum = 0.0
        self.low = math.inf
        self.high = -math.inf
        self.integral = True
        """All numbers so far are whole."""

    def add(self, values: NDArray[np.floating]) -> None:
        """Count numbers; those that are not finite are left out."""
        finite = values[np.isfinite(values)].astype(np.float64)
        if not finite.size:
            return
        self.total += finite.size
        self.sum += float(finite.sum())
        self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        self.integral = self.integral and bool((finite == np.floor(finite)).all())
        keys, n = np.unique(_keys(finite), return_counts=True)
        for key, count in zip(keys.tolist(), n.tolist(), strict=True):
            self.counts[key] += count

    def quantile(self, share: float) -> float:
        """The number that this share of all is not above; nan if there is none."""
        wanted, seen = share * self.total, 0
        for key in sorted(self.counts):
            seen += self.counts[key]
            if seen >= wanted:
                value = min(max(_value(key), self.low), self.high)
                return float(round(value)) if self.integral else value
        return math.nan

    def histogram(self, edges: Sequence[float]) -> list[int]:
        """How many lie in [edges[i], edges[i + 1]); those outside of all are in the first and the last."""
        values = np.array([_value(key) for key in self.counts])
        if self.integral:
            values = np.round(values)
        weights = np.array(list(self.counts.values()), np.int64)
        where = np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 2)
        return np.bincount(where, weights, len(edges) - 1).astype(np.int64).tolist()


def _keys(values: NDArray[np.float64]) -> NDArray[np.int64]:
    sizes = np.abs(values)
    with np.errstate(divide="ignore"):
        octaves = np.floor(np.log2(sizes) * PER_OCTAVE)
    keys = np.where(sizes > 0, octaves + _OFFSET, 0).astype(np.int64)
    return np.where(values < 0, -keys, keys)


def _value(key: int) -> float:
    """The middle of an interval."""
    if not key:
        return 0.0
    return math.copysign(2.0 ** ((abs(key) - _OFFSET + 0.5) / PER_OCTAVE), key)
