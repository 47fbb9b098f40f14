"""One walk over a text: words as hashes, and lines with what they begin, end and hold.

A word is a run without spaces and ideographs, or one ideograph (Han, kana, hangul). A run of signs alone is a word where spaces or line ends
stand on both sides, as in `- item`, and is none beside ideographs and their punctuation. Hashes ignore ASCII case and, in words that
have letters or digits, punctuation.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.kernels.buffers import Bytes
from qianyi.corpus.kernels.unicode import (
    BULLET,
    CLOSER,
    DIGIT,
    ELLIPSIS,
    HAN,
    LATIN_UPPER,
    SENTENCE_END,
    SPACE,
    TERMINAL,
    WIDE_END,
    WIDE_PUNCTUATION,
    class_of,
    decode,
)

Hashes = NDArray[np.uint64]
Lengths = NDArray[np.int32]
Flags = NDArray[np.uint8]

ALPHA, IDEOGRAPH = 1, 2
"""Flags of a word: it has a letter; it is one ideograph."""
LINE_TERMINAL, LINE_BULLET, LINE_ELLIPSIS, LINE_SHORT = 1, 2, 4, 8
"""Flags of a line: ends with a full stop or a closing mark; begins as an item; ends with an ellipsis; has fewer than 30 columns."""
SHORT_COLUMNS = 30
"""An ideograph takes two."""

_SEED = np.uint64(0x9E3779B97F4A7C15)
_PRIME = np.uint64(0xD6E8FEB86659FD93)


@njit(cache=True, nogil=True, inline="always")
def mix(h: int, value: int) -> int:
    """A 64-bit hash of a sequence, one value further."""
    h = np.uint64(h)
    h = ((h << np.uint64(5) | h >> np.uint64(59)) ^ np.uint64(value)) * _PRIME  # turned, so that a, b is not b, a
    return h ^ (h >> np.uint64(32))


@njit(cache=True, nogil=True)
def walk(
    data: Bytes,
    start: int,
    end: int,
    classes: Bytes,
    marks: Bytes,
    words: Hashes,
    word_chars: Lengths,
    word_flags: Flags,
    lines: Hashes,
    line_chars: Lengths,
    line_words: Lengths,
    line_flags: Flags,
    line_paragraph: Lengths,
) -> tuple[int, int, int]:
    """Fill the arrays from data[start:end]; lines are those that hold more than spaces, `line_chars` counts no spaces.

    Returns:
        How many words, lines and sentences there are.
    """
    n_words, n_lines, n_sentences = 0, 0, 0
    paragraph, blank = 0, False
    run, run_all, run_chars, run_flags, run_holds = _SEED, _SEED, 0, 0, False  # the run that is being read
    mixed = False  # an ideograph since the last space
    line, chars, columns, first_word, first, last, before = _SEED, 0, 0, 0, 0, 0, 0
    ending = 0  # 1: a sentence has perhaps ended, 2: it has
    i = start
    while i <= end:
        point, width = decode(data, i, end) if i < end else (10, 1)
        kind = class_of(point, classes)
        if kind >= HAN or kind == WIDE_PUNCTUATION or kind == SPACE:
            if run_chars and (run_holds or (kind == SPACE and not mixed)):
                words[n_words] = run if run_holds else run_all
                word_chars[n_words], word_flags[n_words] = run_chars, run_flags
                line = mix(line, words[n_words])
                n_words += 1
            if run_chars:
                run, run_all, run_chars, run_flags, run_holds = _SEED, _SEED, 0, 0, False
            mixed = kind != SPACE
            if kind >= HAN:
                words[n_words] = mix(_SEED, point)
                word_chars[n_words], word_flags[n_words] = 1, ALPHA | IDEOGRAPH
                line = mix(line, words[n_words])
                n_words += 1
            elif kind == WIDE_PUNCTUATION:
                line = mix(line, point)
        else:
            run_chars += 1
            folded = point + 32 if 0x41 <= point <= 0x5A else point
            if kind >= DIGIT:
                run, run_holds = mix(run, folded), True
                if kind >= LATIN_UPPER:
                    run_flags = ALPHA
            else:
                run_all = mix(run_all, folded)
        mark = marks[point] if point < 0x10000 else 0
        if ending:
            if kind == SPACE:
                n_sentences += 1
                ending = 0
            elif not mark & (SENTENCE_END | WIDE_END | CLOSER):
                n_sentences += ending == 2
                ending = 0
        if mark & WIDE_END:
            ending = 2
        elif mark & SENTENCE_END and not ending:
            ending = 1
        if kind != SPACE:
            if not chars:
                first = mark
            before, last = last, point
            chars += 1
            columns += 2 if kind >= HAN or kind == WIDE_PUNCTUATION else 1
        elif point == 10:
            if chars:
                if blank and n_lines:
                    paragraph += 1
                lines[n_lines], line_chars[n_lines], line_words[n_lines] = line, chars, n_words - first_word
                line_flags[n_lines] = _line_flags(first, before, last, columns, marks)
                line_paragraph[n_lines] = paragraph
                n_lines += 1
            blank = not chars
            line, chars, columns, first_word, first, last, before = _SEED, 0, 0, n_words, 0, 0, 0
        else:
            columns += 1
        i += width
    return n_words, n_lines, n_sentences


@njit(cache=True, nogil=True, inline="always")
def _line_flags(first: int, before: int, last: int, columns: int, marks: Bytes) -> int:
    mark = marks[last] if last < 0x10000 else 0
    flags = LINE_TERMINAL if mark & TERMINAL else 0
    if first & BULLET:
        flags |= LINE_BULLET
    if mark & ELLIPSIS or (last == 0x2E and before == 0x2E):
        flags |= LINE_ELLIPSIS
    if columns < SHORT_COLUMNS:
        flags |= LINE_SHORT
    return flags
