"""`collect`: sources in, a corpus directory out."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from qianyi.corpus.collect.archive import read_archive
from qianyi.corpus.collect.formats import format_of, is_archive, read_stream
from qianyi.corpus.collect.found import HEAD_CHARACTERS, Found, Reading, Refused, Result, Results, reading_of
from qianyi.corpus.collect.match import Match, match_of
from qianyi.corpus.collect.plan import plan_sources
from qianyi.corpus.collect.records import read_jsonl, read_parquet
from qianyi.corpus.collect.remote import HubDataset, read_rows
from qianyi.corpus.collect.source import SourceSettings, sources_of
from qianyi.corpus.collect.streams import open_input, refusing
from qianyi.corpus.document import document_batch, document_id
from qianyi.corpus.parts import Options, Writer, run_parts
from qianyi.data.stage import Json
from qianyi.errors import DataError

_BATCH_CHARACTERS, _BATCH_DOCUMENTS = 2_000_000, 2048
_OTHER_NAMES = "documents_with_a_source_of_their_own_in_"


class CollectSettings(BaseModel):
    """Settings of the stage `collect`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sources: Annotated[list[SourceSettings], Field(min_length=1)]
    """Where documents come from, in the order in which they go out."""
    cache: str | None = None
    """Where packages and crawls are kept; ~/.cache/qianyi (or $XDG_CACHE_HOME/qianyi) unless given."""


def collect(settings: CollectSettings, out: Path, options: Options | None = None) -> Json:
    """Read all sources into the corpus directory `out`; what gives no document is recorded there with its reason.

    Returns:
        The manifest.

    Raises:
        DataError: a source is not there or not to be had, `out` cannot be written, nothing is left; with `strict`, any refusal.
        ResourceError: the disk is full.
    """
    options = options or Options()
    sources = sources_of(settings.sources)
    plan = plan_sources(sources, cache_directory(settings.cache))
    described: Json = {"sources": [source.model_dump(mode="json") for source in settings.sources]}
    if plan.identities:
        described["remote"] = plan.identities
    manifest = run_parts(out, "collect", described, plan.units, collect_unit, plan.inputs, options)
    for source in sources:
        gave = source.name in manifest["sources"] or _OTHER_NAMES + source.name in manifest["counts"]
        if not gave and source.name not in options.allow:
            raise DataError(
                f"{source.path}: nothing came out of it, nor was anything dropped: see its `files` and `skip`; if it may be empty, "
                f"run again with --allow {source.name}"
            )
    return manifest


def cache_directory(given: str | None) -> Path:
    """Where packages and crawls are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else (Path(base) if base else Path.home() / ".cache") / "qianyi"


def collect_unit(unit: Json, settings: Json, writer: Writer) -> None:
    """The documents of one unit, in the order of its items."""
    held: list[Found] = []
    size = 0
    for result in read_unit(unit):
        if isinstance(result, Refused):
            _drop(unit, result, writer)
            continue
        held.append(result)
        size += len(result.text)
        if size >= _BATCH_CHARACTERS or len(held) >= _BATCH_DOCUMENTS:
            _keep(unit, held, writer)
            held, size = [], 0
    _keep(unit, held, writer)


def read_unit(unit: Json) -> Iterator[Result]:
    """What the items of a unit give."""
    reading = reading_of(unit["reading"])
    wanted = match_of(unit["wanted"]["globs"], unit["wanted"]["skip"])
    for item in unit["items"]:
        yield from _read_item(item, reading, wanted)


def _read_item(item: Json, reading: Reading, wanted: Match) -> Results:
    origin: str = item["origin"]
    if "refused" in item:
        yield Refused(origin, item["refused"], item["detail"])
    elif "hf" in item:
        yield from refusing(origin, lambda: read_rows(HubDataset(**item["hf"]), tuple(item["rows"]), origin, reading))
    else:
        yield from refusing(origin, lambda: _read_file(item, origin, reading, wanted))


def _read_file(item: Json, origin: str, reading: Reading, wanted: Match) -> Results:
    name = item["file"]
    with open_input(name) as raw:
        if "lines" in item:
            start, end, first_line = item["lines"]
            raw.seek(start)
            yield from read_jsonl(raw, origin, reading, first_line, end)
        elif "groups" in item:
            first, last, first_row = item["groups"]
            yield from read_parquet(raw, origin, reading, (first, last), first_row)
        elif is_archive(format_of(name)):
            members = tuple(item["members"]) if "members" in item else None
            yield from read_archive(name, raw, origin, reading, wanted, members)
        elif item.get("by_url"):
            for result in read_stream(name, raw, origin, reading):  # where a page is in a crawl's file says nothing
                yield Found(result.meta["url"], result.text, result.meta) if isinstance(result, Found) else result
        else:
            yield from read_stream(name, raw, origin, reading)


def _keep(unit: Json, found: list[Found], writer: Writer) -> None:
    if found:
        batch = document_batch(
            unit["source"],
            [document.origin for document in found],
            [document.text for document in found],
            licence=unit["licence"],
            research_only=unit["research_only"],
            meta=[document.meta for document in found],
        )
        says = any(document.source or document.licence or document.research_only for document in found)
        if says:
            writer.count(_OTHER_NAMES + unit["source"], sum(document.source is not None for document in found))
        writer.keep(_as_they_say(batch, unit, found) if says else batch)


def _as_they_say(batch: pa.RecordBatch, unit: Json, found: list[Found]) -> pa.RecordBatch:
    """With the sources, licences and flags that records name; for research alone is what either of the two says is."""
    sources = [document.source or unit["source"] for document in found]
    columns = {
        "id": [document_id(source, document.origin) for source, document in zip(sources, found, strict=True)],
        "source": sources,
        "licence": [document.licence or unit["licence"] for document in found],
        "research_only": [bool(unit["research_only"] or document.research_only) for document in found],
    }
    for name, values in columns.items():
        batch = batch.set_column(batch.schema.get_field_index(name), name, pa.array(values))
    return batch


def _drop(unit: Json, refused: Refused, writer: Writer) -> None:
    head = refused.head[:HEAD_CHARACTERS].encode("utf-8", "replace").decode()
    batch = document_batch(unit["source"], [refused.origin], [head])
    writer.drop(batch, refused.reason, [refused.detail])
