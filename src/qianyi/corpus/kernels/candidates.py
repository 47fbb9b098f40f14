"""Places where personal data or secrets may stand, found in one walk over the bytes; whether they are is verified at these places alone."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.kernels.buffers import Bytes, Offsets, Strings, utf8

EMAIL, DIGITS, IPV4, IPV6, PREFIX, ASSIGNED = range(6)
"""Kinds: an @ between word characters; seven and more digits with separators; four numbers with dots; colons between hexadecimal
digits; the beginning of a known kind of key; `key=` and the like."""
MIN_DIGITS = 7
_PREFIXES = (
    "AKIA",
    "ASIA",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "xoxr-",
    "xoxs-",
    "-----BEGIN ",
)
_NAMES = ("key", "token", "secret", "password", "passwd", "pwd")

_ALNUM, _DIGIT, _HEX, _SEPARATOR, _LOOK = 1, 2, 4, 8, 16


def _bytes_table() -> Bytes:
    table = np.zeros(256, np.uint8)
    for b in b"0123456789":
        table[b] |= _DIGIT | _HEX | _ALNUM | _LOOK
    for b in b"abcdefABCDEF":
        table[b] |= _HEX
    for b in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_":
        table[b] |= _ALNUM
    for b in b" -.()":
        table[b] |= _SEPARATOR
    for b in (*b"@:=", *(prefix.encode()[0] for prefix in _PREFIXES)):
        table[b] |= _LOOK
    return table


def _rows(texts: tuple[str, ...]) -> Bytes:
    rows = np.zeros((len(texts), max(map(len, texts)) + 1), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = np.frombuffer(text.encode(), np.uint8)
    return rows


_TABLE, _PREFIX_ROWS, _NAME_ROWS = _bytes_table(), _rows(_PREFIXES), _rows(tuple(name[::-1] for name in _NAMES))


def candidates(texts: Strings) -> tuple[NDArray[np.int64], Bytes, Offsets]:
    """[n, 3]: document, byte in the buffer, kind, in order; and the buffers."""
    data, offsets = utf8(texts)
    room = 1024
    while True:
        found = np.empty((room, 3), np.int64)
        n = _scan(data, offsets, _TABLE, _PREFIX_ROWS, _NAME_ROWS, found)
        if n <= room:
            return found[:n], data, offsets
        room = n


@njit(cache=True, nogil=True)
def _scan(data: Bytes, offsets: Offsets, table: Bytes, prefixes: Bytes, names: Bytes, found: NDArray[np.int64]) -> int:
    """Fill `found` as far as it goes; returns how many there are."""
    n = 0
    for d in range(len(offsets) - 1):
        start, end = offsets[d], offsets[d + 1]
        i = start
        while i < end:
            b = data[i]
            if not table[b] & _LOOK:
                i += 1
                continue
            kind, width = -1, 1
            if table[b] & _DIGIT:
                kind, width = _numbers(data, i, end, table)
            elif b == 0x40:  # @
                if i > start and i + 1 < end and table[data[i - 1]] & _ALNUM and table[data[i + 1]] & _ALNUM:
                    kind = EMAIL
            elif (b == 0x3A) | (b == 0x3D):  # : =
                if b == 0x3A and _is_ipv6(data, i, start, end, table):
                    kind = IPV6
                elif _ends_with(data, i, start, names):
                    kind = ASSIGNED
            elif (i == start or not table[data[i - 1]] & _ALNUM) and _begins_with(data, i, end, prefixes):
                kind = PREFIX
            if kind >= 0:
                if n < len(found):
                    found[n, 0], found[n, 1], found[n, 2] = d, i, kind
                n += 1
            i += width
    return n


@njit(cache=True, nogil=True)
def _numbers(data: Bytes, i: int, end: int, table: Bytes) -> tuple[int, int]:
    """The kind of what begins with the digit at i, -1 for none, and how many bytes it takes: digits with single separators."""
    digits, dots, j = 0, 0, i
    while j < end:
        if table[data[j]] & _DIGIT:
            digits += 1
        elif (
            table[data[j]] & _SEPARATOR
            and j + 1 < end
            and (table[data[j + 1]] & _DIGIT or (data[j + 1] == 0x28) | (data[j] == 0x29))
        ):
            dots += data[j] == 0x2E
        else:
            break
        j += 1
    if digits >= MIN_DIGITS:
        return DIGITS, j - i
    return (IPV4 if dots >= 3 else -1), j - i


@njit(cache=True, nogil=True)
def _is_ipv6(data: Bytes, i: int, start: int, end: int, table: Bytes) -> bool:
    """The colon at i is the first of at least two among hexadecimal digits, as in an address; three where none are doubled."""
    j = i - 1
    while j >= start and table[data[j]] & _HEX:
        j -= 1
    if j >= start and (data[j] == 0x3A or table[data[j]] & _ALNUM):
        return False
    colons, doubled, k = 0, False, i
    while k < end and (data[k] == 0x3A or table[data[k]] & _HEX):
        if data[k] == 0x3A:
            colons += 1
            doubled |= k + 1 < end and data[k + 1] == 0x3A
        k += 1
    return colons >= 2 and (doubled or colons >= 7) and k - j > 6


@njit(cache=True, nogil=True)
def _ends_with(data: Bytes, i: int, start: int, names: Bytes) -> bool:
    """One of the (reversed) names stands before byte i, whatever its case, quotation marks and spaces between."""
    j = i - 1
    while j >= start and ((data[j] == 0x20) | (data[j] == 0x22) | (data[j] == 0x27)):
        j -= 1
    for name in names:
        k = 0
        while name[k] and j - k >= start and (data[j - k] | 0x20) == name[k]:
            k += 1
        if not name[k]:
            return True
    return False


@njit(cache=True, nogil=True)
def _begins_with(data: Bytes, i: int, end: int, prefixes: Bytes) -> bool:
    for prefix in prefixes:
        k = 0
        while prefix[k] and i + k < end and data[i + k] == prefix[k]:
            k += 1
        if not prefix[k]:
            return True
    return False
