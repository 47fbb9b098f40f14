"""Classifiers of bags of n-grams: averaged embeddings (fastText), and TF-IDF with a support vector machine.

Joulin, Grave, Bojanowski & Mikolov 2017, "Bag of Tricks for Efficient Text Classification", section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qianyi.errors import ResourceError
from qianyi.label.kernels import fast_kernel
from qianyi.label.units import Units, grams, spanned_units, units_of
from qianyi.label.vocabulary import Vocabulary, count_units, make_vocabulary

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]
Arrays = dict[str, NDArray[Any]]
ORDER = 2
"""Units and pairs of units; of Chinese, whose units are characters, TF-IDF also counts three in a row."""
TEMPERATURE = 0.25
"""Margins of a support vector machine are divided by this before they are made probabilities: a choice, not fitted. Labels do not
depend on it, and a network that is added to them has them weighed."""


@dataclass(frozen=True)
class FastText:
    """Mean of the embeddings of units and pairs, then one linear layer."""

    labels: tuple[str, ...]
    vocabulary: Vocabulary
    table: Floats
    """[rows, width]."""
    output: Floats
    """[labels, width]."""

    def log_probabilities(self, texts: pa.Array) -> Floats:
        """[texts, labels]."""
        rows, offsets = self.vocabulary.known(grams(units_of(texts), ORDER))
        hidden = np.zeros((len(texts), self.table.shape[1]), np.float32)
        _means(self.table, rows, offsets, hidden)
        return log_softmax(hidden @ self.output.T)

    def arrays(self) -> Arrays:
        return {"hashes": self.vocabulary.hashes, "counts": self.vocabulary.counts, "table": self.table, "output": self.output}

    @staticmethod
    def of(labels: tuple[str, ...], arrays: Arrays) -> "FastText":
        return FastText(labels, make_vocabulary(arrays["hashes"], arrays["counts"]), arrays["table"], arrays["output"])


def train_fasttext(
    texts: pa.Array,
    targets: Labels,
    labels: tuple[str, ...],
    *,
    width: int = 32,
    epochs: int = 20,
    rate: float = 0.5,
    seed: int = 0,
) -> FastText:
    """One thread of plain stochastic gradient descent, text by text, the rate falling to 0: the same numbers each time.

    Args:
        targets: index of the label of each text.
    """
    bag = grams(units_of(texts), ORDER)
    vocabulary = count_units(bag.hashes, min_count=2)
    rows, offsets = vocabulary.known(bag)
    random = np.random.default_rng(seed)
    table = random.uniform(-1 / width, 1 / width, (max(len(vocabulary), 1), width)).astype(np.float32)
    output = np.zeros((len(labels), width), np.float32)
    for epoch in range(epochs):
        order = random.permutation(len(texts))
        _epoch(table, output, rows, offsets, targets, order, rate * (1 - epoch / epochs), rate / epochs)
    return FastText(labels, vocabulary, table, output)


@fast_kernel
def _epoch(
    table: Floats,
    output: Floats,
    rows: Labels,
    offsets: NDArray[np.int64],
    targets: Labels,
    order: NDArray[np.int64],
    rate: float,
    fall: float,
) -> None:
    n_labels, width = output.shape
    hidden, gradient, p = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(n_labels, np.float32)
    for step in range(len(order)):
        text = order[step]
        first, last = offsets[text], offsets[text + 1]
        if first == last:
            continue
        now = np.float32(rate - fall * step / len(order))
        share = np.float32(1 / (last - first))
        hidden[:] = 0
        for i in range(first, last):
            for k in range(width):
                hidden[k] += table[rows[i], k]
        top = np.float32(-1e30)
        for c in range(n_labels):
            p[c] = 0
            for k in range(width):
                p[c] += output[c, k] * hidden[k]
            p[c] *= share
            top = max(top, p[c])
        total = np.float32(0)
        for c in range(n_labels):
            p[c] = np.exp(p[c] - top)
            total += p[c]
        gradient[:] = 0
        for c in range(n_labels):
            wrong = now * (np.float32(c == targets[text]) - p[c] / total)
            for k in range(width):
                gradient[k] += wrong * output[c, k]
                output[c, k] += wrong * share * hidden[k]
        for i in range(first, last):
            for k in range(width):
                table[rows[i], k] += share * gradient[k]


@fast_kernel
def _means(table: Floats, rows: Labels, offsets: NDArray[np.int64], out: Floats) -> None:
    for text in range(len(offsets) - 1):
        n = offsets[text + 1] - offsets[text]
        for i in range(offsets[text], offsets[text + 1]):
            for k in range(table.shape[1]):
                out[text, k] += table[rows[i], k] / n


@dataclass(frozen=True)
class Tfidf:
    """Units and n-grams weighted by (1 + log count) * idf, rows of length one, and a linear classifier."""

    labels: tuple[str, ...]
    vocabulary: Vocabulary
    idf: Floats
    weights: Floats
    """[labels, rows]."""
    bias: Floats
    order: int = ORDER

    def log_probabilities(self, texts: pa.Array) -> Floats:
        """[texts, labels]: of margins as if they were logits; their order is the machine's, their size is no calibrated probability."""
        weighted = _weighted(grams(units_of(texts), self.order), self.vocabulary, self.idf)
        return log_softmax((weighted @ self.weights.T + self.bias) / TEMPERATURE)

    def arrays(self) -> Arrays:
        known = {"hashes": self.vocabulary.hashes, "counts": self.vocabulary.counts}
        return known | {"idf": self.idf, "weights": self.weights, "bias": self.bias, "order": np.array(self.order)}

    @staticmethod
    def of(labels: tuple[str, ...], arrays: Arrays) -> "Tfidf":
        vocabulary = make_vocabulary(arrays["hashes"], arrays["counts"])
        return Tfidf(labels, vocabulary, arrays["idf"], arrays["weights"], arrays["bias"], int(arrays["order"]))


def train_tfidf(texts: pa.Array, targets: Labels, labels: tuple[str, ...], *, min_count: int = 2, c: float = 1.0) -> Tfidf:
    """Linear support vector machines (scikit-learn, LIBLINEAR), one label against the rest, whose inputs are multiplied by the log-ratio
    of how often an n-gram is in texts of the label and in others: Wang & Manning 2012, "Baselines and Bigrams", section 2.3.

    Raises:
        ResourceError: scikit-learn is not installed.
    """
    units, spans, _ = spanned_units(texts)
    # A unit of one character in three bytes or more: Han and what is written like it.
    order = ORDER + 1 if (spans.stops - spans.starts >= 3).mean() > 0.5 and (spans.stops - spans.starts).mean() < 4 else ORDER
    bag = grams(units, order)
    vocabulary = count_units(bag.hashes, min_count)
    rows, offsets = vocabulary.known(bag)
    idf = _idf(rows, offsets, len(vocabulary))
    weighted = _weighted(bag, vocabulary, idf)
    if len(labels) == 2:
        weights, bias = _machine(weighted, targets == 1, c)
        return Tfidf(labels, vocabulary, idf, np.stack([-weights, weights]), np.array([-bias, bias], np.float32), order)
    found = [_machine(weighted, targets == label, c) for label in range(len(labels))]
    weights, bias = np.stack([w for w, _ in found]), np.array([b for _, b in found], np.float32)
    return Tfidf(labels, vocabulary, idf, weights, bias, order)


def _machine(weighted: Any, ours: NDArray[np.bool_], c: float) -> tuple[Floats, float]:
    """Weights [rows] and bias of the machine that says which texts are ours."""
    try:
        from sklearn.svm import LinearSVC  # pyright: ignore  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ResourceError("this kind needs the package `scikit-learn`: pip install 'qianyi[label]'") from None
    if ours.all() or not ours.any():  # of a rare label, all texts may be held out
        return np.zeros(weighted.shape[1], np.float32), 1.0 if ours.all() else -1.0
    inside, outside = (1 + np.asarray((weighted[some] > 0).sum(axis=0))[0] for some in (ours, ~ours))
    ratio = np.log(inside / inside.sum()) - np.log(outside / outside.sum())
    scaled = weighted.copy()
    scaled.data *= ratio.astype(np.float32)[scaled.indices]
    machine: Any = LinearSVC(C=c, random_state=0)
    machine.fit(scaled, ours)
    return (machine.coef_[0] * ratio).astype(np.float32), float(machine.intercept_[0])


def _idf(rows: Labels, offsets: NDArray[np.int64], n_rows: int) -> Floats:
    """log((1 + texts) / (1 + texts with it)) + 1, of each row."""
    text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs = np.unique(text * np.int64(n_rows) + rows)
    return (np.log(len(offsets) / (1 + np.bincount(pairs % n_rows, minlength=n_rows))) + 1).astype(np.float32)


def _weighted(bag: Units, vocabulary: Vocabulary, idf: Floats) -> Any:
    """Sparse float32 [texts, rows]."""
    from scipy.sparse import csr_matrix  # noqa: PLC0415

    rows, offsets = vocabulary.known(bag)
    counts: Any = csr_matrix((np.ones(len(rows), np.float32), rows, offsets), shape=(len(offsets) - 1, len(vocabulary)))
    counts.sum_duplicates()
    counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
    length = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1))[:, 0])
    counts.data /= np.repeat(np.maximum(length, 1e-12), np.diff(counts.indptr)).astype(np.float32)
    return counts


def log_softmax(logits: NDArray[Any]) -> Floats:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))).astype(np.float32)


def targets_of(given: Sequence[str]) -> tuple[Labels, tuple[str, ...]]:
    """Index of each text's label, and the labels in order of the alphabet."""
    labels = tuple(sorted(set(given)))
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index[label] for label in given], np.int32), labels
