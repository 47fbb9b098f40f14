"""What a document is, on disk and in memory, and how a finished corpus directory is read.

A corpus directory holds `parts/` (documents in order), `dropped/` (what a stage left out, and why), `done/` (a record for each unit of
work) and `manifest.json`, written last. Side files of a stage are `NAME/00000.parquet` beside `parts/`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from qianyi.data.stage import MANIFEST, Json
from qianyi.errors import DataError

PLAN = "plan.json"
HEAD_CHARACTERS = 200

DOCUMENT = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("origin", pa.string()),
        ("text", pa.string()),
        ("licence", pa.string()),
        ("research_only", pa.bool_()),
        ("meta", pa.string()),
    ]
)
"""The columns of every document. `origin` is a file and a place in it, `meta` a JSON object. Stages add columns after these."""

DROPPED = pa.schema([(name, pa.string()) for name in ("id", "source", "origin", "reason", "detail", "head")])
"""The columns of a document that was left out; `head` is its first 200 characters."""


def document_id(source: str, origin: str) -> str:
    """32 hexadecimal digits: xxh3-128 of source, NUL, origin."""
    return xxhash.xxh3_128_hexdigest(f"{source}\0{origin}".encode())


def document_batch(
    source: str,
    origins: Sequence[str],
    texts: Sequence[str],
    *,
    licence: str = "",
    research_only: bool = False,
    meta: Sequence[Json] | None = None,
) -> pa.RecordBatch:
    """Documents of one source, one for each origin."""
    n = len(origins)
    described = (
        [json.dumps(m, ensure_ascii=False, sort_keys=True) if m else "{}" for m in meta] if meta is not None else ["{}"] * n
    )
    columns = [
        pa.array([document_id(source, origin) for origin in origins], pa.string()),
        pa.array([source] * n, pa.string()),
        pa.array(origins, pa.string()),
        pa.array(texts, pa.string()),
        pa.array([licence] * n, pa.string()),
        pa.array([research_only] * n, pa.bool_()),
        pa.array(described, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=DOCUMENT)


def text_lengths(batch: pa.RecordBatch) -> pa.Array:
    """Bytes of UTF-8 of each text (int32)."""
    return pc.call_function("binary_length", [batch.column("text")])


def text_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of UTF-8 in the column `text`."""
    return int(text_lengths(batch).to_numpy().sum())


def is_corpus(path: Path) -> bool:
    """Whether a stage has begun or finished this directory."""
    return (path / MANIFEST).is_file() or (path / PLAN).is_file()


def corpus_manifest(path: Path) -> Json:
    """The manifest of a finished corpus directory.

    Raises:
        DataError: there is none, the stage that makes it has not finished, or it cannot be read.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if not {"stage", "settings", "files"} <= manifest.keys():
            raise ValueError
    except FileNotFoundError:
        if (path / PLAN).is_file():
            raise DataError(f"{path}: not finished: no {MANIFEST}; run the command that makes it again, it goes on") from None
        raise DataError(f"{path}: not a corpus directory: no {MANIFEST}; `qianyi data collect` makes one") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, AttributeError):
        raise DataError(
            f"{file}: not the manifest of a corpus; give a directory that `qianyi data collect` or a later stage made"
        ) from None
    return manifest


def side_files(path: Path, name: str) -> list[Path]:
    """Files `path`/`name`/ of a finished stage in the order of its units: `parts`, `dropped`, or what the stage attached."""
    return [path / entry["file"] for entry in corpus_manifest(path)["files"] if entry["file"].startswith(f"{name}/")]


def read_parts(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """All documents of a finished corpus directory, in order, some megabytes of text at a time."""
    for part in side_files(path, "parts"):
        yield from read_batches(part, columns)


def read_dropped(path: Path) -> Iterator[pa.RecordBatch]:
    """What the stage of a finished corpus directory left out: batches of `DROPPED`, in order."""
    for part in side_files(path, "dropped"):
        yield from read_batches(part)


def read_batches(part: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The row groups of a part; each is bounded, as the stage that wrote it made them.

    Raises:
        DataError: the file is missing, damaged, or has no such column.
    """
    chosen = None if columns is None else list(columns)
    try:
        with pq.ParquetFile(part, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if missing := [c for c in columns or () if c not in names]:
                raise DataError(f"{part}: no column `{missing[0]}`; there are {', '.join(names)}")
            for group in range(file.num_row_groups):  # threads and buffers would take a tenth more memory, and save no time
                yield from file.read_row_group(group, columns=chosen, use_threads=False).combine_chunks().to_batches()
    except FileNotFoundError:
        raise DataError(f"{part}: missing; run the command that made it again, only what is missing is made") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{part}: damaged ({str(error).splitlines()[0]}); delete it and run the command that made it again"
        ) from None
