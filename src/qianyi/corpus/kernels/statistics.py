"""All statistics of documents, computed once: the columns that rules put bounds on.

Sources: Gopher (Rae et al. 2021, table A1 and section A.1.1), C4 (Raffel et al. 2020, section 2.2), FineWeb (Penedo et al. 2024, section
3.6), counted alike for every language on the words of `kernels/words.py`. A fraction of nothing is 0.
"""

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.kernels import characters as ch
from qianyi.corpus.kernels import unicode as uc
from qianyi.corpus.kernels.buffers import Bytes, Offsets, Strings, utf8
from qianyi.corpus.kernels.characters import N_COUNTS, Counts, count_characters, han_table
from qianyi.corpus.kernels.lines import (
    LINE_BULLET,
    LINE_ELLIPSIS,
    LINE_SHORT,
    LINE_TERMINAL,
    count_sentences,
    join_paragraphs,
    split_lines,
)
from qianyi.corpus.kernels.phrases import Lexicon, count_phrases, lexicon
from qianyi.corpus.kernels.repetition import MAX_N, repeated_ngrams, repeated_units, table_size
from qianyi.corpus.kernels.words import ALPHA, IDEOGRAPH, Flags, Lengths, split_words

Row = NDArray[np.float64]

COUNTS = (
    "chars", "words", "lines", "paragraphs", "sentences", "stop_words_en", "stop_words_zh", "braces", "urls", "lorem_ipsum", "boilerplate",
    "simplified_chars", "traditional_chars",
)  # fmt: skip
"""Columns of whole numbers. `chars` counts no spaces; stop words are distinct ones, of Gopher's eight and of the groups in Chinese."""
FRACTIONS = (
    "mean_word_length", "mean_line_words", "alpha_words", "long_word_chars", "stop_fraction_en", "stop_fraction_zh",
    "hash_per_word", "ellipsis_per_word", "lines_per_word", "bullet_lines", "ellipsis_lines", "terminal_lines", "short_lines",
    "dup_lines", "dup_line_chars", "dup_paragraphs", "dup_paragraph_chars",
    "top_2gram", "top_3gram", "top_4gram", "dup_5gram", "dup_6gram", "dup_7gram", "dup_8gram", "dup_9gram", "dup_10gram",
    "han", "kana", "hangul", "latin", "cyrillic", "other_letters", "upper", "digits", "punctuation", "control", "mojibake",
)  # fmt: skip
"""Columns of ratios. `mean_word_length` and `stop_fraction_en` are over the words that are no ideographs, `stop_fraction_zh` over Han
characters, `upper` over Latin letters; n-grams, duplicate lines and scripts are shares of `chars`."""
NAMES = COUNTS + FRACTIONS
LONG_WORD_CHARS = 40
"""A longer word is no word of prose: data in base 64, a path, words run together."""
(
    CHARS, WORDS, LINES, PARAGRAPHS, SENTENCES, STOP_WORDS_EN, STOP_WORDS_ZH, BRACES, URLS, LOREM, BOILERPLATE, SIMPLIFIED, TRADITIONAL,
    WORD_LENGTH, LINE_WORDS, ALPHA_WORDS, LONG_WORDS, STOPS_EN, STOPS_ZH, HASH, ELLIPSIS, LINES_PER_WORD, BULLETS, ELLIPSIS_LINES,
    TERMINAL_LINES, SHORT_LINES, DUP_LINES, DUP_LINE_CHARS, DUP_PARAGRAPHS, DUP_PARAGRAPH_CHARS, TOP_2GRAM, _, _, _, _, _, _, _, _, HAN,
    KANA, HANGUL, LATIN, CYRILLIC, OTHER_LETTERS, UPPER, DIGITS, PUNCTUATION, CONTROL, MOJIBAKE,
) = range(len(NAMES))  # fmt: skip


def statistics(texts: Strings, simplified: str, traditional: str) -> pa.RecordBatch:
    """The statistics of each text: columns `stat_NAME` for `NAMES`.

    Args:
        texts: [n] strings.
        simplified: Han characters that are written in simplified Chinese alone; traditional: in traditional.
    """
    data, offsets = utf8(texts)
    values = np.zeros((len(offsets) - 1, len(NAMES)), np.float64)
    _measure(data, offsets, uc.classes(), uc.marks(), han_table(simplified, traditional), lexicon(), values)
    columns = [pa.array(values[:, k].astype(np.int64)) for k in range(len(COUNTS))]
    columns += [pa.array(np.ascontiguousarray(values[:, k])) for k in range(len(COUNTS), len(NAMES))]
    return pa.RecordBatch.from_arrays(columns, names=[f"stat_{name}" for name in NAMES])


@njit(cache=True, nogil=True)
def _measure(data: Bytes, offsets: Offsets, classes: Bytes, marks: Bytes, han: Bytes, lexicon: Lexicon, out: Row) -> None:
    """Fill out, [documents, len(NAMES)]."""
    words, grams, table = np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint64)
    word_chars, places, slots = np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int32)
    word_flags, later = np.empty(0, np.uint8), np.empty(0, np.bool_)
    counts, ends = np.empty(0, np.int32), np.empty(0, np.int64)
    lines, line_flags = np.empty(0, np.uint64), np.empty(0, np.uint8)
    line_chars, line_paragraph = np.empty(0, np.int32), np.empty(0, np.int32)
    special, repeats = np.empty(N_COUNTS, np.int64), np.empty(MAX_N + 1, np.int64)
    for d in range(len(offsets) - 1):
        start, end = offsets[d], offsets[d + 1]
        special[:] = 0
        count_characters(data, start, end, classes, han, special)
        room = _room_for_words(special)
        if room > len(words):
            size = table_size(room)
            words, grams, table = np.empty(size, np.uint64), np.empty(size, np.uint64), np.empty(2 * size, np.uint64)
            word_chars, places, slots = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32)
            word_flags, later = np.empty(size, np.uint8), np.empty(size, np.bool_)
            counts, ends = np.empty(2 * size, np.int32), np.empty(size + 1, np.int64)
            lines, line_flags = np.empty(size, np.uint64), np.empty(size, np.uint8)
            line_chars, line_paragraph = np.empty(size, np.int32), np.empty(size, np.int32)
        n_words = split_words(data, start, end, classes, words, word_chars, word_flags)
        n_lines = split_lines(data, start, end, classes, marks, lines, line_chars, line_flags, line_paragraph)
        row = out[d]
        _characters(special, row)
        row[WORDS], row[LINES] = n_words, n_lines
        row[SENTENCES] = count_sentences(data, start, end, classes, marks)
        if not n_words:
            continue
        stops, row[STOP_WORDS_EN], row[LOREM], row[BOILERPLATE] = count_phrases(words, n_words, lexicon)
        _words(word_chars, word_flags, n_words, stops, special, ends, row)
        _lines(line_flags, n_lines, row)
        row[DUP_LINES], row[DUP_LINE_CHARS] = repeated_units(lines, line_chars, n_lines, places, table, counts, slots, later)
        row[PARAGRAPHS] = join_paragraphs(lines, line_chars, line_paragraph, n_lines)
        n_paragraphs = int(row[PARAGRAPHS])
        row[DUP_PARAGRAPHS], row[DUP_PARAGRAPH_CHARS] = repeated_units(
            lines, line_chars, n_paragraphs, places, table, counts, slots, later
        )
        repeated_ngrams(words, ends, n_words, grams, places, table, counts, slots, later, repeats)
        for n in range(2, MAX_N + 1):
            row[TOP_2GRAM + n - 2] = min(1.0, repeats[n] / max(1, ends[n_words]))
        row[DUP_LINES] /= n_lines
        row[DUP_PARAGRAPHS] /= n_paragraphs
        row[DUP_LINE_CHARS] /= row[CHARS]
        row[DUP_PARAGRAPH_CHARS] /= row[CHARS]


@njit(cache=True, nogil=True)
def _room_for_words(special: Counts) -> int:
    """At most so many words and lines: each ends at a space, at wide punctuation or at an ideograph, which is another."""
    ideographs = special[uc.HAN] + special[uc.KANA] + special[uc.HANGUL]
    return 2 * ideographs + special[uc.SPACE] + special[uc.WIDE_PUNCTUATION] + 2


@njit(cache=True, nogil=True)
def _characters(special: Counts, row: Row) -> None:
    """What the counts of characters alone say."""
    chars = special[: uc.N_CLASSES].sum() - special[uc.SPACE]
    row[CHARS] = chars
    row[BRACES], row[URLS], row[MOJIBAKE] = special[ch.BRACES], special[ch.URLS], special[ch.MOJIBAKE] / max(1, chars)
    row[SIMPLIFIED], row[TRADITIONAL] = special[ch.SIMPLIFIED], special[ch.TRADITIONAL]
    seen = special[ch.STOPS_ZH_SEEN]
    while seen:
        row[STOP_WORDS_ZH] += seen & 1
        seen >>= 1
    row[STOPS_ZH] = special[ch.STOPS_ZH] / max(1, special[uc.HAN])
    latin = special[uc.LATIN] + special[uc.LATIN_UPPER]
    row[UPPER] = special[uc.LATIN_UPPER] / max(1, latin)
    whole = max(1, chars)
    row[HAN], row[KANA], row[HANGUL] = special[uc.HAN] / whole, special[uc.KANA] / whole, special[uc.HANGUL] / whole
    row[LATIN], row[CYRILLIC] = latin / whole, special[uc.CYRILLIC] / whole
    others = special[uc.GREEK] + special[uc.ARABIC] + special[uc.HEBREW] + special[uc.THAI] + special[uc.OTHER_LETTER]
    row[OTHER_LETTERS] = others / whole
    row[DIGITS], row[CONTROL] = special[uc.DIGIT] / whole, special[uc.CONTROL] / whole
    row[PUNCTUATION] = (special[uc.PUNCTUATION] + special[uc.WIDE_PUNCTUATION]) / whole


@njit(cache=True, nogil=True)
def _words(
    word_chars: Lengths, word_flags: Flags, n_words: int, stops: int, special: Counts, ends: NDArray[np.int64], row: Row
) -> None:
    """What lengths and kinds of words say; ends[k] becomes the characters of the first k words."""
    alpha, ideographs, long_chars = 0, 0, 0
    ends[0] = 0
    for k in range(n_words):
        ends[k + 1] = ends[k] + word_chars[k]
        alpha += word_flags[k] & ALPHA
        ideographs += (word_flags[k] & IDEOGRAPH) >> 1
        if word_chars[k] > LONG_WORD_CHARS:
            long_chars += word_chars[k]
    runs = max(1, n_words - ideographs)
    row[WORD_LENGTH] = (ends[n_words] - ideographs) / runs
    row[STOPS_EN] = stops / runs
    row[ALPHA_WORDS] = alpha / n_words
    row[LONG_WORDS] = long_chars / max(1, ends[n_words])
    row[HASH], row[ELLIPSIS] = special[ch.HASHES] / n_words, special[ch.ELLIPSES] / n_words
    row[LINES_PER_WORD] = row[LINES] / n_words


@njit(cache=True, nogil=True)
def _lines(line_flags: Flags, n_lines: int, row: Row) -> None:
    """Shares of lines that are items, end in ellipses, end well, are short."""
    for k in range(n_lines):
        row[BULLETS] += (line_flags[k] & LINE_BULLET) > 0
        row[ELLIPSIS_LINES] += (line_flags[k] & LINE_ELLIPSIS) > 0
        row[TERMINAL_LINES] += (line_flags[k] & LINE_TERMINAL) > 0
        row[SHORT_LINES] += (line_flags[k] & LINE_SHORT) > 0
    row[BULLETS : SHORT_LINES + 1] /= n_lines
    row[LINE_WORDS] = row[WORDS] / n_lines
