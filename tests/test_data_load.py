"""Batches are a function of the seed and the step alone, and damage is noticed."""

import json
import resource
import shutil
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from corpora import corpus, one_source, silent, tokenizer_of, two_sources
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import DataConfig, TrainConfig
from qianyi.data.load import TrainingData, ValidationData, bytes_of, local_rows, part_of
from qianyi.data.prepare import prepare
from qianyi.data.shards import BLOCK_TOKENS, ShardWriter, TokenStream, token_dtype
from qianyi.data.tokenizer import token_bytes
from qianyi.errors import DataError

SEQ_LEN, BATCH = 16, 8
TRAIN = TrainConfig(seq_len=SEQ_LEN, batch_size=BATCH)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return two_sources(tmp_path_factory.mktemp("data"))


def training(prepared: DataConfig, **changes: object) -> TrainingData:
    return TrainingData(prepared.model_copy(update=changes), TRAIN)


def test_batch_is_a_function_of_seed_and_step(prepared: DataConfig) -> None:
    first, second, other = training(prepared), training(prepared), training(prepared, seed=1)
    for step in (5, 0, 70, 10**9):
        whole = first.rows(step, range(BATCH))
        np.testing.assert_array_equal(whole["inputs"], second.rows(step, range(BATCH))["inputs"])
        np.testing.assert_array_equal(whole["inputs"][:, 1:], whole["targets"][:, :-1])
        assert not np.array_equal(whole["inputs"], other.rows(step, range(BATCH))["inputs"])


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_read_their_rows_of_the_same_batch(prepared: DataConfig, hosts: int) -> None:
    data, rows = training(prepared), BATCH // hosts
    parts = [data.rows(3, range(h * rows, (h + 1) * rows))["inputs"] for h in range(hosts)]
    np.testing.assert_array_equal(np.concatenate(parts), data.rows(3, range(BATCH))["inputs"])


@pytest.mark.parametrize("spec", [P(), P("d"), P(None, "d")])
def test_device_batches_resume_anywhere(prepared: DataConfig, spec: P) -> None:
    data = training(prepared)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), spec)
    whole = list(data.batches(sharding, 0, 6))
    assert len(whole) == 6
    for start in (0, 4):
        for step, batch in enumerate(data.batches(sharding, start, 6), start):
            np.testing.assert_array_equal(batch["inputs"], whole[step]["inputs"])
            np.testing.assert_array_equal(batch["targets"], data.rows(step, range(BATCH))["targets"])
            assert batch["inputs"].sharding == sharding and batch["inputs"].dtype == np.int32
    assert list(data.batches(sharding, 6, 6)) == []


@pytest.mark.parametrize(
    ("spec", "rows_of_2", "rows_of_4"),
    [(P(("r", "d")), 4, 2), (P("d"), 8, 4), (P("r", "d"), 4, 4), (P(None, "d"), 8, 8), (P(), 8, 8)],
)
def test_processes_hold_their_parts_of_one_batch(prepared: DataConfig, spec: P, rows_of_2: int, rows_of_4: int) -> None:
    """2 and 4 processes with 8 devices: each reads its devices' rows alone, and the parts are the batch of one process."""
    data = training(prepared)
    whole = data.rows(3, range(BATCH))
    devices = np.array(jax.devices())
    sharding = NamedSharding(Mesh(devices.reshape(2, 4), ("r", "d")), spec)
    parts = sharding.devices_indices_map((BATCH, SEQ_LEN))
    for processes, expected in ((2, rows_of_2), (4, rows_of_4)):
        for mine in np.split(devices, processes):
            indices = [parts[device] for device in mine]
            rows = local_rows(indices, BATCH)
            assert len(rows) == expected
            for name, array in data.rows(3, rows).items():
                for index in indices:
                    np.testing.assert_array_equal(part_of(array, rows, index), whole[name][index])


def test_a_stopped_reader_leaves_no_thread(prepared: DataConfig) -> None:
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), P("d"))
    before = set(threading.enumerate())
    stopped = training(prepared).batches(sharding, 0, 10_000)
    next(stopped)
    stopped.close()
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(threading.enumerate()) - before


def test_every_epoch_visits_every_window_once_in_another_order(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(40, 3))
    prepare(data, 300, silent)
    training_data = TrainingData(data, TrainConfig(seq_len=SEQ_LEN, batch_size=1))
    (windows,) = training_data._windows.values()
    n = len(windows)
    expected = sorted(tuple(windows[i]) for i in range(n))
    drawn = [training_data.rows(step, range(1)) for step in range(3 * n)]
    read = [(*rows["inputs"][0], rows["targets"][0, -1]) for rows in drawn]
    epochs = [read[i : i + n] for i in (0, n, 2 * n)]
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert training_data.epochs(3 * n) == {"x": 3.0}


def test_windows_hold_every_token_but_the_last_few(prepared: DataConfig) -> None:
    """In order they are the stream; what fills no window is less than one."""
    data = training(prepared)
    for name, windows in data._windows.items():
        stream = data._streams[name].read(0, len(data._streams[name]))
        joined = np.concatenate([windows[0][:1], *(windows[i][1:] for i in range(len(windows)))])
        np.testing.assert_array_equal(joined, stream[: len(joined)])
        assert 0 <= len(stream) - len(joined) < SEQ_LEN


def test_mixture_follows_weights(prepared: DataConfig) -> None:
    weighted = tuple(s.model_copy(update={"weight": w}) for s, w in zip(prepared.sources, (1.0, 3.0), strict=True))
    data, unweighted = training(prepared, sources=weighted), training(prepared)
    of_b = {tuple(data._windows["b"][i][1:]) for i in range(len(data._windows["b"]))}

    def share_of_b(read: TrainingData) -> float:
        rows = np.concatenate([read.rows(step, range(BATCH))["targets"] for step in range(250)])
        return float(np.mean([tuple(row) in of_b for row in rows]))

    assert abs(share_of_b(data) - 0.75) < 0.01
    assert abs(data.epochs(100)["b"] - 0.75 * 100 * BATCH / len(data._windows["b"])) < 1e-9
    sizes = {name: len(stream) for name, stream in unweighted._streams.items()}
    assert abs(share_of_b(unweighted) - sizes["b"] / sum(sizes.values())) < 0.01


def test_record_changes_with_what_fixes_the_order(prepared: DataConfig, tmp_path: Path) -> None:
    """And not with where the files are."""
    record = training(prepared).record
    shutil.copytree(prepared.dir, tmp_path / "moved")
    for source in prepared.sources:
        shutil.copy(source.path, tmp_path)
    sources = tuple(s.model_copy(update={"path": str(tmp_path / Path(s.path).name)}) for s in prepared.sources)
    moved = prepared.model_copy(update={"dir": str(tmp_path / "moved"), "sources": sources})
    prepare(moved, 400, silent)
    assert training(moved).record == record
    assert training(prepared, seed=1).record != record
    assert TrainingData(prepared, TrainConfig(seq_len=SEQ_LEN, batch_size=2 * BATCH)).record != record
    prepare(moved.model_copy(update={"validation_fraction": 0.2}), 400, silent)
    assert training(moved).record != record


def test_validation_scores_every_token_once(prepared: DataConfig) -> None:
    sizes = token_bytes(tokenizer_of(prepared))
    data = ValidationData(prepared, TRAIN, sizes)
    batches = list(data.host_batches())
    targets = np.concatenate([b["targets"].ravel() for b in batches])
    inputs = np.concatenate([b["inputs"].ravel() for b in batches])
    streams = [stream.read(0, len(stream)) for stream in data._streams.values()]
    np.testing.assert_array_equal(targets[targets >= 0], np.concatenate([s[1:] for s in streams]))
    np.testing.assert_array_equal(inputs[targets >= 0], np.concatenate([s[:-1] for s in streams]))
    assert all(b["targets"].shape == (BATCH, SEQ_LEN) for b in batches)
    # Bytes of the text: what the manifest counted, less the first token of each source, which is no target.
    manifest = json.loads((Path(prepared.dir) / "shards" / "manifest.json").read_text())
    held_bytes = sum(source["validation"]["bytes"] for source in manifest["sources"].values())
    assert bytes_of(targets, sizes) == held_bytes - sum(sizes[s[0]] for s in streams)


def test_validation_batches_on_devices(prepared: DataConfig) -> None:
    sizes = token_bytes(tokenizer_of(prepared))
    data = ValidationData(prepared, TRAIN, sizes)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), P("d"))
    hosts = list(data.host_batches())
    placed = list(data.batches(sharding))
    assert len(placed) == len(hosts) > 3
    for (batch, n_bytes), host in zip(placed, hosts, strict=True):
        np.testing.assert_array_equal(batch["inputs"], host["inputs"])
        np.testing.assert_array_equal(batch["targets"], host["targets"])
        assert n_bytes == bytes_of(host["targets"], sizes) and batch["targets"].sharding == sharding
    assert len(list(data.batches(sharding, limit=2))) == 2


# Damage


def test_damage_is_noticed(prepared: DataConfig, tmp_path: Path) -> None:
    shutil.copytree(prepared.dir, tmp_path / "out")
    data = prepared.model_copy(update={"dir": str(tmp_path / "out")})
    shard = tmp_path / "out" / "shards" / "train" / "a" / "00000.bin"
    content = bytearray(shard.read_bytes())
    content[1001] ^= 4
    shard.write_bytes(content)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), P("d"))
    with pytest.raises(DataError, match=r"train/a/00000\.bin: block 0 is corrupt: its CRC-32 is .*, the manifest says .*prepare"):
        list(TrainingData(data, TRAIN).batches(sharding, 0, 20))
    shard.write_bytes(content[:-7])
    with pytest.raises(DataError, match=rf"00000\.bin has {len(content) - 7} bytes; the manifest says {len(content)}"):
        TrainingData(data, TRAIN)
    shard.unlink()
    with pytest.raises(DataError, match=r"00000\.bin is missing"):
        TrainingData(data, TRAIN)
    (tmp_path / "out" / "shards" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: broken"):
        TrainingData(data, TRAIN)


def test_too_little_text_for_a_sequence(prepared: DataConfig) -> None:
    with pytest.raises(DataError, match=r"data\.sources\.a has \d+ training tokens, and in them no sequence of 1000000 \+ 1"):
        TrainingData(prepared, TrainConfig(seq_len=1_000_000, batch_size=BATCH))


def test_damage_is_noticed_only_where_it_is(tmp_path: Path) -> None:
    """A flipped bit in the second of three blocks: the first and third are read, from the second on two threads nothing."""
    tokens = np.arange(3 * BLOCK_TOKENS, dtype=np.uint16)
    writer = ShardWriter(tmp_path / "s", token_dtype(60000), 4 * BLOCK_TOKENS)
    writer.add(tokens.tolist())
    shards = writer.close()
    shard = tmp_path / "s" / "00000.bin"
    content = bytearray(shard.read_bytes())
    content[2 * BLOCK_TOKENS + 7] ^= 1
    shard.write_bytes(content)
    stream = TokenStream(tmp_path / "s", token_dtype(60000), shards)
    np.testing.assert_array_equal(stream.read(BLOCK_TOKENS - 9, BLOCK_TOKENS), tokens[BLOCK_TOKENS - 9 : BLOCK_TOKENS])
    np.testing.assert_array_equal(stream.read(2 * BLOCK_TOKENS, len(tokens)), tokens[2 * BLOCK_TOKENS :])
    for start, stop in ((BLOCK_TOKENS - 9, BLOCK_TOKENS + 1), (2 * BLOCK_TOKENS - 1, 2 * BLOCK_TOKENS + 1)):
        with pytest.raises(DataError, match=r"00000\.bin: block 1 is corrupt"):
            stream.read(start, stop)


def test_shards_replaced_under_a_reader_are_not_mixed(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(100, 4))
    prepare(data, 300, silent)
    reader = training(data)
    before = reader.rows(0, range(BATCH))
    prepare(data.model_copy(update={"validation_fraction": 0.3}), 300, silent)
    with pytest.raises(DataError, match=r"train/x/00000\.bin: cannot be read any more .*was it replaced"):
        reader.rows(0, range(BATCH))
    prepare(data, 300, silent)
    np.testing.assert_array_equal(training(data).rows(0, range(BATCH))["inputs"], before["inputs"])


def test_more_shards_than_a_process_may_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    writer = ShardWriter(tmp_path / "s", token_dtype(300), 1)
    described = []
    for _ in range(60):
        writer.add([1, 2, 3])
        described = writer.close()
        writer._limit = 1  # a shard for every three tokens
    stream_of = lambda: TokenStream(tmp_path / "s", token_dtype(300), described)  # noqa: E731
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, hard))
        assert stream_of().read(0, 180).tolist() == [1, 2, 3] * 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_shards_of_another_format_are_refused(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(100, 4))
    prepare(data, 300, silent)
    manifest = tmp_path / "out" / "shards" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(DataError, match=r"shards: made by another version of Qianyi; delete it"):
        training(data)
    with pytest.raises(DataError, match=r"manifest\.json: missing; run `qianyi data prepare RECIPE`"):
        training(data, dir=str(tmp_path / "elsewhere"))
