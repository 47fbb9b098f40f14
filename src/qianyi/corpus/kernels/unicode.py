"""Characters by class: one byte for each code point of the basic plane, ranges beyond it.

The tables are made of Python's Unicode database when they are first asked for (about 0.1 s).
"""

import unicodedata
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.kernels.buffers import Bytes

CONTROL, PUNCTUATION, SPACE, WIDE_PUNCTUATION, DIGIT, MARK = range(6)
LATIN_UPPER, LATIN, GREEK, CYRILLIC, ARABIC, HEBREW, THAI, OTHER_LETTER = range(6, 14)
HAN, KANA, HANGUL = range(14, 17)
N_CLASSES = 17
"""Before SPACE a character is a sign, from DIGIT on part of a word, from LATIN_UPPER on a letter, from HAN on a word by itself."""

TERMINAL, SENTENCE_END, WIDE_END, CLOSER, BULLET, ELLIPSIS = (1 << i for i in range(6))
"""Bits of `marks`: ends a line well, ends a sentence before a space, ends one anywhere, may follow an end, opens an item, is
an ellipsis."""

_MARKS = {
    TERMINAL: ".!?\"'”’»…。！？；」』】）)：:｡",
    SENTENCE_END: ".!?…؟۔।",
    WIDE_END: "。！？；｡",
    CLOSER: "\"'”’»)]）」』】",
    BULLET: "-*•‣◦●○▪■□◆◇★☆►▶·–—※➢✓",
    ELLIPSIS: "…",
}
_SCRIPTS = {
    "LATIN": LATIN, "GREEK": GREEK, "CYRILLIC": CYRILLIC, "ARABIC": ARABIC, "HEBREW": HEBREW, "THAI": THAI,
    "CJK": HAN, "HIRAGANA": KANA, "KATAKANA": KANA, "KATAKANA-HIRAGANA": KANA, "HANGUL": HANGUL,
}  # fmt: skip
_WIDE_PLACES = ((0x3000, 0x303F), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF))


@cache
def classes() -> Bytes:
    """Class of each code point of the basic plane, [65536]."""
    table = np.full(0x10000, N_CLASSES, np.uint8)
    for first, last, same in _ALIKE:
        table[first : last + 1] = same
    others = np.flatnonzero(table == N_CLASSES)
    table[others] = [_class_of(point) for point in others.tolist()]
    return table


@cache
def marks() -> Bytes:
    """What each code point of the basic plane may do in a line, [65536] of bits."""
    table = np.zeros(0x10000, np.uint8)
    for bit, characters in _MARKS.items():
        for character in characters:
            table[ord(character)] |= bit
    return table


_ALIKE = ((0x3400, 0x4DBF, HAN), (0x4E00, 0x9FFF, HAN), (0xAC00, 0xD7A3, HANGUL), (0xD800, 0xF8FF, CONTROL))
"""Large blocks; the last are halves of pairs and what has no meaning."""
_CLASS_OF_CATEGORY = {"Z": SPACE, "C": CONTROL, "N": DIGIT, "M": MARK}
_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85"
_HAN_SIGNS = "々〇〆"


def _class_of(point: int) -> int:
    character = chr(point)
    category = unicodedata.category(character)
    if character in _SPACES:
        return SPACE
    if character in _HAN_SIGNS:
        return HAN
    if category[0] == "L":
        return _letter_of(character, category)
    wide = any(first <= point <= last for first, last in _WIDE_PLACES)
    return _CLASS_OF_CATEGORY.get(category[0], WIDE_PUNCTUATION if wide else PUNCTUATION)


def _letter_of(character: str, category: str) -> int:
    words = unicodedata.name(character, "").replace("FULLWIDTH ", "").replace("HALFWIDTH ", "").split(" ", 1)
    script = _SCRIPTS.get(words[0], OTHER_LETTER)
    return LATIN_UPPER if script == LATIN and category == "Lu" else script


@njit(cache=True, nogil=True, inline="always")
def decode(data: Bytes, i: int, end: int) -> tuple[int, int]:
    """The code point that begins at byte i, and its bytes; a broken one is U+FFFD of one byte."""
    b: Any = np.int64(data[i])
    if b < 0x80:
        return b, 1
    if 0xC2 <= b < 0xE0 and i + 1 < end:
        return (b & 0x1F) << 6 | (data[i + 1] & 0x3F), 2
    if 0xE0 <= b < 0xF0 and i + 2 < end:
        return (b & 0x0F) << 12 | (np.int64(data[i + 1]) & 0x3F) << 6 | (data[i + 2] & 0x3F), 3
    if 0xF0 <= b < 0xF5 and i + 3 < end:
        high = (b & 0x07) << 18 | (np.int64(data[i + 1]) & 0x3F) << 12
        return high | (np.int64(data[i + 2]) & 0x3F) << 6 | (data[i + 3] & 0x3F), 4
    return 0xFFFD, 1


@njit(cache=True, nogil=True, inline="always")
def class_of(point: int, table: NDArray[np.uint8]) -> int:
    """The class of any code point: beyond the basic plane ideographs, emoji and other symbols, and letters."""
    if point < 0x10000:
        return table[point]
    if 0x20000 <= point < 0x40000:
        return HAN
    if 0x1F000 <= point < 0x1FB00:
        return PUNCTUATION
    return OTHER_LETTER if point < 0xE0000 else CONTROL
