"""One fast walk that says which texts need repair at all, and of which kind."""

import unicodedata
from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.kernels.buffers import Bytes, Offsets, Strings, utf8
from qianyi.corpus.kernels.characters import HIGH_RUN, utf8_as_gbk
from qianyi.corpus.kernels.unicode import decode

LINE_ENDS, INVISIBLE, COMPOSITION, FULL_WIDTH, CJK, WRONG_DECODING = (1 << i for i in range(6))
"""Bits: other line ends than LF; control, zero-width and direction characters; perhaps not in form NFC; full-width letters and digits,
or signs where there is no CJK; Han, kana or hangul (no damage); signs of a wrong decoding."""

_HIGH, _AFTER_LEAD, _GBK, _WIDE_SIGN = 64, 128, 256, 512
_ZERO_WIDTH = (
    0xAD,
    0x61C,
    0x180E,
    *range(0x200B, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
    *range(0xFFF9, 0xFFFC),
)
_WINDOWS_1252 = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"


@cache
def table() -> NDArray[np.uint16]:
    """What each code point of the basic plane may be a sign of, [65536] of bits."""
    bits = np.zeros(0x10000, np.uint16)
    bits[_joining()] = COMPOSITION
    bits[[0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029]] |= LINE_ENDS
    bits[[*range(9), *range(0x0E, 0x20), *range(0x7F, 0xA0), *_ZERO_WIDTH, 0xFFFE, 0xFFFF]] |= INVISIBLE
    bits[0x85] &= ~INVISIBLE & 0xFFFF
    bits[0xFF01:0xFF5F] |= _WIDE_SIGN
    for first, last in ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)):
        bits[first : last + 1] |= FULL_WIDTH
    for first, last in ((0x3041, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF)):
        bits[first : last + 1] |= CJK
    bits[0x80:0x100] |= _HIGH
    bits[0x80:0xC0] |= _AFTER_LEAD
    bits[[ord(c) for c in _WINDOWS_1252]] |= _AFTER_LEAD | _HIGH
    bits[[ord(c) for c in utf8_as_gbk() if c != "�"]] |= _GBK
    return bits


def _joining() -> list[int]:
    """Code points that change under NFC, are marks, or may join the one before them."""
    characters = [chr(point) for point in range(0x10000) if not 0xD800 <= point < 0xE000 and point != 0x0A]
    forms = unicodedata.normalize("NFC", "\n".join(characters)).split("\n")  # a line end joins nothing
    found = {ord(c) for c, form in zip(characters, forms, strict=True) if c != form}
    found |= {ord(c) for c in characters if unicodedata.combining(c)} | {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}
    parts = [whole.split() for whole in map(unicodedata.decomposition, characters) if whole and whole[0] != "<"]
    found |= {int(part[1], 16) for part in parts if len(part) == 2}
    return sorted(point for point in found if point < 0x10000)


def damage(texts: Strings) -> NDArray[np.uint8]:
    """The bits of each text, [n]."""
    data, offsets = utf8(texts)
    found = np.zeros(len(offsets) - 1, np.uint8)
    _scan(data, offsets, table(), found)
    return found


@njit(cache=True, nogil=True)
def _scan(data: Bytes, offsets: Offsets, table: NDArray[np.uint16], found: NDArray[np.uint8]) -> None:
    for d in range(len(offsets) - 1):
        end = offsets[d + 1]
        i, seen, before, high, gbk, han = offsets[d], 0, 0, 0, 0, 0
        while i < end:
            point, width = decode(data, i, end)
            i += width
            if point >= 0x10000:
                seen |= COMPOSITION
                continue
            bits = np.int64(table[point])
            seen |= bits
            if point >= 0x80:
                high = high + 1 if bits & _HIGH else 0
                if high >= HIGH_RUN or (bits & _AFTER_LEAD and 0xC2 <= before < 0xF5):
                    seen |= WRONG_DECODING
                han += (bits & CJK) > 0
                gbk += (bits & _GBK) > 0
            else:
                high = 0
            before = point
        if gbk >= HIGH_RUN and 5 * gbk > han:
            seen |= WRONG_DECODING
        if seen & _WIDE_SIGN and not seen & CJK:
            seen |= FULL_WIDTH
        found[d] = seen & 63


def narrow(text: str, *, signs: bool) -> str:
    """Full-width letters and digits as ASCII; with `signs` full-width punctuation too."""
    data = np.frombuffer(text.encode(), np.uint8)
    out = np.empty(len(data), np.uint8)
    return out[: _narrow(data, signs, out)].tobytes().decode()


@njit(cache=True, nogil=True)
def _narrow(data: Bytes, signs: bool, out: Bytes) -> int:
    """Copy; U+FF01 to U+FF5E are 0xEF 0xBC or 0xBD and one byte. Returns how many bytes came out."""
    i, n, end = 0, 0, len(data)
    while i < end:
        point, width = decode(data, i, end)
        plain = point - 0xFEE0
        letter = 0x30 <= plain <= 0x39 or 0x41 <= plain <= 0x5A or 0x61 <= plain <= 0x7A
        if letter or (signs and 0x21 <= plain <= 0x7E):
            out[n] = plain
            n += 1
        else:
            for k in range(width):
                out[n + k] = data[i + k]
            n += width
        i += width
    return n
