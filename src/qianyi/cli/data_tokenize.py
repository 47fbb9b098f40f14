"""`qianyi data tokenize`: corpora to the shards that recipes read."""

import shutil
from functools import partial
from pathlib import Path

from qianyi.cli.data import data_progress, show_sources
from qianyi.config.schema import DataConfig, SourceConfig
from qianyi.corpus.engine import map_units
from qianyi.data.builtin import PREFIX
from qianyi.data.prepare import prepare
from qianyi.data.tokenizer import id_count, shared_tokenizer
from qianyi.errors import ConfigError, DataError

VOCAB_SIZE = 32_768
"""Of a tokenizer that is trained where nothing is said."""


def run(
    corpora: list[str],
    out: Path,
    tokenizer: Path | None,
    vocab_size: int | None,
    validation_fraction: float,
    text_key: str,
    workers: int,
    engine: str,
) -> None:
    if tokenizer is not None and vocab_size is not None:
        raise ConfigError(f"--vocab {vocab_size} is for a tokenizer that is trained; {tokenizer} is given")
    if not 0 < validation_fraction < 1:
        raise ConfigError(f"--validation {validation_fraction}: a share of the documents, more than 0 and less than 1")
    data = DataConfig(
        dir=str(out),
        sources=tuple(SourceConfig(name=name, path=path) for name, path in _names(corpora).items()),
        tokenizer=None if tokenizer is None else str(_copied(tokenizer, out)),
        text_key=text_key,
        validation_fraction=validation_fraction,
    )
    size = id_count(shared_tokenizer(tokenizer)) if tokenizer else vocab_size or VOCAB_SIZE
    with data_progress() as progress:
        manifest = prepare(data, size, progress, map_jobs=partial(map_units, workers=workers, engine=engine))
    show_sources(manifest, data)
    print(f"Train on them: qianyi train RECIPE data.dir={out} data.sources=[] model.vocab_size={manifest['vocab_size']}")


def _names(corpora: list[str]) -> dict[str, str]:
    """Name -> path: the last part of the path without its suffix; a path may also be NAME=PATH.

    Raises:
        ConfigError: two have the same name.
    """
    named: dict[str, str] = {}
    for corpus in corpora:
        name, equals, path = corpus.partition("=")
        if not equals:
            name, path = corpus.removeprefix(PREFIX), corpus
            name = Path(name).name.split(".")[0]
        if name in named:
            raise ConfigError(f"{corpus}: {named[name]} is named `{name}` too; say NAME={path}")
        named[name] = path
    return named


def _copied(tokenizer: Path, out: Path) -> Path:
    """The tokenizer, in the place where recipes look for that of their data."""
    path = out / "tokenizer" / "tokenizer.json"
    shared_tokenizer(tokenizer)
    if tokenizer.resolve() != path.resolve():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tokenizer, path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from None
    return path
