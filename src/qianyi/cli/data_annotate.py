"""`qianyi data annotate`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from qianyi.corpus.document import read_parts
from qianyi.corpus.parts import Options
from qianyi.data.read import read_documents
from qianyi.data.stage import Json
from qianyi.errors import DataError
from qianyi.export.hf import read_hf
from qianyi.label import annotate
from qianyi.label.classifier import KINDS, save_classifier, train_classifier
from qianyi.label.encoder import start_from
from qianyi.label.endpoint import Endpoint, bill_of, label_texts
from qianyi.label.review import open_review

say = Console(highlight=False, stderr=True).print


def run(
    corpus: Path,
    out: Path,
    name: str,
    classifier: Path | None,
    train: Path | None,
    kind: str,
    text_key: str,
    label_key: str,
    review: Path | None,
    endpoint: Endpoint | None,
    journal: Path | None,
    options: Options,
    init: Path | None = None,
) -> None:
    """Labels a corpus directory with a classifier (trained first if `train` says on what), people's labels or a language model.

    Args:
        train: a JSONL or Parquet file with labelled texts, or the directory of a review of this corpus.
        init: a Hugging Face directory of an encoder, from which a classifier of the kind transformer starts.
    """
    if init is not None and train is None:
        raise DataError(f"--init {init} is for a classifier that is trained: give --train and --classifier too")
    if endpoint is not None:
        manifest = ask_endpoint(corpus, out, name, endpoint, journal or out.with_name(f"{out.name}-answers.jsonl"), options)
    elif review is not None:
        manifest = annotate.annotate_from_review(corpus, out, name, review, options)
    elif classifier is not None:
        if train is not None:
            learn(corpus, train, classifier, kind, text_key, label_key, init)
        manifest = annotate.annotate(corpus, out, name, classifier, options)
    else:
        raise DataError("who labels? --classifier DIR (with --train FILE to train it first), --review DIR, or --endpoint URL")
    for what, n in sorted(manifest["counts"].items()):
        print(f"{what} {n:,}")


def learn(
    corpus: Path, train: Path, classifier: Path, kind: str, text_key: str, label_key: str, init: Path | None = None
) -> None:
    """Trains a classifier into a directory."""
    if kind not in KINDS:
        raise DataError(f"no kind of classifier `{kind}`; there are {', '.join(KINDS)}")
    if train.is_dir():
        texts, labels = annotate.labelled_texts(corpus, open_review(train).settled())
    else:
        pairs = list(read_documents(str(train), text_key, label_key))
        texts, labels = pa.array([d.text for d in pairs], pa.string()), [d.target or "" for d in pairs]
    start = None
    if init is not None:
        found = read_hf(init)
        start = start_from(found.model, found.params, found.tokenizer)
    save_classifier(train_classifier(kind, texts, labels, progress=say, start=start), classifier)


def ask_endpoint(corpus: Path, out: Path, name: str, endpoint: Endpoint, journal: Path, options: Options) -> Json:
    """Asks a language model about each document, then writes the columns."""

    def texts() -> Iterator[tuple[str, str]]:
        for batch in read_parts(corpus, ["id", "text"]):
            yield from ((row["id"], row["text"]) for row in batch.to_pylist())

    def tell(n: int) -> None:
        if n % 100 == 0:
            say(f"{n:,} answers")

    answers = label_texts(texts(), endpoint, journal, tell)
    bill = bill_of(answers, endpoint)
    say(
        f"{bill.answers:,} answers ({bill.unclear:,} unclear), {bill.input_tokens:,} tokens read, {bill.output_tokens:,} written, "
        f"${bill.dollars:.2f}; kept in {journal}"
    )
    return annotate.annotate_from_journal(corpus, out, name, journal, options)


def endpoint_of(
    url: str, model: str | None, labels: str | None, question: str | None, concurrency: int, prices: str | None
) -> Endpoint:
    """What the command line says of an endpoint; prices are US dollars for a million tokens read and written: 0.5,1.5."""
    if not model or not labels:
        raise DataError("--endpoint needs --model NAME and --labels good,bad")
    made = Endpoint(url, model, tuple(part.strip() for part in labels.split(",") if part.strip()), concurrency=concurrency)
    if question:
        made = replace(made, question=question)
    if prices:
        try:
            read, written = (float(price) for price in prices.split(","))
        except ValueError:
            raise DataError(f"--prices `{prices}`: expected two numbers, such as 0.5,1.5") from None
        made = replace(made, input_price=read, output_price=written)
    return made
