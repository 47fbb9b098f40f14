"""A stage is a pure function from inputs to an output directory, run once.

The directory appears whole or not at all: it is built beside its place and moved there, its manifest (the settings and inputs that it
was made from, and what came out) being written last. Running again with the same settings does nothing. Two runs at one time take
turns, so that the second finds what the first has made.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qianyi.errors import DataError, ResourceError

Json = dict[str, Any]
MANIFEST = "manifest.json"


def run_stage(
    out: Path, settings: Json, input_times: dict[str, int], build: Callable[[Path], Json], resumable: bool = False
) -> Json:
    """Make `out` with `build(directory) -> results`, unless it is there with the same settings.

    Args:
        out: the directory.
        settings: all that determines the output, the inputs among them (see `describe_files`).
        input_times: when the inputs were last changed; noted, so that the next run need not read those that are as old.
        build: fills an empty directory.
        resumable: what an interrupted build with the same settings left is there again when `build` is called.

    Returns:
        The manifest: `settings`, `input_times` and the results.

    Raises:
        DataError: the directory cannot be written.
        ResourceError: the disk is full; nothing that was there before is lost.
    """
    if manifest := _made_with(out, settings, input_times):
        return manifest
    partial = _beside(out, "partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with lock(_beside(out, "lock")):
            if manifest := _made_with(out, settings, input_times):
                return manifest
            if not (resumable and partial.is_dir() and _begun_with(out, settings)):
                shutil.rmtree(partial, ignore_errors=True)
                write_json(_beside(out, "begun"), settings)
                partial.mkdir()
            manifest = {"settings": settings, "input_times": input_times, **build(partial)}
            write_json(partial / MANIFEST, manifest)
            _put_in_place(partial, out)
            _beside(out, "begun").unlink()
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            if not resumable:
                shutil.rmtree(partial, ignore_errors=True)
            raise ResourceError(f"{out}: the disk is full; free some room and run the same command again") from None
        raise DataError(f"{error.filename or out}: {error.strerror or error}") from None
    return manifest


def read_manifest(out: Path) -> Json:
    """The manifest of a finished stage.

    Raises:
        DataError: it is missing or broken.
    """
    path = out / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not {"settings", "input_times"} <= manifest.keys():
            raise ValueError
    except FileNotFoundError:
        raise DataError(f"{path}: missing; run `qianyi data prepare RECIPE`") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, AttributeError):
        raise DataError(f"{path}: broken; delete {out} and run `qianyi data prepare RECIPE`") from None
    return manifest


def write_json(path: Path, value: Json) -> None:
    """As `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Write and force to disk under another name, then move into place."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def describe_files(files: list[Path], before: Json | None) -> tuple[list[Json], dict[str, int]]:
    """Name, size and SHA-256 of inputs, and their times; what has the size and time of the manifest `before` is not read again.

    Raises:
        DataError: a file cannot be read.
    """
    known = {entry["file"]: entry for entry in before["settings"]["inputs"]} if before else {}
    known_times = before["input_times"] if before else {}

    def describe(file: Path) -> tuple[Json, int]:
        name = str(file)
        try:
            stat = file.stat()
            if name in known and (known[name]["bytes"], known_times[name]) == (stat.st_size, stat.st_mtime_ns):
                return known[name], stat.st_mtime_ns
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from None
        return {"file": name, "bytes": stat.st_size, "sha256": digest}, stat.st_mtime_ns

    with ThreadPoolExecutor() as pool:  # hashing holds no lock
        described = list(pool.map(describe, files))
    return [entry for entry, _ in described], {entry["file"]: time for entry, time in described}


def _made_with(out: Path, settings: Json, input_times: dict[str, int]) -> Json | None:
    """The manifest of `out` if it is there and was made with these settings."""
    if not (out / MANIFEST).exists():
        return None
    manifest = read_manifest(out)
    if manifest["settings"] != settings:
        return None
    with suppress(OSError):  # of a run that was ended just before it did that
        shutil.rmtree(_beside(out, "old"), ignore_errors=True)
        _beside(out, "begun").unlink(missing_ok=True)
    if manifest["input_times"] != input_times:
        manifest["input_times"] = input_times
        with suppress(OSError):  # where it cannot be written, the inputs are read again the next time
            write_json(out / MANIFEST, manifest)
    return manifest


def _begun_with(out: Path, settings: Json) -> bool:
    """Was what is being built in the place of `out` begun with these settings."""
    try:
        return json.loads(_beside(out, "begun").read_text(encoding="utf-8")) == settings
    except (FileNotFoundError, ValueError):
        return False


def _beside(out: Path, kind: str) -> Path:
    return out.with_name(f".{out.name}.{kind}")


def _put_in_place(partial: Path, out: Path) -> None:
    """What is complete and on disk takes the place of what was there."""
    for path in (*partial.rglob("*"), partial):
        force_to_disk(path)
    old = _beside(out, "old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    force_to_disk(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def force_to_disk(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Generator[None]:
    """Wait for a lock that the system releases when its holder ends, however it ends; say so, if another holds it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
