"""Labels from a language model behind an OpenAI-compatible address (`POST URL/chat/completions`).

Each answer is appended to a journal and forced to disk before it counts, so a run that ends goes on where it was and pays nothing twice.
"""

import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qianyi.data.stage import Json
from qianyi.errors import DataError, ResourceError
from qianyi.label.journal import append_record, read_records

RETRIED = (408, 409, 429, 500, 502, 503, 504)
"""HTTP states after which the same question is asked again."""


@dataclass(frozen=True)
class Endpoint:
    """Whom to ask, and what."""

    url: str
    """Up to and without /chat/completions, such as http://127.0.0.1:8000/v1."""
    model: str
    labels: tuple[str, ...]
    question: str = "Which label fits the text? Answer with the label alone."
    key_variable: str = "OPENAI_API_KEY"
    """Variable of the environment that holds the key; none is sent if it is not set."""
    concurrency: int = 8
    tries: int = 6
    timeout_seconds: float = 60.0
    first_wait_seconds: float = 0.5
    """Doubled with each try, and drawn between half of it and all of it."""
    characters: int = 6000
    """Of a text that are sent."""
    input_price: float = 0.0
    """US dollars for a million tokens that are read."""
    output_price: float = 0.0
    """US dollars for a million tokens that are written."""

    @property
    def asked(self) -> Json:
        """What decides the answers; kept with each."""
        return {"url": self.url, "model": self.model, "labels": list(self.labels), "question": self.question}


@dataclass(frozen=True)
class Bill:
    """What has been asked for so far, earlier runs included."""

    answers: int
    unclear: int
    """Answers that name no label, or more than one."""
    input_tokens: int
    output_tokens: int
    dollars: float


def label_texts(
    texts: Iterable[tuple[str, str]], endpoint: Endpoint, journal: Path, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Json]:
    """Asks for a label of each (id, text) that the journal does not have yet.

    Returns:
        By id: `label` ("" if the answer is unclear), `answer`, `input_tokens`, `output_tokens`.

    Raises:
        DataError: the journal is of another question, or broken; the endpoint refuses the question.
        ResourceError: the endpoint does not answer after all tries.
    """
    known = _known(journal, endpoint)
    todo = ((name, text) for name, text in texts if name not in known)
    running: dict[Future[Json], str] = {}
    with ThreadPoolExecutor(endpoint.concurrency) as pool:
        try:
            for name, text in _then_none(todo):
                if name is not None:
                    running[pool.submit(_ask, endpoint, text)] = name
                while running and (name is None or len(running) >= 2 * endpoint.concurrency):
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        owner = running.pop(future)
                        known[owner] = future.result()
                        append_record(journal, {"id": owner, "asked": endpoint.asked, **known[owner]})
                        progress(len(known))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return known


def bill_of(answers: dict[str, Json], endpoint: Endpoint) -> Bill:
    """Sums over what `label_texts` gives."""
    read, written = (sum(a[side] for a in answers.values()) for side in ("input_tokens", "output_tokens"))
    dollars = (read * endpoint.input_price + written * endpoint.output_price) / 1e6
    return Bill(len(answers), sum(not a["label"] for a in answers.values()), read, written, dollars)


def label_in(answer: str, labels: tuple[str, ...]) -> str:
    """The one label that an answer names, "" if it is not one: the whole answer, else the only label that occurs in it (of Latin letters,
    as a word)."""
    plain = answer.strip().strip("\"'`.*。“”「」 ").casefold()
    for label in labels:
        if plain == label.casefold():
            return label
    found = [
        label for label in labels if re.search(rf"(?<![a-z0-9_]){re.escape(label.casefold())}(?![a-z0-9_])", answer.casefold())
    ]
    return found[0] if len(found) == 1 else ""


def _then_none(todo: Iterator[tuple[str, str]]) -> Iterator[tuple[str | None, str]]:
    """Marks the end, after which nothing is asked and what runs is awaited."""
    yield from todo
    yield None, ""


def _known(journal: Path, endpoint: Endpoint) -> dict[str, Json]:
    known: dict[str, Json] = {}
    for line, record in enumerate(read_records(journal), 1):
        if record.get("asked") != endpoint.asked:
            raise DataError(
                f"{journal}:{line}: answers to another question, model or labels; give another journal, or delete this one"
            )
        known[record["id"]] = {name: record[name] for name in ("label", "answer", "input_tokens", "output_tokens")}
    return known


def _ask(endpoint: Endpoint, text: str) -> Json:
    """One question, again after what may pass."""
    body = {
        "model": endpoint.model,
        "temperature": 0,
        "messages": [
            {"role": "system", "content": f"{endpoint.question}\nLabels: {', '.join(endpoint.labels)}"},
            {"role": "user", "content": text[: endpoint.characters]},
        ],
    }
    problem = ""
    for attempt in range(endpoint.tries):
        try:
            return _reading(_post(endpoint, body), endpoint.labels)
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}: {error.read(300).decode(errors='replace').strip()}"
            if error.code not in RETRIED:
                raise DataError(
                    f"{endpoint.url}: refuses the question ({problem}); check --endpoint, --model and the key"
                ) from None
            after = error.headers.get("Retry-After", "")
        except (OSError, ValueError, LookupError, TypeError) as error:
            problem, after = f"{type(error).__name__}: {error}", ""
        if attempt + 1 < endpoint.tries:
            pause = endpoint.first_wait_seconds * 2**attempt * random.uniform(0.5, 1)
            time.sleep(max(pause, float(after) if after.isdigit() else 0.0))
    raise ResourceError(
        f"{endpoint.url}: no answer after {endpoint.tries} tries ({problem}); run again later, it goes on from here"
    )


def _post(endpoint: Endpoint, body: Json) -> Any:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(endpoint.key_variable):
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{endpoint.url.rstrip('/')}/chat/completions", data, headers)
    with urllib.request.urlopen(request, timeout=endpoint.timeout_seconds) as reply:
        return json.load(reply)


def _reading(reply: Any, labels: tuple[str, ...]) -> Json:
    answer, usage = str(reply["choices"][0]["message"]["content"]), reply.get("usage") or {}
    tokens = {
        f"{ours}_tokens": int(usage.get(f"{theirs}_tokens", 0))
        for ours, theirs in (("input", "prompt"), ("output", "completion"))
    }
    return {"label": label_in(answer, labels), "answer": answer, **tokens}
