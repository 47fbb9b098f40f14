"""Sources cut into units of work, which workers take in any order; how they are cut depends on the files alone."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qianyi.data import builtin, megatron, tokenized
from qianyi.data.read import Span, source_files
from qianyi.errors import DataError

UNIT_BYTES = 64 << 20
"""Text of a unit, about; more where a source would have thousands of units."""
_MOST_UNITS = 1024
_COMPRESSION = 4
"""Text is about so many times its size compressed."""
_TOKEN_BYTES = 4
"""Bytes of text that a token stands for, about."""


def plan_units(path: str, text_key: str, shard_tokens: int) -> list[list[Span]]:
    """The stretches of files that each unit of a source reads, in order. A unit's tokens are about one shard at most.

    Raises:
        DataError: a file cannot be read.
    """
    if path.startswith(builtin.PREFIX):
        return [[Span(path)]]
    sized = [(file, _text_bytes(file, text_key)) for file in source_files(path)]
    largest = max(UNIT_BYTES, sum(size for _, size in sized) // _MOST_UNITS)
    limit = min(largest, shard_tokens * _TOKEN_BYTES)
    return list(_grouped(itertools.chain.from_iterable(_spans(file, size, text_key, limit) for file, size in sized), limit))


def unit_text_bytes(path: str, text_key: str) -> int:
    """Bytes of text in a source, about."""
    return sum(_text_bytes(file, text_key) for file in source_files(path))


def _grouped(spans: Iterable[tuple[Span, int]], limit_bytes: int) -> Iterator[list[Span]]:
    unit: list[Span] = []
    unit_bytes = 0
    for span, size in spans:
        if unit and unit_bytes + size > limit_bytes:
            yield unit
            unit, unit_bytes = [], 0
        unit.append(span)
        unit_bytes += size
    if unit:
        yield unit


def _text_bytes(file: Path, text_key: str) -> int:
    if file.name.endswith(".parquet"):
        return sum(_row_group_bytes(file, text_key))
    size = tokenized.text_bytes(file) if tokenized.is_tokenized(str(file)) else file.stat().st_size
    return size * _COMPRESSION if file.name.endswith((".gz", ".zst")) else size


def _spans(file: Path, size: int, text_key: str, limit_bytes: int) -> Iterator[tuple[Span, int]]:
    """The file, in stretches where it is large and can be read from within."""
    if size > limit_bytes and file.name.endswith(".jsonl"):
        yield from _line_spans(file, size, limit_bytes)
    elif size > limit_bytes and file.name.endswith(megatron.SUFFIX):
        yield from _document_spans(file, limit_bytes)
    elif size > limit_bytes and file.name.endswith(".parquet"):
        for group, group_bytes in enumerate(_row_group_bytes(file, text_key)):
            yield Span(str(file), group, group + 1), group_bytes
    else:
        yield Span(str(file)), size


def _line_spans(file: Path, size: int, limit_bytes: int) -> Iterator[tuple[Span, int]]:
    start = 0
    with file.open("rb") as lines:
        while start < size:
            lines.seek(start + limit_bytes)
            lines.readline()
            stop = min(lines.tell(), size)
            yield Span(str(file), start, stop), stop - start
            start = stop


def _document_spans(file: Path, limit_bytes: int) -> Iterator[tuple[Span, int]]:
    index = megatron.read_index(file)
    ends = np.cumsum(np.concatenate([[0], index.lengths.astype(np.int64)]))[index.documents] * _TOKEN_BYTES
    start = 0
    while start < len(ends) - 1:
        stop = max(int(np.searchsorted(ends, ends[start] + limit_bytes, "right")) - 1, start + 1)
        yield Span(str(file), start, stop), int(ends[stop] - ends[start])
        start = stop


def _row_group_bytes(file: Path, text_key: str) -> list[int]:
    """Bytes of text in each row group, as Parquet encodes it."""
    try:
        with pq.ParquetFile(file) as table:
            names, metadata = table.schema_arrow.names, table.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            column = names.index(text_key) if text_key in names else None
            if column is None or len(names) != metadata.num_columns:  # nested columns are several
                return [group.total_byte_size for group in groups]
            return [group.column(column).total_uncompressed_size for group in groups]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file: {str(error).splitlines()[0]}") from None
