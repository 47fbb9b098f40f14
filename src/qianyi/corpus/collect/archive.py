"""Archives, read as they are: nothing is unpacked onto the disk, nothing in them is run.

An archive in an archive is read, one in that is not.
Debian packages are `ar` archives (deb(5)) with a tar of the files in them.
"""

import io
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from qianyi.corpus.collect.formats import format_of, is_archive, read_stream
from qianyi.corpus.collect.found import Reading, Refusal, Results
from qianyi.corpus.collect.match import Match
from qianyi.corpus.collect.streams import refusing
from qianyi.data.compressed import decompressed

_AR_MAGIC, _AR_HEADER_BYTES = b"!<arch>\n", 60
_SPOOLED_BYTES = 8 << 20


def read_archive(
    name: str, raw: BinaryIO, origin: str, reading: Reading, wanted: Match, members: tuple[int, int] | None = None, depth: int = 0
) -> Results:
    """The documents of the files of an archive, in its order.

    Args:
        name: of the archive; its suffix says of what kind it is.
        raw: its bytes; a zip must be seekable.
        origin: of the archive; those of documents are ORIGIN!MEMBER.
        reading: of its files.
        wanted: which of them.
        members: of a zip, the first of its entries and the one after the last; all unless given.
        depth: how many archives it is in.
    """

    def read() -> Results:
        if depth > 1:
            raise Refusal("nested_too_deep", "an archive in an archive in an archive; unpack the outermost")
        kind = format_of(name)
        if kind == "zip":
            yield from _zip(raw, origin, reading, wanted, members, depth)
        elif kind == "deb":
            inner, data = _deb_data(raw)
            yield from _tar(decompressed(inner, data), origin, reading, wanted, depth)
        else:
            short = name.lower().replace(".tgz", ".gz").replace(".tbz2", ".bz2").replace(".txz", ".xz")
            yield from _tar(decompressed(short, raw), origin, reading, wanted, depth)

    return refusing(origin, read)


def _member(name: str, opened: BinaryIO, origin: str, reading: Reading, wanted: Match, depth: int) -> Results:
    kind = reading.format or format_of(name)
    if not is_archive(kind) and not (reading.format and is_archive(format_of(name))):
        yield from read_stream(name, opened, origin, reading)
        return
    with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as copy:  # a zip in a tar must be seekable
        shutil.copyfileobj(opened, copy)
        copy.seek(0)
        yield from read_archive(name, copy, origin, reading, wanted.inside(), depth=depth + 1)  # type: ignore[arg-type]


def _zip(raw: BinaryIO, origin: str, reading: Reading, wanted: Match, members: tuple[int, int] | None, depth: int) -> Results:
    with zipfile.ZipFile(raw) as archive:
        for entry in archive.infolist()[slice(*members) if members else slice(None)]:
            if entry.is_dir() or not wanted(entry.filename):
                continue
            where = f"{origin}!{entry.filename}"
            yield from refusing(where, lambda entry=entry, where=where: _zip_entry(archive, entry, where, reading, wanted, depth))


def _zip_entry(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str, reading: Reading, wanted: Match, depth: int
) -> Results:
    if entry.flag_bits & 1:
        raise Refusal("encrypted", "the entry needs a password; unpack the archive with it first")
    try:
        opened = archive.open(entry)
    except NotImplementedError as error:
        raise Refusal("damaged", f"{error}; unpack the archive with another tool") from None
    with opened:
        yield from _member(entry.filename, opened, where, reading, wanted, depth)  # type: ignore[arg-type]


def _tar(stream: BinaryIO, origin: str, reading: Reading, wanted: Match, depth: int) -> Results:
    try:
        archive = tarfile.open(fileobj=stream, mode="r|")  # noqa: SIM115 - closed below
    except tarfile.ReadError as error:
        raise Refusal("damaged", f"not a readable tar archive: {error}") from None
    with archive:
        for entry in archive:
            vars(archive)["members"] = []  # which would grow by every entry
            name = entry.name.removeprefix("./")
            if not entry.isfile() or not wanted(name):
                continue
            opened: Any = archive.extractfile(entry)
            yield from _member(name, opened, f"{origin}!{name}", reading, wanted, depth)


def _deb_data(raw: BinaryIO) -> tuple[str, BinaryIO]:
    """The name and bytes of the tar with a package's files."""
    if raw.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise Refusal("damaged", "not a Debian package: it does not begin as an ar archive")
    while len(header := raw.read(_AR_HEADER_BYTES)) == _AR_HEADER_BYTES:
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            return name, io.BufferedReader(_Slice(raw, size))
        raw.seek(size + size % 2, io.SEEK_CUR)
    raise Refusal("truncated", "the package holds no data.tar; fetch it again")


class _Slice(io.RawIOBase):
    """The next `size` bytes of a stream as a stream."""

    def __init__(self, raw: BinaryIO, size: int):
        self._raw, self._left = raw, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


def zip_entries(raw: BinaryIO) -> Iterator[int]:
    """The size of each entry of a zip when unpacked, in bytes."""
    with zipfile.ZipFile(raw) as archive:
        for entry in archive.infolist():
            yield entry.file_size
