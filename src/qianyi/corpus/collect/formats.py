"""Which reader reads a file: by the suffix of its name, or by the format that a source names."""

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import BinaryIO

from qianyi.corpus.collect import books, records, texts
from qianyi.corpus.collect.found import Reading, Refusal, Results
from qianyi.corpus.collect.html import read_html
from qianyi.corpus.collect.streams import refusing
from qianyi.corpus.collect.warc import read_warc
from qianyi.data.compressed import decompressed, without_suffix

Reader = Callable[[BinaryIO, str, Reading], Results]

READERS: dict[str, Reader] = {
    "text": texts.read_text,
    "lines": texts.read_lines,
    "html": read_html,
    "man": texts.read_man,
    "rst": texts.read_rst,
    "mail": texts.read_mail,
    "jsonl": records.read_jsonl,
    "json": records.read_json,
    "csv": records.read_csv,
    "tsv": records.read_tsv,
    "parquet": records.read_parquet,
    "warc": read_warc,
    "fortunes": texts.read_fortunes,
    "dictionary": texts.read_dictionary,
    "tagged": texts.read_tagged,
    "tagged_file": texts.read_tagged_file,
    "orange": records.read_orange,
    "scenes": books.read_scenes,
    "chapters": books.read_chapters,
    "poems": books.read_poems,
}
_SUFFIXES = {
    ".txt": "text", ".text": "text", ".md": "text", ".markdown": "text", ".html": "html", ".htm": "html", ".xhtml": "html",
    ".rst": "rst", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".warc": "warc", ".wet": "warc", ".eml": "mail",
}  # fmt: skip
_ARCHIVES = {".zip": "zip", ".whl": "zip", ".tar": "tar", ".tgz": "tar", ".tbz2": "tar", ".txz": "tar", ".deb": "deb"}
_MANUAL = re.compile(r"\.[1-9](?:[a-z]{1,5}|pm)?$")


def format_of(name: str) -> str | None:
    """The format of a file of this name: a reader's, `zip`, `tar` or `deb`; None if nothing says."""
    inner = without_suffix(name).lower()
    suffix = PurePosixPath(inner).suffix
    if suffix in _ARCHIVES:
        return _ARCHIVES[suffix]
    return _SUFFIXES.get(suffix) or ("man" if _MANUAL.search(inner) else None)


def is_archive(kind: str | None) -> bool:
    """Whether a format is one of files."""
    return kind in _ARCHIVES.values()


def read_stream(name: str, raw: BinaryIO, origin: str, reading: Reading) -> Results:
    """The documents of one file, by its name, and refusals in place of whatever goes wrong."""

    def read() -> Results:
        kind = reading.format or format_of(name)
        if kind is None:
            raise Refusal(
                "unknown_kind", f"nothing says how to read it; known are {', '.join(_SUFFIXES)}: give the source a format"
            )
        stream = raw if kind == "warc" else decompressed(name, raw)  # records of a WARC are compressed one by one
        yield from READERS[kind](stream, origin, reading)

    return refusing(origin, read)
