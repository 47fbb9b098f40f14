"""Good documents pass and junk does not; a file of rules says what it means, and what is wrong in it is named."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import files_of
from junk import JUNK, junk
from real_text import real_text

from qianyi.cli import data_clean
from qianyi.corpus.clean.judge import judge
from qianyi.corpus.clean.measure import measure
from qianyi.corpus.clean.rules import from_json, load_kinds, to_json
from qianyi.corpus.clean.stage import MEASURE, clean, filter_measured, measure_unit
from qianyi.corpus.document import document_batch
from qianyi.corpus.parts import Options, Writer, part_units, read_batches, run_parts
from qianyi.data.stage import Json
from qianyi.errors import ConfigError, QianyiError

KEEP = {
    "peoples-daily": 0.95,
    "manpages-zh": 0.95,
    "sanguo": 0.98,
    "poetry": 0.98,
    "python-doc": 0.94,
    "shakespeare": 0.98,
    "sotu": 0.98,
}
"""Least share of the documents that passes."""


def reasons(texts: list[str], rules: Path | None = None) -> list[str]:
    batch, _ = measure(document_batch("test", [str(i) for i in range(len(texts))], texts))
    return judge(batch, load_kinds(rules)).reasons


@pytest.mark.parametrize("name", KEEP)
def test_good_text_is_kept(name: str) -> None:
    texts = real_text(name)
    texts = texts[:: max(1, len(texts) // 300)]
    failed = [reason for reason in reasons(texts) if reason]
    assert 1 - len(failed) / len(texts) >= KEEP[name], failed


def test_short_chinese_needs_no_full_stop() -> None:
    reviews = [
        "看到大家都说好，买回家就觉得很失望，个人觉得不实用",
        "环境和设施都不好,提前预订的不靠铁轨的房间没给保留,整晚的火车汽笛声影响了睡眠",
        "这个是我住的全国最差的所谓四星标准建的宾馆.房间小的可怜,可以说让人无法转身.看上去最多也只有三星级.服务员结帐速度超慢,"
        "我等了半小时,最后还问了一句话,是不是要加收半天的房费.希望不要把这种酒店再列为推荐酒店",
    ]
    menus = [
        "首页 关于我们 产品中心 新闻动态 联系我们 加入收藏 网站地图 版权声明 友情链接",
        "手机数码电脑办公家用电器服装鞋帽个护化妆家居家装运动户外母婴用品",
    ]
    assert reasons(reviews) == ["", "", ""]
    assert all(reasons(menus))


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_dropped(name: str) -> None:
    assert sum(map(bool, reasons(junk(name)))) >= 0.9 * 30


def test_good_text_made_bad_is_dropped() -> None:
    """What spoils a text: pages said twice over, menus around little, one line in three."""
    good = [text[:1500] for text in real_text("sanguo")[:20] if len(text) > 1000] + [
        t[:3000] for t in real_text("shakespeare")[:20]
    ]
    assert sum(map(bool, reasons(["\n\n".join([text] * 4) for text in good]))) >= 0.9 * len(good)


def write_rules(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_own_rules_are_laid_over_the_shipped(tmp_path: Path) -> None:
    text = real_text("sanguo")[5]
    assert reasons([text]) == [""]
    strict = write_rules(tmp_path / "a.yaml", "kinds: {zh-prose: {rules: {stop_fraction: {min: 0.9}}}}")
    assert reasons([text], strict) == ["stop_fraction"]
    gone = write_rules(
        tmp_path / "b.yaml", "kinds:\n  zh-prose:\n    rules:\n      stop_fraction: null\n      odd: {column: stat_han, max: 0.1}"
    )
    assert reasons([text], gone) == ["odd"]
    first = write_rules(
        tmp_path / "c.yaml",
        "kinds: {mine: {languages: [zh], when: [{stat_han: {min: 0.5}}], rules: {han: {column: stat_words, per: stat_lines, max: 1}}}}",
    )
    assert reasons([text, real_text("shakespeare")[3]], first) == ["han", ""]


def test_kinds_survive_json() -> None:
    assert from_json(to_json(load_kinds())) == load_kinds()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kinds: {zh-prose: {rules: {words: {mim: 3}}}}",
            r"r.yaml:1: `kinds.zh-prose.rules.words.mim`: unknown; did you mean `min`",
        ),
        (
            "kinds:\n  zh-prose:\n    rules:\n      word: null",
            r"r.yaml:4: .*no such shipped rule.*did you mean `kinds.zh-prose.rules.words`",
        ),
        ("kinds: {zh-prose: {rules: {words: {min: 9, max: 3}}}}", r"min 9 is above max 3: nothing would pass"),
        ("kinds: {zh-prose: {rules: {words: {min: many}}}}", r"expected numbers as `min` or `max`, found \{'min': 'many'"),
        ("kinds: {x: {rules: {words: {column: stat_words}}}}", r"r.yaml:1: `kinds.x.rules.words`: expected numbers"),
        ("kinds: {x: {languages: zh}}", r"expected a list of language codes"),
        ("kinds: {x: {when: {stat_words: {max: 9}}}}", r"expected kinds.KIND.languages"),
        ("kinds: {x: {when: [stat_words]}}", r"expected a list such as"),
        ("rules: {words: {min: 3}}", r"`rules.words.min`: expected kinds.KIND"),
        ("kinds: [", r"r.yaml:1: not valid YAML"),
    ],
)
def test_wrong_rules_are_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_kinds(write_rules(tmp_path / "r.yaml", text))


def two_parts(unit: Json, settings: Json, writer: Writer) -> None:
    texts = [t[:800] for t in real_text("sanguo")[:12]] + junk("spam-zh")[:4] + [t[:1500] for t in real_text("shakespeare")[:8]]
    texts = texts[unit["from"] :: 2]
    writer.keep(document_batch("mix", [f"{unit['from']}/{i}" for i in range(len(texts))], texts))


def corpus(root: Path) -> Path:
    run_parts(root / "in", "collect", {}, [{"from": 0}, {"from": 1}], two_parts, [])
    return root / "in"


def test_stage_keeps_drops_and_explains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = corpus(tmp_path)
    manifest = clean([source], tmp_path / "out")
    assert manifest["dropped"] == 4
    assert manifest["documents"] == 20
    dropped = pa.concat_tables(pq.read_table(f) for f in sorted((tmp_path / "out" / "dropped").glob("*.parquet")))
    assert set(dropped["detail"].to_pylist()) and all(" < " in d or " > " in d for d in dropped["detail"].to_pylist())
    kept = pa.Table.from_batches([b for f in sorted((tmp_path / "out" / "parts").glob("*.parquet")) for b in read_batches(f)])
    assert set(kept["label_kind"].to_pylist()) <= {"zh-prose", "en-prose", "en-technical"}
    assert {"stat_words", "label_language", "label_script_variant", "stat_pii_email"} <= set(kept.column_names)
    measured = pq.read_table(tmp_path / "out" / "measured" / "parts")
    assert measured.num_rows == 24
    data_clean.run([], tmp_path / "again", tmp_path / "out" / "measured", None, report=True, options=Options())
    shown = capsys.readouterr().out
    assert "zh-prose" in shown or "zh-technical" in shown
    assert "cumulative" in shown


def test_output_is_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    source = corpus(tmp_path)
    clean([source], tmp_path / "out")
    two = Options(workers=2, engine="native")
    run_parts(tmp_path / "two", "measure", MEASURE, part_units(source), measure_unit, [source], two)
    one, two = files_of(tmp_path / "out" / "measured" / "parts"), files_of(tmp_path / "two" / "parts")
    assert len(one) == 2
    assert one == two


def test_other_thresholds_cost_no_text(tmp_path: Path) -> None:
    clean([corpus(tmp_path)], tmp_path / "out")
    before = files_of(tmp_path / "out" / "measured")
    rules = write_rules(tmp_path / "r.yaml", "kinds: {zh-prose: {rules: {words: {min: 700}}}}")
    again = filter_measured(tmp_path / "out" / "measured", tmp_path / "strict", rules)
    assert again["reasons"]["words"] > 0
    assert files_of(tmp_path / "out" / "measured") == before


def test_what_cannot_be_filtered_is_named(tmp_path: Path) -> None:
    source = corpus(tmp_path)
    with pytest.raises(ConfigError, match=r"was not measured"):
        filter_measured(source, tmp_path / "out")
    clean([source], tmp_path / "out")
    rules = write_rules(tmp_path / "r.yaml", "kinds: {zh-prose: {rules: {q: {column: stat_word, min: 1}}}}")
    with pytest.raises(ConfigError, match=r"rules of zh-prose: no column `stat_word` in .*did you mean `stat_words`"):
        filter_measured(tmp_path / "out" / "measured", tmp_path / "x", rules)
    with pytest.raises(ConfigError, match=r"name corpus directories"):
        data_clean.run([], tmp_path / "y", None, None, report=False, options=Options())
    never = write_rules(tmp_path / "n.yaml", "kinds: {zh-prose: {rules: {never: {column: stat_words, min: 0}}}}")
    with pytest.raises(QianyiError, match=r"rule `never` matches none"):
        filter_measured(tmp_path / "out" / "measured", tmp_path / "z", never)
