"""Skip-gram vectors of `qianyi.label.word2vec` beside gensim's on the same words: rate, analogies, similarities.

    python benchmarks/data_embeddings.py SETS_DIRECTORY --gensim DIRECTORY

`labelled_sets.py` says how SETS_DIRECTORY is filled. DIRECTORY is that of `pip install --target DIRECTORY --no-deps gensim==4.4.0
smart_open wrapt`; its test data are the questions. Both get the same words in the same order, the same sizes and as many threads.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from labelled_sets import SETS

from qianyi.label.units import spanned_units
from qianyi.label.vocabulary import make_vocabulary
from qianyi.label.word2vec import WordVectors, train_vectors
from qianyi.label.word_tests import analogy_score, similarity_score

SIZES = {"window": 5, "negative": 5, "epochs": 5, "sample": 1e-3, "min_count": 5}


def words_of(texts: list[str]) -> list[list[str]]:
    """The words of each text as strings, for gensim."""
    units, spans, data = spanned_units(pa.array(texts))
    words = [sys.intern(data[a:b].tobytes().decode()) for a, b in zip(spans.starts, spans.stops, strict=True)]
    return [words[a:b] for a, b in zip(units.offsets, units.offsets[1:], strict=False)]


def report(name: str, vectors: WordVectors, seconds: float, n_words: int, questions: Path) -> None:
    analogies = analogy_score(vectors, questions / "questions-words.txt")
    similar = [similarity_score(vectors, questions / file) for file in ("wordsim353.tsv", "simlex999.txt")]
    print(
        f"| {name} | {n_words * SIZES['epochs'] / seconds / 1e3:,.0f} | {seconds:.0f} | {analogies.value:.4f} ({analogies.questions:,}) | "
        + " | ".join(f"{s.value:.3f} ({s.questions})" for s in similar)
        + " |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gensim", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sets", default="movies,20news,r52")
    asked = parser.parse_args()
    texts = [text for name in asked.sets.split(",") for text, _ in SETS[name](asked.directory).train]
    sentences = words_of(texts)
    n_words = sum(map(len, sentences))
    questions = asked.gensim / "gensim" / "test" / "test_data"
    train_vectors(pa.array(texts[:2000]), epochs=1, threads=asked.threads)  # compiles
    print(f"{len(texts):,} texts, {n_words:,} words, {asked.threads} threads")
    print("| | thousand words/s | s | analogies | WordSim-353 | SimLex-999 |")
    for seed in range(asked.seeds):
        began = time.monotonic()
        ours = train_vectors(pa.array(texts), width=100, threads=asked.threads, seed=seed, **SIZES)
        report("qianyi", ours, time.monotonic() - began, n_words, questions)
        sys.path.insert(0, str(asked.gensim))
        from gensim.models import Word2Vec  # noqa: PLC0415

        began = time.monotonic()
        theirs = Word2Vec(sentences, vector_size=100, sg=1, workers=asked.threads, seed=seed + 1, **SIZES)
        seconds = time.monotonic() - began
        hashes, counts = np.arange(len(theirs.wv), dtype=np.uint64), np.ones(len(theirs.wv), np.int64)
        report(
            "gensim",
            WordVectors(tuple(theirs.wv.index_to_key), make_vocabulary(hashes, counts), theirs.wv.vectors),
            seconds,
            n_words,
            questions,
        )


if __name__ == "__main__":
    main()
