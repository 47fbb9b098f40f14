"""Keys of several corpora in one numbering: parts that are there already come first, whatever number of buckets they have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qianyi.corpus.buckets import bucket_of
from qianyi.corpus.dedup.keys import Refs
from qianyi.corpus.document import corpus_manifest, side_files
from qianyi.data.stage import Json
from qianyi.errors import DataError


@dataclass(frozen=True)
class Source:
    """Keys of one corpus."""

    keys: Path
    """Directory of the stage that scattered them, one unit for each part."""
    base: int
    """Number of its first part."""
    gone: Path | None = None
    """Directory of decisions about its documents, if they were taken before: those that went are not compared with."""

    @property
    def json(self) -> Json:
        return {"keys": str(self.keys), "base": self.base, "gone": None if self.gone is None else str(self.gone)}

    @property
    def inputs(self) -> list[Path]:
        return [self.keys] if self.gone is None else [self.keys, self.gone]


def sources(directories: Sequence[tuple[Path, Path | None]]) -> tuple[Source, ...]:
    """Number the parts of directories of keys, each with one of decisions or none, one after the other."""
    found: list[Source] = []
    base = 0
    for keys, gone in directories:
        found.append(Source(keys, base, gone))
        base += corpus_manifest(keys)["units"]
    return tuple(found)


def sources_of(unit: Json) -> tuple[Source, ...]:
    """What `Source.json` made."""
    return tuple(Source(Path(e["keys"]), e["base"], Path(e["gone"]) if e["gone"] else None) for e in unit["sources"])


def refs(part: int, rows: Any) -> Refs:
    """Refs of rows of a part."""
    return np.asarray(rows, np.uint64) | np.uint64(part) << np.uint64(32)


def gather_all(found: Sequence[Source], name: str, bucket: int, n_buckets: int) -> pa.Table:
    """Rows of all sources whose `key` is in a bucket, with refs in the common numbering."""
    tables: list[pa.Table] = []
    for source in found:
        gone = _removed(source.gone) if source.gone else np.empty(0, np.uint64)
        for path in side_files(source.keys, name):
            tables += _rows(path, source, gone, bucket, n_buckets)
    return pa.concat_tables(tables)


def read_refs(directory: Path, name: str, first: int, last: int) -> pa.Table:
    """Rows of side files with refs of parts from `first` to before `last`, by ref."""
    low, high = (int(refs(part, 0)) for part in (first, last))
    bounds = [("ref", ">=", pa.scalar(low, pa.uint64())), ("ref", "<", pa.scalar(high, pa.uint64()))]
    tables = [pq.read_table(path, filters=bounds) for path in side_files(directory, name)]
    return pa.concat_tables(tables).sort_by("ref")


def _removed(decisions: Path) -> Refs:
    tables = [pq.read_table(path, columns=["ref"]) for path in side_files(decisions, "removed")]
    return np.concatenate([np.empty(0, np.uint64), *(table["ref"].to_numpy() for table in tables)])


def _rows(path: Path, source: Source, gone: Refs, bucket: int, n_buckets: int) -> Iterator[pa.Table]:
    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
            there = file.num_record_batches
            for number in _overlapping(bucket, n_buckets, there):
                table = pa.Table.from_batches([file.get_batch(number)])
                if there != n_buckets:
                    table = table.filter(pa.array(bucket_of(table["key"].to_numpy(), n_buckets) == bucket))
                if len(gone):
                    table = table.filter(pa.array(~np.isin(table["ref"].to_numpy(), gone)))
                moved = pa.array(table["ref"].to_numpy() + refs(source.base, 0))
                yield table.set_column(table.schema.get_field_index("ref"), "ref", moved)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: damaged ({str(error).splitlines()[0]}); delete it and run the command that made it again"
        ) from None


def _overlapping(bucket: int, n_buckets: int, there: int) -> range:
    """Of `there` buckets those that hold hashes of one of `n_buckets`."""
    first, last = (-(-(b << 32) // n_buckets) for b in (bucket, bucket + 1))
    return range(first * there >> 32, ((last - 1) * there >> 32) + 1)
