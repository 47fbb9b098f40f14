"""What two corpora do not have in common."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from qianyi.corpus.document import corpus_manifest, read_parts
from qianyi.corpus.pipeline import stage_directories
from qianyi.data.stage import Json

DOCUMENTS_AT_A_TIME = 20_000_000
"""Documents of a corpus whose ids and hashes are held at once: 40 bytes each."""
EXCERPT_CHARACTERS = 120

_ROW = np.dtype([("id", "S32"), ("text", "u8")])
Rows = NDArray[np.void]


@dataclass(frozen=True)
class Changed:
    """A document whose text differs: excerpts from where it first does."""

    id: str
    origin: str
    before: str
    after: str


@dataclass(frozen=True)
class Only:
    """A document that just one of the two holds."""

    id: str
    origin: str
    head: str


@dataclass(frozen=True)
class Difference:
    """Corpus `a` beside corpus `b`. Numbers are pairs (in a, in b); samples are the smallest ids, which are random documents."""

    stage: str
    a: Path
    b: Path
    documents: tuple[int, int]
    size_bytes: tuple[int, int]
    sources: dict[str, tuple[int, int]]
    reasons: dict[str, tuple[int, int]]
    n_only_a: int
    n_only_b: int
    n_changed: int
    only_a: tuple[Only, ...]
    only_b: tuple[Only, ...]
    changed: tuple[Changed, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.n_only_a or self.n_only_b or self.n_changed)


def diff(a: Path, b: Path, samples: int = 5) -> list[Difference]:
    """Compare two corpus directories, or two pipelines' directories stage by stage (those that both have, by name).

    Raises:
        DataError: one of them is neither, or not finished.
    """
    stages_a, stages_b = stage_directories(a), stage_directories(b)
    if len(stages_a) == len(stages_b) == 1:
        return [_compare(stages_a[0], stages_b[0], samples)]
    names_b = {_name(path, b): path for path in stages_b}
    pairs = [(path, names_b[_name(path, a)]) for path in stages_a if _name(path, a) in names_b]
    return [_compare(first, second, samples) for first, second in pairs]


def _name(directory: Path, root: Path) -> str:
    """Of a stage, without its number."""
    return re.sub(r"^\d+-", "", str(directory.relative_to(root)))


def _compare(a: Path, b: Path, samples: int) -> Difference:
    first, second = corpus_manifest(a), corpus_manifest(b)
    passes = max(1, -(-max(first["documents"], second["documents"]) // DOCUMENTS_AT_A_TIME))
    counts = np.zeros(3, np.int64)
    chosen: list[list[bytes]] = [[], [], []]
    for number in range(passes):
        found = _differing(_rows(a, number, passes), _rows(b, number, passes))
        for kind, ids in enumerate(found):
            counts[kind] += len(ids)
            chosen[kind] = sorted([*chosen[kind], *ids[:samples].tolist()])[:samples]
    texts_a = _texts(a, {*chosen[0], *chosen[2]})
    texts_b = _texts(b, {*chosen[1], *chosen[2]})
    return Difference(
        stage=second["stage"],
        a=a,
        b=b,
        documents=(first["documents"], second["documents"]),
        size_bytes=(first["bytes"], second["bytes"]),
        sources=_paired(
            {k: v["documents"] for k, v in first["sources"].items()}, {k: v["documents"] for k, v in second["sources"].items()}
        ),
        reasons=_paired(first["reasons"], second["reasons"]),
        n_only_a=int(counts[0]),
        n_only_b=int(counts[1]),
        n_changed=int(counts[2]),
        only_a=tuple(_only(i, texts_a[i]) for i in chosen[0]),
        only_b=tuple(_only(i, texts_b[i]) for i in chosen[1]),
        changed=tuple(_changed(i, texts_a[i], texts_b[i]) for i in chosen[2]),
    )


def _rows(corpus: Path, number: int, passes: int) -> Rows:
    """Ids and hashes of texts, ordered by id: of each `passes`-th document, by its id."""
    blocks: list[Rows] = []
    for batch in read_parts(corpus, ["id", "text"]):
        ids = np.array(batch.column("id").to_pylist(), "S32")
        mine = np.arange(len(ids)) if passes == 1 else np.flatnonzero(_group(ids, passes) == number)
        block = np.empty(len(mine), _ROW)
        block["id"] = ids[mine]
        block["text"] = [_hash(text) for text in batch.column("text").take(pa.array(mine)).to_pylist()]
        blocks.append(block)
    rows = np.concatenate(blocks) if blocks else np.empty(0, _ROW)
    return rows[np.argsort(rows["id"], kind="stable")]


def _group(ids: NDArray[np.bytes_], passes: int) -> NDArray[np.int64]:
    return np.array([int(i[:8], 16) % passes for i in ids.tolist()], np.int64)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _differing(a: Rows, b: Rows) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_], NDArray[np.bytes_]]:
    """Ids only in a, only in b, and in both with another text; each sorted."""
    common, at_a, at_b = np.intersect1d(a["id"], b["id"], return_indices=True)
    changed = common[a["text"][at_a] != b["text"][at_b]]
    return np.setdiff1d(a["id"], common), np.setdiff1d(b["id"], common), changed


def _texts(corpus: Path, ids: set[bytes]) -> dict[bytes, Json]:
    """Origins and texts of some documents."""
    wanted = pa.array([i.decode() for i in ids], pa.string())
    return {row["id"].encode(): row for row in _wanted_rows(corpus, wanted)} if ids else {}


def _wanted_rows(corpus: Path, wanted: pa.Array) -> Iterator[Json]:
    for batch in read_parts(corpus, ["id", "origin", "text"]):
        is_wanted = pc.call_function("is_in", [batch.column("id")], pc.SetLookupOptions(wanted))
        yield from batch.filter(is_wanted).to_pylist()


def _only(identity: bytes, row: Json) -> Only:
    return Only(identity.decode(), row["origin"], row["text"][:EXCERPT_CHARACTERS])


def _changed(identity: bytes, before: Json, after: Json) -> Changed:
    a, b = before["text"], after["text"]
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    begin = max(0, at - EXCERPT_CHARACTERS // 4)
    return Changed(
        identity.decode(), after["origin"], a[begin : begin + EXCERPT_CHARACTERS], b[begin : begin + EXCERPT_CHARACTERS]
    )


def _paired(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (int(a.get(name, 0)), int(b.get(name, 0))) for name in sorted(a.keys() | b.keys())}
