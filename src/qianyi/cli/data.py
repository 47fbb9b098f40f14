"""`qianyi data`."""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from qianyi.config.mixture import MOST_EPOCHS, epochs
from qianyi.config.schema import Config, DataConfig, TrainConfig
from qianyi.data import builtin
from qianyi.data.prepare import Progress
from qianyi.data.prepare import prepare as prepare_data
from qianyi.data.shards import TokenStream, token_dtype
from qianyi.data.stage import Json, read_manifest


def prepare(recipe: str, overrides: list[str]) -> None:
    from qianyi.config.check import check  # noqa: PLC0415 - `tokenize`, which uses this module too, needs no recipe
    from qianyi.config.load import load  # noqa: PLC0415

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
    with data_progress() as progress:
        return prepare_data(config.data, config.model.vocab_size, progress, config.train)


def show_manifest(manifest: Json, config: Config) -> None:
    """What the shards hold, and how often the recipe reads it."""
    show_sources(manifest, config.data, config.train)
    for line in packing_lines(config) if config.data.packing == "best_fit" else []:
        print(line)
    print(f"{config.data.dir}/shards: {manifest['vocab_size']:,} tokens in the vocabulary")


def show_sources(manifest: Json, data: DataConfig, train: TrainConfig | None = None) -> None:
    """A table of the sources, and what is to be known of them."""
    read = epochs(data, train, train_tokens(manifest)) if train else {}
    table = Table(box=None, pad_edge=False)
    for name in ("source", "documents", "tokens", "bytes/token", "held out", *(["epochs"] if read else [])):
        table.add_column(name, justify="left" if name == "source" else "right")
    for name, source in manifest["sources"].items():
        train_split, held = source["train"], source["validation"]
        share = held["tokens"] / (train_split["tokens"] + held["tokens"])
        table.add_row(
            name,
            f"{train_split['documents']:,}",
            f"{train_split['tokens']:,}",
            f"{train_split['bytes'] / train_split['tokens']:.2f}",
            f"{share:.1%}",
            *([f"{read[name]:.2f}"] if read else []),
        )
    console = Console(highlight=False)
    console.print(table)
    for line in (*_remarks(manifest), *epoch_warnings(read)):
        console.print(line, soft_wrap=True)


def _remarks(manifest: Json) -> Iterator[str]:
    for name, source in manifest["sources"].items():
        if source["blank_documents"]:
            yield f"{name}: {source['blank_documents']:,} blank documents were skipped"
    yield from research_warnings(manifest)
    if manifest["encoder"]["reason"]:
        yield f"note: encoded with tokenizers, several times slower than with tiktoken: {manifest['encoder']['reason']}"


def research_warnings(manifest: Json) -> Iterator[str]:
    """Sources with documents that are for research only, in one line."""
    restricted = {name: source["research_only"] for name, source in manifest["sources"].items() if source["research_only"]}
    if restricted:
        listed = ", ".join(f"{name} ({count:,} documents)" for name, count in restricted.items())
        yield f"warning: for research only: {listed}; data.commercial=true refuses them"


def epoch_warnings(read: Mapping[str, float]) -> Iterator[str]:
    """Sources that a run reads too often."""
    for name, times in read.items():
        if times > MOST_EPOCHS:
            yield (
                f"warning: {name} is read {times:.1f} times; after {MOST_EPOCHS} epochs repeated text adds little "
                "(Muennighoff et al. 2023): lower its weight, or find more text"
            )


def train_tokens(manifest: Json) -> dict[str, int]:
    """Training tokens of each source."""
    return {name: source["train"]["tokens"] for name, source in manifest["sources"].items()}


def packing_lines(config: Config) -> Iterator[str]:
    """How well documents fit the recipe's sequences, beside plain concatenation."""
    from qianyi.data.packing import concatenated_shares, pack  # noqa: PLC0415 - it brings numba

    shards, length = Path(config.data.dir) / "shards", config.train.seq_len
    manifest = read_manifest(shards)
    dtype = token_dtype(manifest["vocab_size"])
    for name, source in manifest["sources"].items():
        split = source["train"]
        lengths = TokenStream(shards / "train" / name, dtype, split["shards"], split["index"]).document_tokens()
        packed, plain = pack(lengths, length)[1], concatenated_shares(lengths, length)
        yield (
            f"{name}: packed by best fit, {packed.padding:.2%} of places are empty and {packed.cut_documents:.2%} of documents are cut "
            f"({plain.cut_documents:.2%} if concatenated)"
        )


@contextmanager
def data_progress() -> Generator[Progress]:
    """A line on what is being done, while it lasts."""
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
