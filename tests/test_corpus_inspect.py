"""`qianyi data inspect`: numbers of the page are the corpus's, samples do not depend on how it was cut, and a browser shows it."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from browser import chromium, sync_api
from corpora_text import LICENCES, MIN_CHARACTERS, make_pipeline, texts

from qianyi.corpus.document import document_batch, read_dropped, read_parts
from qianyi.corpus.inspect.charts import histogram, number
from qianyi.corpus.inspect.clusters import duplicate_clusters
from qianyi.corpus.inspect.page import render, share, size, summary, write_page
from qianyi.corpus.inspect.sketch import Sketch
from qianyi.corpus.inspect.stages import inspect
from qianyi.corpus.inspect.survey import Samples, hashes
from qianyi.corpus.inspect.topics import topics
from qianyi.corpus.inspect.words import CHINESE
from qianyi.corpus.parts import run_parts
from qianyi.errors import DataError, ResourceError


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize("name", ["lengths", "shares", "few", "signed"])
def test_quantiles_and_histograms_are_those_of_all_numbers(name: str) -> None:
    draw = np.random.default_rng(3)
    values = {
        "lengths": np.exp(draw.normal(7, 2, 20_000)).astype(int).astype(float) + 1,
        "shares": draw.beta(2, 9, 20_000),
        "few": draw.integers(0, 9, 20_000).astype(float),
        "signed": draw.normal(0, 3, 20_000),
    }[name]
    sketch = Sketch()
    for piece in np.array_split(values, 7):
        sketch.add(piece)
    sketch.add(np.array([np.nan, np.inf]))
    assert sketch.total == len(values)
    assert sketch.sum == pytest.approx(values.sum())
    for q in (0.01, 0.25, 0.5, 0.9, 0.999):
        assert sketch.quantile(q) == pytest.approx(np.quantile(values, q, method="inverted_cdf"), rel=0.011, abs=1e-9)
    edges = np.linspace(values.min(), values.max() + 1e-9, 9) if name != "few" else np.arange(10) - 0.5
    expected = np.histogram(values, edges)[0]
    found = sketch.histogram(edges.tolist())
    assert sum(found) == len(values)
    # What lies within 1.1% of an edge may be on its other side.
    near = [int(np.sum(np.abs(values - edge) <= 0.011 * abs(edge))) for edge in edges]
    for k in range(len(expected)):
        assert abs(found[k] - expected[k]) <= near[k] + near[k + 1]
    if name == "few":
        assert found == expected.tolist()


def test_a_sketch_stays_small() -> None:
    sketch = Sketch()
    sketch.add(np.exp(np.random.default_rng(0).uniform(-20, 20, 300_000)))
    assert len(sketch.counts) <= 64 * 40 / np.log(2) + 2


def test_bars_of_whole_numbers_hold_all_of_them() -> None:
    sketch = Sketch()
    values = np.repeat(np.arange(1.0, 2001.0), 3)
    sketch.add(values)
    chart = histogram("n", sketch, None)
    assert chart
    (layer,) = chart.layers
    heights = [1000 - float(y) for y in re.findall(r"V([\d.]+)H", layer.path)]
    assert min(heights) > 0  # none is narrower than one, so that none is empty
    assert abs(float(chart.median) - 1000) <= 11
    assert histogram("one", _of(np.full(9, 4.0)), None) is None


def _of(values: np.ndarray) -> Sketch:
    sketch = Sketch()
    sketch.add(values)
    return sketch


def test_samples_do_not_depend_on_order_or_batches() -> None:
    origins = [str(k) for k in range(400)]
    batch = document_batch("s", origins, origins)
    groups = [origin[-1] for origin in origins]

    def sampled(order: list[int], cut: int) -> dict[str, list[str]]:
        samples = Samples()
        for start in range(0, len(order), cut):
            rows = order[start : start + cut]
            some = batch.take(pa.array(rows))
            samples.add([groups[r] for r in rows], hashes(some["id"]), lambda row, some=some: _sample(some, row))
        return {group: [s.origin for s in samples.of(group)] for group in "0123456789"}

    first = sampled(list(range(400)), 400)
    assert sampled(list(range(399, -1, -1)), 7) == first
    keys = hashes(batch["id"])
    for group, found in first.items():
        expected = sorted((k for k in range(400) if groups[k] == group), key=lambda k: keys[k])[:3]
        assert found == [str(k) for k in expected]


def _sample(batch: pa.RecordBatch, row: int):
    from qianyi.corpus.inspect.survey import sample_of

    return sample_of(batch, row, "text")


def test_numbers_are_the_corpus(pipeline: Path) -> None:
    found = inspect(pipeline)
    collected, cleaned, deduplicated = found.stages
    assert [stage.name for stage in found.stages] == ["1-collect", "2-clean", "3-dedup"]
    for source, licence in LICENCES.items():
        amount = collected.kept.sources[source]
        rows = texts(source)
        assert (amount.documents, amount.characters, amount.text_bytes) == (
            len(rows),
            sum(map(len, rows)),
            sum(len(row.encode()) for row in rows),
        )
        assert amount.licences == {licence: len(rows)}
        assert amount.research_only == (len(rows) if source == "notes" else 0)
    short = sum(len(text) < MIN_CHARACTERS for source in LICENCES for text in texts(source))
    assert cleaned.dropped.reasons == {"too_short": short}
    lengths = np.array([len(text) for batch in read_parts(pipeline / "3-dedup") for text in batch["text"].to_pylist()], float)
    assert deduplicated.kept.numbers["characters"].quantile(0.5) == pytest.approx(np.median(lengths), rel=0.02)
    languages = Counter(x for batch in read_parts(pipeline / "3-dedup") for x in batch["label_language"].to_pylist())
    assert deduplicated.kept.words["label_language"] == languages
    assert summary(found)[2] == (
        f"3-dedup: {len(lengths):,} of {deduplicated.documents_in:,} documents kept, {size(deduplicated.kept.total.text_bytes)}"
    )


def test_clusters_are_those_of_equal_texts(pipeline: Path) -> None:
    clusters = duplicate_clusters(pipeline / "3-dedup")
    assert clusters
    copies = Counter(Counter(texts("notes")).values())
    assert dict(clusters.sizes) == {n: k for n, k in copies.items() if n > 1}
    assert clusters.dropped == sum(batch.num_rows for batch in read_dropped(pipeline / "3-dedup"))
    assert [cluster.documents for cluster in clusters.shown[:2]] == [max(copies)] * 2
    for cluster in clusters.shown:
        assert cluster.survivor
        assert all(cluster.survivor.text.startswith(sample.text[:100]) for sample in cluster.dropped)
    assert duplicate_clusters(pipeline / "2-clean") is None


def test_the_page_is_in_both_languages_and_the_same_every_time(pipeline: Path, tmp_path: Path) -> None:
    page = render(inspect(pipeline))
    assert page == render(inspect(pipeline))
    assert not re.search(r"""(?:src|href)=|url\(|@import|https?://(?!www\.w3)""", page)
    assert "too_short" in page and "exact_duplicate" in page and "research only" in page and "仅限研究" in page
    single = render(inspect(pipeline / "2-clean"))
    assert "too_short" in single and "exact_duplicate" not in single
    write_page(inspect(pipeline), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    with pytest.raises(ResourceError, match="say where with --out FILE"):
        write_page(inspect(pipeline), tmp_path / "page.html" / "x.html")


def test_every_word_of_the_page_has_a_chinese_one() -> None:
    template = (Path(__file__).parent.parent / "src/qianyi/corpus/inspect/page.html").read_text(encoding="utf-8")
    used = set(re.findall(r'\bt\("([^"]+)"', template))
    assert used == set(CHINESE)
    for english, chinese in CHINESE.items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese))


def test_markup_in_a_corpus_is_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> & 🌙"
    run_parts(tmp_path / "c", "collect", {}, [{"text": evil}], _one, [])
    page = render(inspect(tmp_path / "c"))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def _one(unit: dict, _: dict, writer) -> None:
    writer.keep(document_batch("<b>s</b>", ["o"], [unit["text"]], licence="<i>"))


def test_what_cannot_be_shown_is_said(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        inspect(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"neither a corpus directory .* nor a pipeline"):
        inspect(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(pipeline, broken)
    (broken / "topics.json").write_text('{"points": [[1, 2]], "clusters": []}')
    with pytest.raises(DataError, match=r"topics\.json: expected"):
        render(inspect(broken))
    (broken / "topics.json").write_text("{")
    with pytest.raises(DataError, match="broken JSON"):
        inspect(broken)
    (broken / "topics.json").unlink()
    part = next((broken / "3-dedup" / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=re.escape(str(part))):
        render(inspect(broken))


def made_map(n_clusters: int) -> dict:
    """As `qianyi.label.topics` writes it."""
    points = [
        {"id": str(k), "source": "s", "title": f"标题 {k}", "x": k % 20, "y": k // 20, "cluster": k % n_clusters, "outlier": 0.5}
        for k in range(300)
    ]
    return {"points": points, "clusters": [{"words": [f"w{c}"], "n": 100 - c} for c in range(n_clusters)], "outliers": ["7", "3"]}


def test_the_map_holds_every_cluster() -> None:
    found = topics(made_map(15))
    assert [topic.documents for topic in found.named] == list(range(100, 88, -1))
    assert sum(topic.path.count("M") for topic in (*found.named, *found.others)) == 300
    places = [float(v) for topic in found.named for v in re.findall(r"[\d.]+(?=,|h)", topic.path)]
    assert min(places) >= 0 and max(places) <= 1000
    assert found.outliers == (("s", "标题 7"), ("s", "标题 3"))


def test_numbers_as_words() -> None:
    assert [size(n) for n in (12, 950, 12_300, 2.5e6, 3.2e9, 1.5e12)] == [
        "12 B",
        "950 B",
        "12.3 kB",
        "2.50 MB",
        "3.20 GB",
        "1.50 TB",
    ]
    assert [share(*pair) for pair in ((0, 9), (1, 3), (1, 5000), (4999, 5000), (5, 5), (0, 0))] == [
        "0%", "33.3%", "<0.1%", ">99.9%", "100%", "0%",
    ]  # fmt: skip
    assert [number(v) for v in (0, 0.5, 0.00012, 12345, float("nan"))] == ["0", "0.5", "1e-4", "12.3k", "-"]


OVERFLOW = """() => [...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll, .cluster, pre") &&
  e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 80))"""


def test_a_browser_shows_it(pipeline: Path, browser: "sync_api.Browser", tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(pipeline, whole)
    (whole / "topics.json").write_text(json.dumps(made_map(3)), encoding="utf-8")
    write_page(inspect(whole), whole / "inspect.html")
    for locale, scheme, width in (("en-US", "light", 1200), ("zh-CN", "dark", 1200), ("zh-CN", "light", 390)):
        page = browser.new_context(locale=locale, color_scheme=scheme, viewport={"width": width, "height": 800}).new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
        page.on("console", lambda message, wrong=wrong: wrong.append(message.text))
        page.on("request", lambda r, wrong=wrong: None if r.url.startswith("file:") else wrong.append(r.url))
        page.goto(f"file://{whole / 'inspect.html'}")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(OVERFLOW) == []
        chinese = locale == "zh-CN"
        assert page.inner_text("#stages") == ("各步骤" if chinese else "Stages")
        page.click("#language")
        assert page.inner_text("#stages") == ("Stages" if chinese else "各步骤")
        page.locator("details.rule summary").first.click()
        assert page.locator("details.rule blockquote").first.is_visible()
        heights = page.eval_on_selector_all("figure svg path.after", "paths => paths.map(p => p.getBoundingClientRect().height)")
        assert len(heights) == 3 and max(heights) > 50
        assert page.locator(".map li").count() == 3
        assert wrong == []
