"""Megatron-LM's indexed datasets, read and written: PREFIX.bin and PREFIX.idx.

The format is that of `IndexedDatasetBuilder` in Megatron-LM (megatron/core/datasets/indexed_dataset.py, core 0.16). PREFIX.bin has the
tokens of all sequences, one after another. PREFIX.idx, little-endian: the nine bytes MMIDIDX 00 00; uint64 1, the version; uint8, the type
of tokens (a code of `_TYPES`); uint64 n, sequences; uint64 m, entries of the last array; int32 [n], tokens of each sequence; int64 [n],
the byte at which each begins; int64 [m], which sequence each document begins with, and n at the end. What may follow (modes of
multimodal sequences) is not read.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qianyi.data.shards import BLOCK_TOKENS, TokenStream
from qianyi.errors import DataError

SUFFIX = ".idx"
_HEADER = b"MMIDIDX\x00\x00"
_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""NumPy types by code; floating-point ones, 6 and 7, are no tokens."""
_SMALL_VOCABULARY = 65_500
"""Below it tokens have two bytes, else four."""


class Index(NamedTuple):
    """What PREFIX.idx says."""

    dtype: np.dtype[Any]
    lengths: NDArray[np.int32]
    """Tokens of each sequence."""
    starts: NDArray[np.int64]
    """Byte at which each sequence begins."""
    documents: NDArray[np.int64]
    """Sequence with which each document begins, and the number of sequences."""


def read_index(path: Path) -> Index:
    """The index of a dataset, checked against the size of its tokens.

    Raises:
        DataError: it is damaged, of another version, or its tokens are not there.
    """
    with path.open("rb") as file:
        head = file.read(34)
        if len(head) < 34 or not head.startswith(_HEADER):
            raise DataError(f"{path}: not an index of Megatron-LM (its first bytes are {head[:9]!r})")
        version, code, sequences, entries = struct.unpack("<QBQQ", head[9:])
        if version != 1 or code not in _TYPES:
            raise DataError(f"{path}: version {version} with tokens of type {code}; known are version 1, types {sorted(_TYPES)}")
        if path.stat().st_size < 34 + 12 * sequences + 8 * entries or entries == 0:
            raise DataError(f"{path}: cut short: it says that it has {sequences} sequences; copy it again")
        parts = ((type_, count) for type_, count in (("<i4", sequences), ("<i8", sequences), ("<i8", entries)))
        index = Index(np.dtype(_TYPES[code]), *(np.fromfile(file, type_, count) for type_, count in parts))
    _check(index, path)
    return index


def token_count(path: Path) -> int:
    """Tokens of the dataset with this index."""
    return int(read_index(path).lengths.sum(dtype=np.int64))


def read_token_documents(path: Path, start: int, stop: int | None) -> Iterator[NDArray[Any]]:
    """The tokens of documents [start, stop) of the dataset with this index."""
    index = read_index(path)
    stop = len(index.documents) - 1 if stop is None else stop
    with path.with_suffix(".bin").open("rb") as tokens:
        for document in range(start, stop):
            parts: list[NDArray[Any]] = []
            for sequence in range(int(index.documents[document]), int(index.documents[document + 1])):
                tokens.seek(int(index.starts[sequence]))
                parts.append(np.fromfile(tokens, index.dtype, int(index.lengths[sequence])))
            yield np.concatenate([np.empty(0, index.dtype), *parts])


def write_dataset(prefix: Path, stream: TokenStream, vocab_size: int) -> None:
    """Write PREFIX.bin and PREFIX.idx: a sequence for each document of a stream."""
    code, dtype = (8, np.dtype("<u2")) if vocab_size < _SMALL_VOCABULARY else (4, np.dtype("<i4"))
    with prefix.with_name(f"{prefix.name}.bin").open("wb") as file:
        for start in range(0, len(stream), BLOCK_TOKENS):
            file.write(stream.read(start, min(start + BLOCK_TOKENS, len(stream))).astype(dtype).tobytes())
    lengths = np.concatenate([np.empty(0, np.uint32), *stream.document_tokens()])
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[: len(lengths)] * dtype.itemsize
    with prefix.with_name(f"{prefix.name}{SUFFIX}").open("wb") as file:
        file.write(_HEADER + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1))
        for array, type_ in ((lengths, "<i4"), (starts, "<i8"), (np.arange(len(lengths) + 1), "<i8")):
            file.write(array.astype(type_).tobytes())


def _check(index: Index, path: Path) -> None:
    tokens = path.with_suffix(".bin")
    size = tokens.stat().st_size if tokens.exists() else -1
    ends = index.starts + index.lengths.astype(np.int64) * index.dtype.itemsize
    if size < (int(ends.max()) if len(ends) else 0):
        found = "is missing" if size < 0 else f"has {size} bytes, and sequences end at byte {int(ends.max())}"
        raise DataError(f"{path}: its tokens, {tokens.name}, {found}; copy both files again")
    borders = index.documents
    if borders[0] != 0 or borders[-1] != len(index.lengths) or (np.diff(borders) < 0).any() or (index.lengths < 0).any():
        raise DataError(f"{path}: damaged: its documents are not its sequences in order; copy it again")
