"""Text to shards: nothing is lost, nothing half made is taken for finished."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from corpora import corpus, files_of, jsonl, one_source, silent, tokenizer_of, two_sources

from qianyi.config.schema import DataConfig, SourceConfig
from qianyi.data import tokenize as tokenizing
from qianyi.data import tokenizer as splitting
from qianyi.data.prepare import prepare
from qianyi.data.read import read_documents
from qianyi.data.shards import BLOCK_TOKENS, ShardWriter, TokenStream, token_dtype
from qianyi.data.stage import run_stage
from qianyi.data.tokenize import is_validation
from qianyi.data.tokenizer import cut, train_tokenizer
from qianyi.errors import DataError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return two_sources(tmp_path_factory.mktemp("data"))


def test_no_token_is_lost_and_splits_do_not_overlap(prepared: DataConfig) -> None:
    tokenizer = tokenizer_of(prepared)
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


def test_tokenizer_must_fit_the_model(prepared: DataConfig, tmp_path: Path) -> None:
    tokenizer = str(Path(prepared.dir) / "tokenizer" / "tokenizer.json")
    data = prepared.model_copy(update={"dir": str(tmp_path), "tokenizer": tokenizer})
    with pytest.raises(DataError, match=r"the tokenizer has 400 tokens, model\.vocab_size is 300"):
        prepare(data, 300, silent)
    assert prepare(data, 400, silent)["vocab_size"] == 400
    assert not (tmp_path / "tokenizer").exists()


def test_many_short_documents_are_packed_in_time(tmp_path: Path) -> None:
    """Packing takes as long as there are documents, not the square of that (which would be minutes here)."""
    writer = ShardWriter(tmp_path / "s", token_dtype(300), BLOCK_TOKENS)
    began = time.monotonic()
    for _ in range(100_000):
        writer.add([1, 2])
    assert writer.close()[0]["tokens"] == 200_000
    assert time.monotonic() - began < 10


def test_long_texts_are_cut_where_no_token_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(splitting, "_PIECE_CHARACTERS", 500)
    book = "\n".join(d.text for d in list(read_documents("builtin:sanguo", "text"))[:40])
    play = next(read_documents("builtin:shakespeare", "text")).text
    tokenizer = train_tokenizer([book, play], 1000)
    for text in (book, play):
        pieces = cut(text)
        assert "".join(pieces) == text and max(map(len, pieces)) <= 1000 and len(pieces) > len(text) // 1000
        assert [i for p in pieces for i in tokenizer.encode(p).ids] == tokenizer.encode(text).ids
    line = "千" * 2345
    assert list(map(len, cut(line))) == [1000, 1000, 345]
    assert cut("") == [""]


def test_long_documents_are_one_document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shards do not depend on how long texts are cut."""
    texts = [" ".join(corpus(8, seed)) for seed in range(30)]
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = prepare(one_source(tmp_path / "whole", texts), 400, silent)
    monkeypatch.setattr(splitting, "_PIECE_CHARACTERS", 300)
    monkeypatch.setattr(tokenizing, "_BATCH_CHARACTERS", 1000)
    pieces = prepare(one_source(tmp_path / "cut", texts), 400, silent)
    assert pieces["sources"] == whole["sources"]
    assert whole["sources"]["x"]["train"]["documents"] + whole["sources"]["x"]["validation"]["documents"] == 30


def test_blank_documents_are_counted_and_skipped(tmp_path: Path) -> None:
    texts = [*corpus(60, 8), "", " \n\u3000"]
    source = prepare(one_source(tmp_path, texts), 300, silent)["sources"]["x"]
    assert source["blank_documents"] == 2
    assert source["train"]["documents"] + source["validation"]["documents"] == 60


def test_the_same_text_is_on_one_side(tmp_path: Path) -> None:
    """Every text twice: none is in both splits."""
    data = one_source(tmp_path, corpus(100, 9) * 2)
    source = prepare(data, 300, silent)["sources"]["x"]
    assert source["train"]["documents"] % 2 == source["validation"]["documents"] % 2 == 0


def test_large_vocabularies_have_four_bytes(tmp_path: Path) -> None:
    assert token_dtype(65536).itemsize == 2 and token_dtype(65537).itemsize == 4
    tokens = [70_000, 0, 65_536]
    writer = ShardWriter(tmp_path / "s", token_dtype(100_000), BLOCK_TOKENS)
    writer.add(tokens)
    stream = TokenStream(tmp_path / "s", token_dtype(100_000), writer.close())
    assert stream.read(0, 3).tolist() == tokens


# Again


def test_again_does_nothing_and_other_settings_do(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(100, 10))
    prepare(data, 300, silent)
    before = files_of(tmp_path / "out")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}

    def silent_but_no_work(what: str, *_: int) -> None:
        assert what == "checking the inputs"

    prepare(data, 300, silent_but_no_work)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == stamps
    prepare(data.model_copy(update={"validation_fraction": 0.2}), 300, silent)
    assert files_of(tmp_path / "out") != before
    prepare(data, 300, silent)
    assert files_of(tmp_path / "out") == before


def test_inputs_are_known_by_their_content(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(100, 11))
    first = prepare(data, 300, silent)
    os.utime(tmp_path / "x.jsonl", (1, 1))  # another time, the same content
    manifest = tmp_path / "out" / "shards" / "manifest.json"
    shard = tmp_path / "out" / "shards" / "train" / "x" / "00000.bin"
    made = shard.stat().st_mtime_ns
    assert prepare(data, 300, silent)["sources"] == first["sources"]
    assert shard.stat().st_mtime_ns == made
    assert list(json.loads(manifest.read_text())["input_times"].values()) == [10**9]  # not hashed the next time
    jsonl(tmp_path / "x.jsonl", corpus(100, 12))
    assert prepare(data, 300, silent)["sources"] != first["sources"]


def test_a_lost_tokenizer_is_trained_again(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(100, 13))
    prepare(data, 300, silent)
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / "tokenizer" / "tokenizer.json").unlink()
    prepare(data, 300, silent)
    assert files_of(tmp_path / "out") == before


def test_two_at_one_time_take_turns(tmp_path: Path) -> None:
    built: list[str] = []

    def build(out: Path) -> dict[str, object]:
        (out / "x").write_text("x")
        built.append(threading.current_thread().name)
        time.sleep(0.3)
        return {"n": 1}

    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(run_stage(tmp_path / "s", {"inputs": []}, {}, build))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and results == [{"settings": {"inputs": []}, "input_times": {}, "n": 1}] * 3


# Interrupted


def test_killed_at_any_write_it_finishes_the_next_time(tmp_path: Path) -> None:
    jsonl(tmp_path / "x.jsonl", corpus(100, 14))
    script = Path(__file__).with_name("kill_everywhere.py")
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, script, tmp_path, "3"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


def test_full_disk(tmp_path: Path) -> None:
    """File systems that are really full, at shards (256 kB) and at the tokenizer already (12 kB)."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    jsonl(tmp_path / "a.jsonl", corpus(1500, 7))
    (tmp_path / "small").mkdir()
    run = f'{sys.executable} -c "\n{FULL_DISK}"'
    for size in ("256k", "12k"):
        script = f"mount -t tmpfs -o size={size} tmpfs small && {run} && ls -A small"
        done = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        message, *left = done.stdout.splitlines()
        assert "the disk is full; free some room" in message
        assert "shards" not in left and (size == "256k") == ("tokenizer" in left)


FULL_DISK = """
from qianyi.config.schema import DataConfig, SourceConfig
from qianyi.data.prepare import prepare
from qianyi.errors import ResourceError
source = SourceConfig(name='a', path='a.jsonl')
try:
    prepare(DataConfig(dir='small', sources=(source,)), 300, lambda *_: None)
except ResourceError as error:
    print(error)
"""


# Refused


def test_empty_and_lopsided_sources_are_named(tmp_path: Path) -> None:
    def prepare_texts(texts: list[str], fraction: float = 0.01) -> None:
        prepare(one_source(tmp_path, texts, validation_fraction=fraction), 300, silent)

    with pytest.raises(DataError, match=r"data\.sources\.x: .*holds no text \(2 blank documents\)"):
        prepare_texts([" ", "\n"])
    with pytest.raises(DataError, match=r"none of its 3 documents fell into the validation split; raise data\.validation_f"):
        prepare_texts(["one", "two", "three"])
    with pytest.raises(DataError, match=r"none of its 2 documents fell into the train split; lower data\.validation_f"):
        prepare_texts(["one", "two"], 0.9999)
    with pytest.raises(DataError, match=r"data\.sources is empty"):
        prepare(DataConfig(dir=str(tmp_path / "o")), 300, silent)
    assert not (tmp_path / "out" / "tokenizer").exists()


def test_broken_manifests_are_named(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(100, 15))
    prepare(data, 300, silent)
    for content in ("{", "[]", "{}", "\x00"):
        (tmp_path / "out" / "shards" / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=r"shards/manifest\.json: broken; delete .*/shards and run"):
            prepare(data, 300, silent)


@pytest.fixture
def as_nobody() -> Generator[tuple[Path, Callable[[], None]]]:
    """A directory that all may read, and a function that makes this process another user than root, who may do everything."""
    if os.geteuid():
        pytest.skip("to become another user one must be root")
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        yield Path(root), lambda: os.seteuid(65534)
        os.seteuid(0)


def test_what_cannot_be_read_or_written_is_named(as_nobody: tuple[Path, Callable[[], None]]) -> None:
    root, become_nobody = as_nobody
    data = one_source(root, corpus(100, 16))
    (root / "out").mkdir()
    secret = root / "y.jsonl"
    secret.write_bytes((root / "x.jsonl").read_bytes())
    secret.chmod(0o600)
    become_nobody()
    with pytest.raises(DataError, match=r"out/\.tokenizer\.lock: Permission denied"):
        prepare(data, 300, silent)
    with pytest.raises(DataError, match=r"y\.jsonl: cannot be read: Permission denied"):
        prepare(data.model_copy(update={"sources": (SourceConfig(name="y", path=str(secret)),)}), 300, silent)


def test_finished_shards_may_be_read_only(as_nobody: tuple[Path, Callable[[], None]]) -> None:
    root, become_nobody = as_nobody
    data = one_source(root, corpus(100, 16))
    made = prepare(data, 300, silent)
    os.utime(root / "x.jsonl", (1, 1))
    become_nobody()
    assert prepare(data, 300, silent)["sources"] == made["sources"]
