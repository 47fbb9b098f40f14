"""The shuffle of global steps: small keys, in files, by bucket.

A first stage reads parts and scatters keys: each unit leaves one file that holds its rows ordered by bucket, a record batch for each. A
second stage has one unit for each bucket, which gathers the bucket from all files. So there are as many files as units, a worker holds one
bucket, and what is killed goes on, as with any stage.

    def find_keys(unit, settings, writer):            # units: part_units(corpus)
        writer.scatter("keys", table, bucket_of(hashes, n), n)

    def use_bucket(unit, settings, writer):           # units: bucket_units(keys_directory, "keys"); inputs: [keys_directory]
        table = gather(unit)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qianyi.corpus.document import side_files
from qianyi.data.stage import Json
from qianyi.errors import DataError


def bucket_of(hashes: NDArray[np.uint64], n_buckets: int) -> NDArray[np.uint64]:
    """The bucket of each 64-bit hash: by its high bits, so that the buckets in order are the hashes in order."""
    return ((hashes >> np.uint64(32)) * np.uint64(n_buckets)) >> np.uint64(32)


def buckets_for(n_rows: int, row_bytes: int, bucket_bytes: int = 32_000_000) -> int:
    """How many buckets keep each, on average, within so many bytes."""
    return max(1, -(-n_rows * row_bytes // bucket_bytes))


def write_buckets(path: Path, table: pa.Table, buckets: NDArray[np.integer[Any]], n_buckets: int) -> None:
    """Write the rows of `table` ordered by bucket (within one, as they came): record batch b of the file is bucket b."""
    if len(buckets) != table.num_rows:
        raise ValueError(f"{table.num_rows} rows, {len(buckets)} buckets")
    counts = np.bincount(buckets.astype(np.int64), minlength=n_buckets)
    if len(counts) != n_buckets:
        raise ValueError(f"a row is in bucket {len(counts) - 1} of {n_buckets}")
    ordered = table.replace_schema_metadata(None).take(pa.array(np.argsort(buckets, kind="stable"))).combine_chunks()
    ends = np.cumsum(counts)
    empty = pa.RecordBatch.from_pylist([], schema=ordered.schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, ordered.schema) as file:
        for end, count in zip(ends.tolist(), counts.tolist(), strict=True):
            file.write_batch(ordered.slice(end - count, count).to_batches()[0] if count else empty)


def bucket_units(keys: Path, name: str) -> list[Json]:
    """One unit for each bucket of the side files `name` of a finished stage: `keys` (its directory), `side`, `bucket`, `bytes`.

    Raises:
        DataError: the stage has not finished or scattered nothing.
    """
    files = [path for path in side_files(keys, name) if path.suffix == ".arrow"]
    if not files:
        raise DataError(f"{keys}: holds no buckets `{name}`; delete it and run the command that made it again")
    numbers = {_open(path).num_record_batches for path in (files[0], files[-1])}
    if len(numbers) > 1:
        raise ValueError(f"{keys}/{name}: files differ in the number of buckets: {numbers}")
    n = numbers.pop()
    size = sum(path.stat().st_size for path in files) // n
    return [{"keys": str(keys), "side": name, "bucket": bucket, "bytes": size} for bucket in range(n)]


def gather(unit: Json) -> pa.Table:
    """All rows of one bucket, in the order of the units that scattered them."""
    batches = list(_batches(Path(unit["keys"]), unit["side"], unit["bucket"]))
    return pa.Table.from_batches(batches)


def _batches(keys: Path, name: str, bucket: int) -> Iterator[pa.RecordBatch]:
    for path in side_files(keys, name):
        yield _open(path).get_batch(bucket)


def _open(path: Path) -> Any:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: damaged ({str(error).splitlines()[0]}); delete it and run the command that made it again"
        ) from None
