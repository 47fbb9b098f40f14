"""Which units have a row of a table: an open-addressing table from 64-bit hashes to rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qianyi.label.kernels import kernel
from qianyi.label.units import Hashes, Units

Rows = NDArray[np.int32]


@dataclass(frozen=True)
class Vocabulary:
    """Hashes by falling count: row i is that of `hashes[i]`."""

    hashes: Hashes
    counts: NDArray[np.int64]
    slots: Rows
    """A power of two of them; -1 is empty."""

    def __len__(self) -> int:
        return len(self.hashes)

    def rows(self, hashes: Hashes) -> Rows:
        """int32, as long; -1: unknown."""
        rows = np.empty(len(hashes), np.int32)
        _look_up(self.slots, self.hashes, hashes, rows)
        return rows

    def known(self, units: Units) -> tuple[Rows, NDArray[np.int64]]:
        """Rows of the known units of each text, and the offsets of texts."""
        rows = self.rows(units.hashes)
        known = rows >= 0
        before = np.concatenate([[0], np.cumsum(known)])
        return rows[known], before[units.offsets].astype(np.int64)


def count_units(hashes: Hashes, min_count: int, limit: int | None = None) -> Vocabulary:
    """Those that occur at least `min_count` times, at most `limit`: the most frequent, ties by hash."""
    values, counts = np.unique(hashes, return_counts=True)
    enough = counts >= min_count
    values, counts = values[enough], counts[enough]
    order = np.lexsort((values, -counts))[:limit]
    return make_vocabulary(values[order], counts[order])


def make_vocabulary(hashes: Hashes, counts: NDArray[np.int64]) -> Vocabulary:
    size = 1 << max(4, (2 * len(hashes)).bit_length())
    slots = np.full(size, -1, np.int32)
    _place(slots, hashes)
    return Vocabulary(hashes, counts.astype(np.int64), slots)


@kernel
def _place(slots: Rows, hashes: Hashes) -> None:
    mask = np.uint64(len(slots) - 1)
    for row in range(len(hashes)):
        at = hashes[row] & mask
        while slots[at] >= 0:
            at = (at + np.uint64(1)) & mask
        slots[at] = row


@kernel
def _look_up(slots: Rows, keys: Hashes, hashes: Hashes, rows: Rows) -> None:
    mask = np.uint64(len(slots) - 1)
    for i in range(len(hashes)):
        at = hashes[i] & mask
        while slots[at] >= 0 and keys[slots[at]] != hashes[i]:
            at = (at + np.uint64(1)) & mask
        rows[i] = slots[at]
