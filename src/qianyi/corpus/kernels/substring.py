"""Long repeated substrings: hashes of windows of N bytes that begin at places which the text itself chooses.

Winnowing (Schleimer, Wilkerson and Aiken 2003, section 3) takes the least hash of every SPREAD neighbouring places, so that two equal
stretches choose the same places whatever stands around them. A window's hash comes from sums of powers (Karp and Rabin 1987). So what is
found repeats for at least N bytes, every repeat of N + SPREAD - 1 bytes is found, and less than SPREAD bytes of it are missed at each end.
"""

import numpy as np
from numba import njit

from qianyi.corpus.kernels.ngrams import Bytes, Hashes, Places, mix

CONTEXT = 8
"""Bytes from its place on that the hash which chooses depends on."""
SPREAD = 32
"""Neighbouring places of which one is chosen at least."""

_GEAR = np.uint64(0x9E3779B97F4A7C15)
_STEP = np.uint64(0xD1342543DE82EF95)


@njit(cache=True, nogil=True)
def windows(data: Bytes, start: int, end: int, n_bytes: int, sums: Hashes, ranks: Hashes, hashes: Hashes, places: Places) -> int:
    """Chosen windows of n_bytes in data[start:end].

    Args:
        data: bytes.
        start: of the first.
        end: after the last.
        n_bytes: length of a window, at least CONTEXT.
        sums: scratch, end - start + 1 at least.
        ranks: scratch, end - start at least.
        hashes: filled with the hash of each window.
        places: filled with where each begins, counted from `start`.

    Returns:
        How many.
    """
    length = end - start
    if length < n_bytes:
        return 0
    power = np.uint64(1)
    for _ in range(n_bytes):
        power *= _STEP
    h = np.uint64(0)
    sums[0] = h
    for i in range(length):
        h = h * _STEP + np.uint64(data[start + i]) + np.uint64(1)
        sums[i + 1] = h
    last = length - n_bytes  # where the last window begins
    _rank(data, start, last + 1, ranks)
    n, least = 0, -1
    for i in range(last + 1):
        if least < 0 or ranks[i] <= ranks[least]:  # of equals the last, so that the choice depends on these places alone
            least = i
        elif i - least >= SPREAD:
            least = i
            for j in range(i - 1, i - SPREAD, -1):
                if ranks[j] < ranks[least]:
                    least = j
        if (i >= SPREAD - 1 or i == last) and (n == 0 or places[n - 1] != least):
            places[n] = least
            hashes[n] = mix(sums[least + n_bytes] - sums[least] * power)
            n += 1
    return n


@njit(cache=True, nogil=True)
def _rank(data: Bytes, start: int, count: int, ranks: Hashes) -> None:
    """A hash of the CONTEXT bytes from each place on."""
    word = np.uint64(0)
    for i in range(CONTEXT - 1):
        word = word >> np.uint64(8) | np.uint64(data[start + i]) << np.uint64(56)
    for i in range(count):
        word = word >> np.uint64(8) | np.uint64(data[start + i + CONTEXT - 1]) << np.uint64(56)
        x = word * _GEAR
        ranks[i] = (x ^ (x >> np.uint64(32))) * _STEP


@njit(cache=True, nogil=True)
def all_windows(data: Bytes, starts: Places, ends: Places, n_bytes: int, hashes: Hashes, places: Places, rows: Places) -> int:
    """As `windows`, of many spans, and which span each is of; the arrays are as long as all spans together. Returns how many."""
    longest = 0
    for row in range(len(starts)):
        longest = max(longest, ends[row] - starts[row])
    sums, ranks = np.empty(longest + 1, np.uint64), np.empty(longest, np.uint64)
    n = 0
    for row in range(len(starts)):
        found = windows(data, starts[row], ends[row], n_bytes, sums, ranks, hashes[n:], places[n:])
        rows[n : n + found] = row
        n += found
    return n


@njit(cache=True, nogil=True)
def to_characters(data: Bytes, begin: int, end: int) -> tuple[int, int]:
    """The span without the parts of UTF-8 characters at its ends."""
    while begin < end and data[begin] & 0xC0 == 0x80:
        begin += 1
    if end < len(data):
        while end > begin and data[end] & 0xC0 == 0x80:
            end -= 1
    return begin, end
