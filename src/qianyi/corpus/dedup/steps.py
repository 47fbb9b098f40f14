"""What the stages of deduplication do with one unit. Text is read in `documents`, `lines` and `windows` and nowhere else."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qianyi.corpus.buckets import bucket_of
from qianyi.corpus.dedup import sample
from qianyi.corpus.dedup.clusters import Clusters, Ranks, clusters, survivors
from qianyi.corpus.dedup.edits import edits_of, surviving
from qianyi.corpus.dedup.keys import Refs, band_table, exact_table, sketch, spans_of, window_table
from qianyi.corpus.dedup.pairs import equal_pairs, similar_pairs
from qianyi.corpus.dedup.settings import Sketching
from qianyi.corpus.dedup.shuffle import Source, gather_all, refs, sources_of
from qianyi.corpus.dedup.spans import paragraphs, repeats
from qianyi.corpus.document import side_files
from qianyi.corpus.kernels.ngrams import Places
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
        writer.attach("similar", _new(similar, unit["base"]))
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
    directory, found = Path(unit["pairs"]), sources_of(unit)
    equal, similar = _read_pairs(directory, "equal"), _read_pairs(directory, "similar")
    linked = clusters(*(np.concatenate([equal[name].to_numpy(), similar[name].to_numpy()]) for name in ("a", "b")))
    ranks = _ranks(linked.refs, found, unit["base"])
    chosen = survivors(linked, ranks)
    removed = np.flatnonzero((chosen != np.arange(len(chosen))) & ~ranks.stays)
    same = _survivor_of_equals(clusters(equal["a"].to_numpy(), equal["b"].to_numpy()), linked.refs, chosen)[removed]
    is_equal, named = same >= 0, np.where(same >= 0, same, chosen[removed])
    near = _similarity(similar, linked.refs[removed], linked.refs[named])
    ids = ranks.ids[named]
    details = [
        f"of {name}" if same or value < 0 else f"{value:.2f} like {name}"
        for name, same, value in zip(ids, is_equal, near, strict=True)
    ]
    reasons = np.where(is_equal, "exact_duplicate", "near_duplicate")
    own = linked.refs[removed] - refs(unit["base"], 0)
    writer.attach(
        "removed", pa.table({"ref": own, "reason": pa.array(reasons, pa.string()), "detail": pa.array(details, pa.string())})
    )
    _count_sizes(writer, linked)
    if settings["sampled"]:
        how, both = Sketching.model_validate(settings["sketching"]), pa.concat_tables([equal, similar])
        writer.attach("quality", sample.report_table(_sampled(found[-1]), linked, both, how, settings["sampled"]))


def line_clusters(unit: Json, settings: Json, writer: Writer) -> None:
    """Attach the lines that are removed: all of a cluster but the first."""
    directory = Path(unit["pairs"])
    tables = [_read_pairs(directory, name) for name in ("equal", "similar")]
    linked = clusters(*(np.concatenate([table[name].to_numpy() for table in tables]) for name in ("a", "b")))
    own = refs(unit["base"], 0)
    removed = linked.refs[(linked.roots != np.arange(len(linked.roots))) & (linked.refs >= own)]
    writer.attach("removed", pa.table({"ref": removed - own}))
    _count_sizes(writer, linked)


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


def _survivor_of_equals(equals: Clusters, at: Refs, chosen: Places) -> Places:
    """[refs]: place of a document that survives and is equal to each; -1 where there is none."""
    roots = _roots(equals, at)
    survivor = np.full(len(equals.refs) + 1, -1)  # the last is for those that have no equal
    alive = np.flatnonzero((chosen == np.arange(len(at))) & (roots >= 0))[::-1]
    survivor[roots[alive]] = alive
    return survivor[roots]


def _roots(found: Clusters, at: Refs) -> Places:
    if len(found.refs) == 0:
        return np.full(len(at), -1)
    place = np.minimum(np.searchsorted(found.refs, at), len(found.refs) - 1)
    return np.where(found.refs[place] == at, found.roots[place], -1)


def _similarity(similar: pa.Table, a: Refs, b: Refs) -> NDArray[np.float32]:
    """Of pairs, in either order; -1 for those that were not compared."""
    low, high = similar["a"].to_numpy(), similar["b"].to_numpy()
    known, both = np.unique(np.concatenate([low, high])), (np.minimum(a, b), np.maximum(a, b))
    if len(known) == 0:
        return np.full(len(a), -1, np.float32)
    code = np.searchsorted(known, low).astype(np.int64) * len(known) + np.searchsorted(known, high)
    order = np.argsort(code)
    place = [np.minimum(np.searchsorted(known, x), len(known) - 1) for x in both]
    wanted = np.where((known[place[0]] == both[0]) & (known[place[1]] == both[1]), place[0] * len(known) + place[1], -1)
    at = np.minimum(np.searchsorted(code[order], wanted), len(code) - 1)
    return np.where(code[order][at] == wanted, similar["similarity"].to_numpy()[order][at], np.float32(-1))


def _count_sizes(writer: Writer, found: Clusters) -> None:
    for size, number in found.sizes().items():
        writer.count(f"clusters_of_{size:06d}", number)


def _sampled(source: Source) -> pa.Table:
    table = pa.concat_tables([pq.read_table(path) for path in side_files(source.keys, "sample")])
    return table.set_column(0, "ref", pa.array(table["ref"].to_numpy() + refs(source.base, 0)))
