"""What a run ran on: `RUN/environment.json` has an entry for every start of the run."""

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("qianyi", "jax", "jaxlib", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")
_VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "QIANYI_NUM_PROCESSES", "QIANYI_PROCESS_ID", "CUDA_VISIBLE_DEVICES")


def environment() -> dict[str, Any]:
    """Versions, machine, command line and time."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "host": platform.node(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def record_start(run_dir: Path, more: dict[str, Any]) -> None:
    """Add this start of the process to `environment.json`."""
    path = run_dir / "environment.json"
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps([*starts, environment() | more], indent=1, ensure_ascii=False), encoding="utf-8")
    partial.rename(path)


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
