"""Texts as units: words of alphabets, single characters of scripts that put no spaces, and marks.

A unit is known by 64 bits of hash, so that no string is made of it: 明月 in moonlight! -> 明, 月, in, moonlight, !
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qianyi.label.kernels import kernel

Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]


class Units(NamedTuple):
    """Units of some texts, one text after the other."""

    hashes: Hashes
    """[n]."""
    offsets: Offsets
    """[texts + 1]: where the units of each text begin."""

    def text(self, index: int) -> Hashes:
        return self.hashes[self.offsets[index] : self.offsets[index + 1]]


class Spans(NamedTuple):
    """Where units lie in the bytes that `lowered` gives."""

    starts: Offsets
    stops: Offsets


def lowered(texts: pa.Array) -> tuple[Bytes, Offsets]:
    """UTF-8 of all texts in lower case, one after the other, and the offset of each [texts + 1]. A missing text is empty."""
    strings = pc.call_function("utf8_lower", [pc.fill_null(texts, "")]).cast(pa.large_string())
    if isinstance(strings, pa.ChunkedArray):
        strings = strings.combine_chunks()
    _, offsets, data = strings.buffers()
    if len(strings) == 0 or offsets is None:
        return np.zeros(0, np.uint8), np.zeros(len(strings) + 1, np.int64)
    bounds = np.frombuffer(offsets, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), bounds


def units_of(texts: pa.Array) -> Units:
    """The units of texts, a string array."""
    return spanned_units(texts)[0]


def spanned_units(texts: pa.Array) -> tuple[Units, Spans, Bytes]:
    """The units of texts, where they lie, and the bytes in which they lie."""
    data, bounds = lowered(texts)
    offsets = np.zeros(len(bounds), np.int64)
    _count(data, bounds, offsets)
    n = int(offsets[-1])
    hashes, starts, stops = np.empty(n, np.uint64), np.empty(n, np.int64), np.empty(n, np.int64)
    _fill(data, bounds, hashes, starts, stops)
    return Units(hashes, offsets), Spans(starts, stops), data


def grams(units: Units, order: int) -> Units:
    """Units and all sequences of up to `order` units, within a text; a sequence's hash is made of its units'."""
    lengths = np.diff(units.offsets)
    counts = sum(np.maximum(lengths - n, 0) for n in range(order))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    hashes = np.empty(int(offsets[-1]), np.uint64)
    _grams(units.hashes, units.offsets, order, hashes)
    return Units(hashes, offsets)


def unit_hash(unit: str) -> int:
    """Of a unit that is written in lower case."""
    return int(_hash(np.frombuffer(unit.encode(), np.uint8), 0, len(unit.encode())))


@kernel
def _hash(data: Bytes, start: int, stop: int) -> np.uint64:
    """FNV-1a (Fowler, Noll and Vo), its bits spread by the last step of MurmurHash3 (Appleby)."""
    h = np.uint64(0xCBF29CE484222325)
    for i in range(start, stop):
        h = (h ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    return h


@kernel
def read(data: Bytes, i: int) -> tuple[int, int]:
    """The code point at a byte, and how many bytes it takes."""
    b = int(data[i])
    if b < 0x80:
        return b, 1
    if b < 0xE0:
        return (b & 0x1F) << 6 | (int(data[i + 1]) & 0x3F), 2
    if b < 0xF0:
        return (b & 0x0F) << 12 | (int(data[i + 1]) & 0x3F) << 6 | (int(data[i + 2]) & 0x3F), 3
    high = (b & 0x07) << 18 | (int(data[i + 1]) & 0x3F) << 12
    return high | (int(data[i + 2]) & 0x3F) << 6 | (int(data[i + 3]) & 0x3F), 4


@kernel
def _is_space(c: int) -> bool:
    control = c <= 32 or 0x7F <= c <= 0xA0
    return control or c in (0x3000, 0xFEFF) or 0x2000 <= c <= 0x200F or 0x2028 <= c <= 0x202F


@kernel
def _is_alone(c: int) -> bool:
    """Whether a code point that is no space is a unit of its own: a mark, or of a script without spaces."""
    if c < 0x80:
        return not (97 <= c <= 122 or 48 <= c <= 57 or 65 <= c <= 90)
    if c < 0xC0:
        return not (c in (0xAA, 0xB2, 0xB3, 0xB5, 0xB9, 0xBA) or 0xBC <= c <= 0xBE)
    if 0xFF00 <= c <= 0xFFEF:
        return not (0xFF10 <= c <= 0xFF19 or 0xFF21 <= c <= 0xFF3A or 0xFF41 <= c <= 0xFF5A)
    mark = c in (0xD7, 0xF7) or 0x2010 <= c <= 0x206F or 0x2100 <= c <= 0x2BFF or 0xFE30 <= c <= 0xFE6F or 0x1F000 <= c < 0x20000
    han = 0x2E80 <= c <= 0xA4CF or 0xF900 <= c <= 0xFAFF or c >= 0x20000  # with radicals, kana, bopomofo and Yi
    southeast = 0x0E00 <= c <= 0x0EFF or 0x1000 <= c <= 0x109F or 0x1780 <= c <= 0x17FF  # Thai, Lao; Burmese; Khmer
    return mark or han or southeast or 0xAC00 <= c <= 0xD7AF  # Hangul syllables


@kernel
def _next(data: Bytes, i: int, end: int) -> tuple[int, int]:
    """Start and stop of the first unit at or after byte i; start = end: there is none."""
    while i < end:
        c, width = read(data, i)
        if not _is_space(c):
            stop = i + width
            if _is_alone(c):
                return i, stop
            while stop < end:
                c, width = read(data, stop)
                # An apostrophe between ASCII letters belongs to the word: don't.
                if c == 39 and stop + 1 < end and 97 <= data[stop + 1] <= 122 and 97 <= data[stop - 1] <= 122:
                    stop += 1
                elif _is_space(c) or _is_alone(c):
                    break
                else:
                    stop += width
            return i, stop
        i += width
    return end, end


@kernel
def _count(data: Bytes, bounds: Offsets, offsets: Offsets) -> None:
    n = 0
    for text in range(len(bounds) - 1):
        end = bounds[text + 1]
        start, stop = _next(data, bounds[text], end)
        while start < end:
            n += 1
            start, stop = _next(data, stop, end)
        offsets[text + 1] = n


@kernel
def _fill(data: Bytes, bounds: Offsets, hashes: Hashes, starts: Offsets, stops: Offsets) -> None:
    n = 0
    for text in range(len(bounds) - 1):
        end = bounds[text + 1]
        start, stop = _next(data, bounds[text], end)
        while start < end:
            hashes[n], starts[n], stops[n] = _hash(data, start, stop), start, stop
            n += 1
            start, stop = _next(data, stop, end)


@kernel
def _grams(hashes: Hashes, offsets: Offsets, order: int, out: Hashes) -> None:
    n = 0
    for text in range(len(offsets) - 1):
        for i in range(offsets[text], offsets[text + 1]):
            h = hashes[i]
            out[n] = h
            n += 1
            for j in range(i + 1, min(i + order, offsets[text + 1])):
                h = (h ^ (h >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15) + hashes[j]
                out[n] = h
                n += 1
