"""Objectives on shards: batches are a function of the seed and the step, tokenizers have the tokens that are needed, pairs come back."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import corpus, files_of, jsonl, one_source, silent, tokenizer_of
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tokenizers import AddedToken, Tokenizer, models

from qianyi.config.check import check
from qianyi.config.objective import MODEL_KINDS
from qianyi.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    SourceConfig,
    TrainConfig,
)
from qianyi.data.load import TrainingData, ValidationData
from qianyi.data.prepare import prepare
from qianyi.data.read import read_documents
from qianyi.data.special import reserved_names, special_tokens
from qianyi.data.tokenizer import END_OF_TEXT, token_bytes
from qianyi.errors import DataError
from qianyi.evaluate.perplexity import evaluate, unigram_accuracy, unigram_loss
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.rules import batch_spec
from qianyi.train.state import init_state
from qianyi.train.step import make_eval_step

SEQ_LEN, BATCH, VOCAB = 24, 8, 500


def settings(**objective: Any) -> TrainConfig:
    return TrainConfig(seq_len=SEQ_LEN, batch_size=BATCH, objective=ObjectiveConfig.model_validate(objective))


MLM = settings(kind="mlm", sentence="next")
T5 = settings(kind="span_corruption", mean_span=2.0, target_len=10)
GLM = settings(kind="prefix")
PAIRS = settings(kind="seq2seq", target_len=32)
SHAPES = {
    "inputs": SEQ_LEN,
    "targets": SEQ_LEN,
    "segments": SEQ_LEN,
    "documents": SEQ_LEN,
    "sentence": 1,
    "prefix": 1,
    "sources": SEQ_LEN,
    "source_documents": SEQ_LEN,
}


def pairs(n: int) -> list[tuple[str, str]]:
    """A source of some words and its translation, whose words say where it belongs."""
    random = np.random.default_rng(0)
    words = ["moon", "river", "mountain", "bright", "bed"]
    return [
        (" ".join(random.choice(words, random.integers(1, 10))) + f" {i}", f"{i} " + "月" * random.integers(1, 9))
        for i in range(n)
    ]


def pair_source(root: Path, both: list[tuple[str, str]]) -> DataConfig:
    records = [json.dumps({"en": en, "zh": zh}, ensure_ascii=False) for en, zh in both]
    (root / "pairs.jsonl").write_text("\n".join(records), encoding="utf-8")
    source = SourceConfig(name="x", path=str(root / "pairs.jsonl"))
    return DataConfig(dir=str(root / "out"), sources=(source,), validation_fraction=0.1, text_key="en", target_key="zh")


@pytest.fixture(scope="module", params=[MLM, T5, GLM, PAIRS], ids=lambda train: train.objective.kind)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, TrainConfig]:
    root = tmp_path_factory.mktemp("data")
    data = pair_source(root, pairs(200)) if request.param is PAIRS else one_source(root, corpus(150, 1))
    prepare(data, VOCAB, silent, request.param)
    return data, request.param


def assert_equal(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], name)


def test_batches_are_a_function_of_seed_and_step(prepared: tuple[DataConfig, TrainConfig]) -> None:
    data, train = prepared
    first, again = TrainingData(data, train), TrainingData(data, train)
    for step in (3, 0, 10**8):
        whole = first.rows(step, range(BATCH))
        assert_equal(whole, again.rows(step, range(BATCH)))
        for processes in (2, 4):
            n = BATCH // processes
            parts = [again.rows(step, range(i * n, (i + 1) * n)) for i in range(processes)]
            assert_equal(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})
        target_len = train.objective.target_len or SEQ_LEN
        lengths = SHAPES | {"inputs": target_len, "targets": target_len}
        assert {name: (a.shape, a.dtype) for name, a in whole.items()} == {
            name: ((BATCH, lengths[name]), np.dtype(np.int32)) for name in whole
        }
    other = TrainingData(data.model_copy(update={"seed": 1}), train).rows(0, range(BATCH))
    assert not np.array_equal(other["targets"], first.rows(0, range(BATCH))["targets"])


def test_batches_resume_on_devices(prepared: tuple[DataConfig, TrainConfig]) -> None:
    data, train = prepared
    training = TrainingData(data, train)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), P("d"))
    for step, batch in enumerate(training.batches(sharding, 2, 5), 2):
        assert_equal(batch, training.rows(step, range(BATCH)))
        assert all(array.sharding == sharding for array in batch.values())


def test_epochs_mask_anew(prepared: tuple[DataConfig, TrainConfig]) -> None:
    data, train = prepared
    training = TrainingData(data, train)
    n = len(training._windows["x"])
    steps = range(-(-2 * n // BATCH))
    rows = [tuple(row) for step in steps for row in training.rows(step, range(BATCH))["inputs"]]
    assert len(set(rows[: 2 * n])) > (1.5 * n if train is not PAIRS else n - 1)


def test_validation_is_the_same_in_every_run(prepared: tuple[DataConfig, TrainConfig]) -> None:
    data, train = prepared
    sizes = token_bytes(tokenizer_of(data))
    batches = list(ValidationData(data, train, sizes).host_batches())
    other = ValidationData(data.model_copy(update={"seed": 9}), train.model_copy(update={"seed": 9}), sizes)
    for batch, again in zip(batches, other.host_batches(), strict=True):
        assert_equal(batch, again)
    assert len(list(other.host_batches(limit=1))) == 1
    rows = sum(len(part) for part in {id(part): part for part, _ in other._places}.values())
    scored = [(batch["targets"] >= 0).any(axis=1) for batch in batches]
    assert np.concatenate(scored).sum() == rows and not np.concatenate(scored)[rows:].any(), (
        "what fills the last batch is not scored"
    )
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), P("d"))
    assert {n_bytes for _, n_bytes in other.batches(sharding)} == {None}


def test_validation_of_corrupted_spans_holds_the_whole_split(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(100, 2))
    prepare(data, VOCAB, silent, T5)
    held = ValidationData(data, T5, token_bytes(tokenizer_of(data)))
    special = special_tokens(tokenizer_of(data))
    marks = [special.roles["padding"], *special.sentinels, -1, 0]
    found = [b[name] for b in held.host_batches() for name in ("sources", "targets")]
    words = sum(int((~np.isin(array, marks)).sum()) for array in found)
    stream = held._streams["x"].read(0, len(held._streams["x"]))
    assert words == (stream != 0).sum()


def test_records_tell_objectives_apart(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(60, 3))
    prepare(data, VOCAB, silent, GLM)
    causal, blanks, none = (
        TrainingData(data, train).record for train in (settings(kind="causal"), GLM, settings(kind="prefix", blank_fraction=0.0))
    )
    assert "objective" not in causal and blanks["objective"] != none["objective"]


# Special tokens


def test_a_tokenizer_is_trained_for_its_objective(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(60, 4))
    prepare(data, VOCAB, silent)
    plain = files_of(tmp_path / "out" / "tokenizer")["tokenizer.json"]
    assert [t.content for t in tokenizer_of(data).get_added_tokens_decoder().values()] == [END_OF_TEXT]
    for train, expected in ((MLM, 4), (T5, 101), (GLM, 4), (settings(kind="prefix", blank_fraction=0.0), 2)):
        prepare(data, VOCAB, silent, train)
        tokenizer, names = tokenizer_of(data), reserved_names(train)
        assert [tokenizer.token_to_id(name) for name in (END_OF_TEXT, *names)] == list(range(1 + len(names)))
        assert len(names) == expected
        text = f"moon {' '.join(names)} 明月"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert min(ids) > len(names) and tokenizer.decode(ids) == text, "special tokens in a text are just text"
        assert not token_bytes(tokenizer)[: 1 + len(names)].any()
    prepare(data, VOCAB, silent)
    assert files_of(tmp_path / "out" / "tokenizer")["tokenizer.json"] == plain


def test_windows_with_many_spans_get_as_many_sentinels() -> None:
    many = TrainConfig(seq_len=4096, objective=ObjectiveConfig(kind="span_corruption"))
    assert len(reserved_names(many)) == 1 + 227


def given_tokenizer(path: Path, names: list[str]) -> str:
    """A tokenizer with special tokens of these names, in this order, and words after them."""
    words = {word: len(names) + i for i, word in enumerate(["moon", "river", "the", "[UNK]"])}
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)} | words, unk_token="[UNK]"))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer.save(str(path))
    return str(path)


BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.mark.parametrize(
    ("names", "train", "expected"),
    [
        (BERT, MLM, {"padding": 0, "class": 2, "separator": 3, "mask": 4}),
        (ROBERTA, MLM, {"class": 0, "padding": 1, "separator": 2, "mask": 4}),
        (["<pad>", "</s>", *(f"<extra_id_{i}>" for i in range(9))], T5, {"padding": 0, "separator": 1}),
        (["[MASK]", "[gMASK]", "[sMASK]", "<eop>", "<sop>", "</s>"], GLM,
         {"mask": 0, "prefix mask": 1, "stop": 3, "start": 4, "separator": 5}),
    ],
    ids=["bert", "roberta", "t5", "glm"],
)  # fmt: skip
def test_given_tokenizers_have_their_own_names(
    names: list[str], train: TrainConfig, expected: dict[str, int], tmp_path: Path
) -> None:
    path = given_tokenizer(tmp_path / "t.json", names)
    data = one_source(tmp_path, corpus(60, 5), tokenizer=path)
    manifest = prepare(data, VOCAB, silent, train)
    assert manifest["special_tokens"]["roles"] == expected
    assert len(manifest["special_tokens"]["sentinels"]) == sum("extra_id" in name for name in names)
    assert TrainingData(data, train).rows(0, range(BATCH))["targets"].shape[0] == BATCH


@pytest.mark.parametrize(
    ("names", "train", "message"),
    [
        (["[PAD]", "[CLS]", "[SEP]"], MLM, r"t\.json: train\.objective\.kind=mlm needs a mask token, \[MASK\] or <mask>; add it"),
        (["</s>"], PAIRS, r"train\.objective\.kind=seq2seq needs a padding token, <pad> or \[PAD\]"),
        (["</s>", "[MASK]"], GLM, r"train\.objective\.kind=prefix needs a prefix mask token, \[gMASK\]; add it"),
        (["</s>", "<pad>", "<extra_id_0>"], settings(kind="span_corruption", mean_span=1.0),
         r"masks 3 spans of a window and needs as many sentinels, <extra_id_0> to <extra_id_2>, of which there are 1; shorten"),
    ],
)  # fmt: skip
def test_missing_special_tokens_are_named(names: list[str], train: TrainConfig, message: str, tmp_path: Path) -> None:
    both = pair_source(tmp_path, pairs(60)).model_copy(update={"tokenizer": given_tokenizer(tmp_path / "t.json", names)})
    data = both if train is PAIRS else both.model_copy(update={"target_key": None})
    with pytest.raises(DataError, match=message):
        prepare(data, VOCAB, silent, train)
    prepare(data, VOCAB, silent)
    with pytest.raises(DataError, match=message.replace(r"t\.json", "shards")):
        TrainingData(data, train)


def test_a_vocabulary_must_hold_the_special_tokens(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(60, 6))
    with pytest.raises(DataError, match="vocabulary with 101 more special tokens has at least 358 entries, not 357"):
        prepare(data, 357, silent, T5)


# Pairs


def test_pairs_come_back_each_on_one_side(tmp_path: Path) -> None:
    both = [*pairs(200), ("", "none"), ("none", " ")]
    data = pair_source(tmp_path, both)
    manifest = prepare(data, VOCAB, silent, PAIRS)
    source, tokenizer = manifest["sources"]["x"], tokenizer_of(data)
    assert source["blank_documents"] == 2 and source["train"]["documents"] + source["validation"]["documents"] == 200
    assert source["train"]["bytes"] + source["validation"]["bytes"] == sum(len((a + b).encode()) for a, b in both[:200])
    train = TrainConfig(seq_len=8, batch_size=BATCH, objective=ObjectiveConfig(kind="seq2seq", target_len=5))
    training = TrainingData(data, train)
    windows = training._windows["x"]
    drawn = [training.rows(step, range(BATCH)) for step in range(-(-len(windows) // BATCH))]
    held = list(ValidationData(data, train, token_bytes(tokenizer)).host_batches())
    read: list[set[tuple[str, str]]] = []
    for batches in (drawn, held):
        read.append(set())
        for batch in batches:
            for source_row, mask, target in zip(batch["sources"], batch["source_documents"], batch["targets"], strict=True):
                if (target >= 0).any():
                    ids, said = source_row[mask == 0], target[target >= 0]
                    assert ids[-1] == said[-1] == 0
                    read[-1].add((tokenizer.decode(ids[:-1].tolist()), tokenizer.decode(said[:-1].tolist())))
    fits = {p for p in both[:200] if all(len(tokenizer.encode(t).ids) < n for t, n in zip(p, (8, 5), strict=True))}
    assert read[0] | read[1] == fits and not read[0] & read[1] and read[1]
    assert 0 < 1 - len(fits) / 200 < 0.5
    assert training.left_out == {"x": pytest.approx(1 - len(read[0]) / source["train"]["documents"])}


def test_pairs_of_parquet_are_those_of_json(tmp_path: Path) -> None:
    both = pairs(20)
    data = pair_source(tmp_path, both)
    pq.write_table(pa.table({"zh": [zh for _, zh in both], "n": range(20), "en": [en for en, _ in both]}), tmp_path / "x.parquet")
    for path in (data.sources[0].path, str(tmp_path / "x.parquet")):
        assert [document.texts for document in read_documents(path, "en", "zh")] == both


def test_what_has_no_pairs_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("moon")
    with pytest.raises(DataError, match=r"x\.txt: plain text has no pairs; data\.target_key=zh needs JSONL or Parquet"):
        list(read_documents(str(tmp_path / "x.txt"), "text", "zh"))
    with pytest.raises(DataError, match=r"builtin:sanguo: plain text has no pairs"):
        list(read_documents("builtin:sanguo", "text", "zh"))
    with pytest.raises(DataError, match=r"x\.jsonl:1: no field `zh`; there are text: set data\.target_key"):
        list(read_documents(str(jsonl(tmp_path / "x.jsonl", ["moon"])), "text", "zh"))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"no column `zh`; there are text: set data\.target_key"):
        list(read_documents(str(tmp_path / "x.parquet"), "text", "zh"))
    data = pair_source(tmp_path, pairs(60))
    prepare(data, VOCAB, silent, PAIRS)
    short = TrainConfig(seq_len=8, batch_size=2, objective=ObjectiveConfig(kind="seq2seq", target_len=1))
    with pytest.raises(DataError, match=r"and in them no pair of at most train\.seq_len=8 and train\.objective\.target_len=1"):
        TrainingData(data, short)


# Scores


def test_scores_are_sums_over_batches() -> None:
    sums = [(3.0, 2, 10), (5.5, 1, 7)]
    step = lambda _, batch: tuple(jnp.asarray(value) for value in sums[int(batch["n"][0])])  # noqa: E731
    batches = [({"n": jnp.asarray([i])}, size) for i, size in enumerate((30, 21))]
    event = evaluate(step, {}, batches, 5)
    assert (event.step, event.tokens, event.bytes) == (5, 17, 51)
    assert (event.loss, event.accuracy) == (8.5 / 17, 3 / 17)
    assert event.bits_per_byte == pytest.approx(8.5 / math.log(2) / 51)
    masked = evaluate(step, {}, [(batch, None) for batch, _ in batches], 5)
    assert (masked.bits_per_byte, masked.bytes, masked.loss) == (None, None, event.loss)
    with pytest.raises(DataError, match="nothing to score"):
        evaluate(step, {}, [], 5)


def test_unigrams_know_how_often_targets_occur(tmp_path: Path) -> None:
    data = one_source(tmp_path, corpus(60, 7))
    prepare(data, VOCAB, silent, T5)
    training = TrainingData(data, T5)
    counts = training.target_counts(VOCAB, 40)
    targets = np.concatenate([training.rows(step, range(BATCH))["targets"].ravel() for step in range(5)])
    targets = targets[targets >= 0]
    np.testing.assert_array_equal(counts, np.bincount(targets, minlength=VOCAB))
    p = (counts + 1) / (counts.sum() + VOCAB)
    assert unigram_loss(counts, targets) == pytest.approx(np.mean([-math.log(p[t]) for t in targets]))
    assert unigram_accuracy(counts, targets) == counts.max() / counts.sum()


# With the models


def test_models_read_these_batches(prepared: tuple[DataConfig, TrainConfig]) -> None:
    """A fresh model knows nothing: the loss of every scored token is that of a uniform guess, nearly."""
    data, train = prepared
    mlm = train.objective.kind == "mlm"
    model = ModelConfig(
        kind=MODEL_KINDS[train.objective.kind], vocab_size=VOCAB, n_layers=1, d_model=16, n_heads=2, max_seq_len=40, dtype="float32",
        segments=2 if mlm else 0, sentence_head=mlm,
    )  # fmt: skip
    config = Config(model=model, data=data, train=train)
    check(config)
    held = ValidationData(data, train, token_bytes(tokenizer_of(data)))
    mesh = make_mesh(config.layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        batches = held.batches(NamedSharding(mesh, batch_spec(config.layout)), 4)
        event = evaluate(make_eval_step(config), init_state(config, mesh).params, batches, 0)
    scored = sum((batch["targets"] >= 0).sum() for batch in held.host_batches(4))
    assert event.tokens == scored and event.bits_per_byte is None and 0 <= event.accuracy < 0.1
    assert event.loss == pytest.approx(math.log(VOCAB), abs=0.05)
