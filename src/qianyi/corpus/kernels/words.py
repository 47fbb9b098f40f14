"""A text as words: hashes, lengths, kinds.

A word is a run without spaces and ideographs, or one ideograph (Han, kana, hangul). A run of signs alone is a word where spaces
or line ends stand on both sides, as in `- item`, and is none beside ideographs and their punctuation. Hashes ignore ASCII case and, in
words that have letters or digits, punctuation.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.kernels.buffers import Bytes
from qianyi.corpus.kernels.unicode import DIGIT, HAN, LATIN_UPPER, SPACE, class_of, decode

Hashes = NDArray[np.uint64]
Lengths = NDArray[np.int32]
Flags = NDArray[np.uint8]

ALPHA, IDEOGRAPH = 1, 2
"""Flags of a word: it has a letter; it is one ideograph."""

SEED = np.uint64(0x9E3779B97F4A7C15)
_PRIME = np.uint64(0xD6E8FEB86659FD93)


@njit(cache=True, nogil=True, inline="always")
def mix(h: Any, value: Any) -> Any:
    """A 64-bit hash of a sequence, one value further."""
    h = np.uint64(h)
    h = ((h << np.uint64(5) | h >> np.uint64(59)) ^ np.uint64(value)) * _PRIME  # turned, so that a, b is not b, a
    return h ^ (h >> np.uint64(32))


@njit(cache=True, nogil=True, inline="always")
def fold(point: int) -> int:
    """Capital ASCII letters as small ones."""
    return point + 32 if 0x41 <= point <= 0x5A else point


@njit(cache=True, nogil=True)
def split_words(data: Bytes, start: int, end: int, classes: Bytes, words: Hashes, chars: Lengths, flags: Flags) -> int:
    """Fill the arrays from data[start:end]; returns how many words there are."""
    n = 0
    run, signs, run_chars, run_flags, run_holds = SEED, SEED, 0, 0, False  # of the run that is being read
    mixed = False  # an ideograph or its punctuation since the last space
    i = start
    while i <= end:
        point, width = decode(data, i, end) if i < end else (10, 1)
        kind = class_of(point, classes)
        i += width
        if DIGIT <= kind < HAN:
            run, run_holds, run_chars = mix(run, fold(point)), True, run_chars + 1
            if kind >= LATIN_UPPER:
                run_flags = ALPHA
            continue
        if kind < SPACE:
            signs, run_chars = mix(signs, point), run_chars + 1
            continue
        if run_chars:
            if run_holds or (kind == SPACE and not mixed):
                words[n], chars[n], flags[n] = run if run_holds else signs, run_chars, run_flags
                n += 1
            run, signs, run_chars, run_flags, run_holds = SEED, SEED, 0, 0, False
        mixed = kind != SPACE
        if kind >= HAN:
            words[n], chars[n], flags[n] = mix(SEED, point), 1, ALPHA | IDEOGRAPH
            n += 1
    return n
