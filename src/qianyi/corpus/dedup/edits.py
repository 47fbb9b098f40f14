"""What deduplication decided about a part, and the part so edited."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qianyi.corpus.dedup.keys import Refs, fingerprint, spans_of
from qianyi.corpus.dedup.shuffle import read_refs
from qianyi.corpus.dedup.spans import cut, merged, paragraphs
from qianyi.corpus.kernels.ngrams import Places
from qianyi.corpus.parts import Json, Writer, read_batches

NOTHING_LEFT = "only_repeats"
"""Reason of documents of which no token is left."""
_ROW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class Edits:
    """Of one part."""

    documents: pa.Table
    """`ref`, `reason`, `detail` of documents that go, by ref."""
    lines: Places
    """Numbers of the lines that go, ascending, of all lines of the part."""


@dataclass(frozen=True)
class Piece:
    """Some documents of a part in order."""

    batch: pa.RecordBatch
    """As they were."""
    rows: Places
    """Their numbers in the part."""
    stays: NDArray[np.bool_]
    """Which are not duplicates."""
    texts: pa.Array
    """Without the lines that go."""


def edits_of(unit: Json, *, lines: bool) -> Edits:
    """Read the decisions about documents, and those about lines if wanted, of the part that the unit counts as `number`."""
    gone = pa.schema([("ref", pa.uint64()), ("reason", pa.string()), ("detail", pa.string())]).empty_table()
    if directory := unit.get("document_clusters"):
        gone = read_refs(Path(directory), "removed", unit["number"], unit["number"] + 1)
    numbers = np.empty(0, np.int64)
    if lines and (directory := unit.get("line_clusters")):
        numbers = _rows(read_refs(Path(directory), "removed", unit["number"], unit["number"] + 1)["ref"].to_numpy())
    return Edits(gone, numbers)


def surviving(part: Path, edits: Edits) -> Iterator[Piece]:
    """The part, some megabytes at a time, and what is to stay of it."""
    gone = _rows(edits.documents["ref"].to_numpy())
    row = line = 0
    for batch in read_batches(part):
        rows = np.arange(row, row + batch.num_rows)
        texts = batch.column("text")
        if len(edits.lines):
            found, owners = paragraphs(spans_of(texts))
            low, high = np.searchsorted(edits.lines, [line, line + len(found)])
            chosen = edits.lines[low:high] - line
            line += len(found)
            starts = spans_of(texts).starts[owners[chosen]]
            texts = cut(texts, owners[chosen], found.starts[chosen] - starts, found.ends[chosen] - starts, whole_words=False)
        yield Piece(batch, rows, ~np.isin(rows, gone), texts)
        row += batch.num_rows


def apply_edits(unit: Json, settings: Json, writer: Writer) -> None:
    """Write a part without its duplicates; the bytes that were cut from a document are in its column `stat_cut_bytes`."""
    edits = edits_of(unit, lines=True)
    refs, begins, ends = _repeated(unit)
    rows = _rows(refs)
    for piece in surviving(Path(unit["part"]), edits):
        low, high = np.searchsorted(rows, [piece.rows[0], piece.rows[-1] + 1])
        texts = cut(piece.texts, rows[low:high] - piece.rows[0], begins[low:high], ends[low:high], whole_words=True)
        shorter = _bytes(piece.batch.column("text")) - _bytes(texts)
        empty = _without_tokens(texts, piece.stays & (shorter > 0))
        _drop_duplicates(piece, edits, writer)
        writer.drop(piece.batch.filter(pa.array(empty)), NOTHING_LEFT)
        kept = pa.array(piece.stays & ~empty)
        batch = piece.batch.set_column(piece.batch.schema.get_field_index("text"), "text", texts)
        writer.keep(_with_column(batch, "stat_cut_bytes", pa.array(shorter, pa.int64())).filter(kept))
        writer.count("bytes_of_duplicate_documents", int(_bytes(piece.batch.column("text"))[~piece.stays].sum()))
        writer.count(
            "bytes_of_repeated_lines", int((_bytes(piece.batch.column("text")) - _bytes(piece.texts))[piece.stays].sum())
        )
        writer.count("bytes_of_repeated_substrings", int((_bytes(piece.texts) - _bytes(texts))[piece.stays].sum()))


def _without_tokens(texts: pa.Array, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rows = np.flatnonzero(among)
    _, _, tokens = fingerprint(spans_of(texts).take(rows))
    empty = np.zeros(len(texts), np.bool_)
    empty[rows[tokens == 0]] = True
    return empty


def _drop_duplicates(piece: Piece, edits: Edits, writer: Writer) -> None:
    low, high = np.searchsorted(_rows(edits.documents["ref"].to_numpy()), [piece.rows[0], piece.rows[-1] + 1])
    about = edits.documents.slice(low, high - low)
    writer.drop(piece.batch.filter(pa.array(~piece.stays)), about["reason"].to_pylist(), about["detail"].to_pylist())


def _repeated(unit: Json) -> tuple[Refs, Places, Places]:
    if not (directory := unit.get("window_repeats")):
        return np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
    table = read_refs(Path(directory), "spans", unit["number"], unit["number"] + 1)
    return merged(*(table[name].to_numpy() for name in ("ref", "begin", "end")))


def _with_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    at = batch.schema.get_field_index(name)
    return batch.append_column(name, values) if at < 0 else batch.set_column(at, name, values)


def _rows(refs: Refs) -> Places:
    return (refs & _ROW).astype(np.int64)


def _bytes(texts: pa.Array) -> Places:
    return np.asarray(pc.call_function("binary_length", [texts])).astype(np.int64)
