"""Annotation makes the same corpus directory for any number of workers, and takes labels from classifiers, people and journals."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from corpora import files_of
from typer.testing import CliRunner

from qianyi.cli import data_annotate, data_review
from qianyi.cli.main import app
from qianyi.corpus.document import document_batch, read_parts
from qianyi.corpus.parts import Options, Writer, run_parts
from qianyi.data import builtin
from qianyi.data.stage import Json
from qianyi.errors import DataError, QianyiError
from qianyi.label.annotate import annotate, annotate_from_journal, annotate_from_review, labelled_texts
from qianyi.label.classifier import load_classifier, save_classifier, train_classifier
from qianyi.label.journal import append_record
from qianyi.label.review import open_review, start_review


def write_book(unit: Json, settings: Json, writer: Writer) -> None:
    del settings
    rows = list(builtin.documents(f"builtin:{unit['book']}"))[:60]
    writer.keep(document_batch(unit["book"], [origin for origin, _ in rows], [text for _, text in rows]))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    run_parts(tmp_path / "corpus", "test", {}, [{"book": "shakespeare"}, {"book": "sanguo"}], write_book, [])
    return tmp_path / "corpus"


def rows_of(corpus: Path) -> list[Json]:
    return [row for batch in read_parts(corpus) for row in batch.to_pylist()]


def test_a_classifier_labels_every_document_the_same_for_any_number_of_workers(corpus: Path, tmp_path: Path) -> None:
    rows = rows_of(corpus)
    texts = pa.array([row["text"] for row in rows])
    save_classifier(train_classifier("fasttext", texts, [row["source"] for row in rows]), tmp_path / "classifier")
    manifest = annotate(corpus, tmp_path / "one", "book", tmp_path / "classifier")
    annotate(corpus, tmp_path / "two", "book", tmp_path / "classifier", Options(workers=2))
    one, two = (files_of(tmp_path / name) for name in ("one", "two"))
    assert {name: data for name, data in one.items() if name != "run.json"} == {
        name: data for name, data in two.items() if name != "run.json"
    }
    found = rows_of(tmp_path / "one")
    assert [{k: v for k, v in row.items() if not k.startswith("label_")} for row in found] == rows
    heard = load_classifier(tmp_path / "classifier").log_probabilities(texts)
    np.testing.assert_allclose([row["label_book_score"] for row in found], np.exp(heard.max(axis=1)), rtol=1e-6)
    assert np.mean([row["label_book"] == row["source"] for row in found]) > 0.95
    labels = Counter(row["label_book"] for row in found)
    assert manifest["counts"] == {f"label_book={label}": n for label, n in labels.items()}
    with pytest.raises(DataError, match="have a column `label_book` already"):
        annotate(tmp_path / "one", tmp_path / "again", "book", tmp_path / "classifier")
    with pytest.raises(DataError, match="`Book` is no name for a column"):
        annotate(corpus, tmp_path / "again", "Book", tmp_path / "classifier")
    with pytest.raises(DataError, match=r"classifier\.json: missing"):
        annotate(corpus, tmp_path / "again", "book", tmp_path / "none")


def test_people_label_what_a_classifier_learns_from(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = data_review.chosen_items(corpus, 60, None)
    sources = {row["id"]: row["source"] for row in rows_of(corpus)}
    assert Counter(sources[item.id] for item in items) == {"shakespeare": 30, "sanguo": 30}
    review = start_review(tmp_path / "review", items, ["shakespeare", "sanguo"], ["a", "b"])
    for item in items[:40]:
        review.label("a", item.id, sources[item.id])
    annotate_from_review(corpus, tmp_path / "by-people", "book", tmp_path / "review")
    found = {row["id"]: (row["label_book"], row["label_book_score"]) for row in rows_of(tmp_path / "by-people")}
    settled = open_review(tmp_path / "review").settled()
    assert found == {name: (settled[name], 1.0) if name in settled else ("", None) for name in sources}
    assert len(settled) == 40

    data_annotate.run(
        corpus,
        tmp_path / "out",
        "book",
        tmp_path / "model",
        tmp_path / "review",
        "fasttext",
        "text",
        "label",
        None,
        None,
        None,
        Options(),
    )
    assert np.mean([row["label_book"] == row["source"] for row in rows_of(tmp_path / "out")]) > 0.9
    assert "label_book=sanguo" in capsys.readouterr().out
    guessed = data_review.chosen_items(corpus, 10, tmp_path / "model")
    assert {item.guess for item in guessed} <= {"shakespeare", "sanguo"}
    with pytest.raises(DataError, match="none of its documents has one of the 1 labels"):
        labelled_texts(corpus, {"x": "y"})


def test_labels_of_a_file_and_of_a_journal(corpus: Path, tmp_path: Path) -> None:
    rows = rows_of(corpus)
    lines = [json.dumps({"body": row["text"], "kind": row["source"]}, ensure_ascii=False) for row in rows]
    (tmp_path / "labelled.jsonl").write_text("\n".join(lines))
    data_annotate.learn(corpus, tmp_path / "labelled.jsonl", tmp_path / "model", "fasttext", "body", "kind")
    assert load_classifier(tmp_path / "model").labels == ("sanguo", "shakespeare")
    with pytest.raises(DataError, match="no kind of classifier `magic`; there are fasttext, tfidf"):
        data_annotate.learn(corpus, tmp_path / "labelled.jsonl", tmp_path / "model", "magic", "body", "kind")
    for row, label in zip(rows, ("good", "", "bad"), strict=False):
        append_record(tmp_path / "answers.jsonl", {"id": row["id"], "label": label})
    annotate_from_journal(corpus, tmp_path / "out", "quality", tmp_path / "answers.jsonl")
    assert Counter(row["label_quality"] for row in rows_of(tmp_path / "out")) == {"good": 1, "bad": 1, "": len(rows) - 2}


def test_what_the_command_line_must_say(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="who labels"):
        data_annotate.run(corpus, tmp_path / "o", "x", None, None, "fasttext", "text", "label", None, None, None, Options())
    with pytest.raises(DataError, match="--endpoint needs --model NAME and --labels"):
        data_annotate.endpoint_of("http://127.0.0.1:1/v1", None, "a,b", None, 8, None)
    with pytest.raises(DataError, match="--prices `cheap`"):
        data_annotate.endpoint_of("http://127.0.0.1:1/v1", "m", "a,b", None, 8, "cheap")
    made = data_annotate.endpoint_of("http://127.0.0.1:1/v1", "m", "a, b", "Good?", 3, "0.5,1.5")
    assert (made.labels, made.question, made.concurrency, made.input_price, made.output_price) == (
        ("a", "b"),
        "Good?",
        3,
        0.5,
        1.5,
    )
    with pytest.raises(DataError, match="begins with both --corpus DIR and --labels"):
        data_review.run(tmp_path / "r", corpus, None, "a,b", 10, None, None, None, 0)


def test_the_command_trains_what_it_labels_with(corpus: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": row["text"], "label": row["source"]}, ensure_ascii=False) for row in rows_of(corpus)]
    (tmp_path / "labelled.jsonl").write_text("\n".join(lines))
    given = ("--name", "book", "--classifier", str(tmp_path / "model"), "--train", str(tmp_path / "labelled.jsonl"))
    done = CliRunner().invoke(app, ["data", "annotate", str(corpus), "--out", str(tmp_path / "out"), *given])
    assert done.exit_code == 0, done.output
    assert np.mean([row["label_book"] == row["source"] for row in rows_of(tmp_path / "out")]) > 0.9
    wrong = CliRunner().invoke(
        app, ["data", "annotate", str(corpus), "--out", str(tmp_path / "o"), *given, "--init", str(tmp_path)]
    )
    assert wrong.exit_code != 0 and isinstance(wrong.exception, QianyiError)
    alone = [*given[:4], "--init", str(tmp_path)]
    wrong = CliRunner().invoke(app, ["data", "annotate", str(corpus), "--out", str(tmp_path / "o"), *alone])
    assert "give --train" in str(wrong.exception)
