"""Duplicates out of a corpus: documents, paragraphs, long substrings, each found by small keys that are shuffled while text stays in place.

A kind of duplicate takes up to three stages in directories of their own within the output: KIND_keys (parts to keys by bucket), KIND_pairs
(buckets to pairs) and KIND_clusters (all pairs to what goes). The last stage reads the text once more and writes what stays. The keys stay
too: a later corpus is compared with them (`against`), and the text that they are of is not read again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq

from qianyi.corpus.buckets import buckets_for
from qianyi.corpus.dedup import steps
from qianyi.corpus.dedup.edits import apply_edits
from qianyi.corpus.dedup.settings import DedupSettings
from qianyi.corpus.dedup.shuffle import Source, sources
from qianyi.corpus.document import corpus_manifest, side_files
from qianyi.corpus.kernels.substring import SPREAD
from qianyi.corpus.parts import Json, Options, Work, part_units, run_parts
from qianyi.errors import DataError

_BAND_BYTES, _EXACT_BYTES, _WINDOW_BYTES = 48, 24, 20
_SAMPLE_BYTES = 8_000_000  # of text whose pairs are all compared: the sets of its shingles take 30 times that
_LINE_BYTES = 200  # of text for each paragraph that is long enough, at least


@dataclass(frozen=True)
class _Run:
    """What the stages share."""

    out: Path
    inputs: tuple[Path, ...]
    against: tuple[Path, ...]
    settings: DedupSettings
    options: Options
    units: tuple[Json, ...]
    """One for each part: as of `part_units`, its `number`, and directories of decisions that were made so far."""
    made: tuple[Path, ...] = field(default=())
    """Those directories."""

    @property
    def bytes(self) -> int:
        return sum(unit["bytes"] for unit in self.units)

    def decided(self, name: str) -> "_Run":
        """With the decisions in directory `name`."""
        directory = self.out / name
        units = tuple({**unit, name: str(directory)} for unit in self.units)
        return replace(self, units=units, made=(*self.made, directory))

    def stage(self, name: str, settings: Json, units: list[Json], work: Work, inputs: Sequence[Path]) -> Path:
        """Run a stage that makes a directory within the output."""
        run_parts(self.out / name, f"dedup_{name}", settings, units, work, list(inputs), self.options)
        return self.out / name


def dedup(
    inputs: Sequence[Path],
    out: Path,
    settings: DedupSettings | None = None,
    against: Sequence[Path] = (),
    options: Options | None = None,
) -> Json:
    """Make `out` of the documents of `inputs` without what is there twice.

    A document goes if it is a duplicate of one that stays: the order is by quality, the highest first, then by id, the smallest first; of
    paragraphs and substrings it is the order of inputs.

    Args:
        inputs: finished corpus directories, in order.
        out: the corpus directory to make.
        settings: which sub-stages, and their parameters.
        against: directories that `dedup` made before. What is in them is a duplicate here; they stay, and only their keys are read.
        options: how it is run.

    Returns:
        The manifest; `dedup_report` says more.

    Raises:
        DataError: an input is not finished, or the keys of `against` are missing or of other settings.
    """
    settings = settings or DedupSettings()
    units = [unit for path in inputs for unit in part_units(path)]
    if not units:
        raise DataError(f"{', '.join(map(str, inputs))}: no document to compare")
    run = _Run(
        out,
        tuple(inputs),
        tuple(against),
        settings,
        replace(options or Options(), strict=False),
        tuple({**unit, "number": number} for number, unit in enumerate(units)),
    )
    if settings.exact or settings.near:
        run = _documents(run)
    if settings.paragraphs != "off":
        run = _lines(run)
    if settings.substring_bytes:
        run = _windows(run)
    decisions = settings.model_dump(mode="json")
    return run_parts(out, "dedup", decisions, list(run.units), apply_edits, [*inputs, *run.made], options)


def dedup_report(out: Path) -> Json:
    """What deduplication found: manifests' counts by kind, clusters by size, and recall and precision on the sample.

    Raises:
        DataError: the directory is not finished.
    """
    manifest = corpus_manifest(out)
    report: Json = {name: manifest[name] for name in ("documents", "bytes", "dropped", "reasons", "counts")}
    for kind in ("document", "line"):
        directory = out / f"{kind}_clusters"
        if directory.is_dir():
            report[f"{kind}_clusters"] = {
                int(name.rsplit("_", 1)[1]): number for name, number in corpus_manifest(directory)["counts"].items()
            }
            for path in side_files(directory, "quality"):
                report["sample"] = json.loads(pq.read_table(path)["json"][0].as_py())
    return report


def _documents(run: _Run) -> _Run:
    chosen = run.settings
    rows = sum(unit["rows"] for unit in run.units)
    per_row = _EXACT_BYTES + _BAND_BYTES * chosen.sketching.bands * chosen.near
    n_buckets = buckets_for(rows, per_row)
    sampled = min(1.0, chosen.sample_documents / max(1, rows), _SAMPLE_BYTES / max(1, run.bytes)) if chosen.near else 0.0
    sketching = chosen.sketching.model_dump()
    settings = {"near": chosen.near, "sketching": sketching, "quality": chosen.quality, "sampled": sampled, "buckets": n_buckets}
    keys = run.stage("document_keys", settings, list(run.units), steps.document_keys, run.inputs)
    found = _compared(run, keys, {"sketching": sketching} if chosen.near else {})
    settings = {
        "exact": chosen.exact,
        "near": chosen.near,
        "sketching": sketching,
        "similarity": chosen.similarity,
        "buckets": n_buckets,
    }
    compared = [path for source in found for path in source.inputs]
    pairs = run.stage("document_pairs", settings, _bucket_units(found, n_buckets), steps.pairs, compared)
    unit = {"pairs": str(pairs), **_numbered(found)}
    settings = {"sketching": sketching, "similarity": chosen.similarity, "sampled": sampled}
    run.stage("document_clusters", settings, [unit], steps.document_clusters, [pairs, *(s.keys for s in found)])
    return run.decided("document_clusters")


def _lines(run: _Run) -> _Run:
    chosen, near = run.settings, run.settings.paragraphs == "near"
    sketching = chosen.paragraph_sketching.model_dump()
    n_buckets = buckets_for(run.bytes // _LINE_BYTES, _EXACT_BYTES + _BAND_BYTES * chosen.paragraph_sketching.bands * near)
    settings = {"near": near, "sketching": sketching, "tokens": chosen.paragraph_tokens, "buckets": n_buckets}
    keys = run.stage("line_keys", settings, list(run.units), steps.line_keys, [*run.inputs, *run.made])
    found = _compared(run, keys, {"sketching": sketching} if near else {})
    settings = {
        "exact": True,
        "near": near,
        "sketching": sketching,
        "similarity": chosen.paragraph_similarity,
        "buckets": n_buckets,
    }
    pairs = run.stage("line_pairs", settings, _bucket_units(found, n_buckets), steps.pairs, [s.keys for s in found])
    settings = {"sketching": sketching, "similarity": chosen.paragraph_similarity}
    run.stage("line_clusters", settings, [{"pairs": str(pairs), **_numbered(found)}], steps.line_clusters, [pairs])
    return run.decided("line_clusters")


def _windows(run: _Run) -> _Run:
    n_buckets = buckets_for(run.bytes * 2 // (SPREAD + 1), _WINDOW_BYTES)
    settings = {"bytes": run.settings.substring_bytes, "buckets": n_buckets}
    keys = run.stage("window_keys", settings, list(run.units), steps.window_keys, [*run.inputs, *run.made])
    found = _compared(run, keys, {"bytes": run.settings.substring_bytes})
    run.stage("window_repeats", settings, _bucket_units(found, n_buckets), steps.window_repeats, [s.keys for s in found])
    return run.decided("window_repeats")


def _compared(run: _Run, keys: Path, needed: Json) -> tuple[Source, ...]:
    """The keys of what is there already, and at last those of this corpus."""
    for directory in run.against:
        old = directory / keys.name
        if not old.is_dir():
            raise DataError(
                f"{directory}: has no {keys.name}: deduplicate it with this sub-stage, or turn the sub-stage off here"
            )
        there = corpus_manifest(old)["settings"]
        for name, value in needed.items():
            if there[name] != value:
                raise DataError(
                    f"{old}: made with {name} {there[name]}, here it is {value}: keys of other settings do not compare"
                )
        if needed.get("sketching") and not there["near"]:
            raise DataError(f"{old}: holds no MinHash keys: deduplicate {directory} with them, or turn them off here")
    decided = keys.name == "document_keys"
    old = [(directory / keys.name, directory / "document_clusters" if decided else None) for directory in run.against]
    return sources([*old, (keys, None)])


def _numbered(found: Sequence[Source]) -> Json:
    return {"sources": [source.json for source in found], "base": found[-1].base}


def _bucket_units(found: Sequence[Source], n_buckets: int) -> list[Json]:
    return [{"bucket": bucket, **_numbered(found)} for bucket in range(n_buckets)]
