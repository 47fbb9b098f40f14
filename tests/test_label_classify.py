"""Classifiers: kernels equal plain references, real texts are told apart, what is kept is what is read."""

import json
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from qianyi.config.schema import LayoutConfig
from qianyi.data import builtin
from qianyi.errors import DataError
from qianyi.label import classifier as module
from qianyi.label.charcnn import KERNELS, POOLED, charcnn_logits, charcnn_params, columns
from qianyi.label.classifier import load_classifier, save_classifier, train_classifier
from qianyi.label.encoder import encoder_model, start_from
from qianyi.label.linear import FastText, log_softmax, targets_of, train_fasttext, train_tfidf
from qianyi.label.network import (
    CHARCNN,
    PRETRAINED,
    TRANSFORMER,
    Network,
    Shape,
    best_weights,
    combined,
    logits_of,
    train_network,
)
from qianyi.label.network import declared as network_params
from qianyi.label.sequences import PADDING
from qianyi.label.units import grams, units_of
from qianyi.label.vocabulary import count_units
from qianyi.model.param import init
from qianyi.model.transformer import model_params
from qianyi.parallel.mesh import make_mesh

SMALL = {
    "transformer": replace(TRANSFORMER, width=32, layers=1, longest=64, epochs=5, symbols=1024, rate=5e-3),
    "charcnn": replace(CHARCNN, width=16, longest=123, epochs=8, symbols=16 * 123, rate=3e-3),
}


def labelled(n: int) -> tuple[pa.Array, list[str]]:
    """Pieces of the beginning and of the end of 三国演义, and of two plays: what is told apart are people and places."""
    chapters = [text for _, text in builtin.documents("builtin:sanguo")]
    plays: dict[str, list[str]] = {}
    for origin, text in builtin.documents("builtin:shakespeare"):
        plays.setdefault(origin.split("#")[0], []).append(text)
    long = sorted(plays.values(), key=len)[-2:]
    pieces = [
        chapters[:n],
        chapters[-n:],
        *([t[i : i + 500] for t in scenes for i in range(0, len(t), 500)][:n] for scenes in long),
    ]
    rows = [(text, name) for texts, name in zip(pieces, ("early", "late", "one", "two"), strict=True) for text in texts]
    order = np.random.default_rng(0).permutation(len(rows))
    return pa.array([rows[i][0] for i in order]), [rows[i][1] for i in order]


@pytest.fixture(scope="module")
def data() -> tuple[pa.Array, list[str]]:
    return labelled(150)


def share_right(classifier: module.Classifier, texts: pa.Array, given: list[str]) -> float:
    said = classifier.log_probabilities(texts).argmax(axis=1)
    return float(np.mean([classifier.labels[i] == label for i, label in zip(said, given, strict=True)]))


def test_fasttext_is_its_gradient_descent(data: tuple[pa.Array, list[str]]) -> None:
    texts, (targets, labels) = data[0].slice(0, 40), targets_of(data[1][:40])
    found = train_fasttext(texts, targets, labels, width=5, epochs=3, rate=0.3, seed=7)
    bag = grams(units_of(texts), 2)
    vocabulary = count_units(bag.hashes, 2)
    rows, offsets = vocabulary.known(bag)
    random = np.random.default_rng(7)
    table, output = random.uniform(-1 / 5, 1 / 5, (len(vocabulary), 5)), np.zeros((len(labels), 5))
    for epoch in range(3):
        for step, text in enumerate(random.permutation(40)):
            rate, own = 0.3 * (1 - (epoch + step / 40) / 3), rows[offsets[text] : offsets[text + 1]]
            hidden = table[own].mean(axis=0)
            p = np.exp(log_softmax((output @ hidden)[None])[0])
            wrong = (np.arange(len(labels)) == targets[text]) - p
            back = wrong @ output
            output += rate * np.outer(wrong, hidden)
            np.add.at(table, own, rate * back / len(own))
    np.testing.assert_allclose(found.table, table, atol=2e-5)
    np.testing.assert_allclose(found.output, output, atol=2e-4)
    hidden = np.stack([table[rows[a:b]].mean(axis=0) for a, b in pairwise(offsets)])
    np.testing.assert_allclose(found.log_probabilities(texts), log_softmax(hidden @ output.T), atol=1e-3)


def test_tfidf_is_scikit_learns_with_log_count_ratios(data: tuple[pa.Array, list[str]]) -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    svm = pytest.importorskip("sklearn.svm")
    texts, targets = data[0].slice(0, 300), targets_of(data[1][:300])
    found = train_tfidf(texts, *targets)

    def analyze(one: str) -> list[int]:
        return grams(units_of(pa.array([one])), found.order).hashes.tolist()

    weigh = text.TfidfVectorizer(analyzer=analyze, sublinear_tf=True, min_df=1)
    rows = weigh.fit_transform(texts.to_pylist())
    known = [weigh.vocabulary_[h] for h in found.vocabulary.hashes.tolist()]
    kept = rows[:, known]
    lengths = np.sqrt(np.asarray(kept.multiply(kept).sum(axis=1)))
    rows = kept.multiply(1 / lengths).toarray()
    np.testing.assert_allclose(found.idf, weigh.idf_[known], rtol=1e-5)
    for label in range(4):
        inside = 1 + (rows[targets[0] == label] > 0).sum(axis=0)
        outside = 1 + (rows[targets[0] != label] > 0).sum(axis=0)
        ratio = np.log(inside / inside.sum() / (outside / outside.sum()))
        machine = svm.LinearSVC(random_state=0).fit(rows * ratio, targets[0] == label)
        np.testing.assert_allclose(found.weights[label], machine.coef_[0] * ratio, atol=0.02)
        np.testing.assert_allclose(found.bias[label], machine.intercept_[0], atol=0.02)


def test_a_network_and_a_linear_classifier_are_weighed_by_what_they_know() -> None:
    truth = np.array([0, 1] * 50, np.int32)
    random = np.random.default_rng(0)
    knows = log_softmax(2 * np.eye(2)[truth] + random.normal(0, 0.8, (100, 2)))
    guesses = log_softmax(random.normal(0, 1, (100, 2)))
    own, wide = best_weights(guesses, knows, truth)
    assert wide > 3 * own
    assert best_weights(knows, guesses, truth) == (wide, own)
    assert combined(guesses, knows, (0, 1)).argmax(axis=1).tolist() == knows.argmax(axis=1).tolist()


def test_convolutions_are_table_1() -> None:
    shape = charcnn_params(9, 123 + 27, 4, 6, 5, 3)
    assert columns(1014) == 34
    assert [shape[f"conv{i}"].shape[0] for i in range(6)] == [7, 7, 3, 3, 3, 3]
    params = jax.tree.map(np.asarray, init(shape, jax.random.key(0)))
    ids = np.random.default_rng(0).integers(1, 9, (2, 150)).astype(np.int32)
    x = params["characters"][ids]
    for layer, width in enumerate(KERNELS):
        w = params[f"conv{layer}"]
        x = np.stack([np.einsum("bwi,wio->bo", x[:, t : t + width], w) for t in range(x.shape[1] - width + 1)], axis=1)
        x = np.maximum(x + params[f"conv{layer}_bias"], 0)
        if layer in POOLED:
            n = x.shape[1] // 3
            x = x[:, : 3 * n].reshape(2, n, 3, -1).max(axis=2)
    x = x.reshape(2, -1)
    for layer in range(3):
        x = x @ params[f"linear{layer}"] + params[f"linear{layer}_bias"]
        x = np.maximum(x, 0) if layer < 2 else x
    np.testing.assert_allclose(charcnn_logits(params, ids, None, 0.5), x, atol=1e-5)


def test_padding_changes_no_answer_of_the_encoder() -> None:
    shape = SMALL["transformer"]
    model = encoder_model(51, shape.width, shape.layers, shape.longest)
    params = init(network_params(shape, model, 51, 3), jax.random.key(1))
    logits = logits_of(shape, model)
    forward = jax.jit(lambda params, ids: logits(params, ids, None))
    ids = np.random.default_rng(0).integers(0, 51, (2, 20)).astype(np.int32)
    ids[1, 12:] = PADDING
    with jax.set_mesh(make_mesh(LayoutConfig(), jax.devices()[:1])):
        short = forward(params, ids)
        long = forward(params, np.pad(ids, ((0, 0), (0, 12)), constant_values=PADDING))
        alone = forward(params, ids[1:, :12])
    np.testing.assert_allclose(short, long, atol=1e-5)
    np.testing.assert_allclose(short[1:], alone, atol=1e-5)
    assert np.abs(short[0] - short[1]).max() > 1e-3


@pytest.mark.parametrize(("kind", "at_least"), [("fasttext", 0.8), ("tfidf", 0.9), ("transformer", 0.7), ("charcnn", 0.4)])
def test_real_texts_are_told_apart_and_a_kept_classifier_says_the_same(
    kind: Any, at_least: float, data: tuple[pa.Array, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TRANSFORMER", SMALL["transformer"])
    monkeypatch.setattr(module, "CHARCNN", SMALL["charcnn"])
    texts, given = data
    trained = train_classifier(kind, texts.slice(0, 500), given[:500])
    assert share_right(trained, texts.slice(500), given[500:]) > at_least
    save_classifier(trained, tmp_path / "kept")
    again = load_classifier(tmp_path / "kept")
    assert again.labels == ("early", "late", "one", "two")
    np.testing.assert_array_equal(again.log_probabilities(texts), trained.log_probabilities(texts))
    more = pa.array(["", "曹操", None])
    np.testing.assert_allclose(np.exp(again.log_probabilities(more)).sum(axis=1), 1, rtol=1e-5)


def test_a_transformer_starts_from_a_pretrained_encoder(
    data: tuple[pa.Array, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another size, with a tokenizer of its own and heads that are left away; without a step it is what it starts from."""
    texts, given = data[0].slice(0, 60), data[1][:60]
    tokenizer = Tokenizer(BPE())
    tokenizer.train_from_iterator(texts.to_pylist(), BpeTrainer(vocab_size=300, special_tokens=["[MASK]"], show_progress=False))  # pyright: ignore
    model = encoder_model(300, 64, 1, 64).model_copy(update={"mlm_head": True})
    pretrained = jax.tree.map(np.asarray, init(model_params(model), jax.random.key(5)))
    start = start_from(model, pretrained, tokenizer)
    assert "head" not in start.params
    monkeypatch.setattr(module, "PRETRAINED", replace(PRETRAINED, epochs=1, longest=64, rate=0.0))
    trained = train_classifier("transformer", texts, given, start=start)
    assert isinstance(trained, Network)
    encoder = trained.params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, encoder, start.params)
    save_classifier(trained, tmp_path)
    again = load_classifier(tmp_path)
    np.testing.assert_array_equal(again.log_probabilities(texts), trained.log_probabilities(texts))
    with pytest.raises(DataError, match="only the kind transformer starts"):
        train_classifier("charcnn", texts, given, start=start)
    with pytest.raises(DataError, match="of kind decoder"):
        start_from(model.model_copy(update={"kind": "decoder"}), pretrained, tokenizer)


def test_the_same_texts_make_the_same_network(data: tuple[pa.Array, list[str]]) -> None:
    targets, labels = targets_of(data[1][:60])
    shape = replace(SMALL["transformer"], epochs=1)
    a, b = (train_network(data[0].slice(0, 60), targets, labels, shape, seed=3) for _ in range(2))
    for one, two in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_cannot_be_learned_or_read_is_said(tmp_path: Path) -> None:
    texts = pa.array([text for _, text in islice(builtin.documents("builtin:sanguo"), 30)])
    with pytest.raises(DataError, match="3 labelled texts are too few"):
        train_classifier("tfidf", texts.slice(0, 3), ["a", "b", "a"])
    with pytest.raises(DataError, match="all 30 texts have the label `a`"):
        train_classifier("tfidf", texts, ["a"] * 30)
    with pytest.raises(DataError, match="no word occurs twice"):
        train_network(pa.array(["a", "b"]), np.array([0, 1], np.int32), ("x", "y"), TRANSFORMER)
    with pytest.raises(DataError, match="longest=123 characters or more"):
        network_params(Shape("charcnn", longest=100), None, 5, 2)
    with pytest.raises(DataError, match=r"classifier\.json: missing"):
        load_classifier(tmp_path)
    save_classifier(train_classifier("fasttext", texts, ["a", "b"] * 15), tmp_path)
    assert isinstance(load_classifier(tmp_path), FastText)
    about = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "weights.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"classifier\.json: broken"):
        load_classifier(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps({**about, "format": 9}))
    with pytest.raises(DataError, match="of another version"):
        load_classifier(tmp_path)
