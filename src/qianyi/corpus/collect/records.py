"""Readers of records: JSONL, JSON, CSV and the tables of orange3, Parquet. A broken record is refused and the next one read."""

import csv
import itertools
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from qianyi.corpus.collect.decode import decode
from qianyi.corpus.collect.found import HEAD_CHARACTERS, Found, Reading, Refusal, Refused, Result, Results
from qianyi.corpus.collect.streams import bounded_lines, read_all
from qianyi.data.stage import Json

OWN_KEYS = ("source", "licence", "license", "research_only")
"""Fields and columns by which a record says what its document is of; they stand above what the source is said to be."""
_NAME_CHARACTERS = 100
_ROWS = 128
"""Of a table in memory at a time."""


def read_jsonl(stream: BinaryIO, origin: str, reading: Reading, first_line: int = 1, end_byte: int | None = None) -> Results:
    """Records of lines, from where `stream` stands, up to the line that begins at or after `end_byte`."""
    encoding: str | None = None
    lines = bounded_lines(stream, reading.max_document_bytes)
    for number in itertools.count(first_line):
        if end_byte is not None and stream.tell() >= end_byte:
            return
        line = next(lines, b"")
        where = f"{origin}:{number}"
        if line is None:
            yield Refused(where, "too_large", f"a line of more than {reading.max_document_bytes:,} bytes; cut it into documents")
        elif not line:
            return
        elif line.strip():
            try:
                record, encoding = _parse(line, encoding)
            except Refusal as refusal:
                yield refusal.of(where)
                continue
            yield document_of(record, where, reading)


def _parse(line: bytes, encoding: str | None) -> tuple[Any, str | None]:
    try:
        return orjson.loads(line), encoding
    except orjson.JSONDecodeError:
        text, used = decode(line, before=encoding)
        return _json(text), used  # which reads NaN and escaped halves of pairs too, and says where it breaks


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Refusal("malformed", f"broken JSON at column {error.colno}: {error.msg}", text[:HEAD_CHARACTERS]) from None
    except (ValueError, RecursionError) as error:  # a number too long or lists nested too deep for Python
        raise Refusal("malformed", f"JSON that cannot be read: {error}", text[:HEAD_CHARACTERS]) from None


def document_of(record: Any, origin: str, reading: Reading) -> Result:
    """The document of one record: its text under `reading.text_key`, its metadata under `reading.meta_keys`, and what it says of itself
    under `OWN_KEYS`."""
    if isinstance(record, str):
        record = {reading.text_key: record}
    if not isinstance(record, dict):
        return Refused(
            origin, "malformed", f"expected an object with a `{reading.text_key}` field, found {type(record).__name__}"
        )
    text = record.get(reading.text_key)
    if not isinstance(text, str):
        known = ", ".join(map(str, list(record)[:20])) or "none"
        found = f"`{reading.text_key}` is {type(text).__name__}" if reading.text_key in record else f"no `{reading.text_key}`"
        return Refused(origin, "no_text", f"{found}; fields are {known}: name the one with the text as text_key")
    if not text.strip():
        return Refused(origin, "empty", f"`{reading.text_key}` is blank")
    if len(text) > reading.max_document_bytes:
        return Refused(origin, "too_large", f"more than {reading.max_document_bytes:,} characters", text[:HEAD_CHARACTERS])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Refused(origin, "encoding", f"`{reading.text_key}` holds half of a surrogate pair at character {error.start}")
    return Found(origin, text, reading.meta_of(origin) | _meta(record, reading), *_own(record, reading))


def _own(record: Json, reading: Reading) -> tuple[str | None, str | None, bool | None]:
    """Source, licence and whether it is for research alone, where the record says so in a way that can be used."""
    said = {key: record.get(key) for key in OWN_KEYS if key != reading.text_key}
    source, licence, american, research = (said.get(key) for key in OWN_KEYS)
    if isinstance(research, str):  # of tables that know text alone
        research = {"true": True, "false": False}.get(research.lower())
    return _named(source), _named(licence) or _named(american), research if isinstance(research, bool) else None


def _named(value: Any) -> str | None:
    """A short text: a name, not prose that stands under the same key."""
    return (
        value.strip() if isinstance(value, str) and 0 < len(value.strip()) <= _NAME_CHARACTERS and value.isprintable() else None
    )


def _meta(record: Json, reading: Reading) -> Json:
    return {
        key: value
        for key in reading.meta_keys
        if key in record and isinstance(value := record[key], str | int | float | bool) and value != ""
    }


def read_json(stream: BinaryIO, origin: str, reading: Reading) -> Results:
    """A file that is one JSON value: a record, or a list of records."""
    data = read_all(stream, reading.max_document_bytes)
    if not data.strip():
        raise Refusal("empty", "the file holds no JSON")
    value = _parse(data, None)[0]
    if isinstance(value, list):
        for number, record in enumerate(value, 1):
            yield document_of(record, f"{origin}#{number}", reading)
    else:
        yield document_of(value, origin, reading)


def read_csv(stream: BinaryIO, origin: str, reading: Reading) -> Results:
    """Rows of comma-separated values under a line of names."""
    return _table(stream, origin, reading, ",", 0)


def read_tsv(stream: BinaryIO, origin: str, reading: Reading) -> Results:
    """Rows of values with tabs between, under a line of names."""
    return _table(stream, origin, reading, "\t", 0)


def read_orange(stream: BinaryIO, origin: str, reading: Reading) -> Results:
    """A .tab of Orange: names, then a line of types and a line of roles, then rows."""
    return _table(stream, origin, reading, "\t", 2)


def _table(stream: BinaryIO, origin: str, reading: Reading, delimiter: str, lines_of_types: int) -> Results:
    csv.field_size_limit(reading.max_document_bytes)
    refused: list[Refused] = []
    rows = csv.reader(_texts(stream, origin, reading, refused), delimiter=delimiter)
    names: list[str] | None = None
    for number in itertools.count(1):
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Refused(f"{origin}:{rows.line_num}", "malformed", f"a row that cannot be read: {error}")
            continue
        yield from refused
        refused.clear()
        if row is None:
            break
        if names is None:
            names = row
        elif row and number > 1 + lines_of_types:
            if len(row) != len(names):
                yield Refused(f"{origin}:{rows.line_num}", "malformed", f"{len(row)} cells under {len(names)} names")
            else:
                yield document_of(dict(zip(names, row, strict=True)), f"{origin}:{rows.line_num}", reading)
    if names is None:
        raise Refusal("empty", "not even a line of names")


def _texts(stream: BinaryIO, origin: str, reading: Reading, refused: list[Refused]) -> Iterator[str]:
    encoding: str | None = None
    for number, line in enumerate(bounded_lines(stream, reading.max_document_bytes), 1):
        if line is None:
            refused.append(
                Refused(f"{origin}:{number}", "too_large", f"a line of more than {reading.max_document_bytes:,} bytes")
            )
            continue
        try:
            text, used = decode(line, before=encoding)
        except Refusal as refusal:
            refused.append(refusal.of(f"{origin}:{number}"))
            continue
        encoding = encoding if text.isascii() else used
        if "\0" not in text:
            yield text


def read_parquet(
    stream: BinaryIO, origin: str, reading: Reading, row_groups: tuple[int, int] | None = None, first_row: int = 1
) -> Results:
    """Rows of a table, or of some of its groups of rows: from `row_groups[0]` up to but without `row_groups[1]`."""
    with pq.ParquetFile(stream, pre_buffer=False) as table:
        names = table.schema_arrow.names
        if reading.text_key not in names:
            raise Refusal(
                "no_text", f"no column `{reading.text_key}`; there are {', '.join(names)}: name the one with the text as text_key"
            )
        others = dict.fromkeys((*reading.meta_keys, *OWN_KEYS))
        columns = [reading.text_key, *(key for key in others if key in names and key != reading.text_key)]
        groups = list(range(*row_groups)) if row_groups else None
        row = first_row
        for batch in table.iter_batches(_ROWS, row_groups=groups, columns=columns):
            for record in _rows(batch):
                yield (
                    document_of(record, f"{origin}#{row}", reading) if isinstance(record, dict) else record.of(f"{origin}#{row}")
                )
                row += 1


def _rows(batch: pa.RecordBatch) -> Iterator[Json | Refusal]:
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for i in range(batch.num_rows):
        try:
            yield batch.slice(i, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield Refusal("encoding", f"invalid UTF-8 at byte {error.start}; write the file again")
