"""Files that only grow: one JSON object a line, each forced to disk before anyone is told that it is there."""

import fcntl
import json
import os
from pathlib import Path

from qianyi.data.stage import Json
from qianyi.errors import DataError


def append_record(path: Path, record: Json) -> None:
    """Adds a line; when this returns, it is on disk. A line that a crash cut short before is closed off first."""
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size and _last_byte(file.fileno(), size) != b"\n":
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> list[Json]:
    """All records, in order; none if there is no file. A line that a crash cut short was never acknowledged, and is passed over.

    Raises:
        DataError: a line is broken otherwise.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    records = list[Json]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            if line.startswith(b"{") and not line.rstrip().endswith(b"}"):
                continue
            raise DataError(f"{path}:{number}: broken JSON; mend or delete the line") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: expected an object, found {type(record).__name__}")
        records.append(record)
    return records


def _last_byte(descriptor: int, size: int) -> bytes:
    return os.pread(descriptor, 1, size - 1)
