"""Readers of single corpora whose files are like no others: plays, chapters, verse."""

import json
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, BinaryIO

from qianyi.corpus.collect.decode import decode
from qianyi.corpus.collect.found import Found, Reading, Refusal, Results
from qianyi.corpus.collect.streams import read_all
from qianyi.data.builtin import chapters, scenes

_POEMS = 8
"""In a document: single poems are too short."""
_HEADS = ("title", "rhythmic", "chapter", "section", "author", "dynasty", "name")
_BODIES = ("paragraphs", "content", "para", "desc", "description", "biography", "short_description")


def _split(cut: Callable[[str], Iterator[str]]) -> Callable[[BinaryIO, str, Reading], Results]:
    def read(stream: BinaryIO, origin: str, reading: Reading) -> Results:
        text, _ = decode(read_all(stream, reading.max_document_bytes))
        try:
            pieces = list(cut(text))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:  # it is not the book that it should be
            raise Refusal("malformed", f"not cut as such books are: {error}") from None
        for number, piece in enumerate(pieces, 1):
            yield Found(f"{origin}#{number}", piece, {"title": PurePath(origin).stem} | reading.meta_of(origin))

    return read


read_scenes = _split(scenes)
read_chapters = _split(chapters)


def read_poems(stream: BinaryIO, origin: str, reading: Reading) -> Results:
    """JSON of chinese-poetry, whose files nest in several ways: eight poems or sections to a document."""
    text, _ = decode(read_all(stream, reading.max_document_bytes))
    try:
        poems = [poem for poem in _poems(json.loads(text)) if poem]
    except (ValueError, RecursionError) as error:
        raise Refusal("malformed", f"broken JSON: {error}") from None
    if not poems:
        raise Refusal("empty", "no verse is in it")
    for first in range(0, len(poems), _POEMS):
        yield Found(f"{origin}#{first + 1}", "\n\n".join(poems[first : first + _POEMS]), reading.meta_of(origin))


def _poems(value: Any) -> Iterator[str]:
    """The poems of a value: what has a body of lines is one."""
    if isinstance(value, list):
        for entry in value:
            yield from _poems(entry) if not isinstance(entry, str) else (entry,)
        return
    if not isinstance(value, dict):
        return
    body = next((value[key] for key in _BODIES if value.get(key)), None)
    head = "\n".join(value[key].strip() for key in _HEADS if isinstance(value.get(key), str) and value[key].strip())
    if isinstance(body, str) or (isinstance(body, list) and all(isinstance(line, str) for line in body)):
        lines = [body] if isinstance(body, str) else body
        yield "\n".join([head, *(line.strip() for line in lines)]).strip()
    else:
        if head:
            yield head
        for entry in value.values():
            yield from _poems(entry)
