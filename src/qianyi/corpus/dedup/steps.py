"""What the stages of deduplication do with one unit. Text is read in `documents`, `lines` and `windows` and nowhere else."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qianyi.corpus.buckets import bucket_of
from qianyi.corpus.dedup import sample
from qianyi.corpus.dedup.clusters import Ranks, Sketched, clusters, components, sizes, survivors
from qianyi.corpus.dedup.edits import edits_of, surviving
from qianyi.corpus.dedup.keys import Refs, band_table, codes_of, exact_table, sketch, spans_of, window_table
from qianyi.corpus.dedup.pairs import codes_of_pairs, equal_pairs, similar_pairs
from qianyi.corpus.dedup.settings import Sketching
from qianyi.corpus.dedup.shuffle import Source, gather_all, refs, sources_of
from qianyi.corpus.dedup.spans import paragraphs, repeats
from qianyi.corpus.document import side_files
from qianyi.corpus.kernels.minhash import packed_similarity
from qianyi.corpus.kernels.ngrams import Hashes, Places
from qianyi.corpus.parts import Json, Writer, read_batches

PAIRS = pa.schema([("a", pa.uint64()), ("b", pa.uint64()), ("similarity", pa.float32())])


def document_keys(unit: Json, settings: Json, writer: Writer) -> None:
    """Scatter `exact` and `bands` of the documents of a part, attach their ids and the sampled ones."""
    how = Sketching.model_validate(settings["sketching"])
    exact: list[pa.Table] = []
    bands: list[pa.Table] = []
    about: list[pa.Table] = []
    sampled: list[pa.Table] = []
    row = 0
    for batch in read_batches(Path(unit["part"])):
        texts, at = spans_of(batch.column("text")), refs(unit["number"], np.arange(row, row + batch.num_rows))
        about.append(pa.table({"id": batch.column("id"), "quality": _quality(batch, settings["quality"])}))
        exact.append(exact_table(texts, at)[0])
        if settings["near"]:
            sketches = sketch(texts, how)
            bands.append(band_table(sketches, at))
            sampled.append(sample.sample_table(texts, sketches, at, how.ngram, settings["sampled"]))
        row += batch.num_rows
    writer.attach("documents", pa.concat_tables(about))
    _scatter(writer, "exact", exact, settings["buckets"])
    if settings["near"]:
        _scatter(writer, "bands", bands, settings["buckets"])
        writer.attach("sample", pa.concat_tables(sampled))


def line_keys(unit: Json, settings: Json, writer: Writer) -> None:
    """Scatter `exact` and `bands` of the long paragraphs of the documents of a part that survive; a ref counts all its lines."""
    how = Sketching.model_validate(settings["sketching"])
    exact: list[pa.Table] = []
    bands: list[pa.Table] = []
    line = 0
    for piece in surviving(Path(unit["part"]), edits_of(unit, lines=False)):
        texts, rows = paragraphs(spans_of(piece.batch.column("text")))
        can_be_long = texts.ends - texts.starts >= 2 * settings["tokens"] - 1  # two bytes to a token at least, but for the last
        chosen = np.flatnonzero(can_be_long & piece.stays[rows])
        table, long = exact_table(texts.take(chosen), refs(unit["number"], line + chosen), settings["tokens"])
        exact.append(table)
        if settings["near"]:
            bands.append(band_table(sketch(texts.take(chosen[long]), how), refs(unit["number"], line + chosen[long])))
        line += len(texts)
    _scatter(writer, "exact", exact, settings["buckets"])
    if settings["near"]:
        _scatter(writer, "bands", bands, settings["buckets"])


def window_keys(unit: Json, settings: Json, writer: Writer) -> None:
    """Scatter `windows` of the text that is left of a part."""
    found: list[pa.Table] = []
    row = 0
    for piece in surviving(Path(unit["part"]), edits_of(unit, lines=True)):
        rows = np.flatnonzero(piece.stays)
        found.append(window_table(spans_of(piece.texts).take(rows), refs(unit["number"], row + rows), settings["bytes"]))
        row += piece.batch.num_rows
    _scatter(writer, "windows", found, settings["buckets"])


def pairs(unit: Json, settings: Json, writer: Writer) -> None:
    """Attach the equal and the similar pairs of a bucket that are not both of corpora that stay as they are."""
    found, bucket, of = sources_of(unit), unit["bucket"], settings["buckets"]
    if settings["exact"]:
        writer.attach("equal", _new(equal_pairs(gather_all(found, "exact", bucket, of)), unit["base"]))
    if settings["near"]:
        how = Sketching.model_validate(settings["sketching"])
        banded = gather_all(found, "bands", bucket, of)
        similar, candidates = similar_pairs(banded, how.hashes, settings["similarity"])
        similar = _new(similar, unit["base"])
        writer.attach("similar", similar)
        writer.attach("codes", codes_of_pairs(banded, similar))
        writer.count("candidates", candidates)


def window_repeats(unit: Json, settings: Json, writer: Writer) -> None:
    """Attach the spans of this corpus whose windows in one bucket stood before; `ref` counts its own parts."""
    found = repeats(gather_all(sources_of(unit), "windows", unit["bucket"], settings["buckets"]), settings["bytes"])
    own = refs(unit["base"], 0)
    found = found.filter(pa.array(found["ref"].to_numpy() >= own))
    found = found.set_column(0, "ref", pa.array(found["ref"].to_numpy() - own))
    writer.attach("spans", found.sort_by([("ref", "ascending"), ("begin", "ascending")]))


def document_clusters(unit: Json, settings: Json, writer: Writer) -> None:
    """Attach who is removed: `ref` in this corpus, `reason`, `detail`; and what the sample says."""
    found, how = sources_of(unit), Sketching.model_validate(settings["sketching"])
    decided = _decide(Path(unit["pairs"]), how, settings["similarity"], lambda at: _ranks(at, found, unit["base"]))
    at, chosen = decided.refs, decided.chosen
    removed = np.flatnonzero(chosen != np.arange(len(chosen)))
    named = chosen[removed]
    is_equal = decided.equals[named] == decided.equals[removed]
    near = np.empty(len(removed), np.float32)
    packed_similarity(decided.sketched.codes, named, removed, how.hashes, near)
    details = [
        f"of {name}" if same else f"{value:.2f} like {name}"
        for name, same, value in zip(decided.ranks.ids[named], is_equal, near, strict=True)
    ]
    reasons = np.where(is_equal, "exact_duplicate", "near_duplicate")
    own = at[removed] - refs(unit["base"], 0)
    writer.attach(
        "removed", pa.table({"ref": own, "reason": pa.array(reasons, pa.string()), "detail": pa.array(details, pa.string())})
    )
    _count_sizes(writer, chosen)
    if settings["sampled"]:
        writer.attach("quality", sample.report_table(_sampled(found[-1]), at, chosen, how, settings["sampled"]))


def line_clusters(unit: Json, settings: Json, writer: Writer) -> None:
    """Attach the lines that are removed: all that are like an earlier one that stays."""
    own, how = refs(unit["base"], 0), Sketching.model_validate(settings["sketching"])
    decided = _decide(Path(unit["pairs"]), how, settings["similarity"], lambda at: _first_wins(at, unit["base"]))
    removed = decided.refs[decided.chosen != np.arange(len(decided.refs))]
    writer.attach("removed", pa.table({"ref": removed - own}))
    _count_sizes(writer, decided.chosen)


@dataclass(frozen=True)
class _Decided:
    """Who survives of all texts that are in a pair."""

    refs: Refs
    ranks: Ranks
    sketched: Sketched
    equals: Places
    """[refs]: the same place for equal texts."""
    chosen: Places
    """[refs]: as of `survivors`."""


def _decide(directory: Path, how: Sketching, least: float, ranked: Callable[[Refs], Ranks]) -> _Decided:
    equal, similar = (_read_pairs(directory, name) for name in ("equal", "similar"))
    linked = clusters(*(np.concatenate([equal[name].to_numpy(), similar[name].to_numpy()]) for name in ("a", "b")))
    at, (a, b), n_equal = linked.refs, linked.pairs, equal.num_rows
    ranks, equals = ranked(at), components(a[:n_equal], b[:n_equal], len(at))
    sketched = Sketched(_read_codes(directory, at, equals, how), how.hashes, least)
    pairs = a[n_equal:], b[n_equal:]
    return _Decided(at, ranks, sketched, equals, survivors(linked.roots, equals, pairs, sketched, ranks.stays, ranks.order))


def _read_codes(directory: Path, at: Refs, equals: Places, how: Sketching) -> Hashes:
    """[refs, words]; 0 where a text and all that equal it are in no similar pair."""
    codes = np.zeros((len(at), how.words), np.uint64)
    for path in side_files(directory, "codes"):
        table = pq.read_table(path)
        codes[equals[np.searchsorted(at, table["ref"].to_numpy())]] = codes_of(table)
    return codes[equals]


def _first_wins(at: Refs, base: int) -> Ranks:
    return Ranks(at >> np.uint64(32) < base, np.zeros(len(at)), np.zeros(len(at), "U1"))


def _scatter(writer: Writer, name: str, tables: list[pa.Table], n_buckets: int) -> None:
    table = pa.concat_tables(tables)
    writer.scatter(name, table, bucket_of(table["key"].to_numpy(), n_buckets), n_buckets)


def _quality(batch: pa.RecordBatch, column: str) -> pa.Array:
    at = batch.schema.get_field_index(column)
    return pa.nulls(batch.num_rows, pa.float64()) if at < 0 else batch.column(at).cast(pa.float64())


def _new(found: pa.Table, base: int) -> pa.Table:
    return found.filter(pa.array(found["b"].to_numpy() >= refs(base, 0)))


def _read_pairs(directory: Path, name: str) -> pa.Table:
    return pa.concat_tables([PAIRS.empty_table(), *(pq.read_table(path) for path in side_files(directory, name))])


def _ranks(at: Refs, found: Iterable[Source], base: int) -> Ranks:
    """Read ids and quality of documents, part by part."""
    ids, quality = np.empty(len(at), "U32"), np.full(len(at), np.nan)
    parts = at >> np.uint64(32)
    for source in found:
        for number, path in enumerate(side_files(source.keys, "documents"), source.base):
            low, high = np.searchsorted(parts, [number, number + 1])
            if low < high:
                rows = pq.read_table(path).take(pa.array(at[low:high] & np.uint64(0xFFFFFFFF)))
                ids[low:high] = rows["id"].to_pylist()
                quality[low:high] = rows["quality"].to_numpy()
    return Ranks(parts < base, quality, ids)


def _count_sizes(writer: Writer, chosen: Places) -> None:
    for size, number in sizes(chosen).items():
        writer.count(f"clusters_of_{size:06d}", number)


def _sampled(source: Source) -> pa.Table:
    table = pa.concat_tables([pq.read_table(path) for path in side_files(source.keys, "sample")])
    return table.set_column(0, "ref", pa.array(table["ref"].to_numpy() + refs(source.base, 0)))
