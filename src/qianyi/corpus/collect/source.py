"""What a source is: the place that `[NAME=]PLACE` names, how it is read, and under which licence."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qianyi.corpus.collect.found import Reading
from qianyi.corpus.collect.match import Match, match_of
from qianyi.corpus.collect.packages import KINDS, split_spec
from qianyi.corpus.collect.registry import corpora, corpus_names
from qianyi.errors import DataError

Names = Annotated[list[str], Field(default_factory=list)]


class SourceSettings(BaseModel):
    """A source of `collect`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str
    """A file, a directory, `corpus:NAME`, `debian:PKG[:GLOB]`, `npm:PKG[@VERSION][:GLOB]`, `pypi:PKG[==VERSION][:GLOB]`, `crawl:URL`,
    `hf:DATASET[/CONFIG][#SPLIT]`, or an address of an object store."""
    name: str | None = None
    """Column `source` of its documents; unless given, the last part of the path."""
    files: Names
    """Globs of the files of a directory or an archive that are read; all, unless given."""
    skip: Names
    """Globs of those that are not."""
    format: str | None = None
    """The reader of its files, in place of what their suffixes say."""
    text_key: str = "text"
    """The field or column with the text."""
    meta_keys: list[str] = ["title", "url", "label"]
    """Fields or columns that go into `meta`."""
    html: Literal["main", "all"] = "main"
    """The main content of pages, or all that is visible."""
    label: str | None = None
    """Put into `meta` of all its documents."""
    label_pattern: str | None = None
    """A regular expression whose group, found in the origin, is the label."""
    licence: str = ""
    """Of its documents."""
    research_only: bool = False
    """Whether the licence is for research alone."""
    max_document_bytes: Annotated[int, Field(ge=1)] = Reading.max_document_bytes
    """Larger documents, lines and files are refused; a worker holds a few times as much."""
    max_pages: Annotated[int, Field(ge=1)] = 1000
    """Of a crawl."""
    max_depth: Annotated[int, Field(ge=0)] = 5
    """Of a crawl: links from its first page."""
    delay_seconds: Annotated[float, Field(ge=0)] = 1.0
    """Of a crawl: between requests."""


@dataclass(frozen=True)
class Source:
    """A source with its name, and what its packages are."""

    name: str
    path: str
    settings: SourceSettings
    reading: Reading
    wanted: Match
    packages: tuple[tuple[str, str], ...] = field(default=())
    """(kind, package) of each."""


def sources_of(settings: list[SourceSettings]) -> list[Source]:
    """The sources that settings name, in order, groups spread.

    Raises:
        DataError: a corpus or package that cannot be, or two sources of one name.
    """
    sources = [source for one in settings for source in _spread(one)]
    names = [source.name for source in sources]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"two sources are called {twice}: name them, as NAME=PLACE")
    return sources


def parse_source(argument: str, **settings: Any) -> SourceSettings:
    """`[NAME=]PLACE` of the command line."""
    named = re.match(r"([\w.-]+)=(.+)", argument, re.DOTALL)
    if named and not Path(argument).exists():
        return SourceSettings(path=named[2], name=named[1], **settings)
    return SourceSettings(path=argument, **settings)


def _spread(one: SourceSettings) -> list[Source]:
    kind, _, rest = one.path.partition(":")
    if kind in {"corpus", "builtin"}:
        names = corpus_names(rest)
        return [_corpus(name, one.name if one.name and len(names) == 1 else name) for name in names]
    if kind in KINDS:
        registry, package, glob = split_spec(one.path)
        wanted = match_of([*one.files, *([glob] if glob else [])], one.skip)
        return [Source(one.name or f"{kind}:{package}", one.path, one, _reading(one), wanted, ((registry, package),))]
    if one.name == "":
        raise DataError(f"{one.path}: a source's name is empty")
    return [Source(one.name or _short(one.path), one.path, one, _reading(one), match_of(one.files, one.skip))]


def _short(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _corpus(key: str, name: str) -> Source:
    entry = {k: v for k, v in corpora()[key].items() if k not in {"title", "language", "packages"}}
    one = SourceSettings(path=f"corpus:{key}", name=name, **entry)
    packages = tuple(split_spec(package)[:2] for package in corpora()[key]["packages"])
    return Source(name, one.path, one, _reading(one), match_of(one.files, one.skip), packages)


def _reading(one: SourceSettings) -> Reading:
    from qianyi.corpus.collect.formats import READERS  # noqa: PLC0415 - readers take a moment to load

    if one.format is not None and one.format not in READERS:
        raise DataError(f"{one.path}: no format `{one.format}`; there are {', '.join(READERS)}")
    for pattern in [one.label_pattern] if one.label_pattern else []:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise DataError(f"{one.path}: label_pattern {pattern!r} is no regular expression: {error}") from None
        if groups != 1:
            raise DataError(f"{one.path}: label_pattern {pattern!r} has {groups} groups; the label is its only group")
    return Reading(
        format=one.format,
        text_key=one.text_key,
        meta_keys=tuple(one.meta_keys),
        html=one.html,
        label=one.label,
        label_pattern=one.label_pattern,
        max_document_bytes=one.max_document_bytes,
    )
