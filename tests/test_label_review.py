"""Reviews: nothing is lost, agreement is what others compute, the page works in a real browser in both languages."""

import json
import math
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from browser import chromium

from qianyi.data import builtin
from qianyi.errors import DataError
from qianyi.label.agreement import cohen_kappa
from qianyi.label.journal import append_record, read_records
from qianyi.label.review import DECIDED, JOURNAL, Item, Review, open_review, start_review
from qianyi.label.sampling import choose_texts, stratified, uncertainty
from qianyi.label.studio import from_studio, import_studio, labelling_config, to_studio

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
LABELS, PEOPLE = ("prose", "verse"), ("ann", "明")


def items(n: int = 6) -> list[Item]:
    sources = [islice(builtin.documents(f"builtin:{name}"), n // 2) for name in ("shakespeare", "sanguo")]
    return [Item(origin, text, "s", "prose") for source in sources for origin, text in source]


@pytest.fixture
def review(tmp_path: Path) -> Review:
    return start_review(tmp_path / "review", items(), LABELS, PEOPLE)


def test_kappa_is_that_of_scikit_learn_and_of_the_textbook() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    a = random.choice(["x", "y", "z"], 500, p=[0.6, 0.3, 0.1])
    b = np.where(random.random(500) < 0.7, a, random.choice(["x", "y", "z"], 500))
    found = cohen_kappa(a.tolist(), b.tolist())
    np.testing.assert_allclose(found.kappa, metrics.cohen_kappa_score(a, b), rtol=1e-12)
    # The error is what kappa of samples drawn from these texts varies by.
    drawn = [cohen_kappa(a[i].tolist(), b[i].tolist()).kappa for i in random.integers(0, 500, (600, 500))]
    np.testing.assert_allclose(found.standard_error, np.std(drawn), rtol=0.12)
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: kappa 0.4.
    said = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert math.isclose(cohen_kappa(*zip(*said, strict=True)).kappa, 0.4)
    assert math.isnan(cohen_kappa(["x"] * 9, ["x"] * 9).kappa)
    assert cohen_kappa(["x", "y"], ["x", "y"]).kappa == 1
    assert cohen_kappa([], []).texts == 0


def test_a_review_goes_on_as_it_was_left(review: Review) -> None:
    first, second = (review.items[i].id for i in (0, 1))
    review.label("ann", first, "prose")
    review.label("明", first, "verse")
    review.label("ann", second, "verse")
    assert review.next_item("ann") == review.items[2]
    assert review.undo("ann") == second
    review.label("ann", second, "prose")
    review.label("明", second, "prose")
    assert review.disagreements() == [first]
    assert review.next_item(DECIDED) == review.items[0]
    assert review.settled() == {second: "prose"}
    review.label(DECIDED, first, "verse")
    again = open_review(review.directory)
    assert again == review
    assert again.settled() == {first: "verse", second: "prose"}
    assert again.next_item(DECIDED) is None
    assert len(read_records(review.directory / JOURNAL)) == 7  # undoing is a line, too
    assert again.undo("ann") == second
    assert again.undo("ann") == first
    assert again.undo("ann") is None


def test_a_line_that_a_crash_cut_short_costs_nothing_else(review: Review) -> None:
    journal = review.directory / JOURNAL
    names = [item.id for item in review.items]
    review.label("ann", names[0], "prose")
    whole = journal.read_bytes()
    line = json.dumps({"who": "明", "id": names[1], "label": "prose", "time": 0}, ensure_ascii=False).encode()
    for cut in (1, 9, 12, len(line) - 1):
        journal.write_bytes(whole + line[:cut])
        found = open_review(review.directory)
        assert found.given == review.given
        found.label("ann", names[2], "verse")
        assert open_review(review.directory).given == {"ann": {names[0]: "prose", names[2]: "verse"}}
    journal.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(DataError, match=r"labels\.jsonl:1: broken JSON"):
        open_review(review.directory)
    journal.write_bytes(b'{"who": "ann"}\n')
    with pytest.raises(DataError, match=r"labels\.jsonl:1: expected who, id and label"):
        open_review(review.directory)


def test_journals_are_written_by_several_at_once(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from qianyi.label.journal import append_record\n"
    program += "for i in range(40): append_record(Path(sys.argv[1]), {'who': sys.argv[2], 'i': i, 'text': '千' * 3000})"
    path = tmp_path / "journal"
    runs = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "ab"]
    assert [run.wait(60) for run in runs] == [0, 0]
    assert Counter(record["who"] for record in read_records(path)) == {"a": 40, "b": 40}
    append_record(path, {"who": "c"})
    assert read_records(path)[-1] == {"who": "c"}


def test_what_a_review_cannot_be(tmp_path: Path, review: Review) -> None:
    for labels, people, message in (
        (["one"], PEOPLE, "2 to 26 labels, not 1"),
        (LABELS, ["ann", "ann"], "two annotators"),
        (LABELS, ["ann", DECIDED], f"none is `{DECIDED}`"),
    ):
        with pytest.raises(DataError, match=message):
            start_review(tmp_path / "other", items(), labels, people)
    with pytest.raises(DataError, match="this review has the labels prose, verse"):
        start_review(review.directory, [], ["a", "b"], PEOPLE)
    assert len(start_review(review.directory, items(8), LABELS, PEOPLE).items) == 8
    with pytest.raises(DataError, match="no label `poem`"):
        review.label("ann", review.items[0].id, "poem")
    with pytest.raises(DataError, match="no annotator `bob`"):
        review.label("bob", review.items[0].id, "prose")
    with pytest.raises(DataError, match="no text `x`"):
        review.label("ann", "x", "prose")
    with pytest.raises(DataError, match=r"review\.json: missing"):
        open_review(tmp_path / "none")


def test_half_is_asked_where_a_classifier_is_unsure_and_half_from_every_stratum() -> None:
    p = np.array([0.5, 0.99, 0.6, 0.98, 0.97, 0.96, 0.02, 0.99])
    heard = np.log(np.stack([p, 1 - p], axis=1)).astype(np.float32)
    np.testing.assert_allclose(uncertainty(heard)[0], math.log(2), rtol=1e-6)
    chosen = choose_texts(["a"] * 4 + ["b"] * 4, heard, 4)
    assert chosen[::2] == [0, 2]
    assert len(set(chosen)) == 4
    strata = ["rare"] * 3 + ["common"] * 97
    drawn = stratified(strata, 20, seed=1)
    assert Counter(strata[i] for i in drawn) == {"rare": 3, "common": 17}
    assert sorted(stratified(strata, 200, seed=1)) == list(range(100))
    assert sorted(choose_texts(strata, None, 100)) == list(range(100))
    assert sorted(choose_texts(["a"] * 8, heard, 8)) == list(range(8))


def test_label_studio_gets_and_gives_the_same(review: Review, tmp_path: Path) -> None:
    names = [item.id for item in review.items]
    for who, label in (("ann", "prose"), ("明", "verse"), (DECIDED, "verse")):
        review.label(who, names[0], label)
    review.label("ann", names[1], "verse")
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(to_studio(review)))
    other = start_review(tmp_path / "other", from_studio(path)[0], LABELS, PEOPLE)
    assert import_studio(other, path) == 4
    assert import_studio(other, path) == 0
    assert other.given == review.given
    assert [i.text for i in other.items] == [i.text for i in review.items]
    assert 'toName="text" choice="single"><Choice value="prose"/>' in labelling_config(LABELS)
    # As Label Studio writes it: annotators by number, other fields, cancelled ones.
    choice = {"type": "choices", "from_name": "label", "to_name": "text", "id": "x", "value": {"choices": ["prose"]}}
    done = {"id": 5, "completed_by": {"id": 1, "email": "ann"}, "was_cancelled": False, "result": [choice]}
    task = {"id": 3, "data": {"text": "t"}, "annotations": [done, {**done, "was_cancelled": True}, {**done, "result": []}]}
    path.write_text(json.dumps([task]))
    assert from_studio(path)[1] == [("ann", "3", "prose")]
    for broken, message in (
        ("{", "broken JSON"),
        ("{}", "expected a list of tasks, found dict"),
        ('[{"data": {}}]', "task 1: no text"),
        (json.dumps([{**task, "annotations": [{**done, "result": [choice, choice]}]}]), "expected one choice, found 2"),
    ):
        path.write_text(broken)
        with pytest.raises(DataError, match=message):
            from_studio(path)


@pytest.fixture
def address(review: Review) -> Iterator[str]:
    program = (
        "import sys; from pathlib import Path; from qianyi.cli import data_review; from qianyi.label.review import open_review\n"
    )
    program += "data_review.serve_review(open_review(Path(sys.argv[1])), 0)"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(review.directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    yield process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=5)
    assert (process.returncode, said) == (0, "")


def test_two_people_label_and_a_third_decides(address: str, review: Review) -> None:
    with chromium() as browser:
        wrong: list[str] = []
        page = browser.new_context(locale="en-US").new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(address) or r.url == "data:," else wrong.append(r.url))

        def counts(text: str) -> None:
            page.wait_for_function("text => document.querySelector('#counts').textContent === text", arg=text)

        page.goto(address)
        page.click("text=ann")
        counts("0 of 6 texts")
        assert page.inner_text("#text").split() == review.items[0].text.split()
        for i, key in enumerate("121212", 1):
            page.keyboard.press(key)
            counts(f"{i} of 6 texts")
        assert "Nothing is left" in page.inner_text("#text")
        assert not page.inner_text("#said")
        page.keyboard.press("u")
        counts("5 of 6 texts")
        page.click("#labels button:has-text('verse')")
        counts("6 of 6 texts")

        other = browser.new_context(locale="zh-CN").new_page()
        other.goto(address)
        other.click("text=明")
        other.wait_for_selector("#labels button")
        assert other.inner_text("h1") == "给文本加标签"
        for i, key in enumerate("112212", 1):
            other.keyboard.press(key)
            other.wait_for_function("t => document.querySelector('#counts').textContent === t", arg=f"已标 {i} / 6 篇")
        assert "一致 67%，kappa 0.33" in other.inner_text("#agreement")

        page.goto(f"{address}?who={DECIDED}")
        counts("2 texts to decide")
        assert page.inner_text("#said") == "ann: verse · 明: prose · classifier: prose"
        page.keyboard.press("1")
        counts("1 texts to decide")
        page.keyboard.press("2")
        counts("0 texts to decide")
        page.click("#lang")
        assert page.inner_text("#counts") == "0 篇待裁决"
        assert wrong == []
    found = open_review(review.directory)
    assert [found.settled()[item.id] for item in found.items] == ["prose", "prose", "verse", "verse", "prose", "verse"]
    assert found.agreement().texts == 6


def test_the_server_tells_annotators_nothing_of_each_other_and_takes_json_alone(address: str, review: Review) -> None:
    port = int(re.findall(r":(\d+)/", address)[0])

    def ask(method: str, path: str, body: str = "", kind: str = "application/json", host: str = "127.0.0.1") -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, path, body.encode(), {"Content-Type": kind, "Host": host})
        reply = connection.getresponse()
        found = reply.status, reply.read().decode()
        connection.close()
        return found

    name = review.items[0].id
    said = json.dumps({"who": "ann", "id": name, "label": "verse"})
    assert ask("POST", "/label", said, kind="text/plain")[0] == 415
    assert ask("GET", "/", host="elsewhere.example")[0] == 400
    assert not (review.directory / JOURNAL).exists()
    status, answer = ask("POST", "/label", said)
    assert (status, json.loads(answer)["labelled"]) == (200, 1)
    assert open_review(review.directory).given == {"ann": {name: "verse"}}
    assert set(json.loads(ask("GET", "/state?who=" + "%E6%98%8E")[1])["item"]) == {"id", "text"}
    for body, message in (
        ("{", "expected who"),
        ('{"who": "ann"}', "expected who"),
        ('{"who": "x", "id": "y", "label": "z"}', "no annotator `x`"),
    ):
        status, answer = ask("POST", "/label", body)
        assert status == 400
        assert message in json.loads(answer)["error"]
