"""What two texts are compared by: tokens, n-grams of tokens, and a hash of the whole, all blind to case, width, spaces and punctuation.

A token is a word (a run of letters, digits and marks), or one character of a script that is written without spaces: Han, kana, Thai, Lao,
Khmer, Burmese; Hangul too. So one rule gives n-grams of words in English, n-grams of characters in Chinese, and both in mixed text.
"""

import unicodedata
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Table = NDArray[np.uint32]
Number = Any
"""A NumPy integer within a kernel."""

ALONE = 1 << 30
"""Bit of the table: the character is a token of its own."""

_POINTS = 0x20000  # planes 0 and 1; above lie rare Han characters, which need no table
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x3130, 0x318F),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xF900, 0xFAFF), (0x1B000, 0x1B16F),
)  # fmt: skip

_SEED = np.uint64(0x9E3779B97F4A7C15)
_CHARACTER = np.uint64(0x9FB21C651E98DF25)
_GRAM = np.uint64(0xD1342543DE82EF95)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def text_buffers(texts: pa.Array) -> tuple[Bytes, Places]:
    """UTF-8 bytes of all texts, and where each begins and the last ends: [n + 1]. Only the offsets are copied.

    Raises:
        TypeError: these are no strings, or some are null.
    """
    wide = pa.types.is_large_string(texts.type)
    if not (wide or pa.types.is_string(texts.type)) or texts.null_count:
        raise TypeError(f"expected strings without nulls, got {texts.type} with {texts.null_count} nulls")
    if len(texts) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, places, content = texts.buffers()
    width = np.int64 if wide else np.int32
    offsets = np.frombuffer(places, width)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    data = np.frombuffer(content, np.uint8) if content is not None and content.size else np.empty(0, np.uint8)
    return data, offsets


@cache
def fold_table() -> Table:
    """[0x20000]: a code point without case and width, with `ALONE` where it is a token by itself; 0 between tokens."""
    table = np.zeros(_POINTS, np.uint32)
    points = [p for p in range(_POINTS) if unicodedata.category(chr(p))[0] in "LNM"]
    table[points] = _folded([chr(p) for p in points])
    for first, last in _UNSPACED:
        block = table[first : last + 1]
        block[block > 0] |= ALONE
    for point in range(0xFF66, 0xFFDD):  # half-width kana and Hangul
        if table[point]:
            table[point] |= ALONE
    table.setflags(write=False)
    return table


def _folded(characters: list[str]) -> list[int]:
    """Each without width and case, where that is one character; a line end between two keeps them apart."""
    narrow = unicodedata.normalize("NFKC", "\n".join(characters))
    forms = zip(characters, narrow.split("\n"), narrow.casefold().split("\n"), strict=True)
    return [ord(small if len(small) == 1 else form if len(form) == 1 else character) for character, form, small in forms]


@njit(cache=True, nogil=True, inline="always")
def mix(h: Number) -> Number:
    """A permutation of 64-bit numbers in which every bit depends on every bit (the finalizer of SplitMix64)."""
    x = np.uint64(h)
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def token_class(data: Bytes, i: int, table: Table) -> tuple[Number, int]:
    """Of the character at data[i]: its entry in the table, and its bytes."""
    first = np.uint32(data[i])
    if first < 0x80:
        point, width = first, 1
    elif first < 0xE0:
        point, width = (first & 0x1F) << 6 | (data[i + 1] & 0x3F), 2
    elif first < 0xF0:
        point, width = (first & 0x0F) << 12 | np.uint32(data[i + 1] & 0x3F) << 6 | (data[i + 2] & 0x3F), 3
    else:
        high = (first & 0x07) << 18 | np.uint32(data[i + 1] & 0x3F) << 12
        point, width = high | np.uint32(data[i + 2] & 0x3F) << 6 | (data[i + 3] & 0x3F), 4
    if point < _POINTS:
        return np.int64(table[point]), width
    return (np.int64(point) | ALONE if point < 0x40000 else np.int64(0)), width


@njit(cache=True, nogil=True)
def walk(data: Bytes, start: int, end: int, table: Table, hashes: Hashes, begins: Places, ends: Places) -> int:
    """The tokens of data[start:end] (valid UTF-8), at most (end - start) // 2 + 1 of them.

    Args:
        data: bytes.
        start: of the first.
        end: after the last.
        table: of `fold_table`.
        hashes: filled with the 64-bit hash of each token.
        begins: filled with where each token begins in `data`.
        ends: filled with where each ends.

    Returns:
        How many.
    """
    n, i, begin = 0, start, -1
    h = _SEED
    while i < end:
        folded, width = token_class(data, i, table)
        if 0 < folded < ALONE:
            if begin < 0:
                begin, h = i, _SEED
            h = (h ^ np.uint64(folded)) * _CHARACTER
            h ^= h >> np.uint64(32)
        else:
            if begin >= 0:
                hashes[n], begins[n], ends[n] = mix(h), begin, i
                n += 1
                begin = -1
            if folded:
                hashes[n], begins[n], ends[n] = mix(_SEED ^ np.uint64(folded)), i, i + width
                n += 1
        i += width
    if begin >= 0:
        hashes[n], begins[n], ends[n] = mix(h), begin, end
        n += 1
    return n


@njit(cache=True, nogil=True)
def grams(tokens: Hashes, n_tokens: int, n: int, out: Hashes) -> int:
    """Hashes of all runs of n tokens, in order; of the whole, where there are fewer than n but some.

    Args:
        tokens: of `walk`.
        n_tokens: how many.
        n: tokens in a gram.
        out: filled; as long as `tokens`.

    Returns:
        How many.
    """
    if n_tokens == 0:
        return 0
    size = min(n, n_tokens)
    leaving = np.uint64(1)
    for _ in range(size):
        leaving *= _GRAM
    h = np.uint64(0)
    for i in range(n_tokens):
        h = h * _GRAM + tokens[i]
        if i >= size:
            h -= leaving * tokens[i - size]
        if i >= size - 1:
            out[i - size + 1] = mix(h)
    return n_tokens - size + 1


@njit(cache=True, nogil=True)
def fingerprints(data: Bytes, starts: Places, ends: Places, table: Table, low: Hashes, high: Hashes, tokens: Places) -> None:
    """128-bit hashes of the tokens of each span, in order, and how many tokens each has."""
    longest = 0
    for row in range(len(starts)):
        longest = max(longest, (ends[row] - starts[row]) // 2 + 1)
    hashes, begins, finishes = np.empty(longest, np.uint64), np.empty(longest, np.int64), np.empty(longest, np.int64)
    for row in range(len(starts)):
        n = walk(data, starts[row], ends[row], table, hashes, begins, finishes)
        a, b = _SEED, _CHARACTER
        for i in range(n):
            a = (a ^ hashes[i]) * _CHARACTER
            a ^= a >> np.uint64(29)
            b = (b + hashes[i]) * _GRAM
            b ^= b >> np.uint64(32)
        low[row], high[row], tokens[row] = mix(a), mix(b ^ np.uint64(n)), n
