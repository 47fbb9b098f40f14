"""Units of work: the same shards from any number of workers, however often they are killed, from any kind of source."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import corpus, files_of, jsonl, one_source, silent, tokenizer_of, two_sources

from qianyi.cli import data_export, data_tokenize
from qianyi.cli.data import show_sources
from qianyi.config.schema import DataConfig, SourceConfig, TrainConfig
from qianyi.data import tokenize as tokenizing
from qianyi.data import units
from qianyi.data.load import TrainingData
from qianyi.data.pool import run_jobs
from qianyi.data.prepare import prepare
from qianyi.data.read import Span, read_span, source_files
from qianyi.data.units import plan_units
from qianyi.errors import ConfigError, DataError, ResourceError

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 20_000)


def parquet(path: Path, texts: list[str], **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, **columns}), path, row_group_size=20)
    return path


def corpus_directory(root: Path, texts: list[str], research_only: list[bool] | None = None) -> Path:
    """Two parts, and a document that was dropped."""
    half = len(texts) // 2
    marks = research_only or [False] * len(texts)
    for name, a, b in (("00000", 0, half), ("00001", half, len(texts))):
        parquet(root / "parts" / f"{name}.parquet", texts[a:b], research_only=marks[a:b])
    parquet(root / "dropped" / "00000.parquet", ["dropped"])
    for name in ("plan.json", "manifest.json"):
        (root / name).write_text("{}")
    return root


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "corpus", "txt"])
def test_units_hold_every_document_once_in_order(tmp_path: Path, kind: str) -> None:
    texts = [f"{i} {text}" for i, text in enumerate(corpus(200, 1))]
    path = tmp_path / "x"
    match kind:
        case "jsonl":
            jsonl(path.with_suffix(".jsonl"), texts)
        case "parquet":
            parquet(path.with_suffix(".parquet"), texts)
        case "corpus":
            corpus_directory(path, texts)
        case _:
            path.mkdir()
            for i, text in enumerate(texts):
                (path / f"{i:03d}.txt").write_text(text)
    source = str(next(tmp_path.glob("x*")))
    planned = plan_units(source, "text", 10**9)
    assert 3 < len(planned) < 30
    assert [d.text for unit in planned for span in unit for d in read_span(span, "text")] == texts
    if kind in {"jsonl", "txt"}:  # a row group of Parquet is not cut
        assert len(plan_units(source, "text", 100)) > 2 * len(planned)


def test_the_line_of_an_error_is_that_of_the_file(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", corpus(200, 1))
    lines = path.read_text().splitlines()
    lines[150] = lines[150][:-5]
    path.write_text("\n".join(lines))
    place = len("\n".join(lines[:150]).encode())
    (broken,) = (span for unit in plan_units(str(path), "text", 10**9) for span in unit if span.start <= place < (span.stop or 0))
    assert broken.start > 0
    with pytest.raises(DataError, match=r"x\.jsonl:151: broken JSON"):
        list(read_span(broken, "text"))
    parquet(tmp_path / "y.parquet", [*corpus(50, 2), "end"], n=[None] * 51)
    with pytest.raises(DataError, match=r"y\.parquet row 41: `n` is NoneType"):
        list(read_span(Span(str(tmp_path / "y.parquet"), 2, 3), "n"))


def both(root: Path, name: str) -> DataConfig:
    sources = (SourceConfig(name="a", path=str(root / "a.jsonl")), SourceConfig(name="b", path=str(root / "b.jsonl")))
    return DataConfig(dir=str(root / name), sources=sources, validation_fraction=0.1)


def shards_of(data: DataConfig) -> dict[str, bytes]:
    return files_of(Path(data.dir) / "shards")


def test_any_number_of_workers_makes_the_same(tmp_path: Path) -> None:
    data = two_sources(tmp_path)
    made = shards_of(data)
    assert sum(name.endswith(".json") for name in made) > 6
    for workers in (1, 2):
        other = both(tmp_path, f"with {workers}")
        prepare(other, 400, silent, map_jobs=partial(run_jobs, workers=workers))
        assert shards_of(other) == made


def test_an_interrupted_run_goes_on_with_the_units_that_are_left(tmp_path: Path) -> None:
    made = shards_of(two_sources(tmp_path))
    data, done = both(tmp_path, "again"), []

    def stopping(after: int) -> Callable[[Callable[[Json], Json], list[Json]], Iterator[Json]]:
        def run(work: Callable[[Json], Json], jobs: list[Json]) -> Iterator[Json]:
            for i, job in enumerate(reversed(jobs)):  # an engine may take them in any order
                if i == after:
                    raise KeyboardInterrupt
                done.append((job["source"], job["number"]))
                yield work(job)

        return run

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare(data, 400, silent, map_jobs=stopping(2))
    # A unit that was killed on its way left half a shard.
    for name in ("00000.bin", ".00000.bin.12345678.partial"):
        (tmp_path / "again" / ".shards.partial" / "train" / "a" / name).write_bytes(b"half")
    prepare(data, 400, silent, map_jobs=stopping(10**6))
    assert shards_of(data) == made and len(done) == len(set(done))
    # With other settings nothing of it is used.
    with pytest.raises(KeyboardInterrupt):
        prepare(data.model_copy(update={"validation_fraction": 0.2}), 400, silent, map_jobs=stopping(3))
    assert shards_of(data) == made


def test_workers_end_with_the_process_that_is_killed(tmp_path: Path) -> None:
    """And the next run makes what an undisturbed one makes."""
    made = shards_of(two_sources(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(is_running(pid) for pid in workers)
    data = both(tmp_path, "killed")
    prepare(data, 400, silent, map_jobs=partial(run_jobs, workers=1))
    assert shards_of(data) == made


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


KILLED = """
import json, multiprocessing, sys
from functools import partial
from pathlib import Path
from qianyi.config.schema import DataConfig, SourceConfig
from qianyi.data import units
from qianyi.data.pool import run_jobs
from qianyi.data.prepare import prepare
if __name__ == "__main__":
    units.UNIT_BYTES = 20_000
    root = Path(sys.argv[1])
    sources = tuple(SourceConfig(name=n, path=str(root / f"{n}.jsonl")) for n in "ab")
    def progress(what, *_):
        if what.startswith("tokenizing"):
            print(json.dumps([p.pid for p in multiprocessing.active_children()]), flush=True)
            input()
    data = DataConfig(dir=str(root / "killed"), sources=sources, validation_fraction=0.1)
    prepare(data, 400, progress, map_jobs=partial(run_jobs, workers=2))
"""


def test_a_worker_that_is_killed_is_named() -> None:
    with pytest.raises(ResourceError, match="a worker process was ended from outside, for want of memory most likely"):
        list(run_jobs(os._exit, [1, 1], 2))


# Corpus directories


def test_a_corpus_is_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = corpus(80, 3)
    root = corpus_directory(tmp_path / "c", texts, [i % 4 == 0 for i in range(80)])
    data = one_source(tmp_path, texts)
    plain = prepare(data, 300, silent)["sources"]["x"]
    of_corpus = data.model_copy(
        update={
            "dir": str(tmp_path / "o"),
            "sources": (SourceConfig(name="x", path=str(root)),),
            "tokenizer": str(tmp_path / "out" / "tokenizer" / "tokenizer.json"),
        }
    )
    manifest = prepare(of_corpus, 300, silent)
    found = manifest["sources"]["x"]
    assert found["research_only"] == 20 and plain["research_only"] == 0
    for split in ("train", "validation"):
        assert {n: found[split][n] for n in ("documents", "tokens", "bytes")} == {
            n: plain[split][n] for n in ("documents", "tokens", "bytes")
        }
    show_sources(manifest, of_corpus)
    assert "warning: for research only: x (20 documents); data.commercial=true refuses them" in capsys.readouterr().out
    refuse = r"data\.sources\.x: 20 documents are marked research_only, and data\.commercial is true"
    for sources in (of_corpus.sources, ()):
        with pytest.raises(DataError, match=refuse):
            prepare(of_corpus.model_copy(update={"commercial": True, "sources": sources}), 300, silent)
    (root / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"/c: a corpus that is not finished"):
        source_files(str(root))


# The verbs


def test_tokenize_makes_what_recipes_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = jsonl(tmp_path / "en.jsonl", corpus(100, 5)), corpus_directory(tmp_path / "zh", corpus(60, 6))
    out = tmp_path / "tokens"
    data_tokenize.run([str(first), f"han={second}"], out, None, 500, 0.1, "text", 1, "native")
    said = capsys.readouterr().out
    assert f"data.dir={out} data.sources=[] model.vocab_size=500" in said
    data = DataConfig(dir=str(out))
    manifest = prepare(data, 512, silent)
    assert list(manifest["sources"]) == ["en", "han"]
    assert TrainingData(data, TrainConfig(seq_len=16, batch_size=4)).rows(0, range(4))["inputs"].shape == (4, 16)
    with pytest.raises(DataError, match=r"the tokenizer has 500 tokens, model\.vocab_size is 400"):
        prepare(data, 400, silent)
    # With a tokenizer that is there, two workers of the engine make the same shards.
    other = tmp_path / "other"
    script = f"""if True:
        from pathlib import Path
        from qianyi.cli import data_tokenize
        from qianyi.data import units
        units.UNIT_BYTES = 20_000
        tokenizer = Path({str(out)!r}) / "tokenizer" / "tokenizer.json"
        data_tokenize.run([{str(first)!r}, "han={second}"], Path({str(other)!r}), tokenizer, None, 0.1, "text", 2, "native")
    """
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert files_of(other / "shards") == files_of(out / "shards")
    tokenizer_of(data).save(str(out / "tokenizer" / "tokenizer.json"), pretty=False)
    with pytest.raises(DataError, match=r"tokenizer\.json: is not the tokenizer that .*shards was made with"):
        prepare(data, 512, silent)
    capsys.readouterr()
    data_export.run(other, "megatron", tmp_path / "megatron", None)
    assert f"{tmp_path}/megatron/validation/han.idx" in capsys.readouterr().out.splitlines()


def test_wrong_words_to_tokenize_are_named(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "x.jsonl", corpus(30, 5))
    with pytest.raises(ConfigError, match=r"x\.txt: .*x\.jsonl is named `x` too; say NAME=y/x\.txt"):
        data_tokenize.run([str(file), "y/x.txt"], tmp_path / "o", None, 300, 0.1, "text", 1, "native")
    with pytest.raises(ConfigError, match=r"--validation 1\.5: a share of the documents"):
        data_tokenize.run([str(file)], tmp_path / "o", None, 300, 1.5, "text", 1, "native")
    with pytest.raises(ConfigError, match=r"--vocab 300 is for a tokenizer that is trained"):
        data_tokenize.run([str(file)], tmp_path / "o", file, 300, 0.1, "text", 1, "native")
    with pytest.raises(DataError, match=r"x\.jsonl: not a tokenizer\.json"):
        data_tokenize.run([str(file)], tmp_path / "o", file, None, 0.1, "text", 1, "native")


def test_batches_of_long_texts_are_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However texts are batched, the shards are the same."""
    made = shards_of(two_sources(tmp_path))
    monkeypatch.setattr(tokenizing, "_BATCH_PIECES", 3)
    data = both(tmp_path, "again")
    prepare(data, 400, silent, map_jobs=partial(run_jobs, workers=1))
    assert shards_of(data) == made
