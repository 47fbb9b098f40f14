"""Prepare a corpus again and again, killed (SIGKILL) at the first, second, third ... change of the disk, and finish after each.

    python tests/kill_everywhere.py DIRECTORY [STRIDE]

In DIRECTORY is x.jsonl. Every attempt finds the finished shards of other settings. A child process is killed; what it
leaves must be the whole old, the whole new, or nothing; another child then must make what an undisturbed one makes.
With a stride of n, at every n-th change only. Prints the number of changes. (No JAX here: the process forks.)
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpora import files_of, silent

from qianyi.config.schema import DataConfig, SourceConfig
from qianyi.data import shards
from qianyi.data.prepare import prepare

CHANGES = (
    (Path, "rename"),
    (Path, "mkdir"),
    (Path, "write_text"),
    (os, "fsync"),
    (os, "rmdir"),
    (os, "unlink"),
    (shards.ShardWriter, "_write"),
)


def kill_at(number: int) -> None:
    """End this process at its change of that number."""
    left = number

    def watched(plain: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return plain(*args, **kwargs)

        return change

    for owner, name in CHANGES:
        setattr(owner, name, watched(getattr(owner, name)))


def in_child(work: Callable[[], Any]) -> int:
    """The status of a child that does some work; -9 if it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(root: Path, stride: int) -> None:
    shards.BLOCK_TOKENS = 3000
    source = SourceConfig(name="x", path=str(root / "x.jsonl"))

    def make(out: str, fraction: float) -> None:
        prepare(DataConfig(dir=str(root / out), sources=(source,), validation_fraction=fraction), 300, silent)

    assert in_child(lambda: make("old", 0.2)) == 0
    assert in_child(lambda: make("new", 0.1)) == 0
    old, new = files_of(root / "old"), files_of(root / "new")
    allowed = [{n: c for n, c in whole.items() if n.startswith("shards")} for whole in (old, new)]
    number, status = 0, -9
    while status == -9:
        shutil.rmtree(root / "out", ignore_errors=True)
        shutil.copytree(root / "old", root / "out")
        status = in_child(lambda number=number: (kill_at(number), make("out", 0.1)))
        left = {n: c for n, c in files_of(root / "out").items() if n.startswith("shards")}
        assert not left or left in allowed, f"after change {number}: {sorted(left)}"
        assert in_child(lambda: make("out", 0.1)) == 0, f"after change {number} it cannot be finished"
        assert files_of(root / "out") == new, f"after change {number} the result differs"
        number += stride
    assert status == 0
    print(number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int((*sys.argv, 1)[2]))
