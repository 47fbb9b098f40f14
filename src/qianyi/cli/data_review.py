"""`qianyi data review`: a page on this machine on which two people label texts; the labels lie in a `qianyi.label.review.Review`."""

import math
from collections.abc import Callable
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import NoReturn

import pyarrow as pa

from qianyi.corpus.document import read_parts
from qianyi.data.stage import Json, write_text
from qianyi.errors import DataError, QianyiError, ResourceError
from qianyi.label.review import DECIDED, Item, Review, open_review, start_review
from qianyi.label.sampling import choose_texts

try:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    from qianyi.cli.serving import ONLY_HERE, serve
except ModuleNotFoundError as missing:
    raise ResourceError(f"data review needs the package `{missing.name}`: pip install 'qianyi[ui]'") from None

PORT = 8423
POOL_TEXTS = 50_000
"""Documents of a corpus from which texts to be labelled are chosen."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


def run(
    directory: Path,
    corpus: Path | None,
    labels: str | None,
    annotators: str,
    number: int,
    model: Path | None,
    import_file: Path | None,
    export_file: Path | None,
    port: int | None,
) -> None:
    """Begins or goes on with a review, and serves its page unless a file of Label Studio is to be read or written.

    Args:
        labels, annotators: with commas between them.
        number: texts to choose from the corpus.
    """
    from qianyi.label.studio import import_studio, to_studio  # noqa: PLC0415

    review = _begin(directory, corpus, labels, annotators, number, model) if corpus or labels else open_review(directory)
    if import_file is not None:
        print(f"{import_file}: {import_studio(review, import_file):,} new labels")
    if export_file is not None:
        import json  # noqa: PLC0415

        write_text(export_file, json.dumps(to_studio(review), ensure_ascii=False, indent=1))
        print(f"{export_file}: {len(review.items):,} tasks")
    if import_file is None and export_file is None:
        serve_review(review, PORT if port is None else port)


def _begin(directory: Path, corpus: Path | None, labels: str | None, annotators: str, number: int, model: Path | None) -> Review:
    if corpus is None or labels is None:
        raise DataError(f"{directory}: a review begins with both --corpus DIR and --labels good,bad")
    names = [[part.strip() for part in text.split(",") if part.strip()] for text in (labels, annotators)]
    return start_review(directory, chosen_items(corpus, number, model), *names)


def chosen_items(corpus: Path, number: int, model: Path | None) -> list[Item]:
    """Texts of a corpus to be labelled, with the guess of a classifier where there is one."""
    rows = (batch.select(["id", "text", "source"]) for batch in read_parts(corpus))
    pool = list(islice((row for batch in rows for row in batch.to_pylist()), POOL_TEXTS))
    if not pool:
        raise DataError(f"{corpus}: no documents to label")
    heard, guesses = None, [""] * len(pool)
    if model is not None:
        from qianyi.label.classifier import load_classifier  # noqa: PLC0415  (it brings JAX, which a review can do without)

        classifier = load_classifier(model)
        heard = classifier.log_probabilities(pa.array([row["text"] for row in pool]))
        guesses = [classifier.labels[i] for i in heard.argmax(axis=1)]
    order = choose_texts([row["source"] for row in pool], heard, min(number, len(pool)))
    return [Item(pool[i]["id"], pool[i]["text"], pool[i]["source"], guesses[i]) for i in order]


def serve_review(review: Review, port: int) -> NoReturn:
    """Serves the page until Ctrl-C ends the program. Port 0: any that is free.

    Raises:
        ResourceError: the port is taken.
    """
    serve(make_app(review), port, note=f"Ctrl-C stops it; labels are in {review.directory}.")


def make_app(review: Review) -> Starlette:
    """The page, and what its script asks for. Requests are answered one by one, so labels are written one by one."""
    page = (files("qianyi.cli") / "data_review.html").read_text(encoding="utf-8")

    async def show(_: Request) -> Response:
        return HTMLResponse(page, headers=HEADERS)

    async def state(request: Request) -> Response:
        return JSONResponse(state_of(review, request.query_params.get("who", "")), headers=HEADERS)

    async def label(request: Request) -> Response:
        return await _changed(request, lambda said: review.label(said["who"], said["id"], said["label"]))

    async def undo(request: Request) -> Response:
        return await _changed(request, lambda said: review.undo(said["who"]))

    async def _changed(request: Request, change: Callable[[dict[str, str]], object]) -> Response:
        # A page elsewhere can send forms and text here, but not JSON.
        if request.headers.get("content-type") != "application/json":
            return JSONResponse({"error": "expected JSON"}, 415, headers=HEADERS)
        try:
            said = await request.json()
            change(said)
        except (QianyiError, OSError) as error:
            return JSONResponse({"error": str(error)}, 400, headers=HEADERS)
        except (ValueError, LookupError, TypeError):
            return JSONResponse({"error": "expected who, id and label"}, 400, headers=HEADERS)
        return JSONResponse(state_of(review, said["who"]), headers=HEADERS)

    routes = [
        Route("/", show),
        Route("/state", state),
        Route("/label", label, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[ONLY_HERE])


def state_of(review: Review, who: str) -> Json:
    """What the page shows to an annotator, "" being nobody yet: only who decides is told what others said."""
    known = who in (*review.annotators, DECIDED)
    item = review.next_item(who) if known else None
    shown: Json | None = None
    if item is not None:
        shown = {"id": item.id, "text": item.text}
        if who == DECIDED:
            said = {name: review.given[name][item.id] for name in review.annotators}
            shown |= {"guess": item.guess, "said": said}
    wanted = review.disagreements() if who == DECIDED else [i.id for i in review.items]
    agreement = review.agreement()._asdict()
    return {
        "annotators": review.annotators,
        "decided": DECIDED,
        "labels": review.labels,
        "item": shown,
        "all": len(wanted),
        "labelled": sum(name in review.given.get(who, {}) for name in wanted),
        "can_undo": bool(review.done.get(who)),
        "agreement": {name: None if math.isnan(value) else value for name, value in agreement.items()},
    }
