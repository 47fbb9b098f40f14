"""Byte-level BPE in one compiled walk: a text is split into words, and words seen before are not merged again.

The walk knows two regular expressions, GPT-2's and this project's (`qianyi.data.tokenizer`), by hand. A text with a character that Python's
Unicode does not know, or with a very long word, is left to others.
"""

import unicodedata
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qianyi.imports import without

with without("scipy"):  # see `qianyi.corpus.kernels`
    import_module("numba.np.arraymath")
    from numba import njit

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]
Keys = NDArray[np.uint64]
Tokens = NDArray[np.uint32]
Number = Any
"""A NumPy integer within a kernel."""

GPT2, QIANYI = range(2)
"""The regular expressions that are known."""
UNKNOWN, LETTER, NUMBER, SPACE, LINE_END, OTHER = range(6)
MAX_WORD_BYTES = 2048
_SLOTS = 1 << 18
_POOL = 1 << 20
_CACHED_BYTES = 15
_NONE = np.int64(2**63 - 1)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@cache
def classes() -> Bytes:
    """[0x110000]: what a code point is to the regular expressions."""
    of_category = {"L": LETTER, "N": NUMBER, "M": OTHER, "P": OTHER, "S": OTHER, "Z": SPACE, "C": OTHER}
    table = np.full(0x110000, UNKNOWN, np.uint8)
    for first, last in ((0, 0x33FF), (0xA000, 0xABFF), (0xD7B0, 0xD7FF), (0xE000, 0x1FFFF), (0xE0000, 0xE01FF)):
        categories = map(unicodedata.category, map(chr, range(first, last + 1)))
        table[first : last + 1] = [of_category[c[0]] if c not in ("Cn", "Cs") else UNKNOWN for c in categories]
    for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFC), (0xAC00, 0xD7A3), (0x20000, 0x2A6DD)):
        table[first : last + 1] = LETTER
    table[0x4DC0:0x4E00] = OTHER  # hexagrams
    table[[0x09, 0x0B, 0x0C, 0x85, 0x2028, 0x2029]] = SPACE
    table[[0x0A, 0x0D]] = LINE_END
    table[0x17F] = UNKNOWN  # a long s, which is an s where case does not count
    return table


class Merger:
    """Encodes texts by a vocabulary of bytes and merges."""

    def __init__(self, split: int, byte_ids: Tokens, pairs: NDArray[np.uint32], made: Tokens):
        """
        Args:
            split: the regular expression.
            byte_ids: [256] tokens of single bytes.
            pairs: [merges, 2] tokens that merge, the first to be merged first.
            made: [merges] what they become.
        """
        self._split, self._byte_ids = split, byte_ids
        size = 1 << (2 * len(made) + 16).bit_length()
        self._pairs, self._values = np.zeros(size, np.uint64), np.zeros(size, np.int64)
        _fill(pairs, made, self._pairs, self._values)
        self._low, self._high = np.zeros(_SLOTS, np.uint64), np.zeros(_SLOTS, np.uint64)
        self._at, self._pool, self._used = np.zeros(_SLOTS, np.int64), np.zeros(_POOL, np.uint32), np.zeros(2, np.int64)

    def __call__(self, data: bytes, ends: Places) -> tuple[Tokens, Places]:
        """Tokens of texts that stand one after another, and where those of each end; a text left out has none.

        Args:
            data: UTF-8; ends: of each text.
        """
        out, bounds = np.empty(len(data), np.uint32), np.empty(len(ends), np.int64)
        _encode(
            np.frombuffer(data, np.uint8), ends, classes(), self._split, self._byte_ids, self._pairs, self._values,
            self._low, self._high, self._at, self._pool, self._used, out, bounds,
        )  # fmt: skip
        return out[: bounds[-1] if len(bounds) else 0], bounds


@njit(cache=True, nogil=True)
def _fill(pairs: NDArray[np.uint32], made: Tokens, keys: Keys, values: Places) -> None:
    for i in range(len(made)):
        key = (np.uint64(pairs[i, 0]) + np.uint64(1)) << np.uint64(32) | np.uint64(pairs[i, 1])
        slot = np.int64((key * _MULTIPLIER) >> np.uint64(32)) & (len(keys) - 1)
        while keys[slot] != 0 and keys[slot] != key:
            slot = (slot + 1) & (len(keys) - 1)
        if keys[slot] == 0:  # of merges of the same pair the first counts
            keys[slot] = key
            values[slot] = np.int64(i) << 32 | np.int64(made[i])


@njit(cache=True, nogil=True, inline="always")
def _value(left: Number, right: Number, keys: Keys, values: Places) -> Number:
    """Rank * 2^32 + token of a pair; a large number where it does not merge."""
    key = (np.uint64(left) + np.uint64(1)) << np.uint64(32) | np.uint64(right)
    slot = np.int64((key * _MULTIPLIER) >> np.uint64(32)) & (len(keys) - 1)
    while keys[slot] != 0:
        if keys[slot] == key:
            return values[slot]
        slot = (slot + 1) & (len(keys) - 1)
    return _NONE


@njit(cache=True, nogil=True)
def _merge(data: Bytes, start: int, end: int, byte_ids: Tokens, keys: Keys, values: Places, ids: Places, best: Places) -> int:
    """Fill `ids` with the tokens of a word; returns how many."""
    n = end - start
    for k in range(n):
        ids[k] = byte_ids[data[start + k]]
    for k in range(n - 1):
        best[k] = _value(ids[k], ids[k + 1], keys, values)
    while n > 1:
        at, least = 0, _NONE
        for k in range(n - 1):
            if best[k] < least:
                at, least = k, best[k]
        if least == _NONE:
            break
        ids[at] = least & 0xFFFFFFFF
        n -= 1
        for k in range(at + 1, n):
            ids[k] = ids[k + 1]
        for k in range(at + 1, n - 1):
            best[k] = best[k + 1]
        if at > 0:
            best[at - 1] = _value(ids[at - 1], ids[at], keys, values)
        if at + 1 < n:
            best[at] = _value(ids[at], ids[at + 1], keys, values)
    return n


@njit(cache=True, nogil=True, inline="always")
def _class(data: Bytes, i: int, table: Bytes) -> tuple[Number, int]:
    """Of the character at data[i] (valid UTF-8), and its bytes."""
    b = np.int64(data[i])
    if b < 0x80:
        return np.int64(table[b]), 1
    if b < 0xE0:
        return np.int64(table[(b & 0x1F) << 6 | (np.int64(data[i + 1]) & 0x3F)]), 2
    if b < 0xF0:
        return np.int64(table[(b & 0x0F) << 12 | (np.int64(data[i + 1]) & 0x3F) << 6 | (np.int64(data[i + 2]) & 0x3F)]), 3
    high = (b & 0x07) << 18 | (np.int64(data[i + 1]) & 0x3F) << 12
    return np.int64(table[high | (np.int64(data[i + 2]) & 0x3F) << 6 | (np.int64(data[i + 3]) & 0x3F)]), 4


@njit(cache=True, nogil=True)
def _run(data: Bytes, i: int, end: int, table: Bytes, kind: int) -> int:
    """Where a run of one class ends."""
    while i < end:
        found, width = _class(data, i, table)
        if found != kind:
            break
        i += width
    return i


@njit(cache=True, nogil=True)
def _contraction(data: Bytes, i: int, end: int, fold: int) -> int:
    """The end of 's, 't, 're, 've, 'm, 'll or 'd, or i."""
    if data[i] != 0x27 or i + 1 >= end:
        return i
    a = data[i + 1] | fold
    if (a == 0x73) | (a == 0x74) | (a == 0x6D) | (a == 0x64):
        return i + 2
    if i + 2 < end:
        b = data[i + 2] | fold
        if ((a == 0x72) & (b == 0x65)) | ((a == 0x76) & (b == 0x65)) | ((a == 0x6C) & (b == 0x6C)):
            return i + 3
    return i


@njit(cache=True, nogil=True)
def _spaces(data: Bytes, i: int, end: int, table: Bytes, split: int) -> int:
    """The end of a word of white space: up to the last line end (not GPT-2), else without its last character, which the next takes."""
    last, after_line_end, first = i, -1, i
    while i < end:
        kind, width = _class(data, i, table)
        if kind == UNKNOWN:
            return -1
        if not (kind == SPACE) | (kind == LINE_END):
            break
        last = i
        i += width
        if kind == LINE_END:
            after_line_end = i
    if split == QIANYI and after_line_end >= 0:
        return after_line_end
    return last if i < end and last > first else i


@njit(cache=True, nogil=True)
def _word(data: Bytes, i: int, end: int, table: Bytes, split: int) -> int:
    """The end of the word at i; -1 where an unknown character stands."""
    kind, width = _class(data, i, table)
    if kind == UNKNOWN:
        return -1
    stop = _contraction(data, i, end, 0x20 if split == QIANYI else 0)
    if stop == i:
        after, _ = _class(data, i + width, table) if i + width < end else (LINE_END, 0)
        if split == QIANYI:
            stop = _qianyi(data, i, end, table, kind, i + width, after)
        else:
            stop = _gpt2(data, i, end, table, kind, i + width, after)
    return stop if stop > i else _spaces(data, i, end, table, split)


@njit(cache=True, nogil=True)
def _gpt2(data: Bytes, i: int, end: int, table: Bytes, kind: int, second: int, after: int) -> int:
    """The end of letters, of numbers, or of signs, with a space before them; i where none begin."""
    if (kind == LETTER) | (kind == NUMBER) | (kind == OTHER):
        return _run(data, second, end, table, kind)
    if data[i] == 0x20 and (after == LETTER) | (after == NUMBER) | (after == OTHER):
        return _run(data, second, end, table, after)
    return i


@njit(cache=True, nogil=True)
def _qianyi(data: Bytes, i: int, end: int, table: Bytes, kind: int, second: int, after: int) -> int:
    """The end of letters with the character before them, of up to three digits, or of signs with line ends; i where none begin."""
    if kind == LETTER or (after == LETTER and (kind == SPACE) | (kind == OTHER)):
        return _run(data, second, end, table, LETTER)
    if kind == NUMBER:
        stop, n = second, 1
        while n < 3 and stop < end:
            kind, width = _class(data, stop, table)
            if kind != NUMBER:
                break
            stop, n = stop + width, n + 1
        return stop
    if kind == OTHER or (data[i] == 0x20 and after == OTHER):
        return _run(data, _run(data, second, end, table, OTHER), end, table, LINE_END)
    return i


@njit(cache=True, nogil=True, inline="always")
def _slot_of(a: Number, b: Number, low: Keys, high: Keys) -> Number:
    """Where a word is kept, or may be."""
    h = (a ^ (b * _MULTIPLIER)) * _MULTIPLIER
    slot = np.int64((h ^ (h >> np.uint64(29))) >> np.uint64(16)) & (_SLOTS - 1)
    while high[slot] != 0 and (low[slot] != a or high[slot] != b):
        slot = (slot + 1) & (_SLOTS - 1)
    return slot


@njit(cache=True, nogil=True, inline="always")
def _numbers(data: Bytes, i: int, size: int) -> tuple[Number, Number]:
    """The bytes of a word and their count as two numbers."""
    a, b = np.uint64(0), np.uint64(size) << np.uint64(56)
    for k in range(min(size, 8)):
        a |= np.uint64(data[i + k]) << np.uint64(8 * k)
    for k in range(8, size):
        b |= np.uint64(data[i + k]) << np.uint64(8 * k - 64)
    return a, b


@njit(cache=True, nogil=True)
def _encode(
    data: Bytes,
    text_ends: Places,
    table: Bytes,
    split: int,
    byte_ids: Tokens,
    keys: Keys,
    values: Places,
    low: Keys,
    high: Keys,
    at: Places,
    pool: Tokens,
    used: Places,
    out: Tokens,
    bounds: Places,
) -> None:
    """Fill `out` and `bounds`. Words of up to 15 bytes are kept with their tokens while there is room."""
    ids, best = np.empty(MAX_WORD_BYTES, np.int64), np.empty(MAX_WORD_BYTES, np.int64)
    n, i = 0, 0
    for t in range(len(text_ends)):
        end, first = text_ends[t], n
        while i < end:
            stop = _word(data, i, end, table, split)
            size = stop - i
            if stop < 0 or size > MAX_WORD_BYTES:
                n, i = first, end
                break
            short, slot = size <= _CACHED_BYTES, np.int64(0)
            a, b = np.uint64(0), np.uint64(0)
            if short:
                a, b = _numbers(data, i, size)
                slot = _slot_of(a, b, low, high)
            if short and high[slot] != 0:
                place = at[slot] >> 8
                count = at[slot] & 0xFF
                for k in range(count):
                    out[n + k] = pool[place + k]
            else:
                count = _merge(data, i, stop, byte_ids, keys, values, ids, best)
                for k in range(count):
                    out[n + k] = ids[k]
                if short and used[0] < _SLOTS // 2 and used[1] + count <= len(pool):
                    low[slot], high[slot], at[slot] = a, b, used[1] << 8 | count
                    pool[used[1] : used[1] + count] = out[n : n + count]
                    used[0] += 1
                    used[1] += count
            n += count
            i = stop
        bounds[t] = n
