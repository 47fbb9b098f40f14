"""The files of a directory in one order, whatever the file system says; what cannot be read is part of the answer."""

import os
from collections.abc import Iterator
from pathlib import Path

from qianyi.corpus.collect.found import Refused
from qianyi.corpus.collect.match import Match

Identity = tuple[int, int]


def walk(root: Path, wanted: Match) -> Iterator[tuple[str, Path, int] | Refused]:
    """(name below `root`, path, bytes) of every wanted file, sorted by name; links are followed, each directory is read once."""
    yield from _walk(root, "", wanted, set(), ())


def _walk(
    directory: Path, prefix: str, wanted: Match, seen: set[Identity], above: tuple[Identity, ...]
) -> Iterator[tuple[str, Path, int] | Refused]:
    try:
        stat = directory.stat()
        identity = (stat.st_dev, stat.st_ino)
        names = sorted(os.listdir(directory))  # noqa: PTH208 - a million names need not be paths
    except OSError as error:
        yield Refused(prefix or directory.name, "unreadable", error.strerror or str(error))
        return
    if identity in seen:
        loop = identity in above
        detail = "the link leads back to where it is" if loop else "the same directory was read under another name"
        yield Refused(prefix, "symlink_loop" if loop else "repeated", detail)
        return
    seen.add(identity)
    for name in names:
        path, below = directory / name, f"{prefix}{name}"
        if path.is_dir():
            yield from _walk(path, f"{below}/", wanted, seen, (*above, identity))
        elif wanted(below):
            yield _file(path, _clean(below))


def _file(path: Path, name: str) -> tuple[str, Path, int] | Refused:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe must not wait for a writer
    except OSError as error:
        loop = error.strerror == os.strerror(40)
        return Refused(
            name, "symlink_loop" if loop else "unreadable", "the link leads back to itself" if loop else error.strerror or ""
        )
    try:
        if not path.is_file():
            return Refused(name, "unreadable", "neither a file nor a directory")
        return name, path, os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _clean(name: str) -> str:
    """A name that can be written down: file systems allow bytes that are no UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
