"""Evaluation sets as sets of n-grams: what must not be in training text.

An item is a record of a JSONL or Parquet file, or a text file. Its n-grams are those of its fields, each by itself.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from numpy.typing import NDArray

from qianyi.corpus.kernels.ngrams import Hashes, Places, fold_table, text_buffers, walk
from qianyi.corpus.kernels.overlap import WORD, prefix_table, weighted_grams, weights
from qianyi.data.compressed import decompressed
from qianyi.data.read import _decode
from qianyi.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt", ".md")
SHORTEST, LONGEST = 8, 13
"""Words of an n-gram that is chosen by the length of the items (Brown et al. 2020, appendix C)."""


@dataclass(frozen=True)
class Item:
    """One question, passage or whatever an evaluation set counts."""

    file: str
    number: int
    """Line or row, from 1."""
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Index:
    """The n-grams of items, and where they are from."""

    files: tuple[str, ...]
    lengths: Places
    """Words of the n-grams that occur."""
    file_lengths: tuple[int, ...]
    """Of each file."""
    item_file: Places
    """[items]: which file."""
    item_number: Places
    """[items]"""
    item_tokens: Places
    """[items + 1]: where the tokens of each begin in all tokens, and the last end."""
    grams: Hashes
    """Distinct, ascending."""
    bounds: Places
    """[grams + 1]: where the postings of each begin, and the last end."""
    items: Places
    """[postings]"""
    positions: Places
    """[postings]: first token, in all tokens."""
    sizes: Places
    """[postings]: tokens."""
    prefixes: Places
    shift: int

    def name(self, item: int) -> str:
        return f"{self.files[self.item_file[item]]}:{self.item_number[item]}"

    def too_short(self) -> NDArray[np.bool_]:
        """[items]: there is no n-gram to find it by."""
        found = np.zeros(len(self.item_file), np.bool_)
        found[self.items] = True
        return ~found


def read_items(file: Path, fields: Sequence[str]) -> Iterator[Item]:
    """Items of an evaluation set.

    Args:
        file: of a kind in `SUFFIXES`; a text file is one item.
        fields: keys whose values count, `a.b` for b within a; lists count whole. None: all text there is.

    Raises:
        DataError: it cannot be read, or a field is not there.
    """
    if not file.name.endswith(SUFFIXES):
        raise DataError(f"{file}: unknown kind of file; evaluation sets are {', '.join(SUFFIXES)}")
    if file.name.endswith((".txt", ".md")):
        text = "".join(line for _, line in _lines(file))
        yield Item(str(file), 1, (text,))
        return
    for number, record in _records(file):
        texts = tuple(text for value in _values(record, fields, f"{file}:{number}") for text in _texts(value))
        yield Item(str(file), number, texts)


def build_index(files: Sequence[Path], fields: Sequence[str], words: int | None) -> Index:
    """Index all items of some files.

    Args:
        files: of `read_items`.
        fields: as there.
        words: length of an n-gram; None: for each file the 5th percentile of its items' lengths, from 8 to 13.

    Raises:
        DataError: a file cannot be read or has no item.
    """
    file_lengths: list[int] = []
    item_file: list[int] = []
    numbers: list[int] = []
    token_counts: list[int] = []
    found: list[NDArray[np.int64]] = []
    hashes: list[Hashes] = []
    for place, file in enumerate(files):
        items = [(item, [_tokens(text) for text in item.texts]) for item in read_items(file, fields)]
        if not items:
            raise DataError(f"{file}: an evaluation set without items")
        n = words or _gram_words([sum(int(w.sum()) for _, w in pieces) / WORD for _, pieces in items])
        file_lengths.append(n)
        for item, pieces in items:
            start = sum(token_counts)
            for tokens, heavy in pieces:
                gram, size = np.empty(len(tokens), np.uint64), np.empty(len(tokens), np.int64)
                count = weighted_grams(tokens, heavy, len(tokens), n, gram, size)
                hashes.append(gram[:count])
                found.append(np.stack([np.full(count, len(item_file)), start + np.arange(count), size[:count]]))
                start += len(tokens)
            item_file.append(place)
            numbers.append(item.number)
            token_counts.append(start - sum(token_counts))
    return _index(files, file_lengths, item_file, numbers, token_counts, hashes, found)


def _index(
    files: Sequence[Path],
    file_lengths: list[int],
    item_file: list[int],
    numbers: list[int],
    token_counts: list[int],
    hashes: list[Hashes],
    found: list[NDArray[np.int64]],
) -> Index:
    every = np.concatenate([np.empty(0, np.uint64), *hashes])
    postings = np.concatenate([np.empty((3, 0), np.int64), *found], axis=1)
    if len(every) == 0:
        raise DataError(
            f"{', '.join(map(str, files))}: no item is long enough for an n-gram; give other fields or a smaller `ngram`"
        )
    order = np.argsort(every, kind="stable")
    grams, first = np.unique(every[order], return_index=True)
    prefixes, shift = prefix_table(grams)
    return Index(
        files=tuple(map(str, files)),
        lengths=np.unique(file_lengths).astype(np.int64),
        file_lengths=tuple(file_lengths),
        item_file=np.array(item_file, np.int64),
        item_number=np.array(numbers, np.int64),
        item_tokens=np.append(0, np.cumsum(token_counts)).astype(np.int64),
        grams=grams,
        bounds=np.append(first, len(every)).astype(np.int64),
        items=postings[0, order],
        positions=postings[1, order],
        sizes=postings[2, order],
        prefixes=prefixes,
        shift=shift,
    )


def _gram_words(lengths: list[float]) -> int:
    return int(np.clip(np.percentile(lengths, 5), SHORTEST, LONGEST))


def _tokens(text: str) -> tuple[Hashes, Places]:
    data, offsets = text_buffers(pa.array([text], pa.string()))
    size, table = int(offsets[-1]), fold_table()
    tokens, begins, ends = np.empty(size, np.uint64), np.empty(size, np.int64), np.empty(size, np.int64)
    n = walk(data, 0, size, table, tokens, begins, ends)
    heavy = np.empty(n, np.int64)
    weights(data, begins, n, table, heavy)
    return tokens[:n], heavy


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        with file.open("rb") as raw:
            for number, line in enumerate(decompressed(file.name, raw), 1):
                yield number, _decode(line, f"{file}:{number}")
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(f"{file}: the compressed data is damaged or cut short ({error}); fetch the file again") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None


def _records(file: Path) -> Iterator[tuple[int, Any]]:
    if file.name.endswith(".parquet"):
        try:
            yield from enumerate(pq.read_table(file).to_pylist(), 1)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not a readable Parquet file: {str(error).splitlines()[0]}") from None
        return
    for number, line in _lines(file):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}:{number}: broken JSON: {error}") from None
            if not isinstance(record, dict):
                raise DataError(f"{file}:{number}: expected an object, found {type(record).__name__}")
            yield number, record


def _values(record: Any, fields: Sequence[str], where: str) -> Iterator[Any]:
    if not fields:
        yield record
    for field in fields:
        value = record
        for key in field.split("."):
            if not isinstance(value, dict) or key not in value:
                there = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
                raise DataError(f"{where}: no field `{field}` (at `{key}`; there is {there}): set --field")
            value = value[key]
        yield value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
