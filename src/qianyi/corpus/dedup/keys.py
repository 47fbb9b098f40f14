"""Small keys of texts: equal keys mark what may be a duplicate. A text is known by its ref: part number * 2^32 + number within the part."""

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qianyi.corpus.dedup.settings import Sketching
from qianyi.corpus.kernels.minhash import Signatures, band_keys, coefficients, pack, signatures
from qianyi.corpus.kernels.ngrams import Bytes, Hashes, Places, fingerprints, fold_table, text_buffers
from qianyi.corpus.kernels.substring import SPREAD, all_windows

Refs = NDArray[np.uint64]

PIECE_BYTES = 4_000_000
"""Text whose windows are looked for at a time: they take 40 times its room."""


@dataclass(frozen=True)
class Spans:
    """Texts as stretches of one buffer."""

    data: Bytes
    starts: Places
    ends: Places

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: Places) -> "Spans":
        """Some of them."""
        return Spans(self.data, self.starts[rows], self.ends[rows])


@dataclass(frozen=True)
class Sketches:
    """Of texts, row by row."""

    bands: Hashes
    """[rows, bands]"""
    codes: Hashes
    """[rows, words]: two bits of each hash."""
    draws: Hashes
    """[rows]: uniform, and equal with the probability of the Jaccard similarity; independent of the bands."""
    some: NDArray[np.bool_]
    """[rows]: there are tokens."""


def spans_of(texts: pa.Array) -> Spans:
    """Each text of an Arrow array."""
    data, offsets = text_buffers(texts)
    return Spans(data, offsets[:-1], offsets[1:])


def exact_table(texts: Spans, refs: Refs, least_tokens: int = 1) -> tuple[pa.Table, Places]:
    """`key`, `check` (128 bits of hash of the tokens), `ref`, of texts that have tokens enough; and which those are."""
    key, check, tokens = fingerprint(texts)
    rows = np.flatnonzero(tokens >= least_tokens)
    return pa.table({"key": key[rows], "check": check[rows], "ref": refs[rows]}), rows


def fingerprint(texts: Spans) -> tuple[Hashes, Hashes, Places]:
    """Low and high half of a 128-bit hash of the tokens of each text, and how many tokens it has."""
    n = len(texts)
    low, high, tokens = np.empty(n, np.uint64), np.empty(n, np.uint64), np.empty(n, np.int64)
    fingerprints(texts.data, texts.starts, texts.ends, fold_table(), low, high, tokens)
    return low, high, tokens


def sketch(texts: Spans, how: Sketching) -> Sketches:
    """MinHash of each text, of one hash more than the bands need."""
    n = len(texts)
    signed, n_grams = sign(texts, how)
    banded = np.ascontiguousarray(signed[:, : how.hashes])
    keys, codes = np.empty((n, how.bands), np.uint64), np.empty((n, how.words), np.uint64)
    band_keys(banded, how.bands, keys)
    pack(banded, codes)
    return Sketches(keys, codes, _spread(signed[:, how.hashes]), n_grams > 0)


def sign(texts: Spans, how: Sketching) -> tuple[Signatures, Places]:
    """Signatures, [texts, hashes + 1], and the number of shingles of each."""
    signed, n_grams = np.empty((len(texts), how.hashes + 1), np.uint32), np.empty(len(texts), np.int64)
    signatures(
        texts.data, texts.starts, texts.ends, fold_table(), how.ngram, *coefficients(how.hashes + 1, how.seed), signed, n_grams
    )
    return signed, n_grams


def band_table(sketches: Sketches, refs: Refs) -> pa.Table:
    """`key`, `ref`, `code` (binary, 8 bytes per word): one row for each band of each text that has tokens."""
    rows = np.flatnonzero(sketches.some)
    bands, words = sketches.bands.shape[1], sketches.codes.shape[1]
    codes = np.repeat(sketches.codes[rows], bands, axis=0)
    code = pa.Array.from_buffers(pa.binary(words * 8), len(codes), [None, pa.py_buffer(codes.tobytes())])
    return pa.table({"key": sketches.bands[rows].ravel(), "ref": np.repeat(refs[rows], bands), "code": code})


def window_table(texts: Spans, refs: Refs, n_bytes: int) -> pa.Table:
    """`key`, `ref`, `place` (bytes from the beginning of the text): the chosen windows of each text."""
    starts, ends, rows = _cut_long(texts, n_bytes)
    found: list[pa.Table] = []
    for first, last in _batches(ends - starts):
        room = int((ends[first:last] - starts[first:last]).sum())
        hashes, places, pieces = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64)
        n = all_windows(texts.data, starts[first:last], ends[first:last], n_bytes, hashes, places, pieces)
        at = first + pieces[:n]
        place = (places[:n] + starts[at] - texts.starts[rows[at]]).astype(np.uint32)
        found.append(pa.table({"key": hashes[:n].copy(), "ref": refs[rows[at]], "place": place}))
    table = pa.concat_tables(found)
    return table if len(starts) == len(texts) else table.group_by(["key", "ref", "place"], use_threads=False).aggregate([])


def _cut_long(texts: Spans, n_bytes: int) -> tuple[Places, Places, Places]:
    """Starts and ends of pieces, and of which text each is. They overlap so far that each choice of a window is made in one of them."""
    overlap = n_bytes + SPREAD
    counts = np.maximum(1, -(-(texts.ends - texts.starts - overlap) // PIECE_BYTES))
    rows = np.repeat(np.arange(len(texts)), counts)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = texts.starts[rows] + number * PIECE_BYTES
    return starts, np.minimum(starts + PIECE_BYTES + overlap, texts.ends[rows]), rows


def _batches(sizes: Places) -> list[tuple[int, int]]:
    """Ranges of pieces that hold about PIECE_BYTES each."""
    numbers = np.cumsum(sizes) // PIECE_BYTES
    cuts = np.append(np.flatnonzero(np.diff(numbers, prepend=-1)), len(sizes)) if len(sizes) else np.zeros(2, np.int64)
    return [(int(a), int(b)) for a, b in itertools.pairwise(cuts)]


def codes_of(table: pa.Table) -> Hashes:
    """[rows, words] of a `band_table`."""
    column = table["code"].combine_chunks()
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint64) if len(column) else np.empty(0, np.uint64)
    first = column.offset * width // 8
    return data[first : first + len(column) * width // 8].reshape(len(column), width // 8)


def _spread(values: NDArray[np.uint32]) -> Hashes:
    x = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return x ^ (x >> np.uint64(32))
