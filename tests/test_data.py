"""Text to batches: nothing is lost, nothing depends on who reads, and bad input is named."""

import gzip
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qianyi.config.schema import DataConfig, SourceConfig
from qianyi.data.load import TrainingData, ValidationData
from qianyi.data.prepare import is_validation, prepare
from qianyi.data.read import read_documents
from qianyi.data.shards import BLOCK_TOKENS, ShardWriter, TokenStream, token_dtype
from qianyi.data.tokenizer import load_tokenizer, token_bytes, train_tokenizer
from qianyi.errors import DataError, QianyiError

SEQ_LEN, BATCH = 16, 8


def silent(*_: object) -> None:
    pass


def corpus(n: int, seed: int) -> list[str]:
    source = random.Random(seed)
    words = ["moon", "river", "明月", "江水", "mountain", "千亿", "the", "and", "。", "，\n", "🌙"]
    return ["".join(source.choices(words, k=source.randrange(20, 200))) for _ in range(n)]


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = tmp_path_factory.mktemp("data")
    a, b = jsonl(root / "a.jsonl", corpus(200, 1)), jsonl(root / "b.jsonl", corpus(60, 2))
    data = DataConfig(
        dir=str(root / "out"),
        sources=(SourceConfig(name="a", path=str(a)), SourceConfig(name="b", path=str(b))),
        validation_fraction=0.1,
    )
    prepare(data, 400, silent)
    return data


# Reading


def test_all_formats_give_the_same_documents(tmp_path: Path) -> None:
    texts = corpus(50, 3)
    plain = jsonl(tmp_path / "x.jsonl", texts).read_bytes()
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(plain))
    half = len(plain) // 2  # two frames, as parallel compressors write them
    frames = zstandard.compress(plain[:half]) + zstandard.compress(plain[half:])
    (tmp_path / "x.jsonl.zst").write_bytes(frames)
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", row_group_size=7)
    (tmp_path / "dir" / "deep").mkdir(parents=True)
    for i, text in enumerate(texts):
        (tmp_path / "dir" / "deep" / f"{i:03d}.txt").write_text(text, encoding="utf-8", newline="")
    for name in ("x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet", "dir"):
        assert [d.text for d in read_documents(str(tmp_path / name), "text")] == texts, name


def bad_json(p: Path) -> Path:
    (p / "x.jsonl").write_text('{"text": "a"}\n{"text": \n')
    return p / "x.jsonl"


def bad_utf8(p: Path) -> Path:
    (p / "x.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    return p / "x.jsonl"


def bad_utf8_text(p: Path) -> Path:
    (p / "x.txt").write_bytes(b"abc\xe4\xb8")
    return p / "x.txt"


def no_key(p: Path) -> Path:
    (p / "x.jsonl").write_text('{"content": "a"}\n')
    return p / "x.jsonl"


def not_text(p: Path) -> Path:
    (p / "x.jsonl").write_text('{"text": 3}\n')
    return p / "x.jsonl"


def cut_gzip(p: Path) -> Path:
    (p / "x.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    return p / "x.jsonl.gz"


def cut_zstd(p: Path) -> Path:
    (p / "x.jsonl.zst").write_bytes(zstandard.compress(random.Random(0).randbytes(1000).hex().encode())[:-30])
    return p / "x.jsonl.zst"


def not_parquet(p: Path) -> Path:
    (p / "x.parquet").write_bytes(b"PAR1 no")
    return p / "x.parquet"


def parquet_no_column(p: Path) -> Path:
    pq.write_table(pa.table({"body": ["a"]}), p / "x.parquet")
    return p / "x.parquet"


def unknown_kind(p: Path) -> Path:
    (p / "x.pdf").write_text("x")
    return p / "x.pdf"


@pytest.mark.parametrize(
    ("make", "fragments"),
    [
        (lambda p: p / "nowhere", ["nowhere", "no such file"]),
        (lambda p: p, ["holds no file", ".jsonl"]),
        (bad_json, ["x.jsonl:2", "broken JSON at column"]),
        (bad_utf8, ["x.jsonl:2", "invalid UTF-8 at byte", "0xff"]),
        (bad_utf8_text, ["x.txt", "invalid UTF-8 at byte 3"]),
        (no_key, ["x.jsonl:1", "no field `text`", "content", "data.text_key"]),
        (not_text, ["x.jsonl:1", "`text` is int"]),
        (cut_gzip, ["x.jsonl.gz", "damaged or cut short"]),
        (cut_zstd, ["x.jsonl.zst", "damaged or cut short"]),
        (not_parquet, ["x.parquet", "not a readable Parquet"]),
        (parquet_no_column, ["no column `text`", "body"]),
        (unknown_kind, ["x.pdf", "unknown kind of file", ".txt"]),
        (lambda p: "builtin:bible", ["builtin:bible", "builtin:shakespeare"]),
    ],
)
def test_unreadable_input_is_named(tmp_path: Path, make: Callable[[Path], Path | str], fragments: list[str]) -> None:
    with pytest.raises(DataError) as error:
        list(read_documents(str(make(tmp_path)), "text"))
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)


# Tokenizer


def test_any_text_comes_back(prepared: DataConfig) -> None:
    tokenizer = load_tokenizer(Path(prepared.dir) / "tokenizer" / "tokenizer.json")
    sizes = token_bytes(tokenizer)
    source = random.Random(4)
    alphabet = "ab Z09\n\t'。，千亿é\u0301🌙👩\u200d👩\u200d👧\x00<|endoftext|>"
    for _ in range(500):
        text = "".join(source.choices(alphabet, k=source.randrange(1, 60)))
        text += "".join(chr(source.choice([source.randrange(0xD800), source.randrange(0xE000, 0x110000)])) for _ in range(5))
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
        assert sizes[ids].sum() == len(text.encode())


def test_end_of_text_inside_a_document_is_text(prepared: DataConfig) -> None:
    tokenizer = load_tokenizer(Path(prepared.dir) / "tokenizer" / "tokenizer.json")
    assert 0 not in tokenizer.encode("a<|endoftext|>b", add_special_tokens=False).ids


def test_training_is_deterministic() -> None:
    texts = corpus(100, 5)
    assert train_tokenizer(texts, 400).to_str() == train_tokenizer(texts, 400).to_str()


# Packing


def test_no_token_is_lost_and_splits_do_not_overlap(prepared: DataConfig) -> None:
    tokenizer = load_tokenizer(Path(prepared.dir) / "tokenizer" / "tokenizer.json")
    manifest = json.loads((Path(prepared.dir) / "shards" / "manifest.json").read_text())
    for source in prepared.sources:
        texts = [d.text for d in read_documents(source.path, "text")]
        for split in ("train", "validation"):
            described = manifest["sources"][source.name][split]
            directory = Path(prepared.dir) / "shards" / split / source.name
            stream = TokenStream(directory, token_dtype(manifest["vocab_size"]), described["shards"])
            tokens = stream.read(0, len(stream))
            ends = np.flatnonzero(tokens == manifest["end_token"])
            documents = [tokenizer.decode(part[:-1].tolist()) for part in np.split(tokens, ends + 1)[:-1]]
            expected = [t for t in texts if is_validation(t, prepared.validation_fraction) == (split == "validation")]
            assert documents == expected
            assert described["tokens"] == len(tokens)
            assert described["bytes"] == sum(len(t.encode()) for t in expected)


def test_shard_borders_are_invisible(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 60000, 3 * BLOCK_TOKENS + 1234)
    writer = ShardWriter(tmp_path / "s", token_dtype(60000), BLOCK_TOKENS)
    for part in np.array_split(tokens, 50):
        writer.add(part.tolist())
    shards = writer.close()
    assert len(shards) == 4
    stream = TokenStream(tmp_path / "s", token_dtype(60000), shards)
    for start, stop in (
        (0, 10),
        (BLOCK_TOKENS - 5, BLOCK_TOKENS + 5),
        (100, len(tokens)),
        (len(tokens) - 1, len(tokens)),
    ):
        np.testing.assert_array_equal(stream.read(start, stop), tokens[start:stop])


def test_again_does_nothing_and_other_settings_do(prepared: DataConfig) -> None:
    manifest = Path(prepared.dir) / "shards" / "manifest.json"
    before = manifest.stat().st_mtime_ns
    prepare(prepared, 400, silent)
    assert manifest.stat().st_mtime_ns == before
    changed = prepared.model_copy(update={"validation_fraction": 0.2})
    prepare(changed, 400, silent)
    assert manifest.stat().st_mtime_ns > before
    prepare(prepared, 400, silent)


def test_killed_preparation_leaves_no_trace(tmp_path: Path) -> None:
    """kill -9 at several moments; the next run gives byte for byte what an undisturbed one gives."""
    jsonl(tmp_path / "a.jsonl", corpus(3000, 6))
    sources = "data.sources=[{name: a, path: a.jsonl}]"

    def command(out: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "qianyi",
            "data",
            "prepare",
            "quickstart",
            sources,
            f"data.dir={out}",
            "model.vocab_size=600",
        ]

    began = time.monotonic()
    subprocess.run(command("whole"), cwd=tmp_path, check=True, capture_output=True)
    took = time.monotonic() - began
    for share in (0.5, 0.7, 0.8, 0.9):
        process = subprocess.Popen(command("killed"), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(share * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command("killed"), cwd=tmp_path, check=True, capture_output=True)
    names = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path / "killed") for p in (tmp_path / "killed").rglob("*") if p.is_file())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_empty_and_lopsided_sources_are_named(tmp_path: Path) -> None:
    def prepare_texts(texts: list[str]) -> None:
        file = jsonl(tmp_path / "x.jsonl", texts)
        source = SourceConfig(name="x", path=str(file))
        prepare(DataConfig(dir=str(tmp_path / "o"), sources=(source,), validation_fraction=0.01), 300, silent)

    with pytest.raises(DataError, match=r"data\.sources\.x: .*holds no text \(2 blank documents\)"):
        prepare_texts([" ", "\n"])
    with pytest.raises(
        DataError, match=r"none of its 3 documents fell into the validation split; raise data\.validation_fraction"
    ):
        prepare_texts(["one", "two", "three"])
    with pytest.raises(DataError, match=r"data\.sources is empty"):
        prepare(DataConfig(dir=str(tmp_path / "o")), 300, silent)


def test_tokenizer_must_fit_the_model(prepared: DataConfig, tmp_path: Path) -> None:
    tokenizer = str(Path(prepared.dir) / "tokenizer" / "tokenizer.json")
    data = prepared.model_copy(update={"dir": str(tmp_path), "tokenizer": tokenizer})
    with pytest.raises(DataError, match=r"the tokenizer has 400 tokens, model\.vocab_size is 300"):
        prepare(data, 300, silent)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(DataError, match=r"t\.json: not a tokenizer\.json"):
        prepare(data.model_copy(update={"tokenizer": str(tmp_path / "t.json")}), 400, silent)


def test_full_disk(tmp_path: Path) -> None:
    """A file system of one megabyte, really full."""
    jsonl(tmp_path / "a.jsonl", corpus(6000, 7))
    script = (
        "mkdir small && mount -t tmpfs -o size=1m tmpfs small && "
        f"{sys.executable} -m qianyi data prepare quickstart data.dir=small model.vocab_size=300 "
        "'data.sources=[{name: a, path: a.jsonl}]'"
    )
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the disk is full; free some room" in done.stderr and "Traceback" not in done.stderr


# Loading


def training(prepared: DataConfig, **changes: object) -> TrainingData:
    return TrainingData(prepared.model_copy(update=changes), SEQ_LEN, BATCH)


def test_batch_is_a_function_of_seed_and_step(prepared: DataConfig) -> None:
    first, second, other = training(prepared), training(prepared), training(prepared, seed=1)
    for step in (5, 0, 70):
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
    for step, batch in enumerate(data.batches(sharding, 4, 6), 4):
        np.testing.assert_array_equal(batch["inputs"], whole[step]["inputs"])
        np.testing.assert_array_equal(batch["targets"], data.rows(step, range(BATCH))["targets"])
        assert batch["inputs"].sharding == sharding
    stopped = data.batches(sharding, 0, 1000)
    next(stopped)
    stopped.close()  # the reading threads end without a complaint


def test_an_epoch_visits_every_window_once(prepared: DataConfig) -> None:
    one = DataConfig(**(prepared.model_dump() | {"sources": prepared.sources}))
    data = TrainingData(one, SEQ_LEN, 1)
    name, windows = next(iter(data._windows.items()))
    drawn = [tuple(data._sequence[i]) for i in range(int(len(windows) / data.weights[name]))]
    expected = {tuple(windows[i]) for i in range(len(windows))}
    missing = expected - set(drawn)
    assert len(missing) <= 0.02 * len(expected) + 1  # the mixture's rounding alone


def test_mixture_follows_weights(prepared: DataConfig) -> None:
    weighted = tuple(s.model_copy(update={"weight": w}) for s, w in zip(prepared.sources, (1.0, 3.0), strict=True))
    data = training(prepared, sources=weighted)
    of_b = {tuple(data._windows["b"][i]) for i in range(len(data._windows["b"]))}
    share = np.mean([tuple(data._sequence[i]) in of_b for i in range(2000)])
    assert abs(share - 0.75) < 0.01
    assert abs(data.epochs(100)["b"] - 0.75 * 100 * BATCH / len(data._windows["b"])) < 1e-9


def test_validation_scores_every_token_once(prepared: DataConfig) -> None:
    tokenizer = load_tokenizer(Path(prepared.dir) / "tokenizer" / "tokenizer.json")
    sizes = token_bytes(tokenizer)
    data = ValidationData(prepared, SEQ_LEN, BATCH, sizes)
    targets = np.concatenate([b["targets"].ravel() for b in data.host_batches()])
    scored = targets[targets >= 0]
    streams = [stream.read(0, len(stream)) for stream in data._streams.values()]
    np.testing.assert_array_equal(np.sort(scored), np.sort(np.concatenate([s[1:] for s in streams])))
    assert data.bytes_of(targets) == sum(sizes[s[1:]].sum() for s in streams)


def test_damage_is_noticed(prepared: DataConfig, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(prepared.dir, tmp_path / "out")
    data = prepared.model_copy(update={"dir": str(tmp_path / "out")})
    shard = tmp_path / "out" / "shards" / "train" / "a" / "00000.bin"
    content = bytearray(shard.read_bytes())
    content[1001] ^= 4
    shard.write_bytes(content)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), P("d"))
    with pytest.raises(DataError, match=r"train/a/00000\.bin: block 0 is corrupt.*qianyi data prepare"):
        list(TrainingData(data, SEQ_LEN, BATCH).batches(sharding, 0, 20))
    shard.write_bytes(content[:-7])
    with pytest.raises(DataError, match=rf"00000\.bin has {len(content) - 7} bytes; the manifest says {len(content)}"):
        TrainingData(data, SEQ_LEN, BATCH)
    shard.unlink()
    with pytest.raises(DataError, match=r"00000\.bin is missing"):
        TrainingData(data, SEQ_LEN, BATCH)
    (tmp_path / "out" / "shards" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: broken"):
        TrainingData(data, SEQ_LEN, BATCH)


def test_too_little_text_for_a_sequence(prepared: DataConfig) -> None:
    with pytest.raises(DataError, match=r"fewer than one sequence of 1000000"):
        TrainingData(prepared, 1_000_000, BATCH)


def test_builtin_corpora_are_what_they_say() -> None:
    plays = [d.text for d in read_documents("builtin:shakespeare", "text")]
    book = [d.text for d in read_documents("builtin:sanguo", "text")]
    assert len(plays) > 700 and any("To be, or not to be" in t for t in plays)
    assert not any("**" in t or "\n#" in t for t in plays)
    assert len(book) > 500 and book[0].startswith("第一回 宴桃园豪杰三结义")
    assert issubclass(DataError, QianyiError)
