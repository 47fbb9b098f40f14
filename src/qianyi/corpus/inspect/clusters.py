"""Clusters of duplicates, as what was dropped tells of them: its detail names the document that stays."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest, nsmallest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from qianyi.corpus.document import is_corpus, read_batches, side_files
from qianyi.corpus.inspect.survey import SAMPLES, Sample, hashes, sample_of
from qianyi.data.stage import Json

pc: Any = pyarrow.compute  # it makes its functions as it is imported
LARGEST, USUAL = 2, 4
"""Clusters shown: the largest ones, and some by hash."""
_ID = r"(?P<id>\b[0-9a-f]{32}\b)"


@dataclass(frozen=True)
class Cluster:
    """Documents that are nearly the same: the one that stays, where it is known, and some of those dropped for it."""

    documents: int
    survivor: Sample | None
    dropped: tuple[Sample, ...]


@dataclass(frozen=True)
class Clusters:
    """Of a stage."""

    sizes: tuple[tuple[int, int], ...]
    """(documents in a cluster, how many clusters), by size."""
    shown: tuple[Cluster, ...]

    @property
    def number(self) -> int:
        return sum(n for _, n in self.sizes)

    @property
    def dropped(self) -> int:
        return sum((size - 1) * n for size, n in self.sizes)

    @property
    def bars(self) -> list[tuple[str, int]]:
        """How many clusters there are of 2, 3, 4, 5-8, 9-16, ... documents."""
        bars: Counter[tuple[int, int]] = Counter()
        for size, n in self.sizes:
            high = size if size <= 4 else 1 << (size - 1).bit_length()
            bars[size if size <= 4 else high // 2 + 1, high] += n
        return [(f"{low:,}" if low == high else f"{low:,}–{high:,}", n) for (low, high), n in sorted(bars.items())]


def duplicate_clusters(stage: Path) -> Clusters | None:
    """The clusters of a stage; None where no detail names a document that stays. Takes eight bytes for each duplicate."""
    dropped = side_files(stage, "dropped")
    named = [keys for _, _, keys in _named(dropped)]
    if not named:
        return None
    keys, counts = np.unique(np.concatenate(named), return_counts=True)
    pairs = list(zip(counts.tolist(), keys.tolist(), strict=True))
    chosen = dict.fromkeys(key for _, key in nlargest(LARGEST, pairs))
    chosen |= dict.fromkeys(nsmallest(USUAL, (key for _, key in pairs if key not in chosen)))
    size_of = {key: n + 1 for n, key in pairs if key in chosen}
    samples, survivor_of = _samples(dropped, set(chosen))
    survivors = {sample.id: sample for sample in _of_ids(side_files(stage, "parts"), list(survivor_of.values()))}
    shown = [Cluster(size_of[key], survivors.get(survivor_of[key]), tuple(samples[key])) for key in chosen]
    return Clusters(tuple(sorted(Counter((counts + 1).tolist()).items())), tuple(shown))


def sampled_quality(stage: Path) -> Json:
    """What deduplication measured beside exact Jaccard similarity on a sample, where it did; see `qianyi.corpus.dedup`."""
    clusters = stage / "document_clusters"
    files = side_files(clusters, "quality") if is_corpus(clusters) else []
    rows = [text for file in files for batch in read_batches(file, ["json"]) for text in batch["json"].to_pylist()]
    return json.loads(rows[-1]) if rows else {}


def _named(dropped: Sequence[Path]) -> Iterator[tuple[pa.RecordBatch, list[str], NDArray[np.uint64]]]:
    """What was dropped for a document that stays; ids of those, and their hashes."""
    for file in dropped:
        for batch in read_batches(file):
            ids = pc.struct_field(pc.extract_regex(pc.fill_null(batch["detail"], ""), _ID), "id")
            found = pc.is_valid(ids)
            if pc.any(found).as_py():
                kept = pc.drop_null(ids)
                yield batch.filter(found), kept.to_pylist(), hashes(kept)


def _samples(dropped: Sequence[Path], chosen: set[int]) -> tuple[dict[int, list[Sample]], dict[int, str]]:
    """Of each chosen cluster: the first of those dropped, and the id of the survivor."""
    samples: dict[int, list[Sample]] = defaultdict(list)
    survivors: dict[int, str] = {}
    for batch, ids, keys in _named(dropped):
        for row in np.flatnonzero(np.isin(keys, np.array(list(chosen), np.uint64))).tolist():
            key = int(keys[row])
            survivors[key] = ids[row]
            if len(samples[key]) < SAMPLES:
                samples[key].append(sample_of(batch, row, "head", batch["detail"]))
    return samples, survivors


def _of_ids(parts: Sequence[Path], ids: list[str]) -> Iterator[Sample]:
    """Documents that are asked for by id."""
    wanted = pa.array(ids, pa.string())
    for part in parts:
        for batch in read_batches(part, ["id", "source", "origin", "text"]):
            for row in np.flatnonzero(pc.is_in(batch["id"], wanted).to_numpy(zero_copy_only=False)).tolist():
                yield sample_of(batch, row, "text")
