"""Which files of a tree or an archive are wanted: globs, with ** for any depth and {a,b} for alternatives, less those of `skip`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


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
    pattern = ""
    for piece in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]*\]|\{|\}|,|[^*?\[{},]+|\[", glob):
        pattern += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|" if "(?:" in pattern else ","}.get(
            piece, piece if piece.startswith("[") and len(piece) > 1 else re.escape(piece)
        )
    return re.compile(pattern, re.DOTALL)
