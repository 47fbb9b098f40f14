"""What one unit of work writes: parts, dropped documents, counts and side files, each of which appears by rename."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qianyi.corpus.buckets import write_buckets
from qianyi.corpus.document import DOCUMENT, DROPPED, HEAD_CHARACTERS, text_bytes, text_lengths
from qianyi.data.stage import Json, force_to_disk
from qianyi.errors import DataError

PART_BYTES = 64_000_000
"""Text in a part, at most (a single longer document is a part of its own)."""
GROUP_BYTES = 2_000_000
"""Text in a row group, about: what a reader holds at a time."""
GROUP_ROWS = 16_384

_VARIED = {"id", "origin", "text", "meta", "detail", "head"}
"""Columns whose values seldom repeat: a dictionary of them would only take time."""
_SIDE_NAME = re.compile(r"[a-z][a-z0-9_]*")
_OWN = {"parts", "dropped", "done"}


class TableFile:
    """A Parquet file under another name until it is complete; rows gather until they make a row group."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path = path
        self.size_bytes = 0
        self._partial = path.with_name(f".{path.name}.partial")
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = self._pending_rows = self._rows = 0
        path.parent.mkdir(exist_ok=True)
        repeated: Any = [f.name for f in schema if pa.types.is_string(f.type) and f.name not in _VARIED]
        ordered: Any = [f.name for f in schema if f.name not in _VARIED]
        try:
            self._file = pq.ParquetWriter(
                self._partial, schema, compression="zstd", use_dictionary=repeated, write_statistics=ordered or False
            )
        except OSError:
            self._partial.unlink(missing_ok=True)
            raise

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema

    def add(self, batch: pa.RecordBatch, size_bytes: int) -> None:
        self._pending.append(batch)
        self.size_bytes += size_bytes
        self._pending_bytes += size_bytes
        self._pending_rows += batch.num_rows
        if self._pending_bytes >= GROUP_BYTES or self._pending_rows >= GROUP_ROWS:
            self._write()

    def close(self) -> Json:
        """Put the file in place; its name, rows, bytes and hash."""
        self._write()
        self._file.close()
        return {**put_in_place(self._partial, self.path), "rows": self._rows}

    def discard(self) -> None:
        with suppress(OSError):  # where the disk is full the end cannot be written either
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._pending:
            self._file.write_table(pa.Table.from_batches(self._pending), row_group_size=self._pending_rows)
            self._rows += self._pending_rows
        self._pending, self._pending_bytes, self._pending_rows = [], 0, 0


class UnitWriter:
    """The `Writer` of one unit. Texts are kept in parts `NAME`, `NAME-001`, ..., the dropped in one file."""

    def __init__(self, out: Path, name: str, *, strict: bool):
        self._out, self._name, self._strict = out, name, strict
        self._part: TableFile | None = None
        self._dropped: TableFile | None = None
        self._files: list[Json] = []
        self._sources: dict[str, Counter[str]] = {}
        self._reasons: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._columns: dict[str, str] = {}

    def keep(self, batch: pa.RecordBatch) -> None:
        batch = _checked(batch)
        for piece in _pieces(batch):
            size = text_bytes(piece)
            if self._part and (self._part.size_bytes + size > PART_BYTES or self._part.schema != piece.schema):
                self._close_part(self._part)
                self._part = None
            if self._part is None:
                self._part = TableFile(self._next_part(), piece.schema)
                self._columns |= {field.name: str(field.type) for field in piece.schema}
            self._part.add(piece, size)
        by_source = pa.table({"source": batch.column("source"), "bytes": text_lengths(batch)}).group_by("source")
        for row in by_source.aggregate([("bytes", "sum"), ("bytes", "count")]).to_pylist():
            self._count_source(row["source"], documents=row["bytes_count"], bytes=row["bytes_sum"])

    def drop(self, batch: pa.RecordBatch, reason: str | Sequence[str], detail: Sequence[str] | None = None) -> None:
        n = batch.num_rows
        if n == 0:
            return
        reasons = [reason] * n if isinstance(reason, str) else list(reason)
        details = [""] * n if detail is None else list(detail)
        if not len(reasons) == len(details) == n:
            raise ValueError(f"{n} documents, {len(reasons)} reasons, {len(details)} details")
        if self._strict:
            where = batch.column("origin")[0].as_py()
            raise DataError(f"{where}: {reasons[0]}{': ' if details[0] else ''}{details[0]} (--strict: nothing may be dropped)")
        head = pc.call_function("utf8_slice_codeunits", [batch.column("text")], pc.SliceOptions(0, HEAD_CHARACTERS))
        columns = [*(batch.column(c) for c in ("id", "source", "origin")), pa.array(reasons), pa.array(details), head]
        rows = pa.RecordBatch.from_arrays(columns, schema=DROPPED)
        if self._dropped is None:
            self._dropped = TableFile(self._out / "dropped" / f"{self._name}.parquet", DROPPED)
        self._dropped.add(rows, rows.nbytes)
        self._reasons.update(reasons)
        for source, number in Counter(batch.column("source").to_pylist()).items():
            self._count_source(source, dropped=number)

    def count(self, name: str, n: int) -> None:
        self._counts[name] += n

    def attach(self, name: str, table: pa.Table) -> None:
        path = self.side_path(name, "parquet")
        partial = path.with_name(f".{path.name}.partial")
        pq.write_table(table.replace_schema_metadata(None), partial, compression="zstd")
        self.add_file(partial, path, table.num_rows)

    def side_path(self, name: str, suffix: str) -> Path:
        """Where a side file of this unit goes; its directory is there."""
        if name in _OWN or not _SIDE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a side file")
        path = self._out / name / f"{self._name}.{suffix}"
        if any(entry["file"] == f"{name}/{path.name}" for entry in self._files):
            raise ValueError(f"{name} is attached twice by one unit")
        path.parent.mkdir(exist_ok=True)
        return path

    def add_file(self, partial: Path, path: Path, rows: int) -> None:
        """Put a finished side file in place and record it."""
        self._files.append({**put_in_place(partial, path), "rows": rows})

    def scatter(self, name: str, table: pa.Table, buckets: NDArray[np.integer[Any]], n_buckets: int) -> None:
        path = self.side_path(name, "arrow")
        partial = path.with_name(f".{path.name}.partial")
        write_buckets(partial, table, buckets, n_buckets)
        self.add_file(partial, path, table.num_rows)

    def close(self) -> Json:
        """The record of the unit."""
        if self._part:
            self._close_part(self._part)
        if self._dropped:
            self._files.append(self._dropped.close())
        return {
            "sources": {name: dict(sorted(counts.items())) for name, counts in sorted(self._sources.items())},
            "reasons": dict(sorted(self._reasons.items())),
            "counts": dict(sorted(self._counts.items())),
            "columns": self._columns,
            "files": sorted(self._files, key=lambda entry: entry["file"].rsplit(".", 1)[0]),
        }

    def discard(self) -> None:
        """Give back the room of what is not complete."""
        for file in (self._part, self._dropped):
            if file:
                file.discard()

    def _next_part(self) -> Path:
        number = sum(entry["file"].startswith("parts/") for entry in self._files)
        return self._out / "parts" / (f"{self._name}-{number:03d}.parquet" if number else f"{self._name}.parquet")

    def _close_part(self, part: TableFile) -> None:
        self._files.append({**part.close(), "text_bytes": part.size_bytes})

    def _count_source(self, source: str, **numbers: int) -> None:
        self._sources.setdefault(source, Counter()).update(numbers)


def put_in_place(partial: Path, path: Path) -> Json:
    """Force a finished file to disk and rename it; its name within the corpus directory, size and hash."""
    with partial.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        os.fsync(content.fileno())
    size = partial.stat().st_size
    partial.rename(path)
    force_to_disk(path.parent)
    return {"file": f"{path.parent.name}/{path.name}", "bytes": size, "sha256": digest}


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch without metadata; a stage that makes something else than documents is wrong."""
    for field in DOCUMENT:
        at = batch.schema.get_field_index(field.name)
        if at < 0 or batch.schema.field(at).type != field.type or batch.column(at).null_count:
            raise ValueError(
                f"documents need a column `{field.name}` of type {field.type} without nulls; there are {batch.schema}"
            )
    return batch.replace_schema_metadata(None)


def _pieces(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    """Cut where a piece would hold more text than a row group should."""
    if text_bytes(batch) <= GROUP_BYTES:
        return [batch] if batch.num_rows else []
    lengths: list[int] = text_lengths(batch).to_pylist()
    cuts, size = [0], 0
    for row, length in enumerate(lengths):
        if size and size + length > GROUP_BYTES:
            cuts.append(row)
            size = 0
        size += length
    cuts.append(batch.num_rows)
    return [batch.slice(a, b - a) for a, b in pairwise(cuts)]
