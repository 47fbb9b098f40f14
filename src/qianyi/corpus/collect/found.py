"""What readers yield: documents, and refusals with a reason; and how they are told what to read."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from qianyi.data.stage import Json

HEAD_CHARACTERS = 200


@dataclass(frozen=True)
class Found:
    """A document."""

    origin: str
    text: str
    meta: Json = field(default_factory=dict)
    source: str | None = None
    """What the record itself says; else the source that is read has it."""
    licence: str | None = None
    """Likewise."""
    research_only: bool | None = None
    """Likewise; a record may forbid what its source allows, not the other way round."""


@dataclass(frozen=True)
class Refused:
    """An input that gives no document, and why."""

    origin: str
    reason: str
    """One of `REASONS`."""
    detail: str
    """What was found, and what can be done."""
    head: str = ""
    """Its first characters, where there are any."""


REASONS = {
    "binary": "neither text nor a known kind of file",
    "damaged": "the compressed data, archive or table is damaged",
    "empty": "nothing is in it",
    "encoding": "its encoding cannot be told, or it breaks its own",
    "encrypted": "it needs a password",
    "failed": "the page could not be fetched",
    "malformed": "a broken record",
    "nested_too_deep": "an archive in an archive in an archive",
    "no_text": "the record has no text under the key",
    "symlink_loop": "a link that leads back to where it is",
    "repeated": "a directory that was read under another name",
    "too_large": "longer than one document may be",
    "truncated": "it ends too early",
    "unknown_kind": "nothing says how to read it",
    "unreadable": "the system does not let it be read",
}
Result = Found | Refused
Results = Iterator[Result]


class Refusal(Exception):  # noqa: N818 - it is an answer, which becomes a record
    """The rest of an input gives no document; whoever opened it names it."""

    def __init__(self, reason: str, detail: str, head: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail, self.head = reason, detail, head

    def of(self, origin: str) -> Refused:
        return Refused(origin, self.reason, self.detail, self.head)


@dataclass(frozen=True)
class Reading:
    """How the files of a source are read."""

    format: str | None = None
    """A reader's name, for files whose suffix does not say."""
    text_key: str = "text"
    """Of records: the field with the text."""
    meta_keys: tuple[str, ...] = ("title", "url", "label")
    """Of records: fields that go into `meta`."""
    html: str = "main"
    """Of pages: `main` content, or `all` that is visible."""
    label: str | None = None
    """What the source says of all its documents."""
    label_pattern: str | None = None
    """A regular expression whose group is the label, searched in the origin."""
    max_document_bytes: int = 16 << 20
    """Larger files, lines and members are refused."""

    def meta_of(self, origin: str) -> Json:
        """What the source says of the document at `origin`."""
        if self.label_pattern and (match := re.search(self.label_pattern, origin)):
            return {"label": match[1]}
        return {"label": self.label} if self.label else {}


def reading_of(values: Json) -> Reading:
    """A `Reading` from what JSON keeps of one."""
    return replace(Reading(**values), meta_keys=tuple(values["meta_keys"]))
