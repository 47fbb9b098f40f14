"""What a corpus directory holds, in numbers and samples: one pass over its parts, in memory that does not grow with them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import xxhash
from numpy.typing import NDArray

from qianyi.corpus.document import DOCUMENT, read_batches
from qianyi.corpus.inspect.sketch import Sketch

pc: Any = pyarrow.compute  # it makes its functions as it is imported
SAMPLES = 3
"""Of each source and of each reason."""
SAMPLE_CHARACTERS = 600
MAX_VALUES = 200
"""A column of words with more than these is not counted by word."""


@dataclass(frozen=True)
class Sample:
    """The beginning of a document."""

    id: str
    source: str
    origin: str
    text: str
    detail: str = ""


class Samples:
    """Of each group the documents with the smallest hashes: the same ones whatever the order and the number of parts."""

    def __init__(self, size: int = SAMPLES) -> None:
        self._size = size
        self._kept: dict[str, list[tuple[int, Sample]]] = defaultdict(list)

    def add(self, groups: Sequence[str], hashes: NDArray[np.uint64], sample: Callable[[int], Sample]) -> None:
        """Documents of a batch: group and hash of each, and how one is read."""
        names, codes = _coded(groups)
        bounds = np.array([self._bound(name) for name in names], np.uint64)
        wanted = np.flatnonzero(hashes <= bounds[codes])
        for row in wanted[np.argsort(hashes[wanted], kind="stable")].tolist():
            name = names[codes[row]]
            if hashes[row] <= self._bound(name):
                self._put(name, int(hashes[row]), sample(row))

    def of(self, group: str) -> list[Sample]:
        return [sample for _, sample in self._kept[group]]

    def _bound(self, group: str) -> int:
        kept = self._kept.get(group, [])
        return kept[-1][0] if len(kept) == self._size else (1 << 64) - 1

    def _put(self, group: str, key: int, sample: Sample) -> None:
        kept = self._kept[group]
        if all(sample.id != other.id for _, other in kept):
            self._kept[group] = nsmallest(self._size, [*kept, (key, sample)], key=lambda pair: pair[0])


@dataclass
class Amount:
    """Documents, and how much text is in them."""

    documents: int = 0
    text_bytes: int = 0
    characters: int = 0
    research_only: int = 0
    licences: Counter[str] = field(default_factory=Counter)


@dataclass
class Documents:
    """All that goes on from a stage."""

    sources: defaultdict[str, Amount] = field(default_factory=lambda: defaultdict(Amount))
    numbers: defaultdict[str, Sketch] = field(default_factory=lambda: defaultdict(Sketch))
    """Distribution of `characters` and of every column of numbers."""
    words: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """How often each value of a column of words occurs."""
    samples: Samples = field(default_factory=Samples)

    @property
    def total(self) -> Amount:
        total = Amount()
        for amount in self.sources.values():
            total.documents += amount.documents
            total.text_bytes += amount.text_bytes
            total.characters += amount.characters
            total.research_only += amount.research_only
            total.licences += amount.licences
        return total


@dataclass
class Dropped:
    """All that does not."""

    reasons: Counter[str] = field(default_factory=Counter)
    by_source: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of (reason, source)."""
    samples: Samples = field(default_factory=Samples)

    @property
    def documents(self) -> int:
        return sum(self.reasons.values())

    def of_source(self, source: str) -> int:
        return sum(n for (_, name), n in self.by_source.items() if name == source)


def survey_documents(parts: Sequence[Path]) -> Documents:
    """Count and sample documents.

    Raises:
        DataError: a part is missing or damaged.
    """
    found = Documents()
    for batch in _batches(parts):
        texts, sources = batch["text"], batch["source"].to_pylist()
        lengths = _numpy(pc.utf8_length(texts))
        _add_amounts(found.sources, batch, sources, lengths)
        found.numbers["characters"].add(lengths)
        for name in batch.schema.names:
            if name not in DOCUMENT.names:
                _add_column(found, name, batch[name])
        found.samples.add(sources, hashes(batch["id"]), lambda row, batch=batch: sample_of(batch, row, "text"))
    for name in [name for name, counts in found.words.items() if len(counts) > MAX_VALUES]:
        del found.words[name]
    return found


def survey_dropped(files: Sequence[Path]) -> Dropped:
    """Count and sample what was dropped, by reason.

    Raises:
        DataError: a file is missing or damaged.
    """
    found = Dropped()
    for batch in _batches(files):
        reasons, sources = batch["reason"].to_pylist(), batch["source"].to_pylist()
        found.reasons.update(reasons)
        found.by_source.update(zip(reasons, sources, strict=True))
        found.samples.add(reasons, hashes(batch["id"]), lambda row, batch=batch: sample_of(batch, row, "head", batch["detail"]))
    return found


def hashes(ids: pa.Array) -> NDArray[np.uint64]:
    """By which samples are chosen; not the order of ids, of which the smallest may be what a stage has kept."""
    return np.array([xxhash.xxh3_64_intdigest(i) for i in ids.cast(pa.binary()).to_pylist()], np.uint64)


def _batches(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for file in files:
        yield from (batch for batch in read_batches(file) if batch.num_rows)


def _add_amounts(
    found: defaultdict[str, Amount], batch: pa.RecordBatch, sources: list[str], lengths: NDArray[np.float64]
) -> None:
    names, codes = _coded(sources)
    licences = batch["licence"].to_pylist()
    sums = [
        np.bincount(codes, weights, len(names)).astype(np.int64)
        for weights in (None, _numpy(pc.binary_length(batch["text"])), lengths, _numpy(batch["research_only"]))
    ]
    for name, documents, text_bytes, characters, research_only in zip(names, *sums, strict=True):
        amount = found[name]
        amount.documents += int(documents)
        amount.text_bytes += int(text_bytes)
        amount.characters += int(characters)
        amount.research_only += int(research_only)
    for (name, licence), n in Counter(zip(sources, licences, strict=True)).items():
        found[name].licences[licence or ""] += n


def _add_column(found: Documents, name: str, column: pa.Array) -> None:
    """A column that a stage added: numbers are sketched, words counted while there are few."""
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        found.numbers[name].add(_numpy(column))
    elif (pa.types.is_string(kind) or pa.types.is_boolean(kind)) and len(found.words[name]) <= MAX_VALUES:
        for value in column.value_counts().to_pylist():
            found.words[name][_word(value["values"])] += value["counts"]


def _coded(groups: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Names, and for each row the place of its name."""
    names, codes = np.unique(np.array(groups, object), return_inverse=True)
    return names.tolist(), codes


def _word(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else value


def _numpy(column: pa.Array) -> NDArray[np.float64]:
    return pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def sample_of(batch: pa.RecordBatch, row: int, text: str, detail: pa.Array | None = None) -> Sample:
    """The document of a row; its text, or what there is of it, is in the column `text`."""
    head = pc.utf8_slice_codeunits(batch[text].slice(row, 1), 0, SAMPLE_CHARACTERS)[0].as_py()
    words = (detail[row].as_py() or "") if detail is not None else ""
    return Sample(batch["id"][row].as_py(), batch["source"][row].as_py(), batch["origin"][row].as_py(), head or "", words)
