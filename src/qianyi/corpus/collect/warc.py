"""WARC files (ISO 28500), of crawlers or of Common Crawl: pages of responses, plain text of conversions."""

import re
from typing import Any, BinaryIO

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed

from qianyi.corpus.collect.decode import decode
from qianyi.corpus.collect.found import Found, Reading, Refusal, Result, Results
from qianyi.corpus.collect.html import page
from qianyi.corpus.collect.streams import read_all


def read_warc(stream: BinaryIO, origin: str, reading: Reading) -> Results:
    """Responses and conversions; requests, metadata and what is no text by its type are passed over."""
    number = 0
    try:
        for record in ArchiveIterator(stream):
            number += 1
            where = f"{origin}#{number}"
            try:
                result = _record(record, where, reading)
            except Refusal as refusal:
                result = refusal.of(where)
            if result is not None:
                yield result
    except ArchiveLoadFailed as error:
        raise Refusal("damaged", f"record {number + 1} is no WARC record: {str(error).splitlines()[0]}") from None
    if not number:
        raise Refusal("empty", "no record is in it")


def _record(record: Any, origin: str, reading: Reading) -> Result | None:
    kind = record.rec_type
    if kind not in {"response", "resource", "conversion"}:
        return None
    url = record.rec_headers.get_header("WARC-Target-URI") or ""
    headers = record.http_headers or record.rec_headers
    content_type = (headers.get_header("Content-Type") or "").lower()
    if record.http_headers and not (record.http_headers.get_statuscode() or "").startswith("2"):
        return None
    if "html" not in content_type and not content_type.startswith("text/"):
        return None
    data = read_all(record.content_stream(), reading.max_document_bytes)
    length = record.rec_headers.get_header("Content-Length")
    if record.raw_stream.limit > 0:
        raise Refusal("truncated", f"{record.raw_stream.limit} of {length} bytes of the record are missing")
    charset = re.search(r"charset=[\"']?([\w.:-]+)", content_type)
    declared = charset[1] if charset else None
    if "html" in content_type:
        found = page(data, origin, reading, declared)
        return Found(origin, found.text, {**found.meta, "url": url})
    text, _ = decode(data, declared)
    if not text.strip():
        raise Refusal("empty", "the record has no text")
    return Found(origin, text, {"url": url} | reading.meta_of(origin))
