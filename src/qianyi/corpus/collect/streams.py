"""Opening, reading at most so much, lines of bounded length, and one place that turns what goes wrong into a refusal."""

import errno
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa

from qianyi.corpus.collect.found import HEAD_CHARACTERS, Refusal, Results
from qianyi.data.compressed import DAMAGED

_CHUNK_BYTES = 1 << 20


def open_input(path: str) -> BinaryIO:
    """A local file, or an object of a store (`s3://...`), which needs fsspec."""
    if "://" not in path:
        return open(path, "rb", buffering=_CHUNK_BYTES)  # noqa: PTH123 - whoever asked closes it
    from qianyi.corpus.collect.remote import open_object  # noqa: PLC0415 - an extra

    return open_object(path)


def refusing(origin: str, read: Callable[[], Results]) -> Results:
    """What `read` yields, and a refusal in place of what it raises."""
    try:
        yield from read()
    except Refusal as refusal:
        yield refusal.of(origin)
    except tarfile.ReadError as error:
        yield Refusal("truncated" if "end of" in str(error) else "damaged", f"not a readable archive: {error}").of(origin)
    except zipfile.BadZipFile as error:
        yield Refusal("damaged", f"not a readable zip archive: {error}").of(origin)
    except EOFError as error:
        yield Refusal("truncated", f"the compressed data ends too early ({error}); fetch it again").of(origin)
    except (*DAMAGED, lzma.LZMAError) as error:
        cut = "incomplete" in str(error)
        yield Refusal("truncated" if cut else "damaged", f"the compressed data is damaged ({error}); fetch it again").of(origin)
    except pa.ArrowException as error:
        yield _of_table(error).of(origin)
    except OSError as error:
        yield _of_system(error).of(origin)


def _of_table(error: pa.ArrowException) -> Refusal:
    first = str(error).splitlines()[0]
    if "encrypt" in first.lower() or "decrypt" in first.lower():
        return Refusal("encrypted", f"{first}; decrypt it first")
    return Refusal("damaged", f"not a readable table: {first}")


def _of_system(error: OSError) -> Refusal:
    if error.errno is None:  # bz2 says so of damaged data
        return Refusal("damaged", f"the compressed data is damaged ({error}); fetch it again")
    if error.errno == errno.ELOOP:
        return Refusal("symlink_loop", "the link leads back to itself")
    return Refusal("unreadable", error.strerror or str(error))


def read_all(stream: BinaryIO, limit_bytes: int) -> bytes:
    """The rest of a stream.

    Raises:
        Refusal: it holds more than `limit_bytes`, of which no more than that was read.
    """
    chunks: list[bytes] = []
    left = limit_bytes + 1
    while left and (chunk := stream.read(min(left, _CHUNK_BYTES))):
        chunks.append(chunk)
        left -= len(chunk)
    if not left:
        head = chunks[0][: 4 * HEAD_CHARACTERS].decode("utf-8", "replace")[:HEAD_CHARACTERS]
        raise Refusal("too_large", f"more than {limit_bytes:,} bytes in one document; cut it into documents", head)
    return b"".join(chunks)


def bounded_lines(stream: BinaryIO, limit_bytes: int) -> Iterator[bytes | None]:
    """Lines with their ends; None in place of one of more than `limit_bytes`, which is passed over in pieces."""
    while line := stream.readline(limit_bytes + 1):
        if len(line) <= limit_bytes:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(_CHUNK_BYTES)
        yield None
