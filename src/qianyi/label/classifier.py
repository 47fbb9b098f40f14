"""Classifiers of texts: trained, kept in a directory, read again.

DIR/classifier.json    kind, labels, sizes, members and their weights
DIR/weights.npz        arrays; of an ensemble, DIR/MEMBER/ holds each member
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pyarrow as pa

from qianyi.data.stage import Json, write_json
from qianyi.errors import DataError
from qianyi.label.linear import Arrays, FastText, Floats, Labels, Tfidf, log_softmax, targets_of, train_fasttext, train_tfidf
from qianyi.label.network import CHARCNN, TRANSFORMER, Network, Shape, train_network

Kind = Literal["fasttext", "tfidf", "transformer", "charcnn", "ensemble"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEMBERS: tuple[Kind, ...] = ("tfidf", "fasttext", "transformer")
"""Of an ensemble: what counts n-grams, what averages them, and what reads them in order."""
HELD_SHARE = 0.1
"""Of labelled texts, by which the best epoch and the weights of an ensemble are chosen."""
STEPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.3)
"""Weights that a member of an ensemble may have. They need not sum to one, since members think too much or too little of what they know."""
FEWEST = 20
"""Labelled texts with which training starts."""
FORMAT = 1
Progress = Callable[[str], None]


class Classifier(Protocol):
    """What a text is, by probability."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def log_probabilities(self, texts: pa.Array) -> Floats:
        """[texts, labels]."""
        ...


@dataclass(frozen=True)
class Ensemble:
    """Members whose log-probabilities are added with weights."""

    labels: tuple[str, ...]
    members: dict[str, Classifier]
    weights: tuple[float, ...]

    def log_probabilities(self, texts: pa.Array) -> Floats:
        """[texts, labels]."""
        return combined([member.log_probabilities(texts) for member in self.members.values()], self.weights)


def train_classifier(
    kind: Kind, texts: pa.Array, given: Sequence[str], progress: Progress = lambda _: None, seed: int = 0
) -> Classifier:
    """Learns from labelled texts.

    A tenth of them is held out to choose the epoch of a network and the weights of an ensemble, whose members of n-grams then learn from
    all.

    Raises:
        DataError: too few texts, or only one label.
    """
    if len(texts) < FEWEST:
        raise DataError(
            f"{len(texts)} labelled texts are too few to learn from: at least {FEWEST}; `qianyi data review` asks for more"
        )
    targets, labels = targets_of(given)
    if len(labels) == 1:
        raise DataError(f"all {len(texts)} texts have the label `{labels[0]}`: a classifier needs at least two labels")
    if kind == "ensemble":
        return _train_ensemble(texts, targets, labels, progress, seed)
    return _train_one(kind, texts, targets, labels, *_split(targets, seed), progress, seed)


def _train_ensemble(texts: pa.Array, targets: Labels, labels: tuple[str, ...], progress: Progress, seed: int) -> Ensemble:
    learned, held = _split(targets, seed)
    fitted: dict[str, Classifier] = {}
    for kind in MEMBERS:
        some = learned if kind in {"tfidf", "fasttext"} else np.arange(len(targets))
        own = _split(targets, seed) if len(some) == len(targets) else (np.arange(len(some)), held[:0])
        fitted[kind] = _train_one(kind, texts.take(pa.array(some)), targets[some], labels, *own, progress, seed)
    heard = [member.log_probabilities(texts.take(pa.array(held))) for member in fitted.values()]
    weights = best_weights(heard, targets[held])
    everything = np.arange(len(targets))
    for kind in ("tfidf", "fasttext"):
        fitted[kind] = _train_one(kind, texts, targets, labels, everything, held[:0], progress, seed)
    return Ensemble(labels, fitted, weights)


def _train_one(
    kind: Kind,
    texts: pa.Array,
    targets: Labels,
    labels: tuple[str, ...],
    learned: Any,
    held: Any,
    progress: Progress,
    seed: int,
) -> Classifier:
    progress(kind)
    if kind == "fasttext":
        return train_fasttext(texts, targets, labels, seed=seed)
    if kind == "tfidf":
        return train_tfidf(texts, targets, labels)
    shape = TRANSFORMER if kind == "transformer" else CHARCNN
    watched = (texts.take(pa.array(held)), targets[held])

    def tell(epoch: int, right: float) -> None:
        progress(f"{kind}: epoch {epoch + 1} of {shape.epochs}, {right:.1%} of held-out texts right")

    return train_network(texts.take(pa.array(learned)), targets[learned], labels, shape, held=watched, seed=seed, progress=tell)


def _split(targets: Labels, seed: int) -> tuple[Any, Any]:
    """Texts to learn from, and texts held out."""
    order = np.random.default_rng(seed).permutation(len(targets))
    n = max(int(len(order) * HELD_SHARE), 1)
    return np.sort(order[n:]), np.sort(order[:n])


def best_weights(heard: list[Floats], targets: Labels) -> tuple[float, ...]:
    """Of members, those with the largest likelihood of the targets, from a grid of `STEPS`."""

    def loss(weights: tuple[float, ...]) -> float:
        return -float(combined(heard, weights)[np.arange(len(targets)), targets].mean())

    return min(product(STEPS, repeat=len(heard)), key=loss)


def combined(heard: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Log-probabilities of members as one's."""
    return log_softmax(np.sum([w * p for w, p in zip(weights, heard, strict=True)], axis=0))


def save_classifier(classifier: Classifier, directory: Path) -> None:
    """Weights first, so that a directory with a classifier.json is whole."""
    directory.mkdir(parents=True, exist_ok=True)
    about: Json = {"format": FORMAT, "labels": list(classifier.labels)}
    if isinstance(classifier, Ensemble):
        for name, member in classifier.members.items():
            save_classifier(member, directory / name)
        about |= {"kind": "ensemble", "weights": dict(zip(classifier.members, classifier.weights, strict=True))}
    elif isinstance(classifier, FastText | Tfidf | Network):
        np.savez(directory / "weights.npz", **classifier.arrays())  # pyright: ignore[reportArgumentType]
        about["kind"] = type(classifier).__name__.lower()
        if isinstance(classifier, Network):
            about |= {"kind": classifier.shape.kind, "shape": asdict(classifier.shape)}
    write_json(directory / "classifier.json", about)


def load_classifier(directory: Path) -> Classifier:
    """What `save_classifier` wrote.

    Raises:
        DataError: it is missing or broken.
    """
    path = directory / "classifier.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        labels = tuple(about["labels"])
        if about["format"] != FORMAT or about["kind"] not in KINDS:
            raise DataError(f"{path}: of another version of Qianyi; train it again")
        if about["kind"] == "ensemble":
            members = {name: load_classifier(directory / name) for name in about["weights"]}
            return Ensemble(labels, members, tuple(about["weights"].values()))
        with np.load(directory / "weights.npz") as file:
            arrays: Arrays = dict(file)
        if about["kind"] == "fasttext":
            return FastText.of(labels, arrays)
        return Tfidf.of(labels, arrays) if about["kind"] == "tfidf" else Network.of(labels, Shape(**about["shape"]), arrays)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: missing; train a classifier with `qianyi data annotate --train`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: broken ({error}); train the classifier again") from None
