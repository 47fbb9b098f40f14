"""A stage over a corpus: nothing is lost, nothing half made is taken for finished, and nobody can tell how often it was killed."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_works import CORPORA, clean, collect, content, list_bucket, misbehave, slices, texts

from qianyi.corpus import directory, parts, writer
from qianyi.corpus.buckets import bucket_of, bucket_units, gather, write_buckets
from qianyi.corpus.document import (
    DOCUMENT,
    corpus_manifest,
    document_batch,
    document_id,
    read_batches,
    read_dropped,
    read_parts,
    side_files,
)
from qianyi.corpus.parts import Options, part_units, run_parts
from qianyi.corpus.writer import UnitWriter
from qianyi.errors import DataError, ResourceError

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "in"
    collect(out)
    return out


def test_every_document_comes_through_in_order(corpus: Path) -> None:
    rows = [row for batch in read_parts(corpus) for row in batch.to_pylist()]
    expected = [t for path in CORPORA for i in range(3) for t in texts(path)[i::3]]
    assert [row["text"] for row in rows] == expected
    assert all(row["id"] == document_id(row["source"], row["origin"]) for row in rows)
    manifest = corpus_manifest(corpus)
    assert manifest["documents"] == len(expected)
    assert manifest["bytes"] == sum(len(t.encode()) for t in expected) == sum(unit["bytes"] for unit in part_units(corpus))
    assert manifest["sources"]["sanguo"]["documents"] == len(texts("builtin:sanguo"))


def test_kept_and_dropped_are_all_there_is(corpus: Path, tmp_path: Path) -> None:
    manifest = clean(corpus, tmp_path / "out")
    kept = [row for batch in read_parts(tmp_path / "out") for row in batch.to_pylist()]
    dropped = [row for batch in read_dropped(tmp_path / "out") for row in batch.to_pylist()]
    before = [row for batch in read_parts(corpus) for row in batch.to_pylist()]
    assert [r["id"] for r in kept] == [r["id"] for r in before if len(r["text"].encode()) >= 700]
    short = [r for r in before if len(r["text"].encode()) < 700]
    assert [(r["id"], r["origin"], r["reason"], r["detail"], r["head"]) for r in dropped] == [
        (r["id"], r["origin"], "short", f"{len(r['text'].encode())} bytes", r["text"][:200]) for r in short
    ]
    assert all(r["stat_bytes"] == len(r["text"].encode()) for r in kept)
    assert manifest["reasons"] == {"short": len(short)} and len(short) > 10
    assert manifest["counts"] == {"seen": len(before)}
    assert sum(pq.read_table(f).num_rows for f in side_files(tmp_path / "out", "hashes")) == len(before)


def test_nothing_is_made_twice(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clean(corpus, out)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    clean(corpus, out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == times
    corpus_moved = corpus.rename(corpus.with_name("moved"))
    clean(corpus_moved, out)
    corpus_moved.rename(corpus)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == times
    clean(corpus, out, 2000)
    clean(corpus, tmp_path / "fresh", 2000)
    assert content(out) == content(tmp_path / "fresh")


def test_a_lost_file_is_made_again_and_only_that(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clean(corpus, out)
    before = content(out)
    others = out / "parts" / "00000.parquet"
    time = others.stat().st_mtime_ns
    (out / "parts" / "00002.parquet").unlink()
    clean(corpus, out)
    assert content(out) == before and others.stat().st_mtime_ns == time


def test_files_of_inputs_are_known_by_content(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("one")

    def made() -> int:
        units = [{"number": len(file.read_text())}]
        return run_parts(tmp_path / "out", "s", {}, units, misbehave, [file])["bytes"]

    assert made() == len("text 3")
    plan = (tmp_path / "out" / "plan.json").stat().st_mtime_ns
    os.utime(file, ns=(1, 1))
    made()
    assert (tmp_path / "out" / "plan.json").stat().st_mtime_ns == plan
    file.write_text("eleven text")
    assert made() == len("text 11")


def test_any_number_of_workers_makes_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    clean(corpus, tmp_path / "1")
    clean(corpus, tmp_path / "3", options=Options(workers=3))
    assert content(tmp_path / "3") == content(tmp_path / "1")


def test_killed_at_any_change_of_the_disk(tmp_path: Path) -> None:
    arguments = [sys.executable, TESTS / "kill_corpus.py", "clean", tmp_path, "7"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60


def test_long_units_make_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PART_BYTES", 100_000)
    monkeypatch.setattr(writer, "GROUP_BYTES", 20_000)
    out = tmp_path / "out"
    run_parts(out, "collect", {}, slices(1), parts_of_all, [])
    assert [t for b in read_parts(out) for t in b.column("text").to_pylist()] == [t for path in CORPORA for t in texts(path)]
    units = part_units(out)
    assert [u["name"] for u in units[:3]] == ["00000", "00000-001", "00000-002"] and len(units) > 20
    longest = max(len(t.encode()) for path in CORPORA for t in texts(path))
    assert all(u["bytes"] <= max(100_000, longest) for u in units)
    groups = [b for u in units for b in read_batches(Path(u["part"]))]
    assert max(sum(len(t.encode()) for t in b.column("text").to_pylist()) for b in groups) <= 20_000 + longest


def parts_of_all(unit: parts.Json, settings: parts.Json, w: parts.Writer) -> None:
    """Everything in one batch: the writer must cut it."""
    all_texts = texts(unit["path"])
    w.keep(document_batch(unit["path"], [str(i) for i in range(len(all_texts))], all_texts))


def test_a_corpus_larger_than_memory(tmp_path: Path) -> None:
    """270 MB of text (real text, 40 times over) through a process that may hold 220 MB more than its libraries do."""
    run_parts(tmp_path / "in", "collect", {}, [{"path": path} for path in CORPORA * 4], ten_times, [])
    documents = [text for path in CORPORA for text in joined(path)]
    assert corpus_manifest(tmp_path / "in")["bytes"] > 260e6
    for stage, documents_left in (("clean", 40 * sum(len(t.encode()) >= 20_000 for t in documents)), ("dedup", len(documents))):
        arguments = [TESTS / "corpus_memory.py", stage, tmp_path / "in", tmp_path / stage, str(220_000_000)]
        env = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}  # others reserve more than they use
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "does not fit\n"
        assert corpus_manifest(tmp_path / stage)["documents"] == documents_left


def joined(path: str) -> list[str]:
    return ["\n".join(texts(path)[i : i + 8]) for i in range(0, len(texts(path)), 8)]


def ten_times(unit: parts.Json, settings: parts.Json, w: parts.Writer) -> None:
    for time in range(10):
        w.keep(document_batch(unit["path"], [f"{time}/{i}" for i in range(len(joined(unit["path"])))], joined(unit["path"])))


def test_rules_that_match_nothing_or_everything(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"rule `shrot` matches none of 1,395 documents.*--allow shrot; nothing is lost"):
        clean(corpus, out, rules=("short", "shrot"))
    part = out / "parts" / "00000.parquet"
    time = part.stat().st_mtime_ns
    clean(corpus, out, rules=("short", "shrot"), options=Options(allow=("shrot",)))
    assert part.stat().st_mtime_ns == time
    with pytest.raises(DataError, match=r"no document is left: 1,395 dropped by `short`.*--allow short"):
        clean(corpus, tmp_path / "none", 10**9)
    assert clean(corpus, tmp_path / "none", 10**9, Options(allow=("short",)))["documents"] == 0


def test_strict(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"builtin:shakespeare/\S+: short: \d+ bytes \(--strict"):
        clean(corpus, tmp_path / "out", options=Options(strict=True))
    clean(corpus, tmp_path / "done")
    assert not side_files(clean_all(corpus, tmp_path / "all"), "dropped")


def clean_all(corpus: Path, out: Path) -> Path:
    clean(corpus, out, 0, Options(strict=True, allow=("short",)))
    return out


def test_directories_that_cannot_be(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"file/out: Not a directory"):
        clean(corpus, tmp_path / "file" / "out")
    with pytest.raises(DataError, match=r"/proc/out: No such file or directory"):
        clean(corpus, Path("/proc/out"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match=r"mine: holds files that are not of a corpus; give an empty or a new directory"):
        clean(corpus, mine)
    assert [p.name for p in mine.iterdir() if not p.name.startswith(".")] == ["thesis.txt"]
    with pytest.raises(DataError, match=r"would be input and output"):
        clean(corpus, corpus)
    with pytest.raises(DataError, match=r"mine: not a corpus directory"):
        clean(mine, tmp_path / "out")


def test_an_unfinished_corpus_is_no_input(corpus: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    clean(corpus, half)
    (half / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"half: not finished: no manifest.json; run the command that makes it again"):
        clean(half, tmp_path / "out")


def test_a_damaged_part_is_named(corpus: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    clean(corpus, made)
    part = made / "parts" / "00001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"00001.parquet: damaged .*; delete it and run"):
        clean(made, tmp_path / "out", 800)


def test_a_full_disk(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    plain = directory.write_record

    def write_record(out: Path, name: str, record: parts.Json) -> None:
        plain(out, name, record)
        if name == "00001":  # what comes next goes to a disk that is full
            (out / "parts" / ".00002.parquet.partial").symlink_to("/dev/full")

    with monkeypatch.context() as patch:
        patch.setattr(directory, "write_record", write_record)
        with pytest.raises(
            ResourceError, match=r"out: the disk is full; free some room and run the same command again, it goes on"
        ):
            clean(corpus, out)
    assert not list(out.rglob("*.partial"))
    clean(corpus, out)
    clean(corpus, tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")


def test_two_runs_take_turns(corpus: Path, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def make() -> None:
        try:
            clean(corpus, tmp_path / "out")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clean(corpus, tmp_path / "alone")
    assert not errors and content(tmp_path / "out") == content(tmp_path / "alone")


def test_a_stage_that_makes_no_documents_is_wrong(tmp_path: Path) -> None:
    unit = UnitWriter(tmp_path, "00000", strict=False)
    with pytest.raises(ValueError, match="documents need a column `id`"):
        unit.keep(pa.RecordBatch.from_pydict({"text": ["x"]}))
    unit.attach("side", pa.table({"x": [1]}))
    with pytest.raises(ValueError, match="attached twice"):
        unit.attach("side", pa.table({"x": [1]}))
    with pytest.raises(ValueError, match="no name for a side file"):
        unit.attach("parts", pa.table({"x": [1]}))
    unit.keep(document_batch("x", ["1"], ["one"]).replace_schema_metadata({"k": "v"}))
    unit.close()
    assert pq.read_schema(tmp_path / "parts" / "00000.parquet") == DOCUMENT


def test_buckets_gather_what_was_scattered(corpus: Path, tmp_path: Path) -> None:
    clean(corpus, tmp_path / "keys")
    units = bucket_units(tmp_path / "keys", "keys")
    run_parts(tmp_path / "buckets", "list", {}, units, list_bucket, [tmp_path / "keys"])
    all_hashes = np.concatenate([pq.read_table(f)["hash"].to_numpy() for f in side_files(tmp_path / "keys", "hashes")])
    buckets = [pq.read_table(f)["hash"].to_numpy() for f in side_files(tmp_path / "buckets", "bucket")]
    assert len(buckets) == len(units) == 5
    for number, bucket in enumerate(buckets):
        low, high = (-(-(i << 64) // 5) for i in (number, number + 1))
        np.testing.assert_array_equal(bucket, [h for h in all_hashes.tolist() if low >> 32 <= h >> 32 < -(-high >> 32)])
    np.testing.assert_array_equal(np.sort(np.concatenate(buckets)), np.sort(all_hashes))


def test_bucket_files_keep_order_types_and_empty_buckets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"n": np.arange(1000, dtype=np.uint32), "s": [f"文{i}" for i in range(1000)]})
    buckets = rng.choice([0, 3, 4], 1000).astype(np.uint64)
    path = tmp_path / "00000.arrow"
    write_buckets(path, table, buckets, 7)
    for bucket in range(7):
        read = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(bucket)
        assert read.schema == table.schema
        assert read.to_pylist() == [row for row, b in zip(table.to_pylist(), buckets.tolist(), strict=True) if b == bucket]
    with pytest.raises(ValueError, match="a row is in bucket 4 of 4"):
        write_buckets(path, table, buckets, 4)
    edges = np.array([0, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    assert bucket_of(edges, 2).tolist() == [0, 0, 1, 1]
    assert bucket_of(edges, 1000).tolist() == [0, 499, 500, 999]


def test_no_buckets(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no buckets `keys`"):
        bucket_units(corpus, "keys")
    clean(corpus, tmp_path / "out")
    unit = bucket_units(tmp_path / "out", "keys")[0]
    assert gather(unit).schema.names == ["hash"]
    assert json.loads(json.dumps(unit)) == unit
