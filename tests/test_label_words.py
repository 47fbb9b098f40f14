"""Word vectors are the paper's gradient descent, find words that belong together, and make a map of topics."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qianyi.corpus.document import document_batch
from qianyi.corpus.parts import Options, run_parts
from qianyi.data import builtin
from qianyi.data.stage import Json
from qianyi.errors import DataError
from qianyi.label import word2vec
from qianyi.label.topics import outlier_scores, topic_map
from qianyi.label.units import units_of
from qianyi.label.vocabulary import count_units, make_vocabulary
from qianyi.label.word2vec import WordVectors, load_vectors, train_vectors
from qianyi.label.word_tests import analogy_score, similarity_score

MASK = (1 << 64) - 1


class Lots:
    """The generator of the kernel (Knuth's multiplier)."""

    def __init__(self, state: int) -> None:
        self.state = state

    def draw(self) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) & MASK
        return self.state


def plain_pass(table, context, texts: list[list[int]], keep, noise, window: int, negative: int, rate: float, state: int) -> None:
    """One pass of skip-gram with negative sampling, a pair at a time."""
    lots = Lots(state)
    for text in texts:
        words = [w for w in text if (lots.draw() >> 40) / 2**24 < keep[w]]
        for i, centre in enumerate(words):
            reach = 1 + (lots.draw() >> 33) % window
            for j in range(max(0, i - reach), min(len(words), i + reach + 1)):
                if j == i:
                    continue
                change = np.zeros(table.shape[1])
                for draw in range(negative + 1):
                    target = centre if draw == 0 else int(noise[(lots.draw() >> 33) & (len(noise) - 1)])
                    if draw and target == centre:
                        continue
                    pull = rate * ((draw == 0) - 1 / (1 + np.exp(-table[words[j]] @ context[target])))
                    change += pull * context[target]
                    context[target] += pull * table[words[j]]
                table[words[j]] += change


def sanguo(n: int | None = None) -> pa.Array:
    return pa.array([text for _, text in builtin.documents("builtin:sanguo")][:n])


def test_a_pass_is_that_of_the_plain_reference() -> None:
    units = units_of(sanguo(4))
    vocabulary = count_units(units.hashes, 2)
    rows, offsets = vocabulary.known(units)
    random = np.random.default_rng(0)
    table, context = (random.normal(0, 0.3, (len(vocabulary), 8)).astype(np.float32) for _ in range(2))
    keep = random.uniform(0.3, 1, len(vocabulary)).astype(np.float32)
    noise = random.integers(0, len(vocabulary), 64).astype(np.int32)
    expected = table.astype(np.float64), context.astype(np.float64)
    texts = [rows[a:b].tolist() for a, b in pairwise(offsets)]
    plain_pass(*expected, texts, keep, noise, 3, 2, 0.1, 12345)
    before = table.copy()
    word2vec._skip_gram(table, context, rows, offsets, 0, 4, keep, noise, 3, 2, 0.1, 12345)
    assert np.abs(table - before).max() > 0.1
    np.testing.assert_allclose(table, expected[0], atol=1e-4)
    np.testing.assert_allclose(context, expected[1], atol=1e-4)


def test_negatives_are_drawn_by_the_power_of_their_counts() -> None:
    counts = np.array([1000, 100, 10, 1])
    share = np.bincount(word2vec._noise_table(counts), minlength=4) / word2vec.NOISE_SIZE
    np.testing.assert_allclose(share, counts**0.75 / (counts**0.75).sum(), atol=1e-6)
    offsets = np.cumsum([0, 5, 0, 90, 5, 100])
    assert word2vec._equal_parts(offsets, 2) == [0, 4, 5]
    assert word2vec._equal_parts(offsets, 1) == [0, 5]


def test_characters_of_one_kind_are_near(tmp_path: Path) -> None:
    vectors = train_vectors(sanguo(1500), width=24, threads=1)
    numbers = {word for word, _ in vectors.nearest("三", 6)}
    assert len(numbers & set("一二四五六七八九十百千数")) >= 3
    vectors.save(tmp_path / "vectors.npz")
    again = load_vectors(tmp_path / "vectors.npz")
    assert again.words == vectors.words
    assert again.nearest("三", 6) == vectors.nearest("三", 6)
    with pytest.raises(DataError, match="`Q` is not among"):
        vectors.nearest("Q")
    with pytest.raises(DataError, match="no word vectors can be read"):
        load_vectors(tmp_path / "none.npz")
    with pytest.raises(DataError, match="no word occurs 5 times in 1 texts"):
        train_vectors(pa.array(["a b"]))


def test_threads_learn_what_one_learns() -> None:
    one, two = (train_vectors(sanguo(600), width=16, epochs=2, threads=n).directions for n in (1, 2))
    a, b = (v[:300] @ v[:300].T for v in (one, two))
    above = np.triu_indices(300, 1)
    assert np.corrcoef(a[above], b[above])[0, 1] > 0.8


def test_scores_of_known_vectors(tmp_path: Path) -> None:
    words = ("king", "queen", "man", "woman", "apple")
    table = np.array([[1, 1, 0], [1, -1, 0], [0, 1, 0.1], [0, -1, 0.1], [0, 0, 1]], np.float32)
    vectors = WordVectors(words, make_vocabulary(np.arange(5, dtype=np.uint64), np.ones(5, np.int64)), table)
    (tmp_path / "q.txt").write_text(
        ": family\nman king woman queen\nKing man queen woman\nman king woman apple\nman king woman prince\n"
    )
    score = analogy_score(vectors, tmp_path / "q.txt")
    assert (score.questions, score.of) == (3, 4)
    assert score.value == pytest.approx(2 / 3)
    (tmp_path / "s.tsv").write_text(
        "# words\nWord 1\tWord 2\tHuman\nking\tqueen\t5\nking\tman\t9.5\nman\twoman\t0.1\nking\tprince\t7\n"
    )
    score = similarity_score(vectors, tmp_path / "s.tsv")
    assert (score.value, score.questions, score.of) == (pytest.approx(1), 3, 4)
    with pytest.raises(DataError, match="cannot be read"):
        analogy_score(vectors, tmp_path / "none")


def write_plays(unit: Json, settings: Json, writer) -> None:
    del unit, settings
    for name in ("shakespeare", "sanguo"):
        rows = list(builtin.documents(f"builtin:{name}"))[:150]
        writer.keep(document_batch(name, [origin for origin, _ in rows], [text for _, text in rows]))


def test_a_map_keeps_two_books_apart(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / "corpus"
    run_parts(out, "test", {}, [{}], write_plays, [], Options())
    found = topic_map(out, n_points=300, n_clusters=4)
    points, clusters = found["points"], found["clusters"]
    assert len(points) == 300
    assert sum(c["n"] for c in clusters) == 300
    assert all(0 <= p[axis] <= 1 for p in points for axis in "xy")
    of_cluster = [{p["source"] for p in points if p["cluster"] == c} for c in range(4)]
    assert max(map(len, of_cluster)) == 1
    chinese = [c["words"] for c, sources in zip(clusters, of_cluster, strict=True) if sources == {"sanguo"}]
    assert any(len(word) > 1 for words in chinese for word in words)
    assert json.loads((out / "topics.json").read_text()) == found
    assert topic_map(out, n_points=300, n_clusters=4) == found
    assert len(topic_map(out, n_points=50, n_clusters=4)["points"]) == 50


def test_what_is_like_nothing_else_is_strange() -> None:
    random = np.random.default_rng(0)
    vectors = np.concatenate([[[0, 0, 1]], [1, 0, 0] + 0.1 * random.normal(size=(50, 3))]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = outlier_scores(vectors, 5)
    assert scores.argmax() == 0
    cosine = np.sort(vectors @ vectors.T - 3 * np.eye(51), axis=1)[:, -5:]
    np.testing.assert_allclose(scores, 1 - cosine.mean(axis=1), atol=1e-6)
