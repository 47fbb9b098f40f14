"""Make corpora again and again, killed (SIGKILL) at the first, second, third ... change of the disk, and finish after each.

    python tests/kill_corpus.py clean|dedup DIRECTORY [STRIDE]

Cleaning finds a finished corpus of other settings at every attempt, deduplication (seven stages, each in a directory) finds nothing. What a
killed child leaves must say that it is the finished old, the finished new, or unfinished; another child then must make what an undisturbed
one makes. With a stride of n, at every n-th only. Prints the number of changes. (No JAX here: the process forks.)
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill_everywhere
import pyarrow.parquet as pq
from corpus_works import clean, content, read_slice, slices
from dedup_corpora import make_corpus, real_texts
from kill_everywhere import in_child, kill_at

from qianyi.corpus.dedup.stage import dedup
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


def kill_everywhere_in(root: Path, make: Callable[[Path], Any], stride: int) -> int:
    """Kill `make` at every change; DIRECTORY/old, if it is there, is what it finds."""
    number, status, out = 0, -9, root / "out"  # always there: plans name directories
    assert in_child(lambda: make(out)) == 0
    (root / "old").mkdir(exist_ok=True)
    old, new = content(root / "old"), content(out)
    while status == -9:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(root / "old", out)
        status = in_child(lambda number=number: (kill_at(number), make(out)))
        left = content(out)
        if "manifest.json" in left:
            assert left == (old if left["manifest.json"] == old.get("manifest.json") else new), number
        assert in_child(lambda: make(out)) == 0, f"after change {number} it cannot be finished"
        assert content(out) == new, f"after change {number} the result differs"
        number += stride
    assert status == 0
    return number


def kill_clean(root: Path, stride: int) -> int:
    units = [slices(60)[0], slices(60)[-1]]
    assert in_child(lambda: run_parts(root / "in", "collect", {}, units, read_slice, [])) == 0
    assert in_child(lambda: clean(root / "in", root / "old", 2000)) == 0
    return kill_everywhere_in(root, lambda out: clean(root / "in", out, 700), stride)


def kill_dedup(root: Path, stride: int) -> int:
    texts = [*real_texts()[:8], *(text.upper() for text in real_texts()[:4]), real_texts()[50] + "\n" + real_texts()[51]]
    assert in_child(lambda: make_corpus(root / "in", [*texts, *real_texts()[50:53]], 8)) == 0
    return kill_everywhere_in(root, lambda out: dedup([root / "in"], out), stride)


if __name__ == "__main__":
    print({"clean": kill_clean, "dedup": kill_dedup}[sys.argv[1]](Path(sys.argv[2]), int((*sys.argv, 1)[3])))
