"""`qianyi data VERB`: the verbs are declared here; each lives in a file of its own, imported when it is called."""

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qianyi.corpus.parts import Options

data_app = typer.Typer(
    help="From raw text to training shards: collect, clean, dedup, decontaminate, annotate, tokenize; inspect, why, diff.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where it goes.")]
Corpora = Annotated[list[Path], typer.Argument(metavar="CORPUS...", help="Directories that another verb made.")]
Workers = Annotated[
    int, typer.Option(min=0, metavar="N", help="Processes; 0: one for each core, or one for little text. The result is the same.")
]
Engine = Annotated[str, typer.Option(help="native, ray, or auto: Ray where RAY_ADDRESS is set.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first document that would be dropped.")]
Allow = Annotated[
    list[str] | None, typer.Option(metavar="RULE", help="A rule that may match nothing, or everything; repeatable.")
]
Report = Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was found as JSON.")]


@data_app.callback()
def _lean_memory() -> None:
    # Arrow's allocator is chosen when it is first imported; worker processes inherit the choice. A tenth less memory than with
    # its own choice, mimalloc (docs/log.md).
    if sys.platform == "linux" and platform.machine() == "x86_64":
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")


def _without_frames() -> None:
    """Let Arrow's first array not import pandas, of which no verb makes use."""
    from qianyi.imports import without

    with without("pandas"):
        import pyarrow as pa

        pa.array([1])


def _options(workers: int, engine: str, strict: bool, allow: list[str] | None) -> "Options":
    _without_frames()
    from qianyi.corpus.parts import Options

    return Options(workers=workers, engine=engine, strict=strict, allow=tuple(allow or ()), progress=True)


def _given(**settings: Any) -> dict[str, Any]:
    """Those that the command line names."""
    return {name: value for name, value in settings.items() if value is not None}


@data_app.command("run")
def run_(
    pipeline: Annotated[
        Path, typer.Argument(metavar="FILE", help="Stages and their settings, in YAML; or a shipped one: quickstart, bilingual.")
    ],
    out: Out,
    workers: Workers = 0,
    engine: Engine = "auto",
    strict: Strict = False,
    allow: Allow = None,
) -> None:
    """Run a pipeline: each stage goes from the directory of the one before to its own. Run again, it goes on where it was."""
    from qianyi.cli import data_run
    from qianyi.cli.data_stages import STAGES

    data_run.run(pipeline, out, STAGES, _options(workers, engine, strict, allow))


@data_app.command()
def collect(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]SOURCE...", help="Files, directories, corpus:NAME, debian:, npm:, pypi:, crawl:, hf:, s3://..."
        ),
    ],
    out: Out,
    files: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Files of a directory or archive that are read.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Files that are not.")] = None,
    file_format: Annotated[str | None, typer.Option("--format", help="A reader in place of what suffixes say.")] = None,
    text_key: Annotated[str | None, typer.Option(help="Field or column with the text (text).")] = None,
    html: Annotated[str | None, typer.Option(help="main: the main content of pages; all: what is visible.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the documents.")] = None,
    research_only: Annotated[bool | None, typer.Option("--research-only", help="Their licence is for research alone.")] = None,
    max_document_bytes: Annotated[int | None, typer.Option(help="Larger documents are refused.")] = None,
    max_pages: Annotated[int | None, typer.Option(help="Of a crawl.")] = None,
    max_depth: Annotated[int | None, typer.Option(help="Of a crawl.")] = None,
    delay_seconds: Annotated[float | None, typer.Option(help="Of a crawl, between requests.")] = None,
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="Where packages and crawls are kept.")] = None,
    workers: Workers = 0,
    engine: Engine = "auto",
    strict: Strict = False,
    allow: Allow = None,
) -> None:
    """Bring text in. What cannot be read is recorded with its reason, and stops nothing."""
    from qianyi.cli import data_collect

    settings = _given(
        files=files,
        skip=skip,
        format=file_format,
        text_key=text_key,
        html=html,
        licence=licence,
        research_only=research_only,
        max_document_bytes=max_document_bytes,
        max_pages=max_pages,
        max_depth=max_depth,
        delay_seconds=delay_seconds,
    )
    data_collect.run(sources, out, settings, cache, _options(workers, engine, strict, allow))


@data_app.command()
def clean(
    out: Out,
    corpora: Annotated[list[Path] | None, typer.Argument(metavar="CORPUS...", help="Directories to measure and filter.")] = None,
    measured: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Filter again what was measured: OUT/measured of a run before.")
    ] = None,
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="Thresholds laid over the shipped ones (YAML).")] = None,
    report: Annotated[bool, typer.Option("--report", help="What each rule drops, alone and in its turn.")] = False,
    workers: Workers = 0,
    engine: Engine = "auto",
    strict: Strict = False,
    allow: Allow = None,
) -> None:
    """Repair and measure text, mask what is personal, keep what passes the rules of its language and kind."""
    from qianyi.cli import data_clean

    data_clean.run(corpora or [], out, measured, rules, report=report, options=_options(workers, engine, strict, allow))


@data_app.command()
def dedup(
    corpora: Corpora,
    out: Out,
    exact: Annotated[
        bool | None, typer.Option("--exact/--no-exact", help="Documents equal up to case, width and punctuation.")
    ] = None,
    near: Annotated[bool | None, typer.Option("--near/--no-near", help="Documents similar by MinHash.")] = None,
    similarity: Annotated[float | None, typer.Option(help="From which a document is a duplicate (0.75).")] = None,
    paragraphs: Annotated[str | None, typer.Option(help="off, exact or near.")] = None,
    substring_bytes: Annotated[int | None, typer.Option(help="Cut what stood before for so many bytes; 0: do not (200).")] = None,
    quality: Annotated[str | None, typer.Option(metavar="COLUMN", help="Whose largest value survives.")] = None,
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="Documents on which recall and precision are measured; 0: none (2000).")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A deduplicated corpus that is there already; repeatable.")
    ] = None,
    report: Report = None,
    workers: Workers = 0,
    engine: Engine = "auto",
    strict: Strict = False,
    allow: Allow = None,
) -> None:
    """Drop duplicates: documents, then paragraphs, then long passages."""
    from qianyi.cli import data_dedup

    chosen = _given(
        exact=exact,
        near=near,
        similarity=similarity,
        paragraphs=paragraphs,
        substring_bytes=substring_bytes,
        quality=quality,
        sample_documents=sample,
    )
    data_dedup.run(corpora, out, chosen, against or [], _options(workers, engine, strict, allow), report)


@data_app.command()
def decontaminate(
    corpora: Corpora,
    out: Out,
    against: Annotated[list[Path], typer.Option(metavar="FILE", help="An evaluation set: JSONL, Parquet or text; repeatable.")],
    rule: Annotated[str | None, typer.Option(help="ngram: one is enough; overlap: a share of an item.")] = None,
    ngram: Annotated[int | None, typer.Option(help="Words in an n-gram.")] = None,
    overlap: Annotated[float | None, typer.Option(help="Of an item's tokens, for the rule overlap (0.8).")] = None,
    fields: Annotated[list[str] | None, typer.Option("--field", metavar="KEY", help="Of items that count; repeatable.")] = None,
    action: Annotated[str | None, typer.Option(help="drop documents, or cut what was found.")] = None,
    report: Report = None,
    workers: Workers = 0,
    engine: Engine = "auto",
    strict: Strict = False,
    allow: Allow = None,
) -> None:
    """Take out what is in evaluation sets, and say of each set how much of it was there."""
    from qianyi.cli import data_decontaminate

    chosen = _given(rule=rule, ngram=ngram, overlap=overlap, fields=tuple(fields) if fields else None, action=action)
    data_decontaminate.run(corpora, out, against, chosen, _options(workers, engine, strict, allow), report)


@data_app.command()
def annotate(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS")],
    out: Out,
    name: Annotated[str, typer.Option(help="Of the columns: label_NAME, label_NAME_score.")],
    classifier: Annotated[Path | None, typer.Option(metavar="DIR", help="A classifier; with --train, where it goes.")] = None,
    train: Annotated[
        Path | None, typer.Option(metavar="FILE|DIR", help="Labelled texts, or a review, to train it on first.")
    ] = None,
    kind: Annotated[str, typer.Option(help="Of a classifier to train: fasttext, tfidf, transformer, charcnn.")] = "tfidf",
    init: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A Hugging Face encoder that a transformer begins with.")
    ] = None,
    text_key: Annotated[str, typer.Option(help="Of labelled texts.")] = "text",
    label_key: Annotated[str, typer.Option(help="Of labelled texts.")] = "label",
    review: Annotated[Path | None, typer.Option(metavar="DIR", help="Labels that people gave.")] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server, up to /v1.")] = None,
    model: Annotated[str | None, typer.Option(help="Of the endpoint.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="A,B", help="For the endpoint to choose from.")] = None,
    question: Annotated[str | None, typer.Option(help="For the endpoint.")] = None,
    concurrency: Annotated[int, typer.Option(help="Questions at one time.")] = 8,
    prices: Annotated[str | None, typer.Option(metavar="IN,OUT", help="US dollars for a million tokens.")] = None,
    journal: Annotated[Path | None, typer.Option(metavar="FILE", help="Where answers are kept.")] = None,
    workers: Workers = 1,
) -> None:
    """Label documents: by a classifier, by people, or by a language model."""
    from qianyi.cli import data_annotate

    asked = data_annotate.endpoint_of(endpoint, model, labels, question, concurrency, prices) if endpoint else None
    options = _options(workers, "auto", False, None)
    data_annotate.run(corpus, out, name, classifier, train, kind, text_key, label_key, review, asked, journal, options, init)


@data_app.command()
def review(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the labels lie.")],
    corpus: Annotated[Path | None, typer.Option(metavar="DIR", help="Begin: the corpus to choose texts from.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="A,B", help="Begin: what there is to choose.")] = None,
    annotators: Annotated[str, typer.Option(metavar="A,B", help="Begin: who.")] = "first,second",
    number: Annotated[int, typer.Option(min=1, help="Begin: how many texts.")] = 200,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Begin: a classifier; what it is unsure of comes first.")
    ] = None,
    import_file: Annotated[Path | None, typer.Option("--import", metavar="FILE", help="Labels from Label Studio.")] = None,
    export_file: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Tasks and labels for Label Studio.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Of the page.")] = None,
) -> None:
    """A page on which two people label texts, with agreement and adjudication."""
    from qianyi.cli import data_review

    data_review.run(directory, corpus, labels, annotators, number, model, import_file, export_file, port)


@data_app.command()
def tokenize(
    corpora: Annotated[list[str], typer.Argument(metavar="[NAME=]CORPUS...", help="Corpus directories, or files of text.")],
    out: Out,
    tokenizer: Annotated[Path | None, typer.Option(metavar="FILE", help="A tokenizer.json.")] = None,
    vocab: Annotated[int | None, typer.Option(min=257, help="Of a tokenizer trained here (32,768).")] = None,
    validation: Annotated[float, typer.Option(help="Share of documents held out.")] = 0.01,
    text_key: Annotated[str, typer.Option(help="Field with the text.")] = "text",
    workers: Workers = 0,
    engine: Engine = "auto",
) -> None:
    """Make shards of tokens, which recipes train on."""
    _without_frames()
    from qianyi.cli import data_tokenize

    data_tokenize.run(corpora, out, tokenizer, vocab, validation, text_key, workers, engine)


@data_app.command("export")
def export_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `tokenize` or `prepare` made.")],
    out: Out,
    form: Annotated[str, typer.Option("--format", help="megatron or arrayrecord.")],
    tokenizer: Annotated[Path | None, typer.Option(metavar="FILE", help="Its tokenizer, where it lies elsewhere.")] = None,
) -> None:
    """Write shards for other trainers."""
    from qianyi.cli import data_export

    data_export.run(directory, form, out, tokenizer)


@data_app.command()
def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A corpus, or a pipeline's output.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The page (DIR/inspect.html).")] = None,
) -> None:
    """Write a page on a corpus: what came in, what each rule dropped, with samples."""
    from qianyi.cli import data_inspect

    data_inspect.run(directory, out)


@data_app.command()
def why(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A corpus, or a pipeline's output.")],
    document: Annotated[str, typer.Argument(metavar="DOC", help="Its id, the beginning of one, or its origin.")],
) -> None:
    """What happened to one document."""
    from qianyi.cli import data_why

    data_why.run(directory, document)


@data_app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A")],
    b: Annotated[Path, typer.Argument(metavar="B")],
    samples: Annotated[int, typer.Option(min=0, help="Documents shown of each kind.")] = 5,
) -> None:
    """What two runs do not have in common."""
    from qianyi.cli import data_diff

    data_diff.run(a, b, samples)


@data_app.command()
def prepare(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace the recipe's.")
    ] = None,
) -> None:
    """Turn a recipe's sources into token shards. Trains the tokenizer first, where the recipe names none."""
    from qianyi.cli import data

    data.prepare(recipe, overrides or [])


@data_app.command("list")
def list_() -> None:
    """List the corpora that packages of PyPI, Debian and npm bring, with their licences."""
    from qianyi.cli import data, data_collect

    data.list_builtin()
    data_collect.list_corpora()
