"""Make a corpus again and again, killed (SIGKILL) at the first, second, third ... change of the disk, and finish after each.

    python tests/kill_corpus.py DIRECTORY [STRIDE]

Every attempt finds a finished corpus of other settings. What a killed child leaves must say that it is the finished old, the finished
new, or unfinished; another child then must make what an undisturbed one makes. With a stride of n, at every n-th only. Prints the number of
changes. (No JAX here: the process forks.)
"""

import os
import shutil
import sys
from pathlib import Path

import kill_everywhere
import pyarrow.parquet as pq
from corpus_works import clean, content, read_slice, slices
from kill_everywhere import in_child, kill_at

from qianyi.corpus.parts import run_parts

kill_everywhere.CHANGES = (
    (Path, "rename"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (Path, "rmdir"),
    (Path, "write_text"),
    (os, "fsync"),
    (pq.ParquetWriter, "write_table"),
)


def main(root: Path, stride: int) -> None:
    units = [slices(60)[0], slices(60)[-1]]
    assert in_child(lambda: run_parts(root / "in", "collect", {}, units, read_slice, [])) == 0
    assert in_child(lambda: clean(root / "in", root / "old", 2000)) == 0
    assert in_child(lambda: clean(root / "in", root / "new", 700)) == 0
    old, new = content(root / "old"), content(root / "new")
    number, status = 0, -9
    while status == -9:
        out = root / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(root / "old", out)
        status = in_child(lambda number=number, out=out: (kill_at(number), clean(root / "in", out, 700)))
        left = content(out)
        if "manifest.json" in left:
            whole = old if left["manifest.json"] == old["manifest.json"] else new
            assert left == whole, number
        assert in_child(lambda out=out: clean(root / "in", out, 700)) == 0, f"after change {number} it cannot be finished"
        assert content(out) == new, f"after change {number} the result differs"
        number += stride
    assert status == 0
    print(number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int((*sys.argv, 1)[2]))
