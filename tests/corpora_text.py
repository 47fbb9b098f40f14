"""A small pipeline over real text, in both languages: three stages of our making, with the columns and details that real ones leave."""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qianyi.corpus.document import document_batch
from qianyi.corpus.parts import Json, Writer, part_units, read_batches, run_parts
from qianyi.data import builtin

LICENCES = {"shakespeare": "public domain", "sanguo": "public domain (package: MIT)", "notes": "unclear"}
MIN_CHARACTERS = 400


def make_pipeline(root: Path) -> Path:
    """ROOT/1-collect, 2-clean (documents of fewer than 400 characters dropped), 3-dedup (copies dropped)."""
    run_parts(root / "1-collect", "collect", {"sources": list(LICENCES)}, [{"source": name} for name in LICENCES], collect, [])
    before = root / "1-collect"
    for name, work in (("2-clean", clean), ("3-dedup", dedup)):
        run_parts(root / name, name[2:], {"rules": [RULES[name]]}, part_units(before), work, [before])
        before = root / name
    return root


RULES = {"2-clean": "too_short", "3-dedup": "exact_duplicate"}


@cache
def texts(source: str) -> list[str]:
    """Shakespeare and 三国演义; the notes are pieces of both, some of them copied several times, with mail addresses."""
    if source != "notes":
        return [text for _, text in builtin.documents(f"builtin:{source}")][:300]
    draw = random.Random(0)
    pieces = [text[:700] + "\nwrite to cao@example.org" for name in ("shakespeare", "sanguo") for text in texts(name)[:20]]
    return [piece for piece in pieces for _ in range(draw.choice((1, 1, 2, 3, 6)))]


def collect(unit: Json, _: Json, writer: Writer) -> None:
    found = texts(unit["source"])
    origins = [f"{unit['source']}.txt#{k}" for k in range(len(found))]
    source = unit["source"]
    writer.keep(document_batch(source, origins, found, licence=LICENCES[source], research_only=source == "notes"))


def clean(unit: Json, _: Json, writer: Writer) -> None:
    for batch in _batches(unit):
        rows = batch["text"].to_pylist()
        spaces = np.array([text.count(" ") / len(text) for text in rows])
        columns = {
            "stat_words": pa.array([len(text.split()) for text in rows], pa.int64()),
            "stat_spaces": pa.array(spaces),
            "label_language": pa.array(["zh" if share < 0.05 else "en" for share in spaces]),
            "pii_email": pa.array([text.count("@example") for text in rows], pa.int64()),
        }
        measured = pa.RecordBatch.from_arrays([*batch.columns, *columns.values()], names=[*batch.schema.names, *columns])
        lengths = pc.utf8_length(batch["text"])
        good = pc.greater_equal(lengths, MIN_CHARACTERS)
        writer.keep(measured.filter(good))
        bad = pc.invert(good)
        details = [f"{n} characters, at least {MIN_CHARACTERS}" for n in lengths.filter(bad).to_pylist()]
        writer.drop(batch.filter(bad), "too_short", details)
        writer.count("characters_repaired", 7)


def dedup(unit: Json, _: Json, writer: Writer) -> None:
    """Within a part."""
    seen: dict[str, str] = {}
    for batch in _batches(unit):
        ids, rows = batch["id"].to_pylist(), batch["text"].to_pylist()
        first = [seen.setdefault(text, i) for text, i in zip(rows, ids, strict=True)]
        copies = pa.array([a != b for a, b in zip(first, ids, strict=True)])
        writer.keep(batch.filter(pc.invert(copies)))
        writer.drop(batch.filter(copies), "exact_duplicate", [f"same as {a}" for a, b in zip(first, ids, strict=True) if a != b])


def _batches(unit: Json) -> Iterator[pa.RecordBatch]:
    yield from read_batches(Path(unit["part"]))
