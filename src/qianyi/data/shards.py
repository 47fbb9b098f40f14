"""Token shards: files of little-endian uint16 or uint32 tokens, documents one after another, each ended by the end-of-text token.

    00000.bin, 00000-1.bin ...   tokens of the first unit of work; shards but its last have whole blocks
    00000.idx                    the lengths of its documents, uint32
    00001.bin ...                of the second

Nothing is padded. The manifest has, for each shard, its length and a CRC-32 of every block, so that what is read can be
verified at the moment it is read, whatever the size of the corpus.
"""

import os
import secrets
import weakref
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qianyi.data.stage import force_to_disk
from qianyi.errors import DataError

BLOCK_TOKENS = 1 << 18
FORMAT = 3
"""Version of what is described here and of the manifest, which states it."""

INDEX_DTYPE = np.dtype("<u4")
"""Of the lengths of documents, in tokens."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds all token ids."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class ShardWriter:
    """Appends the documents of unit `number` to `directory/00000.bin`, `00000-1.bin`, ... (for number 0)."""

    def __init__(self, directory: Path, dtype: np.dtype[Any], shard_tokens: int, number: int = 0):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._dtype, self._stem = directory, dtype, f"{number:05d}"
        # Whole blocks, so that a shard but the last has no short one.
        self._limit = max(shard_tokens // BLOCK_TOKENS, 1) * BLOCK_TOKENS
        # Written under a name of its own and renamed when closed: a worker of a run that was killed may write the same unit.
        self._partial = f".{secrets.token_hex(4)}.partial"
        self._waiting: list[NDArray[Any]] = []
        self._waiting_tokens = 0
        self._lengths, self._open_tokens = array("I"), 0
        self.shards: list[dict[str, Any]] = []
        self.index: list[dict[str, Any]] = []
        """Once closed, where the lengths of documents are: file, documents, crc32; empty where there are none."""

    def add(self, tokens: Sequence[int] | NDArray[Any], ends_document: bool = True) -> None:
        """A document, or the next piece of one."""
        self._waiting.append(np.asarray(tokens).astype(self._dtype))
        self._waiting_tokens += len(tokens)
        self._open_tokens += len(tokens)
        if ends_document:
            self._lengths.append(self._open_tokens)
            self._open_tokens = 0
        if self._waiting_tokens >= BLOCK_TOKENS:
            self._flush(whole_blocks=True)

    def close(self) -> list[dict[str, Any]]:
        """Write the rest; descriptions of all shards: file, tokens, crc32 of each block."""
        self._flush(whole_blocks=False)
        if self._lengths:
            name, data = f"{self._stem}.idx", np.array(self._lengths, INDEX_DTYPE).tobytes()
            self._path(name).write_bytes(data)
            self.index = [{"file": name, "documents": len(self._lengths), "crc32": zlib.crc32(data)}]
        for file in (*self.shards, *self.index):
            if (written := self._path(file["file"])).exists():
                force_to_disk(written)
                written.rename(self._directory / file["file"])
        return self.shards

    def _path(self, name: str) -> Path:
        """Where a file is until it is complete."""
        return self._directory / f".{name}{self._partial}"

    def _flush(self, whole_blocks: bool) -> None:
        data = np.concatenate([np.empty(0, self._dtype), *self._waiting])
        stop = len(data) // BLOCK_TOKENS * BLOCK_TOKENS if whole_blocks else len(data)
        for start in range(0, stop, BLOCK_TOKENS):
            self._write(data[start : min(start + BLOCK_TOKENS, stop)])
        self._waiting, self._waiting_tokens = [data[stop:]], len(data) - stop

    def _write(self, block: NDArray[Any]) -> None:
        if not self.shards or self.shards[-1]["tokens"] >= self._limit:
            later = f"-{len(self.shards)}" if self.shards else ""
            self.shards.append({"file": f"{self._stem}{later}.bin", "tokens": 0, "crc32": []})
        shard = self.shards[-1]
        data = block.tobytes()
        with self._path(shard["file"]).open("ab") as file:
            file.write(data)
        shard["tokens"] += len(block)
        shard["crc32"].append(zlib.crc32(data))


class TokenStream:
    """All tokens of one source and split, read by position; every block is verified when it is first touched."""

    def __init__(self, directory: Path, dtype: np.dtype[Any], shards: list[dict[str, Any]], index: Sequence[dict[str, Any]] = ()):
        """Open the shards; `index` says where the lengths of documents are.

        Raises:
            DataError: a shard is missing or has not the length that the manifest says.
        """
        self._dtype, self._index, self._root = dtype, index, directory
        self._paths = [directory / shard["file"] for shard in shards]
        self._crc32 = [shard["crc32"] for shard in shards]
        self._verified = [np.zeros(len(crcs), bool) for crcs in self._crc32]
        self._starts = np.cumsum([0, *(shard["tokens"] for shard in shards)])
        for path, shard in zip(self._paths, shards, strict=True):
            wanted_bytes = shard["tokens"] * dtype.itemsize
            found_bytes = path.stat().st_size if path.exists() else None
            if found_bytes != wanted_bytes:
                found = "is missing" if found_bytes is None else f"has {found_bytes} bytes"
                raise DataError(f"{path} {found}; the manifest says {wanted_bytes} bytes. {_MEND}")
        # Shards are opened through this handle: when the directory is replaced by another preparation while a run reads it,
        # they are missing then, and never those of the other.
        self._directory = os.open(directory, os.O_RDONLY)
        weakref.finalize(self, os.close, self._directory)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> NDArray[np.int32]:
        """Tokens [start, stop); may be called from several threads.

        Raises:
            DataError: a block's checksum is not the manifest's, or the file has been cut short.
        """
        parts: list[NDArray[Any]] = []
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        for shard in range(first, len(self._paths)):
            low = max(start - int(self._starts[shard]), 0)
            high = min(stop, int(self._starts[shard + 1])) - int(self._starts[shard])
            if high <= low:
                break
            self._verify(shard, low, high)
            parts.append(np.frombuffer(self._bytes(shard, low, high), self._dtype))
        return np.concatenate(parts).astype(np.int32)

    def document_tokens(self) -> list[NDArray[np.uint32]]:
        """Lengths of the documents in order, those of a unit of work in an array each.

        Raises:
            DataError: an index is missing or corrupt.
        """
        return [self._lengths(part) for part in self._index]

    def _lengths(self, part: dict[str, Any]) -> NDArray[np.uint32]:
        path = self._root / part["file"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}. {_MEND}") from None
        if zlib.crc32(data) != part["crc32"]:
            raise DataError(f"{path} is corrupt: its CRC-32 is not the manifest's. {_MEND}")
        return np.frombuffer(data, INDEX_DTYPE)

    def _bytes(self, shard: int, low: int, high: int) -> bytes:
        # Plain reads, not a memory map: a map of a file that is cut short under it kills the process. And a file is open just
        # while it is read: a large corpus has more shards than a process may have open files.
        path, size = self._paths[shard], self._dtype.itemsize
        try:
            descriptor = os.open(path.name, os.O_RDONLY, dir_fd=self._directory)
            try:
                data = os.pread(descriptor, (high - low) * size, low * size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataError(f"{path}: cannot be read any more ({error.strerror}); was it replaced or moved?") from None
        if len(data) != (high - low) * size:
            raise DataError(f"{path} was cut short while it was being read. {_MEND}")
        return data

    def _verify(self, shard: int, low: int, high: int) -> None:
        tokens = int(self._starts[shard + 1] - self._starts[shard])
        for block in range(low // BLOCK_TOKENS, (high - 1) // BLOCK_TOKENS + 1):
            if not self._verified[shard][block]:
                data = self._bytes(shard, block * BLOCK_TOKENS, min((block + 1) * BLOCK_TOKENS, tokens))
                found, wanted = zlib.crc32(data), self._crc32[shard][block]
                if found != wanted:
                    raise DataError(
                        f"{self._paths[shard]}: block {block} is corrupt: "
                        f"its CRC-32 is {found:08x}, the manifest says {wanted:08x}. {_MEND}"
                    )
                self._verified[shard][block] = True


_MEND = "Delete the directory `shards` that it is in and run `qianyi data prepare RECIPE`"
