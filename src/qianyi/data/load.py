"""Batches from token shards.

The batch of step n is a pure function of (seed, n): row r is element `sequences_before(n)` + r of an endless sequence, mixed
(`qianyi.data.mixing`) of sources that Grain shuffles, all computed at random access. How many processes or devices read it, and where a
run was interrupted, changes nothing; a ramp of the batch size changes how many sequences a step takes, and not their order.

A batch is int32 arrays [batch, length]: `inputs` and `targets`, of which -1 is not scored, and what else the objective has
(`qianyi.data.objective`).
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

from qianyi.config.mixture import sequences_drawn, stretches
from qianyi.config.ramp import batch_size_of, sequences_before
from qianyi.config.schema import DataConfig, TrainConfig
from qianyi.data.mixing import Mixture
from qianyi.data.objective import make_objective
from qianyi.data.packing import Packed, PackingShares
from qianyi.data.shards import BLOCK_TOKENS, FORMAT, TokenStream, token_dtype
from qianyi.data.stage import read_manifest
from qianyi.data.windows import Chance, Pairs, Row, Tokens
from qianyi.errors import DataError

HostBatch = dict[str, NDArray[np.int32]]
Batch = dict[str, jax.Array]
Index = tuple[slice, slice]
"""Rows and columns of a batch that a device holds."""
_FAR = 1 << 40
"""Elements of the training sequence of which one is drawn where a window of another place is asked for."""


VALIDATION_SEED = 20170612
"""Seeds what an objective draws for validation: the same in every run."""


class TrainingData:
    """The endless training sequence of a recipe."""

    def __init__(self, data: DataConfig, train: TrainConfig):
        """Open the prepared shards.

        Raises:
            DataError: they are missing, cut short, or too small for one sequence.
        """
        shards_dir = Path(data.dir) / "shards"
        manifest, streams = _open(shards_dir, "train")
        self._train, self._streams, self._seed = train, streams, data.seed
        self._objective = make_objective(train, manifest, shards_dir, data.packing)
        self._windows = {name: self._objective.windows(stream, partial=False) for name, stream in streams.items()}
        _require_sources(data, list(streams), shards_dir)
        self._stretches = stretches(data, train, {name: len(stream) for name, stream in streams.items()})
        self._mixture = Mixture(self._stretches)
        drawn = {name for stretch in self._stretches for name, weight in stretch.weights.items() if weight}
        for name, windows in self._windows.items():
            if name in drawn and not len(windows):
                raise DataError(
                    f"data.sources.{name} has {len(streams[name])} training tokens, and in them no {self._objective.needs}"
                )
        self._endless = {
            name: grain.MapDataset.source(w).shuffle(seed=data.seed + i).repeat()
            for i, (name, w) in enumerate(self._windows.items())
        }
        content = [(name, source["train"]["shards"]) for name, source in manifest["sources"].items()]
        shards = hashlib.sha256(json.dumps([manifest["settings"]["tokenizer_sha256"], content]).encode()).hexdigest()
        self.record: dict[str, Any] = {
            "shards": shards[:16],
            "seed": data.seed,
            "seq_len": train.seq_len,
            "batch_size": train.batch_size,
            "batch_ramp": [stage.model_dump() for stage in train.batch_ramp],
            "mixture": [[s.first, {name: round(weight, 12) for name, weight in s.weights.items()}] for s in self._stretches],
        }
        if data.packing != "concat":
            self.record["packing"] = data.packing
        if train.objective.kind != "causal":
            self.record["objective"] = train.objective.model_dump()
        """What fixes the order of batches and what is in them; a checkpoint of a run belongs to one such record."""

    def rows(self, step: int, rows: range) -> HostBatch:
        """Rows of the batch of a step (0 is the first)."""
        first = sequences_before(self._train, step)
        return _stack([self._row(first + row) for row in rows])

    def _row(self, element: int) -> Row:
        return self._objective.row(self._window(element), Chance([self._seed, element], self._window, _FAR))

    def _window(self, element: int) -> Tokens:
        draw = self._mixture[element]
        window: Any = self._endless[draw.source][draw.number]
        return window

    @property
    def left_out(self) -> dict[str, float]:
        """Share of each source's pairs that are too long for a sequence; of those that have such pairs."""
        pairs = {name: windows for name, windows in self._windows.items() if isinstance(windows, Pairs)}
        return {name: part.left_out for name, part in pairs.items() if part.left_out}

    @property
    def packing_shares(self) -> dict[str, PackingShares]:
        """How well each source's documents fit sequences, where they are packed by best fit."""
        return {name: windows.shares for name, windows in self._windows.items() if isinstance(windows, Packed)}

    def epochs(self, step: int) -> dict[str, float]:
        """How often each source has been read after so many steps."""
        drawn = sequences_drawn(self._stretches, sequences_before(self._train, step))
        return {name: drawn[name] / max(len(windows), 1) for name, windows in self._windows.items()}

    def token_counts(self, vocab_size: int) -> NDArray[np.int64]:
        """[vocab]: how often each token occurs in the training split."""
        counts = np.zeros(vocab_size, np.int64)
        for stream in self._streams.values():
            for start in range(0, len(stream), BLOCK_TOKENS):
                counts += np.bincount(stream.read(start, min(start + BLOCK_TOKENS, len(stream))), minlength=vocab_size)
        return counts

    def target_counts(self, vocab_size: int, sequences: int) -> NDArray[np.int64]:
        """[vocab]: how often each token is a target in so many sequences from the first on."""
        targets = np.concatenate([self._row(element)["targets"] for element in range(sequences)])
        return np.bincount(targets[targets >= 0], minlength=vocab_size)

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
    """The validation split in order: every window once, and of a causal objective every token but the first of each source as a target."""

    def __init__(self, data: DataConfig, train: TrainConfig, token_bytes: NDArray[np.int32]):
        shards_dir = Path(data.dir) / "shards"
        manifest, self._streams = _open(shards_dir, "validation")
        self._objective, self._batch_size = make_objective(train, manifest, shards_dir, data.packing), train.batch_size
        self._token_bytes = token_bytes if train.objective.kind == "causal" else None
        windows = [self._objective.windows(stream, partial=True) for stream in self._streams.values()]
        self._places = [(part, i) for part in windows for i in range(len(part))]

    def batches(self, sharding: NamedSharding, limit: int | None = None) -> Iterator[tuple[Batch, int | None]]:
        """(batch on the devices, UTF-8 bytes that its targets stand for, None where not all text is a target), `limit` batches at most."""
        rows = range(self._batch_size)
        for host in self.host_batches(limit):
            n_bytes = None if self._token_bytes is None else bytes_of(host["targets"], self._token_bytes)
            yield _place(host, rows, self._batch_size, sharding), n_bytes

    def host_batches(self, limit: int | None = None) -> Iterator[HostBatch]:
        """Batches of whole rows; the last is filled up with rows that are not scored."""
        firsts = range(0, len(self._places), self._batch_size)
        for first in firsts[:limit]:
            rows = [self._row(place) for place in range(first, min(first + self._batch_size, len(self._places)))]
            yield _stack([*rows, *[_unscored(rows[0])] * (self._batch_size - len(rows))])

    def _row(self, place: int) -> Row:
        chance = Chance([VALIDATION_SEED, place], self._window, len(self._places))
        return self._objective.row(self._window(place), chance)

    def _window(self, place: int) -> Tokens:
        windows, i = self._places[place]
        return windows[i]


def _open(shards: Path, split: str) -> tuple[dict[str, Any], dict[str, TokenStream]]:
    manifest = read_manifest(shards)
    if manifest["settings"].get("format") != FORMAT:
        raise DataError(f"{shards}: made by another version of Qianyi; delete it and run `qianyi data prepare RECIPE`")
    dtype = token_dtype(manifest["vocab_size"])
    streams = {
        name: TokenStream(shards / split / name, dtype, s[split]["shards"], s[split]["index"])
        for name, s in manifest["sources"].items()
    }
    return manifest, streams


def _require_sources(data: DataConfig, names: list[str], shards: Path) -> None:
    """Refuse weights of sources that the shards do not have: a recipe without sources takes the shards as they are."""
    for stage in data.stages:
        if unknown := sorted(stage.weights.keys() - set(names)):
            raise DataError(f"data.stages names {', '.join(unknown)}; the sources of {shards} are {', '.join(names)}")


def _stack(rows: list[Row]) -> HostBatch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _unscored(row: Row) -> Row:
    """A row like this one in which nothing is to be said."""
    return {name: np.full_like(array, -1 if name in {"targets", "sentence"} else 0) for name, array in row.items()}


def bytes_of(targets: NDArray[np.int32], token_bytes: NDArray[np.int32]) -> int:
    """UTF-8 bytes of the text that scored targets stand for."""
    return int(token_bytes[targets[targets >= 0]].sum())


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
