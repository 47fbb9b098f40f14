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

    @property
    def json(self) -> Json:
        return {"keys": str(self.keys), "base": self.base}


def sources(directories: Sequence[Path]) -> tuple[Source, ...]:
    """Number the parts of key directories one after the other."""
    found: list[Source] = []
    base = 0
    for directory in directories:
        found.append(Source(directory, base))
        base += corpus_manifest(directory)["units"]
    return tuple(found)


def sources_of(unit: Json) -> tuple[Source, ...]:
    """What `Source.json` made."""
    return tuple(Source(Path(entry["keys"]), entry["base"]) for entry in unit["sources"])


def refs(part: int, rows: Any) -> Refs:
    """Refs of rows of a part."""
    return np.asarray(rows, np.uint64) | np.uint64(part) << np.uint64(32)


def gather_all(found: Sequence[Source], name: str, bucket: int, n_buckets: int) -> pa.Table:
    """Rows of all sources whose `key` is in a bucket, with refs in the common numbering."""
    tables = [
        table for source in found for path in side_files(source.keys, name) for table in _rows(path, source, bucket, n_buckets)
    ]
    return pa.concat_tables(tables)


def read_refs(directory: Path, name: str, first: int, last: int) -> pa.Table:
    """Rows of side files with refs of parts from `first` to before `last`, by ref."""
    low, high = (int(refs(part, 0)) for part in (first, last))
    bounds = [("ref", ">=", pa.scalar(low, pa.uint64())), ("ref", "<", pa.scalar(high, pa.uint64()))]
    tables = [pq.read_table(path, filters=bounds) for path in side_files(directory, name)]
    return pa.concat_tables(tables).sort_by("ref")


def _rows(path: Path, source: Source, bucket: int, n_buckets: int) -> Iterator[pa.Table]:
    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
            there = file.num_record_batches
            for number in _overlapping(bucket, n_buckets, there):
                table = pa.Table.from_batches([file.get_batch(number)])
                if there != n_buckets:
                    table = table.filter(pa.array(bucket_of(table["key"].to_numpy(), n_buckets) == bucket))
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
