"""Token shards: files of little-endian uint16 or uint32 tokens, documents one after another, each ended by the end-of-text token.

Nothing is padded. The manifest has, for each shard, its length and a CRC-32 of every block, so that what is read can be
verified at the moment it is read, whatever the size of the corpus.
"""

import os
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qianyi.errors import DataError

BLOCK_TOKENS = 1 << 18
FORMAT = 2
"""Version of what is described here and of the manifest, which states it."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds all token ids."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class ShardWriter:
    """Appends documents to `directory/00000.bin`, `00001.bin`, ..."""

    def __init__(self, directory: Path, dtype: np.dtype[Any], shard_tokens: int):
        directory.mkdir(parents=True)
        self._directory, self._dtype = directory, dtype
        # Whole blocks, so that a shard but the last has no short one.
        self._limit = max(shard_tokens // BLOCK_TOKENS, 1) * BLOCK_TOKENS
        self._waiting: list[NDArray[Any]] = []
        self._waiting_tokens = 0
        self.shards: list[dict[str, Any]] = []

    def add(self, tokens: list[int]) -> None:
        self._waiting.append(np.array(tokens, self._dtype))
        self._waiting_tokens += len(tokens)
        if self._waiting_tokens >= BLOCK_TOKENS:
            self._flush(whole_blocks=True)

    def close(self) -> list[dict[str, Any]]:
        """Write the rest; descriptions of all shards: file, tokens, crc32 of each block."""
        self._flush(whole_blocks=False)
        return self.shards

    def _flush(self, whole_blocks: bool) -> None:
        data = np.concatenate([np.empty(0, self._dtype), *self._waiting])
        stop = len(data) // BLOCK_TOKENS * BLOCK_TOKENS if whole_blocks else len(data)
        for start in range(0, stop, BLOCK_TOKENS):
            self._write(data[start : min(start + BLOCK_TOKENS, stop)])
        self._waiting, self._waiting_tokens = [data[stop:]], len(data) - stop

    def _write(self, block: NDArray[Any]) -> None:
        if not self.shards or self.shards[-1]["tokens"] >= self._limit:
            self.shards.append({"file": f"{len(self.shards):05d}.bin", "tokens": 0, "crc32": []})
        shard = self.shards[-1]
        data = block.tobytes()
        with (self._directory / shard["file"]).open("ab") as file:
            file.write(data)
        shard["tokens"] += len(block)
        shard["crc32"].append(zlib.crc32(data))


class TokenStream:
    """All tokens of one source and split, read by position; every block is verified when it is first touched."""

    def __init__(self, directory: Path, dtype: np.dtype[Any], shards: list[dict[str, Any]]):
        """Open the shards.

        Raises:
            DataError: a shard is missing or has not the length that the manifest says.
        """
        self._dtype = dtype
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
