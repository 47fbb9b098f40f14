"""Batches from token shards.

The batch of step n is a pure function of (seed, n): row r is element `sequences_before(n)` + r of an endless, shuffled, mixed sequence that
Grain computes at random access. How many processes or devices read it, and where a run was interrupted, changes nothing; a ramp of the
batch size changes how many sequences a step takes, and not their order.

A batch is `inputs` and `targets`, int32 [batch, sequence]; a target of -1 is not scored. `documents` is there where attention is to stay
within a document.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding
from numpy.typing import NDArray

from qianyi.config.ramp import batch_size_of, sequences_before
from qianyi.config.schema import DataConfig, TrainConfig
from qianyi.data.shards import BLOCK_TOKENS, FORMAT, TokenStream, token_dtype
from qianyi.data.stage import read_manifest
from qianyi.errors import DataError

HostBatch = dict[str, NDArray[np.int32]]
Batch = dict[str, jax.Array]
Index = tuple[slice, slice]
"""Rows and columns of a batch that a device holds."""


class _Windows:
    """Window i of a stream: seq_len + 1 tokens from i * seq_len on, so that every token but the first is a target once."""

    def __init__(self, stream: TokenStream, seq_len: int):
        self._stream, self._seq_len = stream, seq_len

    def __len__(self) -> int:
        return (len(self._stream) - 1) // self._seq_len

    def __getitem__(self, index: Any) -> NDArray[np.int32]:
        start = int(index) * self._seq_len
        return self._stream.read(start, start + self._seq_len + 1)


class TrainingData:
    """The endless training sequence of a recipe."""

    def __init__(self, data: DataConfig, train: TrainConfig):
        """Open the prepared shards; with `train.document_mask`, batches say which tokens are of one document.

        Raises:
            DataError: they are missing, cut short, or too small for one sequence.
        """
        seq_len = train.seq_len
        manifest, streams = _open(Path(data.dir) / "shards", "train")
        for name, stream in streams.items():
            if len(stream) <= seq_len:
                raise DataError(
                    f"data.sources.{name} has {len(stream)} training tokens, fewer than one sequence of {seq_len} + 1"
                )
        self._train, self._streams = train, streams
        self._end_token = manifest["end_token"] if train.document_mask else None
        self._windows = {name: _Windows(stream, seq_len) for name, stream in streams.items()}
        given = {s.name: s.weight for s in data.sources}
        weights = {name: given.get(name) or len(stream) for name, stream in streams.items()}
        self.weights = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        self._sequence = grain.MapDataset.mix(
            [grain.MapDataset.source(w).shuffle(seed=data.seed + i).repeat() for i, w in enumerate(self._windows.values())],
            weights=list(self.weights.values()),
        )
        content = [(name, source["train"]["shards"]) for name, source in manifest["sources"].items()]
        shards = hashlib.sha256(json.dumps([manifest["settings"]["tokenizer_sha256"], content]).encode()).hexdigest()
        self.record = {
            "shards": shards[:16],
            "seed": data.seed,
            "seq_len": seq_len,
            "batch_size": train.batch_size,
            "batch_ramp": [stage.model_dump() for stage in train.batch_ramp],
            "weights": {name: round(weight, 12) for name, weight in self.weights.items()},
        }
        """What fixes the order of batches; a checkpoint of a run belongs to one such record."""

    def rows(self, step: int, rows: range) -> HostBatch:
        """Rows of the batch of a step (0 is the first)."""
        elements: list[Any] = [self._sequence[sequences_before(self._train, step) + row] for row in rows]
        windows = np.stack(elements)
        return _with_documents({"inputs": windows[:, :-1], "targets": windows[:, 1:]}, self._end_token)

    def epochs(self, step: int) -> dict[str, float]:
        """How often each source has been read after so many steps."""
        drawn = sequences_before(self._train, step)
        return {name: drawn * self.weights[name] / len(windows) for name, windows in self._windows.items()}

    def token_counts(self, vocab_size: int) -> NDArray[np.int64]:
        """[vocab]: how often each token occurs in the training split."""
        counts = np.zeros(vocab_size, np.int64)
        for stream in self._streams.values():
            for start in range(0, len(stream), BLOCK_TOKENS):
                counts += np.bincount(stream.read(start, min(start + BLOCK_TOKENS, len(stream))), minlength=vocab_size)
        return counts

    def batches(self, sharding: NamedSharding, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps [start, stop) on the devices; the next ones are read in the background.

        Each process reads only the rows that its devices hold.
        """

        def held(step: int) -> tuple[int, range]:
            """Sequences of a step, and which rows are here."""
            batch_size = batch_size_of(self._train, step)
            indices = sharding.addressable_devices_indices_map((batch_size, self._train.seq_len))
            return batch_size, local_rows(cast(Iterable[Index], indices.values()), batch_size)

        steps = grain.MapDataset.range(start, stop).map(lambda step: self.rows(int(step), held(int(step))[1]))
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        for step, host in enumerate(steps.to_iter_dataset(options), start):
            batch_size, rows = held(step)
            yield _place(host, rows, batch_size, sharding)


class ValidationData:
    """The validation split in order: every token but the first of each source is a target exactly once."""

    def __init__(
        self, data: DataConfig, seq_len: int, batch_size: int, token_bytes: NDArray[np.int32], document_mask: bool = False
    ):
        manifest, self._streams = _open(Path(data.dir) / "shards", "validation")
        self._end_token = manifest["end_token"] if document_mask else None
        self._seq_len, self._batch_size, self._token_bytes = seq_len, batch_size, token_bytes

    def batches(self, sharding: NamedSharding, limit: int | None = None) -> Iterator[tuple[Batch, int]]:
        """(batch on the devices, UTF-8 bytes that its targets stand for), `limit` batches at most."""
        rows = range(self._batch_size)
        for host in self.host_batches(limit):
            yield _place(host, rows, self._batch_size, sharding), self.bytes_of(host["targets"])

    def host_batches(self, limit: int | None = None) -> Iterator[HostBatch]:
        """Batches of whole rows; the last is filled up with rows that are not scored."""
        places = [(stream, i) for stream in self._streams.values() for i in range(-(-(len(stream) - 1) // self._seq_len))]
        for n, first in enumerate(range(0, len(places), self._batch_size)):
            if limit is not None and n >= limit:
                return
            batch = {
                "inputs": np.zeros((self._batch_size, self._seq_len), np.int32),
                "targets": np.full((self._batch_size, self._seq_len), -1, np.int32),
            }
            for row, (stream, i) in enumerate(places[first : first + self._batch_size]):
                start = i * self._seq_len
                tokens = stream.read(start, min(start + self._seq_len + 1, len(stream)))
                batch["inputs"][row, : len(tokens) - 1] = tokens[:-1]
                batch["targets"][row, : len(tokens) - 1] = tokens[1:]
            yield _with_documents(batch, self._end_token)

    def bytes_of(self, targets: NDArray[np.int32]) -> int:
        """UTF-8 bytes of the text that scored targets stand for."""
        return int(self._token_bytes[targets[targets >= 0]].sum())


def _open(shards: Path, split: str) -> tuple[dict[str, Any], dict[str, TokenStream]]:
    manifest = read_manifest(shards)
    if manifest["settings"].get("format") != FORMAT:
        raise DataError(f"{shards}: made by another version of Qianyi; delete it and run `qianyi data prepare RECIPE`")
    dtype = token_dtype(manifest["vocab_size"])
    streams = {name: TokenStream(shards / split / name, dtype, s[split]["shards"]) for name, s in manifest["sources"].items()}
    return manifest, streams


def _with_documents(batch: HostBatch, end_token: int | None) -> HostBatch:
    """The batch with `documents`: the number of the document, in its row, that an input token belongs to."""
    if end_token is None:
        return batch
    ends = (batch["inputs"] == end_token).astype(np.int32)
    return {**batch, "documents": np.cumsum(ends, axis=1, dtype=np.int32) - ends}


def local_rows(indices: Iterable[Index], batch_size: int) -> range:
    """The rows in parts of a [batch, sequence] array, from the first to the last."""
    bounds = [rows.indices(batch_size) for rows, _ in indices]
    return range(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))


def part_of(array: NDArray[np.int32], rows: range, index: Index) -> NDArray[np.int32]:
    """A part of a [batch, sequence] array of which `array` holds these rows."""
    start, stop, _ = index[0].indices(rows.stop)  # an open slice means all rows, and then `rows` are all
    return array[start - rows.start : stop - rows.start, index[1]]


def _place(host: HostBatch, rows: range, batch_size: int, sharding: NamedSharding) -> Batch:
    """Host rows as one array over all devices of all processes."""

    def place(array: NDArray[np.int32]) -> jax.Array:
        shape = (batch_size, array.shape[1])
        return jax.make_array_from_callback(shape, sharding, lambda index: part_of(array, rows, cast(Index, index)))

    return {name: place(array) for name, array in host.items()}
