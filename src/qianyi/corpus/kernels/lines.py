"""A text as lines and sentences."""

from typing import Any

from numba import njit

from qianyi.corpus.kernels.buffers import Bytes
from qianyi.corpus.kernels.unicode import (
    BULLET,
    CLOSER,
    ELLIPSIS,
    HAN,
    SENTENCE_END,
    SPACE,
    TERMINAL,
    WIDE_END,
    WIDE_PUNCTUATION,
    class_of,
    decode,
)
from qianyi.corpus.kernels.words import SEED, Flags, Hashes, Lengths, fold, mix

LINE_TERMINAL, LINE_BULLET, LINE_ELLIPSIS, LINE_SHORT = 1, 2, 4, 8
"""Flags of a line: ends with a full stop or a closing mark; begins as an item; ends with an ellipsis; has fewer than 30 columns."""
SHORT_COLUMNS = 30
"""An ideograph takes two."""


@njit(cache=True, nogil=True)
def split_lines(
    data: Bytes,
    start: int,
    end: int,
    classes: Bytes,
    marks: Bytes,
    lines: Hashes,
    chars: Lengths,
    flags: Flags,
    paragraphs: Lengths,
) -> int:
    """Fill the arrays from data[start:end] with the lines that hold more than spaces; lines are equal but for spaces and ASCII case.

    `chars` counts no spaces; `paragraphs` numbers what empty lines part. Returns how many lines there are.
    """
    n, paragraph, blank = 0, 0, False
    line, length, columns, first, last, before = SEED, 0, 0, 0, 0, 0
    i = start
    while i <= end:
        point, width = decode(data, i, end) if i < end else (10, 1)
        kind = class_of(point, classes)
        i += width
        if kind != SPACE:
            first = first if length else point
            before, last = last, point
            line, length = mix(line, fold(point)), length + 1
            columns += 2 if kind >= HAN or kind == WIDE_PUNCTUATION else 1
        elif point != 10:
            columns += 1
        else:
            if length:
                paragraph += blank and n > 0
                lines[n], chars[n], paragraphs[n] = line, length, paragraph
                flags[n] = _flags_of(first, before, last, columns, marks)
                n += 1
            blank = not length
            line, length, columns, first, last, before = SEED, 0, 0, 0, 0, 0
    return n


@njit(cache=True, nogil=True, inline="always")
def _flags_of(first: int, before: int, last: int, columns: int, marks: Bytes) -> int:
    end: Any = marks[last] if last < 0x10000 else 0
    flags = LINE_TERMINAL if end & TERMINAL else 0
    if first < 0x10000 and marks[first] & BULLET:
        flags |= LINE_BULLET
    if end & ELLIPSIS or (last == 0x2E and before == 0x2E):
        flags |= LINE_ELLIPSIS
    return flags | LINE_SHORT if columns < SHORT_COLUMNS else flags


@njit(cache=True, nogil=True)
def count_sentences(data: Bytes, start: int, end: int, classes: Bytes, marks: Bytes) -> int:
    """Ends of sentences: marks with what may close after them; narrow ones (. ! ? …) only before a space or the end."""
    n, ending = 0, 0  # 1: a sentence has perhaps ended, 2: it has
    i = start
    while i < end:
        point, width = decode(data, i, end)
        i += width
        mark: Any = marks[point] if point < 0x10000 else 0
        if ending and not mark & (SENTENCE_END | WIDE_END | CLOSER):
            n += ending == 2 or class_of(point, classes) == SPACE
            ending = 0
        if mark & WIDE_END:
            ending = 2
        elif mark & SENTENCE_END and not ending:
            ending = 1
    return n + (ending > 0)


@njit(cache=True, nogil=True)
def join_paragraphs(lines: Hashes, chars: Lengths, paragraphs: Lengths, n_lines: int) -> int:
    """Make paragraphs of lines, in place; returns how many."""
    n = 0
    for k in range(n_lines):
        if k and paragraphs[k] == paragraphs[k - 1]:
            lines[n - 1] = mix(lines[n - 1], lines[k])
            chars[n - 1] += chars[k]
        else:
            lines[n], chars[n] = lines[k], chars[k]
            n += 1
    return n
