"""Mixtures: exact counts, stages that go on where the last one stopped, epochs as they are read."""

from pathlib import Path

import numpy as np
import pytest
from corpora import corpus, jsonl, one_source, silent, two_sources

from qianyi.cli.data import show_manifest
from qianyi.cli.show import run as show
from qianyi.config.check import check
from qianyi.config.mixture import Stretch, epochs, sequences_drawn, stretches
from qianyi.config.schema import BatchStage, Config, DataConfig, MixtureStage, SourceConfig, TrainConfig
from qianyi.data.load import TrainingData
from qianyi.data.mixing import Mixture
from qianyi.data.prepare import prepare
from qianyi.errors import ConfigError, DataError

TRAIN = TrainConfig(seq_len=16, batch_size=8, steps=100)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return two_sources(tmp_path_factory.mktemp("data"))


def stages(*parts: tuple[dict[str, object], dict[str, float]]) -> tuple[MixtureStage, ...]:
    return tuple(MixtureStage.model_validate({**end, "weights": weights}) for end, weights in parts)


@pytest.mark.parametrize(
    "weights", [{"a": 0.5, "b": 0.5}, {"a": 0.1, "b": 0.2, "c": 0.7}, {"a": 1 / 3, "b": 0.0, "c": 2 / 3}, {"a": 1.0}]
)
def test_counts_are_exact_and_numbers_count_on(weights: dict[str, float]) -> None:
    mixture = Mixture([Stretch(0, weights)])
    seen = dict.fromkeys(weights, 0)
    for element in range(1000):
        source, number = mixture[element]
        assert number == seen[source]
        seen[source] += 1
        assert mixture.counts(element + 1) == seen
        for name, weight in weights.items():
            assert abs(seen[name] - weight * (element + 1)) < len(weights)
    assert all(seen[name] == pytest.approx(1000 * weight, abs=1) for name, weight in weights.items())
    far = mixture.counts(10**12)
    assert all(far[name] == pytest.approx(10**12 * weight, abs=3) for name, weight in weights.items())


def test_stages_go_on_where_sources_stopped() -> None:
    parts = [Stretch(0, {"a": 1.0, "b": 0.0}), Stretch(10, {"a": 0.25, "b": 0.75}), Stretch(50, {"a": 0.0, "b": 1.0})]
    mixture = Mixture(parts)
    draws = [mixture[element] for element in range(100)]
    for name in ("a", "b"):
        assert [d.number for d in draws if d.source == name] == list(range(mixture.counts(100)[name]))
    assert [d.source for d in draws[:10]] == ["a"] * 10 and [d.source for d in draws[50:]] == ["b"] * 50
    assert mixture.counts(50) == {"a": 20, "b": 30} == {name: round(n) for name, n in sequences_drawn(parts, 50).items()}
    for n in (0, 5, 10, 11, 49, 50, 51, 100):
        counted = [sum(d.source == name for d in draws[:n]) for name in ("a", "b")]
        assert list(mixture.counts(n).values()) == counted


def test_stages_end_at_steps_and_shares_of_the_run() -> None:
    ramp = TrainConfig(seq_len=16, batch_size=8, steps=100, batch_ramp=(BatchStage(batch_size=2, sequences=40),))
    data = DataConfig(stages=stages(({"until_step": 30}, {"a": 1}), ({"until_fraction": 0.5}, {"a": 1, "b": 3}), ({}, {"b": 2})))
    found = stretches(data, ramp, {"a": 1000, "b": 10})
    assert found == [
        Stretch(0, {"a": 1.0, "b": 0.0}),
        Stretch(40 + 10 * 8, {"a": 0.25, "b": 0.75}),
        Stretch((40 + 80 * 8) // 2, {"a": 0.0, "b": 1.0}),
    ]


def test_batches_follow_stages_and_resume(prepared: DataConfig) -> None:
    """Only a up to step 20, then only b; each window of a source comes once before any comes again."""
    data = prepared.model_copy(update={"stages": stages(({"until_step": 20}, {"a": 1}), ({}, {"b": 1}))})
    reader = TrainingData(data, TRAIN)
    windows = {name: {tuple(w[i][1:]) for i in range(len(w))} for name, w in reader._windows.items()}
    for step, name in ((0, "a"), (19, "a"), (20, "b"), (99, "b")):
        rows = reader.rows(step, range(8))
        assert all(tuple(row) in windows[name] for row in rows["targets"])
        other = TrainingData(data, TRAIN)
        np.testing.assert_array_equal(
            np.concatenate([other.rows(step, range(r, r + 2))["inputs"] for r in range(0, 8, 2)]), rows["inputs"]
        )
    plain = TrainingData(prepared.model_copy(update={"stages": stages(({}, {"a": 1}))}), TRAIN)
    np.testing.assert_array_equal(reader.rows(7, range(8))["inputs"], plain.rows(7, range(8))["inputs"])
    assert reader.epochs(100) == {"a": 160 / len(reader._windows["a"]), "b": 640 / len(reader._windows["b"])}
    assert reader.record["mixture"] == [[0, {"a": 1.0, "b": 0.0}], [160, {"a": 0.0, "b": 1.0}]]
    drawn = [reader._mixture[e] for e in range(160, 800)]
    assert [d.number for d in drawn] == list(range(640))


def test_epochs_from_tokens_are_those_of_the_loader(prepared: DataConfig) -> None:
    reader = TrainingData(prepared, TRAIN)
    tokens = {name: len(stream) for name, stream in reader._streams.items()}
    for name, times in epochs(prepared, TRAIN, tokens).items():
        assert times == pytest.approx(reader.epochs(TRAIN.steps)[name], rel=0.01)


def test_too_many_epochs_are_said(prepared: DataConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    manifest = prepare(prepared, 400, silent)
    config = Config(data=prepared, train=TrainConfig(seq_len=64, batch_size=8, steps=30))
    show_manifest(manifest, config)
    assert "epochs" in (few := capsys.readouterr().out) and "warning" not in few
    many = config.model_copy(update={"train": TrainConfig(seq_len=64, batch_size=64, steps=1000)})
    show_manifest(manifest, many)
    assert "warning: a is read" in (said := capsys.readouterr().out) and "Muennighoff" in said
    sources = "[" + ", ".join(f"{{name: {s.name}, path: {s.path}}}" for s in prepared.sources) + "]"
    show("quickstart", [f"data.dir={prepared.dir}", f"data.sources={sources}"], None)
    shown = capsys.readouterr().out
    assert "Data:           epochs of a " in shown and "warning: b is read" in shown


def mistake(**data: object) -> str:
    sources = (SourceConfig(name="a", path="x"), SourceConfig(name="b", path="y"))
    settings = {"sources": sources, **data}
    with pytest.raises(ConfigError) as caught:
        check(Config(data=DataConfig.model_validate(settings), train=TRAIN))
    return str(caught.value)


def test_stages_that_make_no_sense_are_named() -> None:
    end = {"until_step": 10}
    assert "data.stages.0.weights names c; the sources are a, b" in mistake(stages=stages(({}, {"c": 1})))
    assert "data.stages.0: the last stage goes on to the end" in mistake(stages=stages((end, {"a": 1})))
    assert "data.stages.0: say where the stage ends" in mistake(stages=stages(({}, {"a": 1}), ({}, {"b": 1})))
    both = {"until_step": 10, "until_fraction": 0.5}
    assert "data.stages.0: say where the stage ends" in mistake(stages=stages((both, {"a": 1}), ({}, {"b": 1})))
    assert "data.stages.0.weights: no source has a weight above 0" in mistake(stages=stages(({}, {"a": 0})))
    back = stages(({"until_fraction": 0.5}, {"a": 1}), (end, {"a": 1}), ({}, {"b": 1}))
    assert "data.stages.1 ends at sequence 80, not after 400" in mistake(stages=back)
    weighted = tuple(SourceConfig(name=n, path=n, weight=1) for n in "ab")
    assert "leave those of the sources out" in mistake(sources=weighted, stages=stages(({}, {"a": 1})))
    assert "data.packing=best_fit puts documents side by side" in mistake(packing="best_fit")


def test_shards_without_the_sources_of_a_stage(prepared: DataConfig) -> None:
    data = prepared.model_copy(update={"sources": (), "stages": stages(({}, {"a": 1, "z": 1}))})
    with pytest.raises(DataError, match=r"data\.stages names z; the sources of .*shards are a, b"):
        TrainingData(data, TRAIN)


def test_a_source_without_weight_may_be_small(tmp_path: Path) -> None:
    """What is drawn from never needs no text for a sequence."""
    data = one_source(tmp_path, corpus(100, 5))
    jsonl(tmp_path / "y.jsonl", ["一", "二", "三", "四", "五", "六", "七", "八", "九", "十", "天", "地"])
    small = SourceConfig(name="y", path=str(tmp_path / "y.jsonl"))
    data = data.model_copy(update={"sources": (*data.sources, small), "validation_fraction": 0.3})
    prepare(data, 300, silent)
    with pytest.raises(DataError, match=r"data\.sources\.y has \d+ training tokens"):
        TrainingData(data, TrainConfig(seq_len=256, batch_size=2))
    alone = data.model_copy(update={"stages": stages(({}, {"x": 1}))})
    assert TrainingData(alone, TrainConfig(seq_len=256, batch_size=2)).rows(0, range(2))["inputs"].shape == (2, 256)
