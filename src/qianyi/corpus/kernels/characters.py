"""How often characters of each class, and some special ones, occur in a text."""

from functools import cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.kernels.buffers import Bytes
from qianyi.corpus.kernels.unicode import HAN, N_CLASSES, class_of, decode

Counts = NDArray[np.int64]

SIMPLIFIED, TRADITIONAL, STOPS_ZH, STOPS_ZH_SEEN, BRACES, HASHES, ELLIPSES, URLS, MOJIBAKE = range(N_CLASSES, N_CLASSES + 9)
"""Places in the counts after those of the classes. STOPS_ZH_SEEN is the set of function characters seen, as bits. MOJIBAKE counts
characters that wrong decoding leaves: U+FFFD, pairs that were UTF-8, four and more high Latin-1 characters on end, Han that UTF-8
gives when it is read as GBK."""
N_COUNTS = N_CLASSES + 9

STOPS_ZH_GROUPS = (
    "的", "了", "是", "在", "不", "和与與", "有", "我", "人", "这這", "中", "他她", "为為", "以", "上", "也", "到", "个個",
    "就", "而", "之", "其", "于於", "所", "者", "则則", "乃", "曰", "无無", "何", "此",
)  # fmt: skip
"""Function characters of modern and classical Chinese, both scripts; those of one group count as one."""

_GROUP, _FROM_UTF8, _SIMPLIFIED, _TRADITIONAL = 31, 32, 64, 128
HIGH_RUN = 4
"""So many characters U+0080 to U+00FF on end are no European word."""


def utf8_as_gbk() -> str:
    """The Han characters of which a reader that takes UTF-8 Chinese for GBK shows many: first two bytes of a character as one."""
    pairs = (bytes((first, second)) for first in (*range(0xE3, 0xEA), 0xEF) for second in range(0x80, 0xC0))
    return "".join(pair.decode("gbk", "ignore") for pair in pairs)


@cache
def han_table(simplified: str, traditional: str) -> Bytes:
    """[65536]: 5 bits for the group of a function character counted from 1; left by wrong decoding; in simplified, in traditional alone."""
    table = np.zeros(0x10000, np.uint8)
    for character in utf8_as_gbk():
        table[ord(character)] |= _FROM_UTF8
    for number, group in enumerate(STOPS_ZH_GROUPS, 1):
        for character in group:
            table[ord(character)] |= number
    for characters, bit in ((simplified, _SIMPLIFIED), (traditional, _TRADITIONAL)):
        for character in characters:
            table[ord(character)] |= bit
    return table


@njit(cache=True, nogil=True)
def count_characters(data: Bytes, start: int, end: int, classes: Bytes, han: Bytes, counts: Counts) -> None:
    """Add the characters of data[start:end] to `counts`, [N_COUNTS]."""
    i, dots, high, before = start, 0, 0, 0
    while i < end:
        point, width = decode(data, i, end)
        kind = class_of(point, classes)
        counts[kind] += 1
        if point < 0x80:
            high = 0
            if point == 0x2E:  # .
                dots += 1
                if dots == 3:
                    counts[ELLIPSES] += 1
                    dots = 0
            else:
                dots = 0
                _count_ascii(data, i, end, point, counts)
        elif point < 0x100:
            dots, high = 0, high + 1
            if high >= HIGH_RUN:
                counts[MOJIBAKE] += HIGH_RUN if high == HIGH_RUN else 1
            elif point < 0xC0 and 0xC2 <= before < 0xF5:
                counts[MOJIBAKE] += 2
        else:
            dots, high = 0, 0
            if kind == HAN and point < 0x10000:
                _count_han(han[point], counts)
            elif point == 0x2026:  # …
                counts[ELLIPSES] += 1
            elif point == 0xFFFD:
                counts[MOJIBAKE] += 1
        before = point
        i += width


@njit(cache=True, nogil=True, inline="always")
def _count_ascii(data: Bytes, i: int, end: int, point: int, counts: Counts) -> None:
    if (point == 0x7B) | (point == 0x7D):  # braces; `in` would make a set of them each time
        counts[BRACES] += 1
    elif point == 0x23:  # #
        counts[HASHES] += 1
    elif point == 0x3A and i + 2 < end and data[i + 1] == 0x2F and data[i + 2] == 0x2F:  # ://
        counts[URLS] += 1


@njit(cache=True, nogil=True, inline="always")
def _count_han(bits: int, counts: Counts) -> None:
    group = np.int64(bits) & _GROUP
    if group:
        counts[STOPS_ZH] += 1
        counts[STOPS_ZH_SEEN] |= np.int64(1) << (group - 1)
    counts[MOJIBAKE] += (np.int64(bits) >> 5) & 1
    counts[SIMPLIFIED] += (np.int64(bits) >> 6) & 1
    counts[TRADITIONAL] += (np.int64(bits) >> 7) & 1
