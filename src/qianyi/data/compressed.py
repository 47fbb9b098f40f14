"""Compressed streams by the suffix of their names, read in bounded memory; one that ends too early is an error."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import zstandard

DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zstandard.ZstdError)
"""What reading a damaged or shortened stream raises; `bz2` says OSError without a number."""


def decompressed(name: str, raw: BinaryIO) -> BinaryIO:
    """The content of `raw`, whose name says how it is compressed; `raw` itself if it is not."""
    for suffix, opened in _OPEN.items():
        if name.lower().endswith(suffix):
            return opened(raw)
    return raw


def without_suffix(name: str) -> str:
    """`name` without the suffix of a compression: notes.txt of notes.txt.gz."""
    for suffix in _OPEN:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


class _CompleteZstd(io.BufferedReader):
    """A zstd stream that complains when it ends in the middle of a frame (the library's reader just stops)."""

    def __init__(self, raw: BinaryIO):
        super().__init__(_ZstdChunks(raw), 1 << 20)


class _ZstdChunks(io.RawIOBase):
    def __init__(self, raw: BinaryIO):
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._fed = False
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._frame.eof:
                rest = self._frame.unused_data
                self._frame, self._fed = zstandard.ZstdDecompressor().decompressobj(), False
            else:
                rest = b""
            chunk = rest or self._raw.read(1 << 16)
            if not chunk:
                if self._fed:
                    raise zstandard.ZstdError("the last frame is incomplete")
                return 0
            self._fed = True
            self._ready = self._frame.decompress(chunk)
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n


_OPEN: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".dz": gzip.open,  # dictzip is gzip with an index in its header
    ".zst": _CompleteZstd,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}
