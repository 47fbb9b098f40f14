"""Classifiers of texts: trained, kept in a directory, read again.

DIR/classifier.json    kind, labels, sizes
DIR/weights.npz        arrays
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import pyarrow as pa

from qianyi.data.stage import Json, write_json
from qianyi.errors import DataError
from qianyi.label.encoder import Start
from qianyi.label.linear import Arrays, FastText, Floats, Tfidf, targets_of, train_fasttext, train_tfidf
from qianyi.label.network import CHARCNN, PRETRAINED, TRANSFORMER, Network, Shape, train_network

Kind = Literal["fasttext", "tfidf", "transformer", "charcnn"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FEWEST = 20
"""Labelled texts with which training starts."""
FORMAT = 2
Progress = Callable[[str], None]


class Classifier(Protocol):
    """What a text is, by probability."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def log_probabilities(self, texts: pa.Array) -> Floats:
        """[texts, labels]."""
        ...


def train_classifier(
    kind: Kind,
    texts: pa.Array,
    given: Sequence[str],
    progress: Progress = lambda _: None,
    seed: int = 0,
    start: Start | None = None,
) -> Classifier:
    """Learns from labelled texts.

    Args:
        start: a pretrained encoder, for the kind transformer.

    Raises:
        DataError: too few texts, only one label, or a start for another kind.
    """
    if len(texts) < FEWEST:
        raise DataError(
            f"{len(texts)} labelled texts are too few to learn from: at least {FEWEST}; `qianyi data review` asks for more"
        )
    targets, labels = targets_of(given)
    if len(labels) == 1:
        raise DataError(f"all {len(texts)} texts have the label `{labels[0]}`: a classifier needs at least two labels")
    if start is not None and kind != "transformer":
        raise DataError(f"only the kind transformer starts from a pretrained model, not {kind}")
    if kind == "fasttext":
        return train_fasttext(texts, targets, labels, seed=seed)
    if kind == "tfidf":
        return train_tfidf(texts, targets, labels)
    shape = CHARCNN if kind == "charcnn" else TRANSFORMER if start is None else PRETRAINED
    return train_network(texts, targets, labels, shape, start=start, seed=seed, progress=progress)


def save_classifier(classifier: Classifier, directory: Path) -> None:
    """Weights first, so that a directory with a classifier.json is whole."""
    assert isinstance(classifier, FastText | Tfidf | Network)
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / "weights.npz", **classifier.arrays())  # pyright: ignore[reportArgumentType]
    about: Json = {"format": FORMAT, "kind": type(classifier).__name__.lower(), "labels": list(classifier.labels)}
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
        with np.load(directory / "weights.npz") as file:
            arrays: Arrays = dict(file)
        if about["kind"] == "fasttext":
            return FastText.of(labels, arrays)
        return Tfidf.of(labels, arrays) if about["kind"] == "tfidf" else Network.of(labels, Shape(**about["shape"]), arrays)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: missing; train a classifier with `qianyi data annotate --train`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: broken ({error}); train the classifier again") from None
