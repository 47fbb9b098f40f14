"""Deduplication keeps one of each, the same one however it is run, and cuts what stood before."""

import hashlib
import itertools
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from corpus_works import content
from dedup_corpora import DOCUMENTS, make_corpus, noisy, real_texts
from test_corpus_dedup_kernels import shingle_sets

from qianyi.corpus.dedup import sample
from qianyi.corpus.dedup.clusters import Ranks, Sketched, clusters, survivors
from qianyi.corpus.dedup.keys import sketch, spans_of
from qianyi.corpus.dedup.pairs import first_of_each, groups, similar_pairs
from qianyi.corpus.dedup.settings import DedupSettings, Sketching
from qianyi.corpus.dedup.shuffle import _overlapping
from qianyi.corpus.dedup.stage import dedup, dedup_report
from qianyi.corpus.document import document_id, read_dropped, read_parts
from qianyi.corpus.kernels.ngrams import fold_table, grams, walk
from qianyi.corpus.kernels.substring import SPREAD
from qianyi.corpus.parts import Json, Options, Writer, part_units, read_batches, run_parts
from qianyi.errors import DataError


def kept(out: Path) -> dict[str, dict[str, Any]]:
    return {row["origin"]: row for batch in read_parts(out) for row in batch.to_pylist()}


def dropped(out: Path) -> dict[str, dict[str, Any]]:
    return {row["origin"]: row for batch in read_dropped(out) for row in batch.to_pylist()}


def with_copies(seed: int = 7) -> list[str]:
    """Real texts, some of them again in capitals, others with some words changed, some of those twice."""
    source = random.Random(seed)
    texts = [*real_texts()[:24], *real_texts()[-24:]]
    near = [noisy(text, 0.006, source) for text in texts[::4]]
    return [
        *texts,
        *near,
        *(noisy(text, 0.006, source) for text in texts[::8]),
        *(text.upper() for text in texts[1::6]),
        "",
        " \n",
        "short",
    ]


def plain_survivors(texts: list[str], ids: list[str]) -> list[int]:
    """Who stays in the place of each: the first by id of those that stay and have an exact Jaccard similarity of 0.75 and more."""
    sets = [s if any(len(g) for g in s) else set() for s in shingle_sets(texts)]
    chosen, alive = list(range(len(texts))), list[int]()
    for i in sorted(chosen, key=lambda i: ids[i]):
        like = (j for j in alive if sets[i] and len(sets[i] & sets[j]) >= 0.75 * len(sets[i] | sets[j]))
        chosen[i] = next(like, i)
        if chosen[i] == i:
            alive.append(i)
    return chosen


def test_documents_that_survive_are_those_of_a_plain_search(tmp_path: Path) -> None:
    texts = with_copies()
    manifest = dedup([make_corpus(tmp_path / "in", texts)], tmp_path / "out", DOCUMENTS)
    ids = [document_id("books", f"{i:05d}") for i in range(len(texts))]
    chosen = plain_survivors(texts, ids)
    assert set(kept(tmp_path / "out")) == {f"{i:05d}" for i in chosen}
    assert all(row["text"] == texts[int(origin)] for origin, row in kept(tmp_path / "out").items())
    gone = dropped(tmp_path / "out")
    assert manifest["reasons"] == {
        r: sum(row["reason"] == r for row in gone.values()) for r in ("exact_duplicate", "near_duplicate")
    }
    assert manifest["reasons"]["exact_duplicate"] >= 4
    for origin, row in gone.items():
        survivor = chosen[int(origin)]
        assert row["detail"].rsplit(" ", 1)[1] == ids[survivor]
        same = texts[int(origin)].upper() == texts[survivor].upper()
        assert row["reason"] == ("exact_duplicate" if same else "near_duplicate")
    report = dedup_report(tmp_path / "out")
    numbers = Counter(Counter(chosen).values())
    assert report["document_clusters"] == {size: n for size, n in sorted(numbers.items()) if size > 1}
    assert (report["sample"]["recall"], report["sample"]["precision"]) == (1, 1)
    assert report["sample"]["true_pairs"] > 20


def test_a_document_goes_only_if_it_is_like_one_that_stays(tmp_path: Path) -> None:
    """Of a chain, each link of which is like the next, some stay; whoever goes is like who stays for it."""
    words = real_texts()[3].split() + real_texts()[4].split() + real_texts()[5].split()
    texts = [" ".join(words[24 * i : 24 * i + 400]) for i in range(16)]
    dedup([make_corpus(tmp_path / "in", texts, 5)], tmp_path / "out", DOCUMENTS)
    ids = [document_id("books", f"{i:05d}") for i in range(len(texts))]
    sets = shingle_sets(texts)
    gone = dropped(tmp_path / "out")
    assert 3 <= len(kept(tmp_path / "out")) <= 13
    for origin, row in gone.items():
        survivor = ids.index(row["detail"].rsplit(" ", 1)[1])
        assert f"{survivor:05d}" in kept(tmp_path / "out")
        estimate = float(row["detail"].split(" ")[0])
        exact = len(sets[int(origin)] & sets[survivor]) / len(sets[int(origin)] | sets[survivor])
        assert estimate >= 0.75 and abs(estimate - exact) < 0.15
    clusters_of_all = dedup_report(tmp_path / "out")["document_clusters"]
    assert max(clusters_of_all) < len(texts)


def _scored(unit: Json, settings: Json, writer: Writer) -> None:
    for batch in read_batches(Path(unit["part"])):
        lengths = pa.array([len(text) for text in batch.column("text").to_pylist()], pa.int64())
        writer.keep(batch.append_column("stat_quality", lengths))


def test_of_a_cluster_the_best_survives(tmp_path: Path) -> None:
    text = real_texts()[0]
    corpus = make_corpus(tmp_path / "plain", [text + " x" * i for i in (3, 9, 1, 0)] + [real_texts()[1]], 2)
    run_parts(tmp_path / "in", "score", {}, part_units(corpus), _scored, [corpus])
    dedup([tmp_path / "in"], tmp_path / "out", DOCUMENTS)
    assert sorted(kept(tmp_path / "out")) == ["00001", "00004"]


def test_nothing_depends_on_the_cut_into_parts(tmp_path: Path) -> None:
    texts = [*with_copies(), real_texts()[2] + "\n" + real_texts()[50], real_texts()[9][300:] + real_texts()[3][:1500]]
    settings = DedupSettings(paragraphs="near", sample_documents=20)
    outs = [tmp_path / f"out{per_part}" for per_part in (25, 7)]
    for per_part, out in zip((25, 7), outs, strict=True):
        dedup([make_corpus(tmp_path / f"in{per_part}", texts, per_part)], out, settings)
    assert [(k, v["text"]) for k, v in kept(outs[0]).items()] == [(k, v["text"]) for k, v in kept(outs[1]).items()]
    assert dropped(outs[0]) == dropped(outs[1])
    assert dedup_report(outs[0]) == dedup_report(outs[1])


def test_two_workers_make_the_same_bytes(tmp_path: Path) -> None:
    texts = [*with_copies(), real_texts()[2] + "\n" + real_texts()[50], real_texts()[9][300:] + real_texts()[3][:1500]]
    corpus = make_corpus(tmp_path / "in", texts, 12)
    dedup([corpus], tmp_path / "out", options=Options(workers=2))
    (tmp_path / "out").rename(tmp_path / "two")  # plans name the directory that is made
    dedup([corpus], tmp_path / "out")
    assert content(tmp_path / "two") == content(tmp_path / "out")
    assert {"document_pairs", "line_clusters", "window_repeats"} <= {path.name for path in (tmp_path / "two").iterdir()}


def test_killed_anywhere_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    arguments = [sys.executable, Path(__file__).with_name("kill_corpus.py"), "dedup", tmp_path, "61"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200


def test_a_new_corpus_is_compared_with_the_keys_of_an_old_one(tmp_path: Path) -> None:
    source = random.Random(2)
    old = make_corpus(tmp_path / "old", real_texts()[:50])
    fresh = [
        *(noisy(text, 0.004, source) for text in real_texts()[40:60]),
        "a line of its own",
        real_texts()[70] + real_texts()[7][:1000],
    ]
    new = make_corpus(tmp_path / "new", fresh, 6, "news")
    dedup([old], tmp_path / "first")
    before = {p: hashlib.sha256(p.read_bytes()).digest() for p in (tmp_path / "first").rglob("*") if p.is_file()}
    for part in (tmp_path / "old" / "parts").iterdir():
        part.write_bytes(b"")  # its text is not read again
    dedup([new], tmp_path / "second", against=[tmp_path / "first"])
    assert {p: hashlib.sha256(p.read_bytes()).digest() for p in (tmp_path / "first").rglob("*") if p.is_file()} == before
    assert sorted(dropped(tmp_path / "second")) == [f"{i:05d}" for i in range(10)]
    assert {row["detail"].rsplit(" ", 1)[1] for row in dropped(tmp_path / "second").values()} <= {
        row["id"] for row in kept(tmp_path / "first").values()
    }
    last = kept(tmp_path / "second")["00021"]
    assert last["text"].startswith(real_texts()[70])
    assert 1000 - 2 * SPREAD - 200 < last["stat_cut_bytes"] <= 1000


def test_what_went_from_an_old_corpus_is_not_compared_with(tmp_path: Path) -> None:
    text = real_texts()[3]
    old = make_corpus(tmp_path / "old", [text, text.upper(), text + " again", real_texts()[4]], 2)
    new = make_corpus(tmp_path / "new", [text.lower(), text, real_texts()[5], real_texts()[4] + " new"], 2, "news")
    dedup([old], tmp_path / "first", DOCUMENTS)
    dedup([new], tmp_path / "second", DOCUMENTS, against=[tmp_path / "first"])
    first = {row["id"]: row["text"] for row in kept(tmp_path / "first").values()}
    gone = dropped(tmp_path / "second")
    assert sorted(gone) == ["00000", "00001", "00003"]
    assert all(row["detail"].rsplit(" ", 1)[1] in first for row in gone.values())
    survives = next(value for value in first.values() if value != real_texts()[4])
    reason = "near_duplicate" if survives.endswith("again") else "exact_duplicate"
    assert {gone[origin]["reason"] for origin in ("00000", "00001")} == {reason}


def test_any_number_of_buckets_gives_the_same_bucket() -> None:
    from qianyi.corpus.buckets import bucket_of

    hashes = np.random.default_rng(0).integers(0, 2**64, 5000, np.uint64)
    for there, n in ((1, 7), (7, 1), (3, 8), (8, 3), (5, 5), (64, 9)):
        of_there, of_n = bucket_of(hashes, there), bucket_of(hashes, n)
        for bucket in range(n):
            assert set(of_there[of_n == bucket].tolist()) <= set(_overlapping(bucket, n, there))
        assert sum(len(_overlapping(bucket, n, there)) for bucket in range(n)) <= there + n - 1


def test_paragraphs_that_stood_before_are_cut(tmp_path: Path) -> None:
    line = {i: text.replace("\n", " ")[:400] for i, text in enumerate(real_texts())}
    texts = [
        f"{line[0]}\n\nshort\n{line[41]}",
        f"{line[1]}\r\nshort\n{line[41]}\n{line[0]}",
        f"{line[2]}\n{line[2].upper()}!\n",
        line[0],
    ]
    settings = DedupSettings(exact=False, near=False, paragraphs="exact", substring_bytes=0)
    manifest = dedup([make_corpus(tmp_path / "in", texts, 2)], tmp_path / "out", settings)
    assert [row["text"] for row in kept(tmp_path / "out").values()] == [texts[0], f"{line[1]}\r\nshort\n", f"{line[2]}\n"]
    assert {origin: row["reason"] for origin, row in dropped(tmp_path / "out").items()} == {"00003": "only_repeats"}
    assert manifest["counts"]["bytes_of_repeated_lines"] == sum(len(text.encode()) for text in texts) - manifest["bytes"]


def test_similar_paragraphs_are_cut_where_wanted(tmp_path: Path) -> None:
    source = random.Random(5)
    first, second = real_texts()[5].replace("\n", " ")[:1500], "".join(real_texts()[45:48]).replace("\n", "")[:900]
    texts = [f"{first}\n{second}", f"another beginning\n{noisy(first, 0.005, source)}\n{noisy(second, 0.004, source)}"]
    assert first not in texts[1]
    assert second not in texts[1]
    corpus = make_corpus(tmp_path / "in", texts)
    for paragraphs, left in (("exact", texts[1]), ("near", "another beginning\n")):
        settings = DedupSettings.model_validate({"exact": False, "near": False, "paragraphs": paragraphs, "substring_bytes": 0})
        dedup([corpus], tmp_path / paragraphs, settings)
        assert [row["text"] for row in kept(tmp_path / paragraphs).values()] == [texts[0], left]


def test_survivors_are_those_of_a_plain_search() -> None:
    source = np.random.default_rng(1)
    a, b = (source.integers(0, 400, 300).astype(np.uint64) for _ in range(2))
    group = {int(x): {int(x)} for x in (*a, *b)}
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        union = group[x] | group[y]
        for member in union:
            group[member] = union
    found = clusters(a, b)
    n = len(found.refs)
    assert [int(found.refs[root]) for root in found.roots] == [min(group[int(ref)]) for ref in found.refs]
    quality = source.integers(0, 3, n).astype(float)
    quality[quality == 0] = np.nan
    ids = np.array([f"{x:032x}" for x in source.permutation(n)])
    ranks = Ranks(found.refs < 20, quality, ids)
    order = sorted(range(n), key=lambda m: (not ranks.stays[m], -np.nan_to_num(quality[m], nan=-1.0), ids[m]))
    assert ranks.order.tolist() == order
    codes = source.choice(source.integers(0, 2**64, (3, 1), np.uint64), n)
    equals = np.arange(n)
    equals[found.refs % 7 == 0] = found.roots[found.refs % 7 == 0]
    codes = codes[equals]
    pairs = found.pairs
    assert all((found.refs[places] == refs).all() for places, refs in zip(pairs, (a, b), strict=True))
    chosen, alive = np.full(n, -1), list[int]()
    for rank, i in enumerate(order):
        same = [j for j in order[:rank] if equals[j] == equals[i]]
        like = [j for j in alive if found.roots[j] == found.roots[i] and codes[j] == codes[i]]
        chosen[i] = i if ranks.stays[i] else chosen[same[0]] if same else like[0] if like else i
        if chosen[i] == i:
            alive.append(i)
    how = Sketched(codes, 32, 0.9)
    assert survivors(found.roots, equals, pairs, how, ranks.stays, ranks.order).tolist() == chosen.tolist()
    few = survivors(found.roots, equals, pairs, replace(how, most=1), ranks.stays, ranks.order)
    assert len(alive) < (few == np.arange(n)).sum() < n
    paired = {(equals[x], equals[y]) for x, y in zip(*pairs, strict=True)}
    beyond = 0
    for i in np.flatnonzero(few != np.arange(n)):  # what is not compared may still be a pair
        j = few[i]
        assert few[j] == j
        is_paired = bool({(equals[i], equals[j]), (equals[j], equals[i])} & paired)
        beyond += is_paired and codes[i] != codes[j]
        assert codes[i] == codes[j] or is_paired
    assert beyond > 0


def test_large_groups_are_compared_with_the_first_and_the_one_before() -> None:
    keys = np.repeat(np.array([5, 9, 3], np.uint64), [4, 30, 1])
    refs = np.random.default_rng(3).permutation(35).astype(np.uint64)
    rows, bounds = groups(keys, refs)
    assert bounds.tolist() == [0, 4, 34]
    assert refs[rows].tolist() == sorted(refs[:4].tolist()) + sorted(refs[4:34].tolist())
    code = pa.array([b"\0" * 8] * 35, pa.binary(8))
    found, candidates = similar_pairs(pa.table({"key": keys, "ref": refs, "code": code}), 32, 0.9)
    chain = sorted(refs[4:34].tolist())
    wanted = {(x, y) for x in refs[:4].tolist() for y in refs[:4].tolist() if x < y}
    wanted |= {(chain[0], y) for y in chain[1:]} | set(itertools.pairwise(chain))
    assert set(zip(found["a"].to_pylist(), found["b"].to_pylist(), strict=True)) == wanted
    assert candidates == len(wanted)
    assert len(first_of_each(refs[:2].repeat(2), refs[:2].repeat(2))) == 0


def test_the_sample_lists_all_pairs_and_weighs_them(tmp_path: Path) -> None:
    texts = with_copies()
    how = Sketching()
    spans, refs = spans_of(pa.array(texts)), np.arange(len(texts), dtype=np.uint64)
    every = sample.sample_table(spans, sketch(spans, how), refs, how.ngram, 1.0)
    bounds = np.append(0, np.cumsum([len(s) for s in every["shingles"].to_pylist()]))
    found = sample.exact_pairs(every["shingles"].combine_chunks().flatten().to_numpy(), bounds)
    sets = shingle_sets(texts)
    rows = every["ref"].to_pylist()
    plain = {
        (i, j): len(sets[rows[i]] & sets[rows[j]]) / len(sets[rows[i]] | sets[rows[j]])
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
    }
    assert dict(zip(zip(found.a.tolist(), found.b.tolist(), strict=True), found.jaccard.tolist(), strict=True)) == pytest.approx(
        {pair: value for pair, value in plain.items() if value >= 0.3}
    )
    totals: list[float] = []
    for seed in range(60):  # the weighted number of pairs of samples is that of all
        draws = sketch(spans, Sketching(seed=seed)).draws
        inside = draws[rows] <= sample.bound(0.3)
        totals.append(
            sum(
                1 / (0.3 * (j + 0.3 * (1 - j)))
                for a, b, j in zip(found.a, found.b, found.jaccard, strict=True)
                if inside[a] and inside[b]
            )
        )
    assert np.mean(totals) == pytest.approx(len(found.a), rel=0.2)


def test_shingles_of_the_sample_are_distinct_grams() -> None:
    text = real_texts()[0]
    spans = spans_of(pa.array(["x", text]))
    data = np.frombuffer(text.encode(), np.uint8)
    tokens, out = np.empty(len(data), np.uint64), np.empty(len(data), np.uint64)
    count = walk(data, 0, len(data), fold_table(), tokens, np.empty(len(data), np.int64), np.empty(len(data), np.int64))
    assert sample.shingles(spans, 1, 5).tolist() == sorted(set(out[: grams(tokens, count, 5, out)].tolist()))


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "in", real_texts()[:6])
    dedup([corpus], tmp_path / "old", DOCUMENTS)
    new = make_corpus(tmp_path / "new", real_texts()[6:9], name="news")
    with pytest.raises(DataError, match=r"old: has no line_keys: deduplicate it with this sub-stage, or turn"):
        dedup([new], tmp_path / "x", DedupSettings(substring_bytes=0), against=[tmp_path / "old"])
    other = DOCUMENTS.model_copy(update={"sketching": Sketching(bands=7)})
    with pytest.raises(DataError, match=r"document_keys: made with sketching .*14.*, here it is .*7.*: keys of other settings"):
        dedup([new], tmp_path / "y", other, against=[tmp_path / "old"])
    with pytest.raises(DataError, match=r"nowhere: not a corpus directory"):
        dedup([tmp_path / "nowhere"], tmp_path / "z")
    with pytest.raises(ValueError, match="every sub-stage is off"):
        DedupSettings(exact=False, near=False, paragraphs="off", substring_bytes=0)
    with pytest.raises(ValueError, match="at least 64"):
        DedupSettings(substring_bytes=10)
