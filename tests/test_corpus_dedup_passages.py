"""Passages that stood before are cut, nearly all are found, and nothing else goes."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from dedup_corpora import make_corpus, real_texts
from test_corpus_dedup import kept

from qianyi.corpus.dedup import keys
from qianyi.corpus.dedup.keys import spans_of
from qianyi.corpus.dedup.settings import DedupSettings
from qianyi.corpus.dedup.spans import cut, merged
from qianyi.corpus.dedup.stage import dedup
from qianyi.corpus.kernels.substring import SPREAD


def repeated_bytes(texts: list[bytes], n: int) -> list[np.ndarray]:
    """Which bytes lie in n bytes that stood before, in an earlier text or earlier in the same one without overlap."""
    seen: dict[bytes, tuple[int, int]] = {}
    marks = [np.zeros(len(text), np.bool_) for text in texts]
    for row, text in enumerate(texts):
        for place in range(len(text) - n + 1):
            window = text[place : place + n]
            first = seen.setdefault(window, (row, place))
            if first != (row, place):
                start = max(place, first[1] + n) if first[0] == row else place
                marks[row][start : place + n] = True
    return marks


def test_substrings_that_are_cut_stood_before_and_nearly_all_are_found(tmp_path: Path) -> None:
    n = 120
    source = random.Random(6)
    texts = [text[:3000] for text in real_texts()[::3]]
    for i in range(len(texts)):  # each takes a stretch from another, English or Chinese
        other, at = source.choice(texts), source.randrange(500)
        texts[i] = texts[i][: 900 + i] + other[at : at + source.randrange(30, 500)] + texts[i][900 + i :]
    texts += ["ab" * 500, "one " + "=" * 700]
    settings = DedupSettings(exact=False, near=False, paragraphs="off", substring_bytes=n)
    manifest = dedup([make_corpus(tmp_path / "in", texts, 5)], tmp_path / "out", settings)
    marks = repeated_bytes([text.encode() for text in texts], n)
    cuts = 0
    for origin, row in kept(tmp_path / "out").items():
        before, after, repeated = texts[int(origin)].encode(), row["text"].encode(), marks[int(origin)]
        assert row["stat_cut_bytes"] == len(before) - len(after) <= repeated.sum()
        assert is_without(before, after, repeated)
        cuts += row["stat_cut_bytes"]
    assert manifest["counts"]["bytes_of_repeated_substrings"] == cuts
    possible = sum(int(mark.sum()) for mark in marks)
    runs = sum(int((np.diff(mark.astype(int), prepend=0) == 1).sum()) for mark in marks)
    assert possible - 2 * (SPREAD + 12) * runs - n * 3 < cuts < possible  # less is lost at the ends of each run


def test_long_texts_have_the_windows_of_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["".join(real_texts()[:20]), "short", "", "".join(real_texts()[60:]), real_texts()[3], "=" * 5000]
    spans, refs = spans_of(pa.array(texts)), np.arange(len(texts), dtype=np.uint64) * 3
    order = [("ref", "ascending"), ("place", "ascending")]
    whole = keys.window_table(spans, refs, 100).sort_by(order)
    assert len(whole) > 1000
    for size in (200, 1000, 4096, 50_000):
        monkeypatch.setattr(keys, "PIECE_BYTES", size)
        assert keys.window_table(spans, refs, 100).sort_by(order).equals(whole), size


def is_without(before: bytes, after: bytes, may_go: np.ndarray) -> bool:
    """Whether `after` is `before` without some of the bytes that may go."""
    reachable = {0}  # places of `after` that the text so far may have come to
    for i, byte in enumerate(before):
        reachable = {k + 1 for k in reachable if k < len(after) and after[k] == byte} | (reachable if may_go[i] else set())
        if not reachable:
            return False
    return len(after) in reachable


def test_cut_takes_whole_characters_and_words() -> None:
    texts = pa.array(["before and after it", "甲乙丙丁", "", "keep"])
    spans = (np.array([0, 1]), np.array([2, 1]), np.array([13, 8]))
    assert cut(texts, *spans, whole_words=False).to_pylist() == ["beter it", "甲丙丁", "", "keep"]
    assert cut(texts, *spans, whole_words=True).to_pylist() == ["before after it", "甲丙丁", "", "keep"]
    assert cut(texts.slice(1, 2), np.array([0]), np.array([0]), np.array([12]), whole_words=True).to_pylist() == ["", ""]
    refs, begins, ends = merged(np.array([1, 0, 0, 0], np.uint64), np.array([0, 9, 0, 4]), np.array([5, 12, 4, 6]))
    assert (refs.tolist(), begins.tolist(), ends.tolist()) == ([0, 0, 1], [0, 9, 0], [6, 12, 5])
