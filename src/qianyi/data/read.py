"""Documents from files: text, Markdown, JSONL (plain, gzip, zstd) and Parquet, streamed in bounded memory.

Whatever cannot be read is an error that names the file and the line, record or byte.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from qianyi.data import builtin
from qianyi.data.compressed import DAMAGED, decompressed
from qianyi.errors import DataError

_KEY_SETTINGS = ("data.text_key", "data.target_key")
SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".idx", ".array_record")


@dataclass(frozen=True)
class Document:
    """A text, and where it came from."""

    text: str
    origin: str
    target: str | None = None
    """Of a pair, what belongs to the text."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,) if self.target is None else (self.text, self.target)


class Span(NamedTuple):
    """A file, or a stretch of one."""

    path: str
    start: int = 0
    stop: int | None = None
    """Bytes of JSONL, which begin and end with a line; row groups of Parquet; None: up to the end."""


def source_files(path: str) -> list[Path]:
    """The files of a source in reading order: itself, or what a directory holds (sorted, recursive).

    Raises:
        DataError: nothing is there, or nothing of a known kind.
    """
    if path.startswith(builtin.PREFIX):
        return builtin.files(path)
    root = Path(path)
    if not root.exists():
        raise DataError(f"{path}: no such file or directory; `data.sources` names it (relative to the working directory)")
    if not root.is_dir():
        if not root.name.endswith(SUFFIXES):
            raise DataError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)}")
        return [root]
    if (root / "parts").is_dir() and any((root / name).is_file() for name in ("manifest.json", "plan.json")):
        return _corpus_parts(root)
    found = sorted(p for p in root.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
    if not found:
        raise DataError(f"{path}: the directory holds no file that ends in {', '.join(SUFFIXES)}")
    return found


def _corpus_parts(root: Path) -> list[Path]:
    """The documents of a corpus directory, without those that a stage dropped."""
    if not (root / "manifest.json").is_file():
        raise DataError(f"{root}: a corpus that is not finished; run the command that makes it again, it goes on")
    found = sorted((root / "parts").glob("*.parquet"))
    if not found:
        raise DataError(f"{root / 'parts'}: holds no .parquet file: the corpus is empty")
    return found


def read_documents(path: str, text_key: str, target_key: str | None = None) -> Iterator[Document]:
    """Every document of a source, in order; pairs where there is a `target_key`."""
    if path.startswith(builtin.PREFIX):
        _require_records(path, target_key)
        for origin, text in builtin.documents(path):
            yield Document(text, origin)
        return
    for file in source_files(path):
        yield from read_span(Span(str(file)), text_key, target_key)


def read_span(span: Span, text_key: str, target_key: str | None = None) -> Iterator[Document]:
    """The documents of one file, or of a stretch of one; of all of `builtin:NAME`."""
    if span.path.startswith(builtin.PREFIX):
        yield from read_documents(span.path, text_key, target_key)
        return
    keys = (text_key,) if target_key is None else (text_key, target_key)
    try:
        yield from _read_file(span, keys)
    except DataError:
        if span.start and not span.path.endswith(".parquet"):
            # Where a stretch begins the number of the line is not known: meet the error again from the first line on.
            for _ in _read_file(Span(span.path), keys):
                pass
        raise


def _read_file(span: Span, keys: tuple[str, ...]) -> Iterator[Document]:
    file = Path(span.path)
    try:
        if file.name.endswith((".txt", ".md")):
            _require_records(str(file), *keys[1:])
            yield Document(_decode(file.read_bytes(), f"{file}"), str(file))
        elif file.name.endswith(".parquet"):
            yield from _read_parquet(span, keys)
        else:
            with file.open("rb") as raw:
                raw.seek(span.start)
                lines = decompressed(file.name, raw) if span.stop is None else _lines_before(raw, span.stop)
                yield from _read_jsonl(file, lines, keys)
    except DAMAGED as error:
        raise DataError(f"{file}: the compressed data is damaged or cut short ({error}); fetch the file again") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None


def _lines_before(raw: BinaryIO, stop: int) -> Iterator[bytes]:
    while raw.tell() < stop:
        yield raw.readline()


def _require_records(path: str, target_key: str | None = None) -> None:
    if target_key is not None:
        raise DataError(f"{path}: plain text has no pairs; data.target_key={target_key} needs JSONL or Parquet")


def _read_jsonl(file: Path, lines: Iterable[bytes], keys: tuple[str, ...]) -> Iterator[Document]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            record = json.loads(_decode(line, where))
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: broken JSON at column {error.colno}: {error.msg}") from None
        except (ValueError, RecursionError) as error:  # a number too long or lists nested too deep for Python
            raise DataError(f"{where}: JSON that cannot be read: {error}") from None
        text, *target = (_text_of(record, key, name, where) for key, name in zip(keys, _KEY_SETTINGS, strict=False))
        yield Document(text, where, *target)


def _read_parquet(span: Span, keys: tuple[str, ...]) -> Iterator[Document]:
    file = span.path
    try:
        with pq.ParquetFile(file, pre_buffer=False) as table:  # else all of its row groups are held at once
            names = table.schema_arrow.names
            for key, setting in zip(keys, _KEY_SETTINGS, strict=False):
                if key not in names:
                    raise DataError(f"{file}: no column `{key}`; there are {', '.join(names)}: set {setting}")
            metadata = table.metadata
            row = sum(metadata.row_group(group).num_rows for group in range(span.start))
            groups = range(span.start, metadata.num_row_groups if span.stop is None else span.stop)
            for batch in table.iter_batches(128, row_groups=groups, columns=list(keys)):
                for cells in zip(*(batch.column(key) for key in keys), strict=True):
                    row += 1
                    where = f"{file} row {row}"
                    text, *target = (_text_of_cell(cell, key, where) for cell, key in zip(cells, keys, strict=True))
                    yield Document(text, f"{file}#{row}", *target)
    except pa.ArrowException as error:
        raise DataError(f"{file}: not a readable Parquet file: {str(error).splitlines()[0]}") from None


def _text_of_cell(cell: Any, key: str, where: str) -> str:
    try:
        return _require_text(cell.as_py(), key, where)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: `{key}` holds invalid UTF-8 at byte {error.start}; write the file again") from None


def _text_of(record: Any, key: str, setting: str, where: str) -> str:
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with a `{key}` field, found {type(record).__name__}")
    if key not in record:
        raise DataError(f"{where}: no field `{key}`; there are {', '.join(map(str, record)) or 'none'}: set {setting}")
    return _require_text(record[key], key, where)


def _require_text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: `{key}` is {type(value).__name__}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: `{key}` holds half of a surrogate pair at character {error.start}") from None
    return value


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")  # the byte order mark of some editors
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: invalid UTF-8 at byte {error.start} (0x{data[error.start]:02x}); convert the file to UTF-8"
        ) from None
