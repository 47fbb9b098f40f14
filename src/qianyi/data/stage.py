"""A stage is a pure function from inputs to an output directory, run once.

The directory appears whole or not at all: it is built beside its place and moved there, its manifest (the settings and inputs that it
was made from, and what came out) being written last. Running again with the same settings does nothing.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qianyi.errors import DataError, ResourceError

Json = dict[str, Any]
MANIFEST = "manifest.json"


def run_stage(out: Path, settings: Json, build: Callable[[Path], Json]) -> Json:
    """Make `out` with `build(directory) -> results`, unless it is there with the same settings.

    Returns:
        The manifest: `settings` and the results.

    Raises:
        ResourceError: the disk is full; nothing that was there before is lost.
    """
    if (out / MANIFEST).exists():
        manifest = read_manifest(out)
        if manifest["settings"] == settings:
            return manifest
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        manifest = {"settings": settings, **build(partial)}
        write_json(partial / MANIFEST, manifest)
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
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
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; run `qianyi data prepare RECIPE`") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise DataError(f"{path}: broken; delete {out} and run `qianyi data prepare RECIPE`") from None


def write_json(path: Path, value: Json) -> None:
    """Write and force to disk under another name, then move into place."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def describe_files(files: list[Path], before: Json | None) -> tuple[list[Json], dict[str, int]]:
    """Name, size and SHA-256 of inputs, and their times; what has the size and time of the manifest `before` is not read again."""
    known = {entry["file"]: entry for entry in before["settings"]["inputs"]} if before else {}
    times = before["input_times"] if before else {}
    described: list[Json] = []
    for file in files:
        name, stat = str(file), file.stat()
        if name in known and (known[name]["bytes"], times[name]) == (stat.st_size, stat.st_mtime_ns):
            described.append(known[name])
            continue
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        described.append({"file": name, "bytes": stat.st_size, "sha256": digest})
    return described, {str(file): file.stat().st_mtime_ns for file in files}
