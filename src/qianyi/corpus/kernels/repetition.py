"""Repeated n-grams of words, lines and paragraphs (Rae et al. 2021, table A1).

An n-gram can occur twice only where the (n-1)-grams at its place and at the next do. So after the 2-grams, which are all counted, each
length looks at what the one before has left, which in prose is little; the result is that of counting all.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.kernels.words import Hashes, Lengths, mix

MAX_N = 10
TOP = (2, 3, 4)
"""Of these the commonest n-gram counts."""


@njit(cache=True, nogil=True, inline="always")
def table_size(n: int) -> int:
    """A power of two, at least twice n."""
    size = 16
    while size < 2 * n:
        size *= 2
    return size


@njit(cache=True, nogil=True)
def count_in_table(
    keys: Hashes, places: Lengths, n: int, table: Hashes, counts: Lengths, slots: Lengths, later: NDArray[np.bool_]
) -> None:
    """Count keys[places[:n]] in an open table.

    slots[k] becomes the entry of the k-th, later[k] whether an equal one came before; counts[slots[k]] is how many are equal.
    """
    size = table_size(n)
    counts[:size] = 0
    for k in range(n):
        key = keys[places[k]]
        slot = np.int64(key & np.uint64(size - 1))
        while counts[slot] and table[slot] != key:
            slot = (slot + 1) & (size - 1)
        later[k] = counts[slot] > 0
        table[slot] = key
        counts[slot] += 1
        slots[k] = slot


@njit(cache=True, nogil=True)
def repeated_ngrams(
    words: Hashes,
    ends: NDArray[np.int64],
    n_words: int,
    grams: Hashes,
    places: Lengths,
    table: Hashes,
    counts: Lengths,
    slots: Lengths,
    later: NDArray[np.bool_],
    characters: NDArray[np.int64],
) -> None:
    """Fill characters[n], n = 2..10: for 2-4 those of all places of the commonest n-gram, from 5 on those in repetitions.

    The commonest occurs at least twice; among the equally common it is the longest. A repetition is an n-gram that occurred
    before, each of its characters counted once; the first occurrence is none.

    Args:
        words: hashes; ends: characters of the first k words, [n_words + 1].
        grams, places, table, counts, slots, later: room, table and counts for `table_size(n_words)`, the others for n_words.
    """
    characters[:] = 0
    n = max(0, n_words - 1)
    for k in range(n):
        places[k] = k
        grams[k] = words[k]
    for length in range(2, MAX_N + 1):
        for k in range(n):
            at = places[k]
            grams[at] = mix(grams[at], words[at + length - 1])
        count_in_table(grams, places, n, table, counts, slots, later)
        if length <= TOP[-1]:
            characters[length] = _commonest(ends, places, n, counts, slots, length)
        else:
            characters[length] = _covered(ends, places, n, later, length)
        n = _still_repeated(places, n, counts, slots, n_words - length)
        if not n:
            return


@njit(cache=True, nogil=True)
def _commonest(ends: NDArray[np.int64], places: Lengths, n: int, counts: Lengths, slots: Lengths, length: int) -> int:
    most: Any = 1
    chars: Any = 0
    for k in range(n):
        count = counts[slots[k]]
        if count >= max(most, 2):
            own = ends[places[k] + length] - ends[places[k]]
            if count > most or own > chars:
                most, chars = count, own
    return most * chars


@njit(cache=True, nogil=True)
def _covered(ends: NDArray[np.int64], places: Lengths, n: int, later: NDArray[np.bool_], length: int) -> int:
    total: Any = 0
    done = 0
    for k in range(n):
        if later[k]:
            begin, end = max(places[k], done), places[k] + length
            total += ends[end] - ends[begin]
            done = end
    return total


@njit(cache=True, nogil=True)
def _still_repeated(places: Lengths, n: int, counts: Lengths, slots: Lengths, limit: int) -> int:
    """Keep the places below `limit` that are repeated, as their neighbours are; returns how many."""
    kept = 0
    for k in range(n - 1):
        at = places[k]
        if places[k + 1] == at + 1 and counts[slots[k]] > 1 and counts[slots[k + 1]] > 1 and at < limit:
            places[kept] = at
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def repeated_units(
    hashes: Hashes,
    chars: Lengths,
    n: int,
    places: Lengths,
    table: Hashes,
    counts: Lengths,
    slots: Lengths,
    later: NDArray[np.bool_],
) -> tuple[int, int]:
    """How many of n lines or paragraphs occurred before, and the characters in them."""
    for k in range(n):
        places[k] = k
    count_in_table(hashes, places, n, table, counts, slots, later)
    units, characters = 0, 0
    for k in range(n):
        if later[k]:
            units += 1
            characters += chars[k]
    return units, characters
