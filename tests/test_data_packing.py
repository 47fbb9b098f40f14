"""Best fit: every token once, no document cut that fits, sequences as full as a slow search would fill them."""

import json
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from corpora import corpus, one_source, silent
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import DataConfig, TrainConfig
from qianyi.data import units
from qianyi.data.load import TrainingData, ValidationData
from qianyi.data.packing import concatenated_shares, pack, pack_unit
from qianyi.data.prepare import prepare
from qianyi.data.tokenizer import load_tokenizer, token_bytes

SEQ_LEN, BATCH = 64, 8
TRAIN = TrainConfig(seq_len=SEQ_LEN, batch_size=BATCH, document_mask=True)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Documents of 5 to some 100 tokens, in several units."""
    root = tmp_path_factory.mktemp("data")
    before, units.UNIT_BYTES = units.UNIT_BYTES, 20_000
    data = one_source(root, [t[: 20 + 7 * (i % 50)] for i, t in enumerate(corpus(400, 1))], packing="best_fit")
    manifest = prepare(data, 400, silent)
    units.UNIT_BYTES = before
    assert len(manifest["sources"]["x"]["train"]["index"]) > 3
    return data


def slow_best_fit(lengths: list[int], capacity: int) -> list[list[tuple[int, int]]]:
    """Every sequence is looked at for every piece; of those with the same room, the one that came to it last is taken."""
    pieces, start = [], 0
    for length in lengths:
        pieces += [(start + i, min(start + i + capacity, start + length)) for i in range(0, length, capacity)]
        start += length
    sequences: list[list[tuple[int, int]]] = []
    room: list[int] = []
    touched: list[int] = []
    for time, (a, b) in enumerate(sorted(pieces, key=lambda p: p[0] - p[1])):
        fits = [i for i, r in enumerate(room) if r >= b - a]
        if fits:
            chosen = min(fits, key=lambda i: (room[i], -touched[i]))
        else:
            chosen = len(room)
            sequences.append([])
            room.append(capacity)
            touched.append(0)
        sequences[chosen].append((a, b))
        room[chosen] -= b - a
        touched[chosen] = time
    return sequences


@pytest.mark.parametrize("capacity", [1, 2, 7, 64, 100, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_sequences_are_those_of_a_search(capacity: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = np.maximum(random.lognormal(2 + seed, 1.2, 300 if capacity > 50 else 20), 1).astype(np.int64)
    found = pack_unit(lengths, capacity)
    rows = [[tuple(p) for p in found.pieces[a:b].tolist()] for a, b in pairwise(found.rows)]
    assert rows == slow_best_fit(lengths.tolist(), capacity)


def test_nothing_is_packed_into_nothing() -> None:
    for lengths in ([], [np.empty(0, np.uint32)]):
        packing, shares = pack(lengths, 8)
        assert len(packing.pieces) == 0 and packing.rows.tolist() == [0] and shares.cut_documents == 0


def test_shares_are_what_they_say() -> None:
    lengths = [np.array([5, 3, 9, 8], np.uint32), np.array([2], np.uint32)]
    packing, shares = pack(lengths, 8)
    # 8 | 8 of 9 | 5 + 3 | 1 of 9 | 2 of the second unit
    assert len(packing.rows) - 1 == 5
    assert shares.padding == pytest.approx(1 - 27 / 40) and shares.cut_documents == pytest.approx(1 / 5)
    # Concatenated: 5 3 | 8 of 9 | 1 of 9, 7 of 8 | 1 of 8, 2
    assert concatenated_shares(lengths, 8).cut_documents == pytest.approx(2 / 5)


def documents_of(data: DataConfig, split: str) -> list[list[int]]:
    manifest = json.loads((Path(data.dir) / "shards" / "manifest.json").read_text())
    (stream,) = (
        TrainingData(data, TRAIN)._streams.values()
        if split == "train"
        else ValidationData(
            data, TRAIN, token_bytes(load_tokenizer(Path(data.dir) / "tokenizer" / "tokenizer.json"))
        )._streams.values()
    )
    tokens = stream.read(0, len(stream))
    return [d.tolist() for d in np.split(tokens, np.flatnonzero(tokens == manifest["end_token"]) + 1)[:-1]]


def pieces_of(row: dict[str, np.ndarray], end: int) -> list[list[int]]:
    """What each document of a row says; inputs are the targets one place before, after an end of text or a piece that was cut."""
    pieces = []
    n = row["documents"].max() + 1
    for i in range(n):
        here = row["documents"] == i
        targets = row["targets"][here]
        if (targets == -1).all():
            assert i == n - 1 and (row["inputs"][here] == end).all()
            continue
        np.testing.assert_array_equal(row["inputs"][here][1:], targets[:-1])
        pieces.append([int(row["inputs"][here][0]), *targets.tolist()])
    return pieces


def test_rows_say_every_token_of_every_document_once(packed: DataConfig) -> None:
    data = TrainingData(packed, TrainConfig(seq_len=SEQ_LEN, batch_size=1, document_mask=True))
    (windows,) = data._windows.values()
    documents = documents_of(packed, "train")
    end = documents[0][-1]
    said: list[list[int]] = []
    for step in range(len(windows)):  # an epoch
        rows = data.rows(step, range(1))
        said += pieces_of({name: array[0] for name, array in rows.items()}, end)
    whole = sorted(p[1:] for p in said if p[0] == end and p[-1] == end)
    assert whole == sorted(d for d in documents if len(d) <= SEQ_LEN)
    cut = [d for d in documents if len(d) > SEQ_LEN]
    assert len(cut) > 5 and sum(len(p) - 1 for p in said) == sum(map(len, documents))
    starts = sorted(p[1:] for p in said if p[0] == end and p[-1] != end)
    assert starts == sorted(d[:SEQ_LEN] for d in cut)
    shares = data.packing_shares["x"]
    assert shares.padding == pytest.approx(1 - sum(map(len, documents)) / (len(windows) * SEQ_LEN))
    assert shares.cut_documents == pytest.approx(len(cut) / len(documents)) and shares.padding < 0.05


def test_validation_is_packed_too(packed: DataConfig) -> None:
    sizes = token_bytes(load_tokenizer(Path(packed.dir) / "tokenizer" / "tokenizer.json"))
    batches = list(ValidationData(packed, TRAIN, sizes).host_batches())
    targets = np.concatenate([b["targets"].ravel() for b in batches])
    assert sorted(targets[targets >= 0]) == sorted(t for d in documents_of(packed, "validation") for t in d)
    assert batches[0]["documents"].shape == (BATCH, SEQ_LEN)


@pytest.mark.parametrize("spec", [P(), P("d"), P(None, "d"), P("r", "d")])
def test_batches_resume_on_any_layout(packed: DataConfig, spec: P) -> None:
    """A run that stops at step 3 on one layout and goes on with another reader on another reads what one run would have read."""
    whole = [TrainingData(packed, TRAIN).rows(step, range(BATCH)) for step in range(6)]
    devices = np.array(jax.devices())
    mesh = Mesh(devices.reshape(2, 4), ("r", "d"))
    for start in (0, 3):
        batches = TrainingData(packed, TRAIN).batches(NamedSharding(mesh, spec), start, 6)
        for step, batch in enumerate(batches, start):
            assert batch.keys() == whole[step].keys() == {"inputs", "targets", "documents"}
            for name, array in batch.items():
                np.testing.assert_array_equal(array, whole[step][name])


def test_packing_is_in_the_record(packed: DataConfig) -> None:
    plain = TrainingData(packed.model_copy(update={"packing": "concat"}), TRAIN).record
    assert TrainingData(packed, TRAIN).record == {**plain, "packing": "best_fit"}
