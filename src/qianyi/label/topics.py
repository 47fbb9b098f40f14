"""What a corpus is about: documents on a plane, clusters with their words, and documents that are like no others.

A document's vector is the mean of its words' vectors, common words counting less, with the direction that all have in common taken out
(Arora, Liang & Ma 2017, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings").
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qianyi.corpus.document import corpus_manifest, read_parts
from qianyi.data.stage import Json, write_json
from qianyi.errors import DataError, ResourceError
from qianyi.label.kernels import fast_kernel
from qianyi.label.phrases import learn_joiner
from qianyi.label.units import Offsets
from qianyi.label.vocabulary import Rows, count_units
from qianyi.label.word2vec import Floats, vectors_of_rows, word_strings

TOPICS = "topics.json"
COMMON = 1e-3
"""The constant a of the paper, section 3: a word of this share of the corpus counts half."""
TOP_WORDS = 10
EVERYWHERE = 0.2
"""A word in a larger share of texts than this says nothing of a cluster."""
OUTLIER_NEIGHBOURS = 10
TSNE_POINTS = 5000
"""More points are laid out by their two principal components alone."""
WIDTH = 64


@dataclass(frozen=True)
class Sample:
    """Documents of a corpus, evenly taken."""

    ids: list[str]
    sources: list[str]
    texts: pa.Array


def topic_map(directory: Path, n_points: int = 2000, n_clusters: int = 12, seed: int = 0) -> Json:
    """Maps a corpus directory, and keeps the map in DIR/topics.json; made again only when the corpus or these numbers change.

    Returns:
        `points`: id, source, x, y (0 to 1), cluster, outlier (mean cosine distance to the nearest documents), title (the text's beginning);
        `clusters`: words, n; `outliers`: ids, the strangest first.

    Raises:
        DataError: the corpus has too few documents or words.
        ResourceError: scikit-learn is not installed.
    """
    made_of = {"files": corpus_manifest(directory)["files"], "points": n_points, "clusters": n_clusters, "seed": seed}
    path = directory / TOPICS
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["made_of"] == made_of:
            return found
    sample = _sample(directory, n_points)
    found = {"made_of": made_of, **map_texts(sample, n_clusters, seed)}
    write_json(path, found)
    return found


def map_texts(sample: Sample, n_clusters: int, seed: int = 0) -> Json:
    """As `topic_map`, of these texts."""
    cluster, decompose, manifold = _scikit_learn()
    words, vectors, rows, offsets, counts = _document_vectors(sample.texts, seed)
    n_clusters = min(n_clusters, len(vectors) // 2)
    found: Any = cluster.KMeans(n_clusters, n_init=4, random_state=seed).fit(vectors)
    plane = decompose.PCA(2, random_state=seed).fit_transform(vectors)
    if len(vectors) <= TSNE_POINTS:
        start = plane / max(float(plane[:, 0].std()), 1e-9) * 1e-4
        plane = manifold.TSNE(2, init=start, perplexity=min(30, (len(vectors) - 1) / 3), random_state=seed).fit_transform(vectors)
    plane = (plane - plane.min(axis=0)) / np.maximum(np.ptp(plane, axis=0), 1e-9)
    strange = outlier_scores(vectors)
    points = [
        {
            "id": sample.ids[i],
            "source": sample.sources[i],
            "x": round(float(plane[i, 0]), 4),
            "y": round(float(plane[i, 1]), 4),
            "cluster": int(found.labels_[i]),
            "outlier": round(float(strange[i]), 4),
            "title": sample.texts[i].as_py()[:80],
        }
        for i in range(len(vectors))
    ]
    clusters = [
        {"words": [words[w] for w in _top_words(rows, offsets, counts, found.labels_ == c)], "n": int((found.labels_ == c).sum())}
        for c in range(n_clusters)
    ]
    return {"points": points, "clusters": clusters, "outliers": [sample.ids[i] for i in np.argsort(-strange, kind="stable")[:50]]}


def outlier_scores(vectors: Floats, neighbours: int = OUTLIER_NEIGHBOURS) -> Floats:
    """Mean cosine distance of each of the unit vectors [n, width] to its nearest others (Ramaswamy, Rastogi & Shim 2000)."""
    scores = np.empty(len(vectors), np.float32)
    k = min(neighbours, len(vectors) - 1)
    for first in range(0, len(vectors), 1024):
        cosine = vectors[first : first + 1024] @ vectors.T
        cosine[np.arange(len(cosine)), first + np.arange(len(cosine))] = -2
        scores[first : first + 1024] = 1 - np.partition(cosine, -k, axis=1)[:, -k:].mean(axis=1)
    return scores


def _document_vectors(texts: pa.Array, seed: int) -> tuple[tuple[str, ...], Floats, Rows, Offsets, NDArray[np.int64]]:
    """Words, unit vectors [texts, width], the known words of each text by row, where those of each text begin, and counts of words."""
    units, spans, data = learn_joiner(texts).words(texts)
    vocabulary = count_units(units.hashes, 3)
    if len(texts) < 4 or len(vocabulary) < 4:
        raise DataError(
            f"{len(texts)} documents with {len(vocabulary)} words that occur three times are too few for a map of topics"
        )
    words = word_strings(units, vocabulary, spans.starts, spans.stops, data)
    table = vectors_of_rows(units, vocabulary, WIDTH, seed=seed)
    rows, offsets = vocabulary.known(units)
    share = vocabulary.counts / vocabulary.counts.sum()
    weighted = table * (COMMON / (COMMON + share))[:, None].astype(np.float32)
    vectors = np.zeros((len(texts), WIDTH), np.float32)
    _sums(weighted, rows, offsets, vectors)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    common = np.linalg.svd(vectors.T @ vectors)[0][:, :1]
    vectors -= vectors @ common @ common.T
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return words, vectors, rows, offsets, vocabulary.counts


def _top_words(rows: Rows, offsets: Offsets, counts: NDArray[np.int64], inside: NDArray[np.bool_]) -> list[int]:
    """Words that say most that a text is inside, by their part of the divergence between the words inside and all words; not those that
    are in a large share of all texts."""
    here = np.bincount(rows[np.repeat(inside, np.diff(offsets))], minlength=len(counts))
    p = here / max(int(here.sum()), 1)
    gain = p * np.log(np.maximum(p, 1e-12) / (counts / counts.sum()))
    gain[_texts_with(rows, offsets, len(counts)) > EVERYWHERE * len(inside)] = -np.inf
    return np.argsort(-gain, kind="stable")[:TOP_WORDS].tolist()


def _texts_with(rows: Rows, offsets: Offsets, n_rows: int) -> NDArray[np.int64]:
    """How many texts have each word."""
    text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.bincount(np.unique(text * np.int64(n_rows) + rows) % n_rows, minlength=n_rows)


@fast_kernel
def _sums(table: Floats, rows: Rows, offsets: Offsets, out: Floats) -> None:
    for text in range(len(offsets) - 1):
        for i in range(offsets[text], offsets[text + 1]):
            for k in range(table.shape[1]):
                out[text, k] += table[rows[i], k]


def _sample(directory: Path, n: int) -> Sample:
    """Every so manieth document, n of them or a few less."""
    total = sum(entry["rows"] for entry in corpus_manifest(directory)["files"] if entry["file"].startswith("parts/"))
    every = max(-(-total // n), 1)
    ids, sources, texts, seen = list[str](), list[str](), list[str](), 0
    for batch in read_parts(directory, ["id", "source", "text"]):
        for row in batch.slice(min(-seen % every, batch.num_rows)).to_pylist()[::every]:
            ids.append(row["id"])
            sources.append(row["source"])
            texts.append(row["text"])
        seen += batch.num_rows
    return Sample(ids, sources, pa.array(texts, pa.string()))


def _scikit_learn() -> tuple[Any, Any, Any]:
    try:
        from sklearn import cluster, decomposition, manifold  # pyright: ignore  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ResourceError("a map of topics needs the package `scikit-learn`: pip install 'qianyi[label]'") from None
    return cluster, decomposition, manifold
