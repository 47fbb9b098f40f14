"""The command prints what came of each source, and one message for a mistake."""

from pathlib import Path

import pytest
from corpora import corpus, jsonl

from qianyi.cli import data_collect
from qianyi.corpus.parts import Options
from qianyi.errors import ConfigError, DataError


def test_what_came_in_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonl(tmp_path / "x.jsonl", corpus(20, 1))
    (tmp_path / "y.jsonl").write_text('{"text": "好"}\n{"txt": "没有"}\n', encoding="utf-8")
    sources = [str(tmp_path / "x.jsonl"), f"second={tmp_path / 'y.jsonl'}"]
    data_collect.run(sources, tmp_path / "out", {"licence": "CC0-1.0", "text_key": None}, None, Options())
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[1:3]] == ["second", "x.jsonl"]
    assert "1 dropped as `no_text`" in shown


def test_a_setting_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--max-pages"):
        data_collect.run(["crawl:http://x/"], tmp_path / "out", {"max_pages": 0}, None, Options())
    with pytest.raises(DataError, match="nowhere: no such file"):
        data_collect.run(["nowhere"], tmp_path / "out", {}, None, Options())


def test_the_table_of_corpora_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    data_collect.list_corpora()
    shown = capsys.readouterr().out
    assert "corpus:chinese-poetry" in shown
    assert "research only" in shown
