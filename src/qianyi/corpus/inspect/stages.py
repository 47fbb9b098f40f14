"""The stages of a directory: one corpus, or a pipeline of them in the order of their numbers."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qianyi.corpus.document import corpus_manifest, is_corpus, side_files
from qianyi.corpus.inspect.survey import Documents, Dropped, survey_documents, survey_dropped
from qianyi.data.stage import MANIFEST, Json
from qianyi.errors import DataError

_NUMBERED = re.compile(r"(\d+)-.+")


@dataclass(frozen=True)
class Stage:
    """A finished corpus directory; it is read when something of it is asked for."""

    name: str
    path: Path
    manifest: Json

    @cached_property
    def kept(self) -> Documents:
        return survey_documents(side_files(self.path, "parts"))

    @cached_property
    def dropped(self) -> Dropped:
        return survey_dropped(side_files(self.path, "dropped"))

    @cached_property
    def run(self) -> Json:
        """What the clock knows of the last run, if that is there."""
        return read_json(self.path / "run.json")

    @property
    def documents_in(self) -> int:
        return self.kept.total.documents + self.dropped.documents


@dataclass(frozen=True)
class Inspected:
    """What there is to show of a directory."""

    path: Path
    stages: tuple[Stage, ...]
    tokens: dict[str, Json]
    """Of each source that was made into tokens: documents, tokens, bytes."""
    topics: Json
    """What is in topics.json (see `topics`); empty where no map was made."""


def inspect(path: Path) -> Inspected:
    """Find the stages in a directory.

    Raises:
        DataError: it is neither a corpus nor a pipeline, or a stage of it is not finished.
    """
    directories = [path] if is_corpus(path) else numbered(path)
    corpora = [stage for directory in directories if is_corpus(directory) for stage in _stages(directory, len(directories) > 1)]
    if not corpora:
        raise DataError(
            f"{path}: neither a corpus directory ({MANIFEST}) nor a pipeline (1-NAME, 2-NAME, ...); `qianyi data collect` makes a corpus"
        )
    topics = [read_json(directory / "topics.json") for directory in (path, *directories)]
    tokens = [_tokens(directory / "shards") for directory in (path, *directories)]
    return Inspected(
        path.resolve(),
        tuple(corpora),
        next((found for found in reversed(tokens) if found), {}),
        next((found for found in reversed(topics) if found), {}),
    )


def numbered(path: Path) -> list[Path]:
    """Directories 1-NAME, 2-NAME, ... in the order of their numbers.

    Raises:
        DataError: there is no such directory, or it cannot be read.
    """
    try:
        found = [
            (int(match[1]), entry) for entry in path.iterdir() if (match := _NUMBERED.fullmatch(entry.name)) and entry.is_dir()
        ]
    except FileNotFoundError:
        raise DataError(f"{path}: no such directory") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    return [entry for _, entry in sorted(found)]


def read_json(path: Path) -> Json:
    """An object of a file that may be missing.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise DataError(f"{path}: broken JSON; delete it and run the command that made it again") from None


def _stages(directory: Path, one_of_many: bool) -> Iterator[Stage]:
    """The stage of a directory, and before it what it measured without dropping anything."""
    manifest = corpus_manifest(directory)
    name = directory.name if one_of_many else manifest["stage"]
    if is_corpus(directory / "measured"):
        yield Stage(f"{name}/measured", directory / "measured", corpus_manifest(directory / "measured"))
    yield Stage(name, directory, manifest)


def _tokens(directory: Path) -> dict[str, Json]:
    """Documents, tokens and bytes by source, of a directory of token shards."""
    sources = read_json(directory / MANIFEST).get("sources", {})
    if not all("train" in source for source in sources.values()):
        return {}
    splits = {name: [source[split] for split in ("train", "validation") if split in source] for name, source in sources.items()}
    return {
        name: {key: sum(part[key] for part in parts) for key in ("documents", "tokens", "bytes")}
        for name, parts in splits.items()
    }
