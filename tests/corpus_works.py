"""Stages for tests of `qianyi.corpus`: small, over real text."""

import json
import os
import time
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from qianyi.config.part import Part
from qianyi.corpus import directory
from qianyi.corpus.buckets import bucket_of, gather
from qianyi.corpus.document import document_batch
from qianyi.corpus.parts import Json, Options, Writer, part_units, read_batches, run_parts
from qianyi.corpus.pipeline import Stage
from qianyi.data.read import Document, read_documents
from qianyi.errors import DataError

CORPORA = ("builtin:shakespeare", "builtin:sanguo")


@cache
def documents_of(path: str) -> list[Document]:
    return list(read_documents(path, "text"))


def read_slice(unit: Json, settings: Json, writer: Writer) -> None:
    """Each `of`-th document of a source, in batches of 40."""
    documents = [d for i, d in enumerate(documents_of(unit["path"])) if i % unit["of"] == unit["slice"]]
    for start in range(0, len(documents), 40):
        some = documents[start : start + 40]
        writer.keep(document_batch(unit["path"].removeprefix("builtin:"), [d.origin for d in some], [d.text for d in some]))


def slices(of: int, corpora: tuple[str, ...] = CORPORA) -> list[Json]:
    return [{"path": path, "slice": i, "of": of} for path in corpora for i in range(of)]


def collect(out: Path, of: int = 3, options: Options | None = None) -> Json:
    return run_parts(out, "collect", {"of": of}, slices(of), read_slice, [], options)


def drop_short(unit: Json, settings: Json, writer: Writer) -> None:
    """Drop texts below `bytes`, add a column, leave lengths and keys beside."""
    hashes: list[int] = []
    for batch in read_batches(Path(unit["part"])):
        lengths = np.array([len(text.encode()) for text in batch.column("text").to_pylist()])
        hashes += [xxhash.xxh3_64_intdigest(i.encode()) for i in batch.column("id").to_pylist()]
        measured = batch.append_column("stat_bytes", pa.array(lengths))
        is_long = lengths >= settings["bytes"]
        writer.keep(measured.filter(pa.array(is_long)))
        writer.drop(batch.filter(pa.array(~is_long)), "short", [f"{n} bytes" for n in lengths[~is_long]])
    table = pa.table({"hash": np.array(hashes, np.uint64)})
    writer.count("seen", len(hashes))
    writer.attach("hashes", table)
    writer.scatter("keys", table, bucket_of(np.array(hashes, np.uint64), 5), 5)


def clean(
    corpus: Path, out: Path, size_bytes: int = 700, options: Options | None = None, rules: tuple[str, ...] = ("short",)
) -> Json:
    return run_parts(out, "clean", {"bytes": size_bytes, "rules": list(rules)}, part_units(corpus), drop_short, [corpus], options)


def list_bucket(unit: Json, settings: Json, writer: Writer) -> None:
    writer.attach("bucket", gather(unit))


def misbehave(unit: Json, settings: Json, writer: Writer) -> None:
    """Do as the unit says."""
    time.sleep(unit.get("seconds", 0))
    match unit.get("do"):
        case "refuse":
            raise DataError("x.jsonl:3: broken JSON")
        case "fail":
            raise KeyError("no such thing")
        case "die":
            os.kill(os.getpid(), 9)
        case "grow":
            np.ones(4 << 27)
        case _:
            writer.keep(document_batch("x", [str(unit["number"])], [f"text {unit['number']}"]))


def who(unit: Json) -> Json:
    """The process that does it."""
    time.sleep(unit.get("seconds", 0))
    if unit.get("do") == "fail":
        raise KeyError("no such thing")
    return {"pid": os.getpid()}


class CollectSettings(Part):
    of: int = 3


class CleanSettings(Part):
    bytes: int
    rules: tuple[str, ...] = ("short",)


STAGES = {
    "collect": Stage(CollectSettings, lambda s, inputs, out, options: collect(out, s.of, options), is_first=True),
    "clean": Stage(CleanSettings, lambda s, inputs, out, options: clean(inputs[0], out, s.bytes, options, s.rules)),
}


def content(out: Path) -> dict[str, bytes]:
    """All files but the one of the clock and locks."""
    skipped = {directory.RUN, ".lock", ".work.lock"}
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.name not in skipped}


def texts(path: str) -> list[str]:
    return [d.text for d in documents_of(path)]


if __name__ == "__main__":  # a run of its own: OUT, workers, units as JSON
    import sys

    from qianyi.errors import QianyiError

    sys.unraisablehook = lambda *_: None  # as `qianyi` does: Daft's coroutines end noisily
    try:
        run_parts(Path(sys.argv[1]), "misbehave", {}, json.loads(sys.argv[3]), misbehave, [], Options(workers=int(sys.argv[2])))
    except QianyiError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
