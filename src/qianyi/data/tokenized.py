"""Sources that are tokens already, and records of ArrayRecord, which are tokens or texts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from numpy.typing import NDArray

from qianyi.data import megatron
from qianyi.data.example import Value, read_example, write_example
from qianyi.data.read import Document, Span, read_span
from qianyi.data.shards import TokenStream
from qianyi.errors import DataError

ARRAY_RECORD = ".array_record"
TOKEN_FEATURE = "tokens"
"""Feature of the records that are written; in records that are read it may also be that of data.text_key, or input_ids."""
_TOKEN_FEATURES = (TOKEN_FEATURE, "input_ids")
_RECORDS_AT_ONCE = 256
_CHUNK_TOKENS = 1 << 22


class TokenDocument(NamedTuple):
    """Tokens of a document, and where they came from."""

    tokens: NDArray[Any]
    origin: str


def is_tokenized(path: str) -> bool:
    """Is a file one of this module's kinds."""
    return path.endswith((megatron.SUFFIX, ARRAY_RECORD))


def text_bytes(file: Path) -> int:
    """Bytes of text that its tokens stand for, about."""
    return 4 * megatron.token_count(file) if file.name.endswith(megatron.SUFFIX) else 2 * file.stat().st_size


def read_items(span: Span, text_key: str, target_key: str | None) -> Iterator[Document | TokenDocument]:
    """The documents of a file, or of a stretch of one: texts, or tokens.

    Raises:
        DataError: it cannot be read, or pairs are asked of tokens.
    """
    if not is_tokenized(span.path):
        yield from read_span(span, text_key, target_key)
        return
    if target_key is not None:
        raise DataError(f"{span.path}: has no pairs; data.target_key={target_key} needs JSONL or Parquet")
    if span.path.endswith(megatron.SUFFIX):
        documents = megatron.read_token_documents(Path(span.path), span.start, span.stop)
        for number, tokens in enumerate(documents, span.start):
            yield TokenDocument(tokens, f"{span.path} document {number}")
    else:
        yield from _read_records(span, text_key)


def write_array_records(directory: Path, stream: TokenStream) -> list[Path]:
    """DIRECTORY/00000.array_record and so on, one for each unit of work.

    A record is a document: an Example whose feature `tokens` has its token ids, the end of text among them. Groups of one record are what
    random access by Grain asks for.
    """
    directory.mkdir(parents=True)
    paths: list[Path] = []
    start = 0
    for lengths in stream.document_tokens():
        paths.append(directory / f"{len(paths):05d}{ARRAY_RECORD}")
        borders = start + np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        writer = ArrayRecordWriter(str(paths[-1]), "group_size:1")
        for first, last in _chunks(borders):
            tokens = stream.read(int(first[0]), int(last[-1]))
            for a, b in zip(first - first[0], last - first[0], strict=True):
                writer.write(write_example(TOKEN_FEATURE, tokens[a:b]))
        writer.close()
        start = int(borders[-1])
    return paths


def _chunks(borders: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(starts, stops) of some documents at a time, which are read at once."""
    place = 0
    while place < len(borders) - 1:
        stop = max(int(np.searchsorted(borders, borders[place] + _CHUNK_TOKENS, "right")) - 1, place + 1)
        yield borders[place:stop], borders[place + 1 : stop + 1]
        place = stop


def _read_records(span: Span, text_key: str) -> Iterator[Document | TokenDocument]:
    reader = ArrayRecordReader(span.path)
    if not reader.ok():
        raise DataError(f"{span.path}: not a readable ArrayRecord file; it may be cut short: copy it again")
    count = reader.num_records()
    for first in range(0, count, _RECORDS_AT_ONCE):
        for number, record in enumerate(reader.read(first, min(first + _RECORDS_AT_ONCE, count)), first):
            yield _document_of(record, text_key, f"{span.path} record {number}")
    reader.close()


def _document_of(record: bytes, text_key: str, where: str) -> Document | TokenDocument:
    try:
        features = read_example(record)
    except ValueError:
        raise DataError(f"{where}: expected a serialized tf.train.Example") from None
    for name in (text_key, *_TOKEN_FEATURES):
        value: Value = features.get(name)
        if isinstance(value, bytes):
            return Document(_decode(value, name, where), where)
        if value is not None:
            return TokenDocument(value, where)
    names = ", ".join(features) or "none"
    raise DataError(f"{where}: no feature `{text_key}` or {' or '.join(_TOKEN_FEATURES)}; there are {names}: set data.text_key")


def _decode(value: bytes, name: str, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: `{name}` is invalid UTF-8 at byte {error.start}; write the file again") from None
