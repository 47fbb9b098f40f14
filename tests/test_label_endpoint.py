"""Labels of an OpenAI-compatible endpoint: asked again where that helps, paid once, billed."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qianyi.errors import DataError, ResourceError
from qianyi.label.endpoint import Endpoint, bill_of, label_in, label_texts
from qianyi.label.journal import read_records

LABELS = ("prose", "verse")
TEXTS = [(f"id{i}", f"{'verse' if i % 3 else 'prose'} 第{i}篇") for i in range(20)]


class Model(ThreadingHTTPServer):
    """Answers as the text says, after failing as often as it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked = Counter[str]()
        self.fail: dict[str, list[int]] = {}
        self.headers: list[dict[str, str]] = []
        self.at_once, self.most_at_once, self.lock = 0, 0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Answers(BaseHTTPRequestHandler):
    server: Model

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][1]["content"]
        with self.server.lock:
            self.server.asked[text] += 1
            self.server.headers.append(dict(self.headers))
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.at_once, self.server.most_at_once)
        threading.Event().wait(0.02)
        states = self.server.fail.get(text, [])
        status = states.pop(0) if states else 200
        answer: dict[str, Any] = {"choices": [{"message": {"content": f"Label: {text.split()[0]}."}}]}
        answer["usage"] = {"prompt_tokens": 30, "completion_tokens": 2}
        reply = json.dumps(answer).encode() if status != 299 else b"no json"
        with self.server.lock:
            self.server.at_once -= 1
        self.send_response(200 if status == 299 else status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextmanager
def model() -> Iterator[Model]:
    server = Model()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def endpoint(server: Model, **settings: Any) -> Endpoint:
    return replace(Endpoint(server.url, "m", LABELS, concurrency=4, first_wait_seconds=0.01), **settings)


def test_every_text_is_asked_until_it_is_answered_and_never_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    journal = tmp_path / "answers.jsonl"
    with model() as server:
        server.fail = {TEXTS[0][1]: [429, 503], TEXTS[5][1]: [299], TEXTS[7][1]: [500]}
        answers = label_texts(TEXTS[:12], endpoint(server), journal)
        assert [answers[name]["label"] for name, _ in TEXTS[:12]] == [text.split()[0] for _, text in TEXTS[:12]]
        assert [server.asked[TEXTS[i][1]] for i in (0, 1, 5, 7)] == [3, 1, 2, 2]
        assert 1 < server.most_at_once <= 4
        assert {h["Authorization"] for h in server.headers} == {"Bearer secret"}
        assert "secret" not in journal.read_text()
        before = server.asked.total()
        answers = label_texts(TEXTS, endpoint(server), journal)
        assert server.asked.total() == before + 8
    assert len(answers) == len(read_records(journal)) == 20
    bill = bill_of(answers, endpoint(server, input_price=0.5, output_price=1.5))
    assert (bill.input_tokens, bill.output_tokens, bill.unclear) == (600, 40, 0)
    assert bill.dollars == pytest.approx((600 * 0.5 + 40 * 1.5) / 1e6)


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    journal = tmp_path / "answers.jsonl"
    with model() as server:
        server.fail = {TEXTS[9][1]: [503] * 3}
        with pytest.raises(ResourceError, match=r"no answer after 3 tries \(HTTP 503.*it goes on from here"):
            label_texts(TEXTS, endpoint(server, tries=3), journal)
        kept = len(read_records(journal))
        assert 1 <= kept < 20
        before = server.asked.total()
        assert len(label_texts(TEXTS, endpoint(server), journal)) == 20
        assert server.asked.total() == before + 20 - kept
        server.fail = {"x": [401]}
        with pytest.raises(DataError, match=r"refuses the question \(HTTP 401"):
            label_texts([("new", "x")], endpoint(server), journal)
        assert server.asked["x"] == 1
        with pytest.raises(DataError, match=re.escape(f"{journal}:1: answers to another question")):
            label_texts(TEXTS, endpoint(server, question="Is it good?"), journal)
    with pytest.raises(ResourceError, match="no answer after 2 tries"):
        label_texts([("y", "y")], endpoint(server, tries=2), tmp_path / "other")


def test_an_answer_names_one_label_or_none() -> None:
    assert label_in(" Verse. ", LABELS) == "verse"
    assert label_in("“prose”", LABELS) == "prose"
    assert label_in("This is prose, I think", LABELS) == "prose"
    assert label_in("prose or verse", LABELS) == ""
    assert label_in("universe", LABELS) == ""
    assert label_in("这是正面的", ("正面", "负面")) == "正面"
    assert label_in("正面或负面", ("正面", "负面")) == ""
