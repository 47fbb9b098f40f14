"""`qianyi data`."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from qianyi.config.check import check
from qianyi.config.load import load
from qianyi.config.schema import Config
from qianyi.data import builtin
from qianyi.data.prepare import Progress
from qianyi.data.prepare import prepare as prepare_data
from qianyi.data.stage import Json


def prepare(recipe: str, overrides: list[str]) -> None:
    config = load(recipe, overrides).config
    check(config)
    show_manifest(prepare_with_progress(config), config)


def list_builtin() -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("path", "language", "title", "licence", "package"):
        table.add_column(name, no_wrap=name in {"path", "package"})
    for name, corpus in builtin.CORPORA.items():
        package = f"{corpus.package}=={corpus.version}"
        table.add_row(builtin.PREFIX + name, corpus.language, corpus.title, corpus.licence, package)
    Console(highlight=False).print(table)


def prepare_with_progress(config: Config) -> Json:
    """Prepare a recipe's data, showing what is being done."""
    with _progress() as progress:
        return prepare_data(config.data, config.model.vocab_size, progress, config.train)


def show_manifest(manifest: Json, config: Config) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("source", "documents", "tokens", "bytes/token", "held out"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for name, source in manifest["sources"].items():
        train, held = source["train"], source["validation"]
        share = held["tokens"] / (train["tokens"] + held["tokens"])
        table.add_row(
            name,
            f"{train['documents']:,}",
            f"{train['tokens']:,}",
            f"{train['bytes'] / train['tokens']:.2f}",
            f"{share:.1%}",
        )
    console = Console(highlight=False)
    console.print(table)
    for name, source in manifest["sources"].items():
        if source["blank_documents"]:
            console.print(f"{name}: {source['blank_documents']:,} blank documents were skipped")
    console.print(f"{config.data.dir}/shards: {manifest['vocab_size']:,} tokens in the vocabulary")


@contextmanager
def _progress() -> Generator[Progress]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading")
        doing, since = "", 0.0

        def progress(what: str, documents: int, n_bytes: int) -> None:
            nonlocal doing, since
            now = time.monotonic()
            if what != doing:
                doing, since = what, now
            rate = n_bytes / 1e6 / max(now - since, 1e-3)
            amount = f": {documents:,} documents, {n_bytes / 1e6:,.1f} MB ({rate:.1f} MB/s)" if documents else ""
            bar.update(task, description=what + amount)

        yield progress
