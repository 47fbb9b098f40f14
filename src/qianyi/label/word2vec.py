"""Word embeddings: skip-gram with negative sampling.

Mikolov, Sutskever, Chen, Corrado & Dean 2013, "Distributed Representations of Words and Phrases and their Compositionality": section 2.2
negative sampling, 2.3 subsampling of frequent words, 4 phrases (which make words of Chinese characters).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qianyi.errors import DataError
from qianyi.label.kernels import fast_kernel, kernel
from qianyi.label.units import Offsets, Units, spanned_units
from qianyi.label.vocabulary import Rows, Vocabulary, count_units, make_vocabulary

Floats = NDArray[np.float32]
NOISE_SIZE = 1 << 22
"""Entries of the table from which negatives are drawn."""
TEXTS_AT_ONCE = 1 << 14
SPLITS = 32
"""Pieces of an epoch, between which the rate falls; threads share each piece."""


@dataclass(frozen=True)
class WordVectors:
    """A table of words."""

    words: tuple[str, ...]
    vocabulary: Vocabulary
    vectors: Floats
    """[words, width]."""

    def rows(self, words: list[str]) -> list[int]:
        """Of words, -1 for those that are not in it."""
        return [self.index.get(word, -1) for word in words]

    @cached_property
    def index(self) -> dict[str, int]:
        """Row of each word."""
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def directions(self) -> Floats:
        """The vectors, of length one."""
        return self.vectors / np.maximum(np.linalg.norm(self.vectors, axis=1, keepdims=True), 1e-9)

    def nearest(self, word: str, n: int = 10) -> list[tuple[str, float]]:
        """The words of largest cosine, and the cosine.

        Raises:
            DataError: the word is not in it.
        """
        (row,) = self.rows([word])
        if row < 0:
            raise DataError(f"`{word}` is not among the {len(self.words):,} words that occur often enough")
        cosine = self.directions @ self.directions[row]
        cosine[row] = -1
        best = np.argsort(-cosine)[:n]
        return [(self.words[i], float(cosine[i])) for i in best]

    def save(self, path: Path) -> None:
        words = np.array(self.words)
        np.savez(path, words=words, hashes=self.vocabulary.hashes, counts=self.vocabulary.counts, vectors=self.vectors)


def load_vectors(path: Path) -> WordVectors:
    """What `save` wrote.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with np.load(path) as file:
            vocabulary = make_vocabulary(file["hashes"], file["counts"])
            return WordVectors(tuple(file["words"].tolist()), vocabulary, file["vectors"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: no word vectors can be read here: {error}; train them again") from None


def train_vectors(
    texts: pa.Array,
    *,
    width: int = 100,
    window: int = 5,
    negative: int = 5,
    epochs: int = 5,
    rate: float = 0.025,
    sample: float = 1e-3,
    min_count: int = 5,
    limit: int = 200_000,
    threads: int | None = None,
    seed: int = 0,
) -> WordVectors:
    """Skip-gram vectors of the words of some texts.

    Threads write to one table without locks (Niu, Recht, Ré & Wright 2011), so only one thread gives the same numbers twice.

    Args:
        window: the largest distance of a word and its context; each pair of a centre draws its own.
        sample: words of a larger share of the corpus are left out at random.
        threads: None: as many as this process may use cores.

    Raises:
        DataError: no word occurs `min_count` times.
    """
    units, spans, data = spanned_units(texts)
    vocabulary = count_units(units.hashes, min_count, limit)
    if not len(vocabulary):
        raise DataError(f"no word occurs {min_count} times in {len(texts):,} texts: give more text or a smaller min_count")
    words = word_strings(units, vocabulary, spans.starts, spans.stops, data)
    rows, offsets = vocabulary.known(units)
    vectors = _train(rows, offsets, vocabulary, width, window, negative, epochs, rate, sample, threads, seed)
    return WordVectors(words, vocabulary, vectors)


def vectors_of_rows(units: Units, vocabulary: Vocabulary, width: int, *, epochs: int = 3, seed: int = 0) -> Floats:
    """[rows, width], of the rows of a vocabulary from the texts that it was counted in; one thread, the same each time."""
    rows, offsets = vocabulary.known(units)
    return _train(rows, offsets, vocabulary, width, 5, 5, epochs, 0.025, 1e-3, 1, seed)


def word_strings(
    units: Units, vocabulary: Vocabulary, starts: Offsets, stops: Offsets, data: NDArray[np.uint8]
) -> tuple[str, ...]:
    """The letters of each row of a vocabulary, from where it first occurs."""
    first = np.full(len(vocabulary), -1, np.int64)
    _first(vocabulary.rows(units.hashes), first)
    return tuple(data[starts[i] : stops[i]].tobytes().decode() for i in first.tolist())


def _train(
    rows: Rows,
    offsets: Offsets,
    vocabulary: Vocabulary,
    width: int,
    window: int,
    negative: int,
    epochs: int,
    rate: float,
    sample: float,
    threads: int | None,
    seed: int,
) -> Floats:
    random = np.random.default_rng(seed)
    table = ((random.random((len(vocabulary), width)) - 0.5) / width).astype(np.float32)
    context = np.zeros_like(table)
    share = vocabulary.counts / max(int(vocabulary.counts.sum()), 1)
    keep = np.minimum(1, np.sqrt(sample / share) + sample / share).astype(np.float32)
    noise = _noise_table(vocabulary.counts)
    n_threads = threads or len(os.sched_getaffinity(0))
    bounds = _equal_parts(offsets, SPLITS * n_threads)
    steps = epochs * SPLITS
    with ThreadPoolExecutor(n_threads) as pool:
        for step in range(steps):
            now = rate * max(1 - step / steps, 1e-4)
            first = step % SPLITS * n_threads
            jobs: list[Any] = []
            for thread in range(n_threads):
                span = bounds[first + thread], bounds[first + thread + 1]
                state = int(random.integers(1, 1 << 62))
                jobs.append(
                    pool.submit(_skip_gram, table, context, rows, offsets, *span, keep, noise, window, negative, now, state)
                )
            for job in jobs:
                job.result()
    return table


def _noise_table(counts: NDArray[np.int64]) -> Rows:
    """Rows as often as the 3/4 power of their counts (section 2.2)."""
    share = np.cumsum(counts**0.75)
    return np.searchsorted(share, (np.arange(NOISE_SIZE) + 0.5) / NOISE_SIZE * share[-1]).astype(np.int32)


def _equal_parts(offsets: Offsets, n: int) -> list[int]:
    """n + 1 texts that cut them into parts of about as many words."""
    cuts = np.searchsorted(offsets, np.linspace(0, offsets[-1], n + 1)[1:-1])
    return [0, *(int(c) for c in cuts), len(offsets) - 1]


@kernel
def _first(rows: Rows, first: Offsets) -> None:
    for i in range(len(rows)):
        if rows[i] >= 0 and first[rows[i]] < 0:
            first[rows[i]] = i


@fast_kernel
def _learn_pair(
    table: Floats,
    context: Floats,
    word: int,
    centre: int,
    noise: Rows,
    negative: int,
    step: Any,
    change: Floats,
    random: Any,
) -> Any:
    """One step for a word and the word in whose context it is, and the generator's next state."""
    change[:] = 0
    for draw in range(negative + 1):
        target, label = centre, np.float32(1)
        if draw > 0:
            random = random * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            target, label = noise[(random >> np.uint64(33)) & np.uint64(len(noise) - 1)], np.float32(0)
            if target == centre:
                continue
        score = np.float32(0)
        for k in range(table.shape[1]):
            score += table[word, k] * context[target, k]
        pull = (label - np.float32(1) / (np.float32(1) + np.exp(-score))) * step
        for k in range(table.shape[1]):
            change[k] += pull * context[target, k]
            context[target, k] += pull * table[word, k]
    for k in range(table.shape[1]):
        table[word, k] += change[k]
    return random


@fast_kernel
def _skip_gram(
    table: Floats,
    context: Floats,
    rows: Rows,
    offsets: Offsets,
    first_text: int,
    last_text: int,
    keep: Floats,
    noise: Rows,
    window: int,
    negative: int,
    rate: float,
    state: int,
) -> None:
    """One pass over texts first_text .. last_text - 1."""
    width = table.shape[1]
    change = np.empty(width, np.float32)
    step = np.float32(rate)
    random = np.uint64(state)
    longest = 0
    for text in range(first_text, last_text):
        longest = max(longest, offsets[text + 1] - offsets[text])
    sentence = np.empty(longest, np.int32)
    for text in range(first_text, last_text):
        n = 0
        for i in range(offsets[text], offsets[text + 1]):
            random = random * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            if np.float32(random >> np.uint64(40)) * np.float32(2**-24) < keep[rows[i]]:
                sentence[n] = rows[i]
                n += 1
        for i in range(n):
            random = random * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            reach = 1 + np.int64(random >> np.uint64(33)) % window
            centre = sentence[i]
            for j in range(max(0, i - reach), min(n, i + reach + 1)):
                if j == i:
                    continue
                random = _learn_pair(table, context, sentence[j], centre, noise, negative, step, change, random)
