"""Labels as columns beside documents: from a corpus directory to a corpus directory.

Column `label_NAME` holds the label ("" where there is none), `label_NAME_score` its probability (null where there is none). Who labels is
a classifier (`qianyi.label.classifier`), a journal of answers (`qianyi.label.endpoint`) or a review by people (`qianyi.label.review`).
"""

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from qianyi.corpus.document import read_batches
from qianyi.corpus.parts import Options, Writer, part_units, run_parts
from qianyi.data.stage import Json
from qianyi.errors import DataError
from qianyi.label.classifier import Classifier, load_classifier
from qianyi.label.journal import read_records
from qianyi.label.review import JOURNAL, SETUP, open_review


def annotate(corpus: Path, out: Path, name: str, classifier: Path, options: Options | None = None) -> Json:
    """Labels every document with a classifier that `save_classifier` kept in a directory. Returns the manifest.

    Raises:
        DataError: the corpus or the classifier cannot be read, or `name` cannot be part of the name of a column.
    """
    load_classifier(classifier)  # so that what is missing is said before workers start
    settings = {"name": _checked(name), "classifier": str(classifier)}
    inputs = [corpus, *sorted(path for path in classifier.rglob("*") if path.is_file())]
    return run_parts(out, "annotate", settings, part_units(corpus), classify_part, inputs, options)


def annotate_from_journal(corpus: Path, out: Path, name: str, journal: Path, options: Options | None = None) -> Json:
    """Labels documents with the answers that `label_texts` has kept; answers that name no label become ""."""
    settings = {"name": _checked(name), "journal": str(journal)}
    return run_parts(out, "annotate", settings, part_units(corpus), look_up_part, [corpus, journal], options)


def annotate_from_review(corpus: Path, out: Path, name: str, review: Path, options: Options | None = None) -> Json:
    """Labels documents as people did: as decided, else as all who labelled them said; the others get ""."""
    open_review(review)
    settings = {"name": _checked(name), "review": str(review)}
    inputs = [corpus, *(path for path in (review / SETUP, review / JOURNAL) if path.exists())]
    return run_parts(out, "annotate", settings, part_units(corpus), look_up_part, inputs, options)


def classify_part(unit: Json, settings: Json, writer: Writer) -> None:
    """The work of one part: a classifier's labels."""
    classifier = _classifier(settings["classifier"])
    for batch in read_batches(Path(unit["part"])):
        heard = classifier.log_probabilities(batch.column("text"))
        best = heard.argmax(axis=1) if len(heard) else np.zeros(0, np.int64)
        labels = [classifier.labels[i] for i in best]
        scores = pa.array(np.exp(heard[np.arange(len(best)), best]), pa.float32())
        _keep(batch, settings["name"], labels, scores, writer)


def look_up_part(unit: Json, settings: Json, writer: Writer) -> None:
    """The work of one part: labels that were given before, by id."""
    given = _given(settings)
    for batch in read_batches(Path(unit["part"])):
        labels = [given.get(key, "") for key in batch.column("id").to_pylist()]
        scores = pa.array([1.0 if label else None for label in labels], pa.float32())
        _keep(batch, settings["name"], labels, scores, writer)


def labelled_texts(corpus: Path, given: dict[str, str]) -> tuple[pa.Array, list[str]]:
    """Texts of a corpus that have a label by id, and the labels: what a classifier learns from."""
    texts, labels = list[str](), list[str]()
    for unit in part_units(corpus):
        for batch in read_batches(Path(unit["part"]), ["id", "text"]):
            for row in batch.to_pylist():
                if label := given.get(row["id"]):
                    texts.append(row["text"])
                    labels.append(label)
    if not texts:
        raise DataError(f"{corpus}: none of its documents has one of the {len(given):,} labels that were given")
    return pa.array(texts, pa.string()), labels


def _keep(batch: pa.RecordBatch, name: str, labels: list[str], scores: pa.Array, writer: Writer) -> None:
    column = f"label_{name}"
    if column in batch.schema.names:
        raise DataError(f"the documents have a column `{column}` already; choose another name")
    columns = [*batch.columns, pa.array(labels, pa.string()), scores]
    fields = [*batch.schema, pa.field(column, pa.string()), pa.field(f"{column}_score", pa.float32())]
    writer.keep(pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)))
    for label, n in Counter(labels).items():
        writer.count(f"{column}={label or '(none)'}", n)


@lru_cache(1)
def _classifier(directory: str) -> Classifier:
    return load_classifier(Path(directory))


def _given(settings: Json) -> dict[str, str]:
    if "review" in settings:
        return open_review(Path(settings["review"])).settled()
    return {record["id"]: record["label"] for record in read_records(Path(settings["journal"]))}


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name.endswith("_score"):
        raise DataError(f"`{name}` is no name for a column label_NAME: small letters, digits and _, not ending in _score")
    return name
