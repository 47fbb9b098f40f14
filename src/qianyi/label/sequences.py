"""Texts as rows of numbers of one length, for networks: units or characters by their row of a vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qianyi.label.kernels import kernel
from qianyi.label.units import Bytes, Offsets, Units, lowered, units_of
from qianyi.label.units import read as read_character
from qianyi.label.vocabulary import Vocabulary

PADDING, UNKNOWN, FIRST = -1, 0, 1
"""Numbers of what fills up, of what has no row, and of row 0."""
POOL_BATCHES = 40
"""Texts for so many batches are sorted by length together, so that a batch holds texts of about one length."""
Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Sequences:
    """Numbers of some texts, one text after the other."""

    ids: Ids
    offsets: Offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def padded(self, texts: NDArray[np.int64], length: int) -> Ids:
        """[texts, length]. Of a longer text its first and its last half (Sun et al. 2019, "How to Fine-Tune BERT", section 5.3.1)."""
        out = np.full((len(texts), length), PADDING, np.int32)
        _pad(self.ids, self.offsets, texts, out)
        return out


def sequences_of(units: Units, vocabulary: Vocabulary) -> Sequences:
    return Sequences(np.maximum(vocabulary.rows(units.hashes) + FIRST, UNKNOWN), units.offsets)


def symbols_of(texts: pa.Array, characters: bool) -> Units:
    """The units of texts, or their characters (a character's hash is its code point)."""
    if not characters:
        return units_of(texts)
    data, bounds = lowered(texts)
    points, offsets = np.empty(int(bounds[-1] - bounds[0]), np.uint64), np.zeros(len(bounds), np.int64)
    n = int(_characters(data, bounds, points, offsets))
    return Units(points[:n], offsets)


def batches(
    sequences: Sequences, lengths: tuple[int, ...], symbols: int, random: np.random.Generator | None
) -> Iterator[tuple[NDArray[np.int64], Ids]]:
    """Texts (by index) and their numbers, all once, in batches of one of the `lengths` and of as many symbols.

    Args:
        random: shuffles texts and batches; None: batches by rising length.
    """
    sizes = np.minimum(np.diff(sequences.offsets), lengths[-1])
    order = np.argsort(sizes, kind="stable") if random is None else random.permutation(len(sequences))
    per_pool = len(order) if random is None else POOL_BATCHES * max(symbols // lengths[-1], 1)
    for first in range(0, len(order), max(per_pool, 1)):
        pool = order[first : first + per_pool]
        pool = pool[np.argsort(sizes[pool], kind="stable")]
        cuts = list(_cut(sizes[pool], lengths, symbols))
        for i in range(len(cuts)) if random is None else random.permutation(len(cuts)):
            start, stop, length = cuts[i]
            yield pool[start:stop], sequences.padded(pool[start:stop], length)


def _cut(sizes: NDArray[np.int64], lengths: tuple[int, ...], symbols: int) -> Iterator[tuple[int, int, int]]:
    """Sorted sizes in pieces (start, stop, length)."""
    start = 0
    while start < len(sizes):
        length = next(n for n in lengths if n >= sizes[start])
        fit = int(np.searchsorted(sizes, length, side="right"))
        stop = min(fit, start + max(symbols // length, 1))
        yield start, stop, length
        start = stop


@kernel
def _pad(ids: Ids, offsets: Offsets, texts: NDArray[np.int64], out: Ids) -> None:
    length = out.shape[1]
    for row in range(len(texts)):
        first, last = offsets[texts[row]], offsets[texts[row] + 1]
        n = min(last - first, length)
        half = n if last - first <= length else (length + 1) // 2
        for i in range(half):
            out[row, i] = ids[first + i]
        for i in range(half, n):
            out[row, i] = ids[last - n + i]


@kernel
def _characters(data: Bytes, bounds: Offsets, points: NDArray[np.uint64], offsets: Offsets) -> int:
    n = 0
    for text in range(len(bounds) - 1):
        i = bounds[text]
        while i < bounds[text + 1]:
            c, width = read_character(data, i)
            points[n] = c
            n += 1
            i += width
        offsets[text + 1] = n
    return n
