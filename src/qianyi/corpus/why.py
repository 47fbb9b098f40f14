"""What became of one document, stage by stage."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qianyi.corpus.document import DOCUMENT, corpus_manifest, side_files
from qianyi.corpus.pipeline import stage_directories
from qianyi.errors import DataError

_ID = re.compile(r"[0-9a-f]{4,32}")
_SHOWN = 5


@dataclass(frozen=True)
class Found:
    """A document as one stage left it."""

    stage: str
    directory: Path
    is_kept: bool
    reason: str = ""
    detail: str = ""
    head: str = ""
    text: str | None = None
    """Of a kept document."""
    columns: dict[str, Any] = field(default_factory=dict[str, Any])
    """What stages added: statistics, labels."""
    has_changed: bool = False
    """Its text differs from the text in the stage before."""


@dataclass(frozen=True)
class Story:
    """A document, and what became of it in each stage that has seen it, in order."""

    id: str
    source: str
    origin: str
    stages: tuple[Found, ...]


def why(path: Path, document: str) -> Story:
    """Follow a document through the stages of a pipeline's directory, or through one corpus directory.

    Args:
        path: either of the two.
        document: its id, or the beginning of that (four digits or more), or its origin or the end of that.

    Raises:
        DataError: there is no such document, or there are several.
    """
    directories = stage_directories(path)
    identity = _identify(directories, document)
    found: list[Found] = []
    before: str | None = None
    for directory in directories:
        if (row := _row(directory, "parts", identity["id"])) is not None:
            text = row["text"]
            columns = {name: value for name, value in row.items() if name not in DOCUMENT.names}
            changed = before is not None and text != before
            found.append(
                Found(_stage(directory), directory, True, text=text, head=text[:200], columns=columns, has_changed=changed)
            )
            before = text
        elif (row := _row(directory, "dropped", identity["id"])) is not None:
            found.append(Found(_stage(directory), directory, False, row["reason"], row["detail"], row["head"]))
    return Story(identity["id"], identity["source"], identity["origin"], tuple(found))


def _identify(directories: list[Path], document: str) -> dict[str, str]:
    """The one document that is meant: by id, else by origin, else by the end of an origin."""
    matched: dict[str, dict[str, str]] = {}
    rank = 0
    for directory in directories:
        for table in _tables(directory, ["id", "source", "origin"]):
            for by, rows in enumerate(_matches(table, document)):
                strength = 3 - by
                if rows.num_rows and strength > rank:
                    matched, rank = {}, strength
                if strength == rank:
                    matched |= {row["id"]: row for row in rows.slice(0, _SHOWN + 1).to_pylist()}
    if not matched:
        raise DataError(
            f"no document `{document}` in {', '.join(map(str, directories))}; give an id (or how it begins) or an origin"
        )
    if len(matched) > 1:
        some = [f"{row['id']}  {row['origin']}" for row in list(matched.values())[:_SHOWN]]
        raise DataError("\n".join([f"`{document}` is more than one document; give more of the id or of the origin:", *some]))
    return next(iter(matched.values()))


def _matches(table: pa.Table, document: str) -> Iterator[pa.Table]:
    """Rows by id, by origin, by the end of the origin."""
    options = pc.MatchSubstringOptions(document)
    if _ID.fullmatch(document):
        yield table.filter(pc.call_function("starts_with", [table["id"]], options))
    else:
        yield table.slice(0, 0)
    yield table.filter(pc.call_function("equal", [table["origin"], pa.scalar(document)]))
    yield table.filter(pc.call_function("ends_with", [table["origin"]], options))


def _tables(directory: Path, columns: list[str]) -> Iterator[pa.Table]:
    for kind in ("parts", "dropped"):
        for file in side_files(directory, kind):
            yield pq.read_table(file, columns=columns)


def _row(directory: Path, kind: str, identity: str) -> dict[str, Any] | None:
    """The document's row; of each file only the ids are read, and then one row group."""
    for path in side_files(directory, kind):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["id"])["id"]
                at = pc.call_function("index", [ids], pc.IndexOptions(pa.scalar(identity))).as_py()
                if at >= 0:
                    return file.read_row_group(group).slice(at, 1).to_pylist()[0]
    return None


def _stage(directory: Path) -> str:
    return corpus_manifest(directory)["stage"]
