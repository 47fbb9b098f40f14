"""The verbs `dedup` and `decontaminate` print what they found and name what is wrong."""

import json
from pathlib import Path

import pytest
from dedup_corpora import make_corpus, real_texts

from qianyi.cli import data_decontaminate, data_dedup
from qianyi.corpus.parts import Options
from qianyi.errors import ConfigError


def test_dedup_prints_and_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [*real_texts()[:6], real_texts()[50], real_texts()[0].lower(), real_texts()[50] + "另"]
    corpus, report = make_corpus(tmp_path / "in", texts), tmp_path / "report.json"
    data_dedup.run([corpus], tmp_path / "out", {"paragraphs": "off"}, (), Options(), report)
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "kept",
        "exact_duplicate",
        "near_duplicate",
        "clusters of documents: 2, the largest of 2",
        "recall 1.000, precision 1.000",
    ):
        assert part in printed
    found = json.loads(report.read_text())
    assert found["reasons"] == {"exact_duplicate": 1, "near_duplicate": 1}
    assert found["sample"]["s_curve"][-1]["pairs"] == 2
    with pytest.raises(ConfigError, match=r"data dedup: substring_bytes is 3: at least 64, or 0 for off"):
        data_dedup.run([corpus], tmp_path / "x", {"substring_bytes": 3}, (), Options(), None)
    with pytest.raises(ConfigError, match=r"data dedup: similarity: Input should be less than or equal to 1"):
        data_dedup.run([corpus], tmp_path / "x", {"similarity": 80.0}, (), Options(), None)


def test_decontaminate_prints_a_row_for_each_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path / "in", real_texts()[:6])
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"q": real_texts()[2][:400]}) + "\n")
    (tmp_path / "other.txt").write_text("nothing of this long sentence was ever written by the poet of these plays, I believe")
    sets = [tmp_path / "quiz.jsonl", tmp_path / "other.txt"]
    data_decontaminate.run([corpus], tmp_path / "out", sets, {}, Options(), tmp_path / "report.json")
    printed = capsys.readouterr().out
    assert "5 documents kept, 0 of them cut, 1 dropped" in printed.replace("\n", " ")
    found = json.loads((tmp_path / "report.json").read_text())["evalsets"]
    assert [entry["found"] for entry in found.values()] == [1, 0]
    with pytest.raises(ConfigError, match=r"data decontaminate: rule: Input should be 'ngram' or 'overlap'"):
        data_decontaminate.run([corpus], tmp_path / "x", sets, {"rule": "bloom"}, Options(), None)
