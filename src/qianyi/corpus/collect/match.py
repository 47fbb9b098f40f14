"""Which files of a tree or an archive are wanted: globs, with ** for any depth and {a,b} for alternatives, less those of `skip`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from qianyi.errors import DataError


@dataclass(frozen=True)
class Match:
    """Of names with `/` between their parts."""

    globs: tuple[str, ...] = ()
    """One of them must match the whole name; all names are wanted if there are none."""
    skip: tuple[str, ...] = ()

    def __call__(self, name: str) -> bool:
        return (not self.globs or _any(self.globs, name)) and not _any(self.skip, name)

    def inside(self) -> "Match":
        """What is wanted of an archive that is wanted itself."""
        return Match((), self.skip)


def match_of(globs: str | Sequence[str] | None, skip: Sequence[str] = ()) -> Match:
    return Match((globs,) if isinstance(globs, str) else tuple(globs or ()), tuple(skip))


def _any(globs: tuple[str, ...], name: str) -> bool:
    return any(_compiled(glob).fullmatch(name) for glob in globs)


@lru_cache(1024)
def _compiled(glob: str) -> re.Pattern[str]:
    pattern, depth = "", 0
    for piece in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", glob, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(piece, 0)
        if piece == "," and depth:
            pattern += "|"
        else:
            pattern += _PIECES.get(piece) or (piece if len(piece) > 1 else re.escape(piece))
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise DataError(f"{glob!r}: no glob of files: {error}") from None


_PIECES = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")"}
