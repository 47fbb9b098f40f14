"""Words of Chinese: neighbours that occur together far more often than apart are joined.

Mikolov et al. 2013 (see `word2vec`), section 4, in passes: the first makes words of two characters, the second of up to four. Nothing is
joined across a space or a mark, so words of alphabets stay as they are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qianyi.label.kernels import kernel
from qianyi.label.units import Hashes, Offsets, Spans, Units, spanned_units
from qianyi.label.vocabulary import Vocabulary, count_units, make_vocabulary

PASSES = 2


@dataclass(frozen=True)
class Joiner:
    """Which neighbours are joined, by pass."""

    passes: tuple[Vocabulary, ...]

    def words(self, texts: pa.Array) -> tuple[Units, Spans, NDArray[np.uint8]]:
        """The words of texts, where they lie, and the bytes in which they lie."""
        units, spans, data = spanned_units(texts)
        for joined in self.passes:
            units, spans = _join(units, spans, data, joined)
        return units, spans, data


def learn_joiner(texts: pa.Array, min_count: int = 10, threshold: float = 20.0) -> Joiner:
    """Learns from texts which neighbours to join.

    Args:
        min_count: a pair must occur more often than this (the paper's discount is this, too).
        threshold: how many times more often than by chance.
    """
    units, spans, data = spanned_units(texts)
    passes = list[Vocabulary]()
    for _ in range(PASSES):
        joined = _frequent_pairs(units, spans, data, min_count, threshold)
        passes.append(joined)
        units, spans = _join(units, spans, data, joined)
    return Joiner(tuple(passes))


def _frequent_pairs(units: Units, spans: Spans, data: NDArray[np.uint8], min_count: int, threshold: float) -> Vocabulary:
    first = np.empty(len(units.hashes), np.int64)
    pairs = np.empty(len(units.hashes), np.uint64)
    n = int(_touching(units.hashes, units.offsets, spans.starts, spans.stops, data, pairs, first))
    pairs, first = pairs[:n], first[:n]
    values, where, counts = np.unique(pairs, return_index=True, return_counts=True)
    single = count_units(units.hashes, 1)
    rows = single.rows(units.hashes)
    left, right = (single.counts[rows[first[where] + side]] for side in (0, 1))
    score = (counts - min_count) * (len(units.hashes) / left) / right
    chosen = (score > threshold) & (counts > min_count)
    return make_vocabulary(values[chosen], counts[chosen])


def _join(units: Units, spans: Spans, data: NDArray[np.uint8], joined: Vocabulary) -> tuple[Units, Spans]:
    n = len(units.hashes)
    first, pairs = np.empty(n, np.int64), np.empty(n, np.uint64)
    found = int(_touching(units.hashes, units.offsets, spans.starts, spans.stops, data, pairs, first))
    is_pair = np.zeros(n, np.bool_)
    is_pair[first[:found]] = joined.rows(pairs[:found]) >= 0
    hashes, starts, stops, offsets = (
        np.empty(n, np.uint64),
        np.empty(n, np.int64),
        np.empty(n, np.int64),
        np.zeros_like(units.offsets),
    )
    kept = int(_merge(units.hashes, units.offsets, spans.starts, spans.stops, is_pair, hashes, starts, stops, offsets))
    return Units(hashes[:kept], offsets), Spans(starts[:kept], stops[:kept])


@kernel
def _pair(left: Any, right: Any) -> Any:
    return (left ^ (left >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15) + right


@kernel
def _touching(
    hashes: Hashes, offsets: Offsets, starts: Offsets, stops: Offsets, data: NDArray[np.uint8], pairs: Hashes, first: Offsets
) -> int:
    """Pairs of neighbours in Han with nothing between them."""
    n = 0
    for text in range(len(offsets) - 1):
        for i in range(offsets[text], offsets[text + 1] - 1):
            # The first byte of U+3400 .. U+9FFF; of U+3000 .. U+33FF (marks, kana) it is 0xE3 with a smaller second.
            a, b = starts[i], starts[i + 1]
            if stops[i] == b and _is_han(data, a) and _is_han(data, b):
                pairs[n], first[n] = _pair(hashes[i], hashes[i + 1]), i
                n += 1
    return n


@kernel
def _is_han(data: NDArray[np.uint8], i: int) -> bool:
    return 0xE4 <= data[i] <= 0xE9 or (data[i] == 0xE3 and data[i + 1] >= 0x90)


@kernel
def _merge(
    hashes: Hashes,
    offsets: Offsets,
    starts: Offsets,
    stops: Offsets,
    is_pair: NDArray[np.bool_],
    out: Hashes,
    out_starts: Offsets,
    out_stops: Offsets,
    out_offsets: Offsets,
) -> int:
    """From left to right; a unit is joined once in a pass."""
    n = 0
    for text in range(len(offsets) - 1):
        i = offsets[text]
        while i < offsets[text + 1]:
            out_starts[n] = starts[i]
            if is_pair[i]:
                out[n], out_stops[n] = _pair(hashes[i], hashes[i + 1]), stops[i + 1]
                i += 2
            else:
                out[n], out_stops[n] = hashes[i], stops[i]
                i += 1
            n += 1
        out_offsets[text + 1] = n
    return n
