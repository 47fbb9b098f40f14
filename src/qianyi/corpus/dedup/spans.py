"""Stretches of text that are cut: paragraphs, repeated substrings."""

import numpy as np
import pyarrow as pa
from numba import njit

from qianyi.corpus.dedup.keys import Refs, Spans
from qianyi.corpus.dedup.pairs import groups
from qianyi.corpus.kernels.ngrams import Bytes, Places, text_buffers
from qianyi.corpus.kernels.substring import to_characters

_NEWLINE = 0x0A


def paragraphs(texts: Spans) -> tuple[Spans, Places]:
    """Every line of the texts, its line end included, and which text it is of."""
    n = int(_count_lines(texts.data, texts.starts, texts.ends))
    starts, ends, rows = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    _fill_lines(texts.data, texts.starts, texts.ends, starts, ends, rows)
    return Spans(texts.data, starts, ends), rows


def repeats(windows: pa.Table, n_bytes: int) -> pa.Table:
    """Windows that stood before: `ref`, `begin`, `end` in bytes of the text. What overlaps its own first occurrence is left of it."""
    refs, places = windows["ref"].to_numpy(), windows["place"].to_numpy().astype(np.int64)
    rows, bounds = groups(windows["key"].to_numpy(), refs)
    first = np.repeat(rows[bounds[:-1]], np.diff(bounds)) if len(rows) else rows
    begins, ends = places[rows], places[rows] + n_bytes
    begins = np.where(refs[first] == refs[rows], np.maximum(begins, places[first] + n_bytes), begins)
    later = (first != rows) & (begins < ends)
    return pa.table({"ref": refs[rows[later]], "begin": begins[later], "end": ends[later]})


def merged(refs: Refs, begins: Places, ends: Places) -> tuple[Refs, Places, Places]:
    """Spans by ref and place, those that overlap or touch made one."""
    order = np.lexsort((ends, begins, refs))
    refs, begins, ends = refs[order], begins[order].copy(), ends[order].copy()
    return _merge(refs, begins, ends)


def cut(texts: pa.Array, rows: Places, begins: Places, ends: Places, whole_words: bool) -> pa.Array:
    """Texts without spans, which are ascending and disjoint within a row and shrink to whole characters.

    Args:
        texts: strings.
        rows: of each span, ascending.
        begins: of the spans, in bytes of the text.
        ends: of the spans.
        whole_words: shrink spans to whole ASCII words too.

    Returns:
        As many texts.
    """
    data, offsets = text_buffers(texts)
    out, places = np.empty(int(offsets[-1] - offsets[0]), np.uint8), np.zeros(len(texts) + 1, np.int64)
    bounds = np.searchsorted(rows, np.arange(len(texts) + 1))
    _copy_without(data, offsets, bounds, begins, ends, whole_words, out, places)
    content = pa.py_buffer(out[: places[-1]].tobytes())
    wide = pa.Array.from_buffers(pa.large_string(), len(texts), [None, pa.py_buffer(places.tobytes()), content])
    return wide.cast(texts.type)


@njit(cache=True, nogil=True)
def _count_lines(data: Bytes, starts: Places, ends: Places) -> int:
    n = 0
    for row in range(len(starts)):
        for i in range(starts[row], ends[row]):
            if data[i] == _NEWLINE or i == ends[row] - 1:
                n += 1
    return n


@njit(cache=True, nogil=True)
def _fill_lines(data: Bytes, starts: Places, ends: Places, begins: Places, finishes: Places, rows: Places) -> None:
    n = 0
    for row in range(len(starts)):
        begin = starts[row]
        for i in range(starts[row], ends[row]):
            if data[i] == _NEWLINE or i == ends[row] - 1:
                begins[n], finishes[n], rows[n] = begin, i + 1, row
                n += 1
                begin = i + 1


@njit(cache=True, nogil=True)
def _merge(refs: Refs, begins: Places, ends: Places) -> tuple[Refs, Places, Places]:
    n = 0
    for i in range(len(refs)):
        if n and refs[n - 1] == refs[i] and begins[i] <= ends[n - 1]:
            ends[n - 1] = max(ends[n - 1], ends[i])
        else:
            refs[n], begins[n], ends[n] = refs[i], begins[i], ends[i]
            n += 1
    return refs[:n], begins[:n], ends[:n]


@njit(cache=True, nogil=True)
def _copy_without(
    data: Bytes, offsets: Places, bounds: Places, begins: Places, ends: Places, whole_words: bool, out: Bytes, places: Places
) -> None:
    n = 0
    for row in range(len(offsets) - 1):
        start, finish = offsets[row], offsets[row + 1]
        at = start
        for span in range(bounds[row], bounds[row + 1]):
            begin, end = to_characters(data, start + begins[span], start + ends[span])
            if whole_words:
                begin, end = _to_words(data, start, finish, begin, end)
            if begin < end:
                out[n : n + begin - at] = data[at:begin]
                n += begin - at
                at = end
        out[n : n + finish - at] = data[at:finish]
        n += finish - at
        places[row + 1] = n


@njit(cache=True, nogil=True)
def _to_words(data: Bytes, start: int, finish: int, begin: int, end: int) -> tuple[int, int]:
    while start < begin < end and _in_word(data[begin - 1]) and _in_word(data[begin]):
        begin += 1
    while begin < end < finish and _in_word(data[end - 1]) and _in_word(data[end]):
        end -= 1
    if start < begin < end < finish and _in_word(data[begin - 1]) and _in_word(data[end]):
        begin += 1  # what stands between the words that would meet
        while begin < end and data[begin] & 0xC0 == 0x80:
            begin += 1
    return begin, end


@njit(cache=True, nogil=True, inline="always")
def _in_word(byte: int) -> bool:
    return 0x30 <= byte <= 0x39 or 0x41 <= byte <= 0x5A or 0x61 <= byte <= 0x7A
