"""A command with what it took: CPU seconds of it and its children, wall seconds, and the most memory that they held together."""

import json
import os
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_INTERVAL_SECONDS = 0.1


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    """Pages that processes share are counted once (proportional set size), ten times a second; at least what the first held ever."""
    output: str


def run(command: list[str], *, environment: dict[str, str] | None = None, log: Path | None = None) -> Usage:
    """Run a command to its end.

    Raises:
        SystemExit: it fails; what it said on standard error is shown.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )
    peak: list[int] = [0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read() if process.stderr else ""), daemon=True)
    reader.start()
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    reader.join()
    watcher.join()
    if log is not None:
        log.write_text(errors[0], encoding="utf-8")
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{errors[0][-3000:]}")
    return Usage(usage.ru_utime + usage.ru_stime, wall, peak[0], output)


def _watch(pid: int, peak: list[int]) -> None:
    while True:
        try:
            root = psutil.Process(pid)
            if root.status() == psutil.STATUS_ZOMBIE:
                return
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        peak[0] = max(peak[0], _high_water(pid))  # `ru_maxrss` begins with what the parent held when it forked
        total = 0
        for process in processes:
            with suppress(psutil.Error, OSError):
                total += process.memory_full_info().pss
        peak[0] = max(peak[0], total)
        time.sleep(_INTERVAL_SECONDS)


def _high_water(pid: int) -> int:
    """The largest resident set of a process since it began its program; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def text_bytes(directory: Path) -> int:
    """Bytes of UTF-8 of the texts of the JSONL files of a directory."""
    total = 0
    for file in sorted(directory.glob("*.jsonl")):
        with file.open("rb") as lines:
            total += sum(len(json.loads(line)["text"].encode()) for line in lines)
    return total
