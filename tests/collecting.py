"""What the tests of `collect` share: a corpus made of sources, and what became of each input."""

from pathlib import Path
from typing import Any

from qianyi.corpus.collect.collect import CollectSettings, collect
from qianyi.corpus.collect.source import SourceSettings, parse_source
from qianyi.corpus.document import read_dropped, read_parts
from qianyi.corpus.parts import Options


def collected(
    out: Path, *sources: str | SourceSettings, cache: Path | None = None, options: Options | None = None, **settings: Any
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Documents and what was dropped, by origin."""
    parsed = [parse_source(s, **settings) if isinstance(s, str) else s for s in sources]
    collect(CollectSettings(sources=parsed, cache=str(cache) if cache else None), out, options or Options(allow=("*",)))
    kept = [row for batch in read_parts(out) for row in batch.to_pylist()]
    dropped = [row for batch in read_dropped(out) for row in batch.to_pylist()]
    assert len({row["id"] for row in kept}) == len(kept)
    return {row["origin"]: row for row in kept}, {row["origin"]: row for row in dropped}


def texts(kept: dict[str, dict[str, Any]]) -> list[str]:
    return [row["text"] for row in kept.values()]
