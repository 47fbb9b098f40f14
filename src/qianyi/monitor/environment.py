"""What a run ran on: `RUN/environment.json` has an entry for every start of the run."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from qianyi.errors import DataError

_PACKAGES = ("qianyi", "jax", "jaxlib", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")
_VARIABLES = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_PLATFORMS",
    "CUDA_VISIBLE_DEVICES",
    "QIANYI_NUM_PROCESSES",
    "QIANYI_PROCESS_ID",
)


def environment() -> dict[str, Any]:
    """Versions, machine, command line and time. Devices are the caller's to add: JAX is not imported here."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "host": platform.node(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def record_start(run_dir: Path, more: dict[str, Any]) -> None:
    """Add this start of the process, and what the caller knows of it, to `environment.json`.

    Raises:
        DataError: the file that is there is not a list of starts; it is left as it is.
    """
    path = run_dir / "environment.json"
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump([*read_starts(path), environment() | more], file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def read_starts(path: Path) -> list[dict[str, Any]]:
    """The starts in an `environment.json`; none where there is no such file.

    Raises:
        DataError: it is something else.
    """
    if not path.exists():
        return []
    try:
        starts = json.loads(path.read_bytes())
    except ValueError:
        starts = None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise DataError(f"{path}: not a list of JSON objects, one for every start; move it away and run again")
    return starts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this source, with `-dirty` where files differ from it; None for an installed package."""
    git = ["git", "-C", str(Path(__file__).parent)]
    tracked = [*git, "ls-files", "--error-unmatch", Path(__file__).name]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)
        return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())
