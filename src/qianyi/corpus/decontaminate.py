"""Training text without what evaluation sets ask.

Two rules. `ngram`: a document is contaminated by one n-gram of an item (Brown et al. 2020, appendix C). `overlap`: by n-grams that hold a
share of an item's tokens (Touvron et al. 2023, Llama 2, A.6; Grattafiori et al. 2024, Llama 3, 5.1.4). A document is dropped, or what was
found is cut out of it with some characters around.

Three stages: `hits` finds n-grams in parts, `items` sums them up over the corpus by item, the last decides and writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit
from numpy.typing import NDArray

from qianyi.config.part import Count, Fraction, Part, Positive
from qianyi.corpus.dedup.keys import spans_of
from qianyi.corpus.document import corpus_manifest, side_files
from qianyi.corpus.evalsets import Index, build_index
from qianyi.corpus.kernels.ngrams import Places, fold_table
from qianyi.corpus.kernels.overlap import covered, matches
from qianyi.corpus.parts import Json, Options, Writer, part_units, read_batches, run_parts
from qianyi.errors import DataError

CONTAMINATED = "contaminated"
_HITS = pa.schema([(name, pa.uint32()) for name in ("row", "gram", "begin", "end")])


class DecontaminateSettings(Part):
    """What counts as contamination, and what is done about it."""

    rule: Literal["ngram", "overlap"] = "ngram"
    """One n-gram of an item suffices, or n-grams must hold a share of it."""
    ngram: Positive | None = None
    """Words in an n-gram; three characters of Chinese count as two words. null: for `ngram` the 5th percentile of the lengths of the
    items of a file, from 8 to 13; for `overlap` 8."""
    overlap: Fraction = 0.8
    """For `overlap`: share of an item's tokens."""
    fields: tuple[str, ...] = ()
    """Keys of items that count; none: all text of a record."""
    common_documents: Count = 0
    """n-grams in more documents than this are common phrases and do not count; 0: all count. GPT-3 took 10, of text without duplicates."""
    action: Literal["drop", "cut"] = "drop"
    """Drop documents, or cut n-grams."""
    margin_characters: Count = 200
    """Cut on both sides of an n-gram."""
    piece_characters: Count = 200
    """Shorter pieces between cuts go too."""
    most_pieces: Positive = 10
    """A document that falls into more is dropped."""


@dataclass(frozen=True)
class _Found:
    """Which items a document has n-grams of; one entry for each pair of the two."""

    rows: Places
    items: Places
    tokens: Places
    """Of the item, in n-grams that the document has."""


def decontaminate(
    inputs: Sequence[Path],
    out: Path,
    evalsets: Sequence[Path],
    settings: DecontaminateSettings | None = None,
    options: Options | None = None,
) -> Json:
    """Make `out` of the documents of `inputs` without what is in evaluation sets.

    Beside the documents lie `matches` (a row for each document and item: `id`, `item`, `share` of the item's tokens) and, in `items/about`,
    a row for each item: `file`, `number`, `tokens`, `documents`, and the `share` of its tokens that is anywhere in the corpus.

    Args:
        inputs: finished corpus directories, in order.
        out: the corpus directory to make.
        evalsets: files of evaluation sets (see `qianyi.corpus.evalsets`).
        settings: the rule.
        options: how it is run.

    Returns:
        The manifest; `decontamination_report` says more.

    Raises:
        DataError: an input or an evaluation set cannot be read, or there is no n-gram to look for.
    """
    settings = settings or DecontaminateSettings()
    if not evalsets:
        raise DataError("decontaminate: no evaluation set; name files with --against")
    units = [{**unit, "number": number} for number, unit in enumerate(unit for path in inputs for unit in part_units(path))]
    looked_for: Json = {"fields": list(settings.fields), "ngram": settings.ngram or (8 if settings.rule == "overlap" else None)}
    where = {"evalsets": [str(path) for path in evalsets]}
    _index(where["evalsets"], looked_for)  # wrong ones are an error before any part is read
    hits, items = out / "hits", out / "items"
    quiet = replace(options or Options(), strict=False)
    run_parts(
        hits, "decontaminate_hits", looked_for, [{**unit, **where} for unit in units], _find_hits, [*inputs, *evalsets], quiet
    )
    summed = {**looked_for, "common_documents": settings.common_documents}
    run_parts(items, "decontaminate_items", summed, [{"hits": str(hits), **where}], _sum_items, [hits, *evalsets], quiet)
    units = [{**unit, **where, "hits": str(hits), "items": str(items)} for unit in units]
    chosen = {**settings.model_dump(mode="json"), **looked_for}
    return run_parts(out, "decontaminate", chosen, units, _apply, [*inputs, *evalsets, hits, items], options)


def decontamination_report(out: Path) -> Json:
    """By evaluation set: items, those too short for an n-gram, those found in the corpus, and documents that had some of them.

    Raises:
        DataError: the directory is not finished.
    """
    manifest = corpus_manifest(out)
    table = pa.concat_tables([pq.read_table(path) for path in side_files(out / "items", "about")])
    sets: Json = {}
    for row in table.to_pylist():
        entry = sets.setdefault(row["file"], {"ngram": row["ngram"], "items": 0, "too_short": 0, "found": 0, "share": 0.0})
        entry["items"] += 1
        entry["too_short"] += row["too_short"]
        entry["found"] += row["documents"] > 0
        entry["share"] += row["share"]
    for entry in sets.values():
        entry["share"] = round(entry["share"] / entry["items"], 4)
    return {**{name: manifest[name] for name in ("documents", "bytes", "dropped", "reasons", "counts")}, "evalsets": sets}


@lru_cache(maxsize=1)
def _cached_index(files: tuple[str, ...], fields: tuple[str, ...], ngram: int | None) -> Index:
    return build_index([Path(file) for file in files], fields, ngram)


def _index(files: Sequence[str], settings: Json) -> Index:
    return _cached_index(tuple(files), tuple(settings["fields"]), settings["ngram"])


def _find_hits(unit: Json, settings: Json, writer: Writer) -> None:
    index = _index(unit["evalsets"], settings)
    found: list[pa.Table] = [_HITS.empty_table()]
    row = 0
    for batch in read_batches(Path(unit["part"]), ["text"]):
        texts = spans_of(batch.column("text"))
        rows, grams, begins, ends = matches(
            texts.data, texts.starts, texts.ends, fold_table(), index.lengths, index.grams, index.prefixes, index.shift
        )
        columns = (rows + row, grams, begins - texts.starts[rows], ends - texts.starts[rows])
        found.append(pa.table([pa.array(column, pa.uint32()) for column in columns], schema=_HITS))
        row += batch.num_rows
    writer.attach("found", pa.concat_tables(found))


def _sum_items(unit: Json, settings: Json, writer: Writer) -> None:
    index = _index(unit["evalsets"], settings)
    files = side_files(Path(unit["hits"]), "found")
    documents = np.zeros(len(index.grams), np.int64)
    for path in files:
        hits = pq.read_table(path, columns=["row", "gram"])
        once = np.unique(hits["row"].to_numpy().astype(np.int64) << 32 | hits["gram"].to_numpy())
        documents += np.bincount(once & 0xFFFFFFFF, minlength=len(documents))
    common = (documents > settings["common_documents"]) & (settings["common_documents"] > 0)
    by_item = np.zeros(len(index.item_file), np.int64)
    for path in files:
        by_item += np.bincount(_items_of(_counting(pq.read_table(path), common), index).items, minlength=len(by_item))
    tokens = np.diff(index.item_tokens)
    there = covered((documents > 0) & ~common, index.bounds, index.items, index.positions, index.sizes, index.item_tokens)
    about = {
        "file": [index.files[place] for place in index.item_file],
        "number": index.item_number,
        "ngram": [index.file_lengths[place] for place in index.item_file],
        "tokens": tokens,
        "too_short": index.too_short(),
        "documents": by_item,
        "share": there / np.maximum(tokens, 1),
    }
    writer.attach("about", pa.table(about))
    writer.attach("common", pa.table({"gram": np.flatnonzero(common)}))
    writer.count("items", len(tokens))
    writer.count("items_too_short", int(index.too_short().sum()))
    writer.count("items_found", int((by_item > 0).sum()))
    writer.count("common_ngrams", int(common.sum()))


def _counting(hits: pa.Table, common: NDArray[np.bool_]) -> pa.Table:
    return hits.filter(pa.array(~common[hits["gram"].to_numpy()]))


def _items_of(hits: pa.Table, index: Index) -> _Found:
    """Which items each document has n-grams of, by document, then item."""
    grams = hits["gram"].to_numpy().astype(np.int64)
    counts = index.bounds[grams + 1] - index.bounds[grams]
    posting = np.repeat(index.bounds[grams] - np.append(0, np.cumsum(counts)[:-1]), counts) + np.arange(counts.sum())
    rows = np.repeat(hits["row"].to_numpy().astype(np.int64), counts)
    order = np.lexsort((index.positions[posting], index.items[posting], rows))
    posting = posting[order]
    return _Found(*_union(rows[order], index.items[posting], index.positions[posting], index.sizes[posting]))


def _apply(unit: Json, settings: Json, writer: Writer) -> None:
    index = _index(unit["evalsets"], settings)
    common = np.zeros(len(index.grams), np.bool_)
    for path in side_files(Path(unit["items"]), "common"):
        common[pq.read_table(path)["gram"].to_numpy()] = True
    hits = _counting(pq.read_table(side_files(Path(unit["hits"]), "found")[unit["number"]]), common)
    found = _items_of(hits, index)
    shares = found.tokens / np.diff(index.item_tokens)[found.items]
    if settings["rule"] == "overlap":
        hits = _of_contaminating(hits, index, found, shares >= settings["overlap"])
    bad = np.unique(hits["row"].to_numpy())
    ids: list[str] = []
    row = 0
    for batch in read_batches(Path(unit["part"])):
        ids += batch.column("id").to_pylist()
        wrong = np.isin(np.arange(row, row + batch.num_rows), bad)
        _write(batch, row, wrong, _details(row + np.flatnonzero(wrong), found, shares, index), hits, settings, writer)
        row += batch.num_rows
    items = [index.name(int(item)) for item in found.items]
    matched = {"id": [ids[r] for r in found.rows], "item": items, "share": shares}
    writer.attach(
        "matches", pa.table(matched, schema=pa.schema([("id", pa.string()), ("item", pa.string()), ("share", pa.float64())]))
    )


def _of_contaminating(hits: pa.Table, index: Index, found: _Found, enough: NDArray[np.bool_]) -> pa.Table:
    """Hits of n-grams of an item that the document has enough of."""
    pairs = set(zip(found.rows[enough].tolist(), found.items[enough].tolist(), strict=True))
    grams, rows = hits["gram"].to_pylist(), hits["row"].to_pylist()
    wanted = [
        any((row, int(item)) in pairs for item in index.items[index.bounds[gram] : index.bounds[gram + 1]])
        for row, gram in zip(rows, grams, strict=True)
    ]
    return hits.filter(pa.array(wanted, pa.bool_()))


def _details(rows: Places, found: _Found, shares: NDArray[np.float64], index: Index) -> list[str]:
    """Of each document, the item that it has most of."""
    details: list[str] = []
    for row in rows:
        low, high = np.searchsorted(found.rows, [row, row + 1])
        best = low + int(np.argmax(shares[low:high]))
        others = f" and {high - low - 1} more" if high - low > 1 else ""
        details.append(f"{shares[best]:.0%} of {index.name(int(found.items[best]))}{others}")
    return details


def _write(
    batch: pa.RecordBatch,
    first_row: int,
    wrong: NDArray[np.bool_],
    details: list[str],
    hits: pa.Table,
    settings: Json,
    writer: Writer,
) -> None:
    texts: list[str | None] = batch.column("text").to_pylist() if settings["action"] == "cut" and wrong.any() else []
    rows = hits["row"].to_numpy()
    lost = np.zeros(batch.num_rows, np.int64)
    for row in np.flatnonzero(wrong) if texts else ():
        low, high = np.searchsorted(rows, [first_row + row, first_row + row + 1])
        spans = zip(hits["begin"][low:high].to_pylist(), hits["end"][low:high].to_pylist(), strict=True)
        before = (texts[row] or "").encode()
        texts[row] = cut_around(before, list(spans), settings)
        lost[row] = len(before) - len((texts[row] or "").encode())
    gone = wrong & np.array([not text for text in texts], np.bool_) if texts else wrong
    writer.drop(batch.filter(pa.array(gone)), CONTAMINATED, [d for d, g in zip(details, gone[wrong], strict=True) if g])
    if texts:
        batch = batch.set_column(batch.schema.get_field_index("text"), "text", pa.array(texts, pa.string()).fill_null(""))
    at = batch.schema.get_field_index("stat_decontaminated_bytes")
    column = pa.array(lost, pa.int64())
    batch = (
        batch.append_column("stat_decontaminated_bytes", column)
        if at < 0
        else batch.set_column(at, batch.schema.names[at], column)
    )
    writer.keep(batch.filter(pa.array(~gone)))
    writer.count("documents_cut", int((wrong & ~gone).sum()))
    writer.count("bytes_cut", int(lost[~gone].sum()))


def cut_around(text: bytes, spans: Sequence[tuple[int, int]], settings: Json) -> str | None:
    """What is left of a text without spans (in bytes, by where they begin) and a margin; nothing if it falls into too many pieces."""
    characters = text.decode()
    places = np.append(0, np.cumsum(np.frombuffer(text, np.uint8) & 0xC0 != 0x80))  # characters begun before each byte
    margin, pieces, at = settings["margin_characters"], [], 0
    for begin, end in spans:
        first, last = int(places[begin]) - margin, int(places[end]) + margin
        if first > at:
            pieces.append(characters[at:first])
        at = max(at, last)
    pieces.append(characters[at:])
    long = [piece.strip() for piece in pieces if len(piece.strip()) >= max(1, settings["piece_characters"])]
    return "\n\n".join(long) if long and len(pieces) <= settings["most_pieces"] else None


@njit(cache=True, nogil=True)
def _union(rows: Places, items: Places, positions: Places, sizes: Places) -> tuple[Places, Places, Places]:
    """Tokens in the union of the runs of each row and item."""
    out_rows, out_items, tokens = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64), np.zeros(len(rows), np.int64)
    n, end = 0, 0
    for i in range(len(rows)):
        if n == 0 or rows[i] != out_rows[n - 1] or items[i] != out_items[n - 1]:
            out_rows[n], out_items[n], end = rows[i], items[i], 0
            n += 1
        finish = positions[i] + sizes[i]
        tokens[n - 1] += max(0, finish - max(end, positions[i]))
        end = max(end, finish)
    return out_rows[:n], out_items[:n], tokens[:n]
