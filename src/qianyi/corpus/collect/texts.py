"""Readers of plain text: a file that is one document, and files that hold many: lines, fortunes, dictionaries, tagged corpora, mail."""

import email
import email.policy
import html
import re
from collections.abc import Callable, Iterable, Iterator
from email.message import EmailMessage, MIMEPart
from typing import BinaryIO

from qianyi.corpus.collect.decode import decode
from qianyi.corpus.collect.found import Found, Reading, Refusal, Refused, Results
from qianyi.corpus.collect.roff import roff_to_text
from qianyi.corpus.collect.rst import rst_to_text
from qianyi.corpus.collect.streams import bounded_lines, read_all

_GROUP_CHARACTERS = 4000
"""Of entries that are too short to be documents each."""
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_TAG = re.compile(r"/[A-Za-z.,:;()'`$*+-]+(\][A-Za-z]+)?$")
_SENTENCE_END = re.compile(r"[。！？：；”’」』）…—]$")


def whole_text(stream: BinaryIO, reading: Reading) -> tuple[str, str]:
    """All of a stream with newlines as Unix has them, and its encoding."""
    data = read_all(stream, reading.max_document_bytes)
    if not data:
        raise Refusal("empty", "the file has no bytes")
    if data.startswith(b"%PDF-"):
        locked = b"/Encrypt" in data
        raise Refusal("encrypted" if locked else "binary", "a PDF; convert it to text first" + (" with its password" * locked))
    text, encoding = decode(data)
    return text.replace("\r\n", "\n").replace("\r", "\n"), encoding


def _converted(convert: Callable[[str], tuple[str, str | None]]) -> Callable[[BinaryIO, str, Reading], Results]:
    """A reader of files that are one document each, converted to (text, title)."""

    def read(stream: BinaryIO, origin: str, reading: Reading) -> Results:
        source, encoding = whole_text(stream, reading)
        text, title = convert(source)
        if not text.strip():
            raise Refusal("empty", "no text is in it")
        meta = reading.meta_of(origin) | ({"title": title} if title else {})
        yield Found(origin, text, meta if encoding == "utf-8" else meta | {"encoding": encoding})

    return read


read_text = _converted(lambda text: (text, None))
read_man = _converted(roff_to_text)
read_rst = _converted(rst_to_text)


def _lines(stream: BinaryIO, origin: str, reading: Reading) -> Iterator[tuple[int, str] | Refused]:
    """Numbered lines without their ends, each decoded as the one before where that can be."""
    encoding: str | None = None
    for number, line in enumerate(bounded_lines(stream, reading.max_document_bytes), 1):
        where = f"{origin}:{number}"
        if line is None:
            yield Refused(where, "too_large", f"a line of more than {reading.max_document_bytes:,} bytes")
            continue
        try:
            text, used = decode(line, before=encoding)
        except Refusal as refusal:
            yield refusal.of(where)
            continue
        encoding = encoding if text.isascii() else used
        yield number, text.rstrip("\r\n")


def _grouped(
    begins: Callable[[str, str], bool], join: Callable[[list[str]], str] = "\n".join, minimum_characters: int = 0
) -> Callable[[BinaryIO, str, Reading], Results]:
    """A reader that begins a document at each line for which `begins(line, line before)`, once it has `minimum_characters`."""

    def read(stream: BinaryIO, origin: str, reading: Reading) -> Results:
        held: list[str] = []
        first, size, before = 1, 0, ""

        def finished() -> Iterable[Found]:
            text = join(held).strip()
            return (Found(f"{origin}:{first}", text, reading.meta_of(origin)),) if text else ()

        for line in _lines(stream, origin, reading):
            if isinstance(line, Refused):
                yield line
                continue
            number, text = line
            if held and ((size >= minimum_characters and begins(text, before)) or size > reading.max_document_bytes):
                yield from finished()
                held, size = [], 0
            if not held:
                first = number
            held.append(text)
            size += len(text)
            before = text
        yield from finished()

    return read


def _fortune(lines: list[str]) -> str:
    return _ESCAPES.sub("", "\n".join(lines).strip().removeprefix("%"))


def _untagged(lines: list[str]) -> str:
    """Words without their tags, joined as their script is: 世纪/n as 世纪, positive/jj with spaces."""
    return "\n".join(_untagged_line(line) for line in lines)


def _untagged_line(line: str) -> str:
    words = [_TAG.sub("", word).removeprefix("[") for word in line.split()]
    if not line.isascii():
        return "".join(words)
    text = re.sub(r" ([,.;:?!)]|'')", r"\1", " ".join(words))
    return re.sub(r"(\(|``) ", r"\1", text)


read_lines = _grouped(lambda line, before: True)
read_fortunes = _grouped(lambda line, before: line == "%", _fortune)
read_dictionary = _grouped(
    lambda line, before: bool(line) and not line[0].isspace() and not before.strip(), minimum_characters=_GROUP_CHARACTERS
)
read_tagged = _grouped(
    # A headline ends without a mark, after a line that ends with one.
    lambda line, before: not _SENTENCE_END.search(_untagged_line(line)) and bool(_SENTENCE_END.search(_untagged_line(before))),
    _untagged,
    minimum_characters=500,
)


def read_tagged_file(stream: BinaryIO, origin: str, reading: Reading) -> Results:
    """A file of tagged words that is one document (the Brown corpus)."""
    source, _ = whole_text(stream, reading)
    text = _untagged([line.strip() for line in source.splitlines() if line.strip()])
    if not text:
        raise Refusal("empty", "no words are in it")
    yield Found(origin, text, reading.meta_of(origin))


def read_mail(stream: BinaryIO, origin: str, reading: Reading) -> Results:
    """A message: its subject as the title, its plain text, or the text of its HTML."""
    data = read_all(stream, reading.max_document_bytes)
    try:
        message = email.message_from_bytes(data, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        part = message.get_body(("plain", "html"))
        text = "\n\n".join(_body(part)) if part is not None else ""
        subject = str(message["subject"] or "")
    except (ValueError, LookupError, AttributeError, TypeError, IndexError, KeyError) as error:  # what the parser makes of spam
        raise Refusal("malformed", f"no readable message: {error}") from None
    if not text.strip():
        raise Refusal("empty", "the message has no text")
    yield Found(origin, text, reading.meta_of(origin) | ({"title": subject} if subject else {}))


def _body(part: MIMEPart) -> Iterator[str]:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return
    text, _ = decode(payload, part.get_content_charset())
    if part.get_content_type() == "text/html":
        text = re.sub(r"(?s)<(script|style).*?</\1>|<[^>]*>", " ", text)
        text = re.sub(r"[ \t]+", " ", html.unescape(text))
    yield text.replace("\r\n", "\n")
