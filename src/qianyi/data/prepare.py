"""From text to token shards in two stages: train a tokenizer, then tokenize, split and pack.

    DIR/tokenizer/tokenizer.json
    DIR/shards/{train,validation}/SOURCE/00000.bin, 00000.idx ...
    DIR/shards/done/SOURCE/00000.json

A document is in the validation split when a hash of its text says so: the same text is always on the same side, wherever
it comes from. A pair is two texts, each ended by the end-of-text token; that of its source says on which side it is.

Each source is cut into units of work (`qianyi.data.units`) that workers tokenize in any order, each into shards of its own: the shards are
the same bytes for any number of workers, and a killed run goes on with the units that have no record in `done`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from qianyi.config.schema import DataConfig, SourceConfig, TrainConfig
from qianyi.data.encode import fast_encoder
from qianyi.data.licences import require_usable, research_only_documents
from qianyi.data.pool import run_jobs, usable_cpus
from qianyi.data.read import Document, source_files
from qianyi.data.shards import FORMAT
from qianyi.data.special import require_special_tokens, reserved_names, special_tokens
from qianyi.data.stage import MANIFEST, Json, describe_files, read_manifest, run_stage
from qianyi.data.tokenize import SPLITS, Item, Job, is_blank, is_validation, tokenize_job, tokenize_unit
from qianyi.data.tokenized import TokenDocument, read_items
from qianyi.data.tokenizer import end_token, id_count, shared_tokenizer, train_tokenizer
from qianyi.data.units import plan_units
from qianyi.errors import DataError

Progress = Callable[[str, int, int], None]
"""(what is being done, documents so far, bytes of text so far)."""
MapJobs = Callable[[Callable[[Json], Json], list[Json]], Iterator[Json]]
"""(function of a module, jobs): its results in any order."""

_CAUSAL = TrainConfig()
_TOKENIZER_BYTES = 256 << 20
"""Text per source that a tokenizer is trained on at most; more changes little and costs memory."""
_SAMPLE_CHARACTERS = 1 << 16
"""Text per source on which a fast encoder must agree with the tokenizer."""
_SAMPLE_DOCUMENTS = 1000


def prepare(
    data: DataConfig, vocab_size: int, progress: Progress, train: TrainConfig = _CAUSAL, map_jobs: MapJobs | None = None
) -> Json:
    """Make the tokenizer and the shards of a recipe, unless they are there; `train` says which special tokens are needed.

    A recipe without sources takes the shards that are in its directory as they are.

    Args:
        data: what is read, and where it goes.
        vocab_size: ids that the model has.
        progress: told what is being done.
        train: the objective.
        map_jobs: runs units of work, on a cluster say; None: here, in a process for each processor.

    Returns:
        The manifest of the shards.

    Raises:
        DataError: a source cannot be read, is empty, may not be used, or has no document for one of the splits; the tokenizer lacks
            a token.
        ResourceError: the disk is full.
    """
    directory = Path(data.dir)
    if not data.sources:
        return _prepared(data, vocab_size, train)
    files = [file for source in data.sources for file in source_files(source.path)]
    progress("checking the inputs", 0, 0)
    restricted = {source.name: research_only_documents(source.path) for source in data.sources}
    require_usable(restricted, data.commercial)
    inputs, times = describe_files(files, _manifest_if_any(directory / "shards"))
    if data.tokenizer is None:
        _make_tokenizer(data, vocab_size, reserved_names(train), inputs, times, progress)
    path = tokenizer_path(data)
    tokenizer = shared_tokenizer(path)
    size, end = _check_tokenizer(tokenizer, path, vocab_size), end_token(tokenizer, path)
    special = special_tokens(tokenizer)
    require_special_tokens(special, train, path)
    settings = {
        "format": FORMAT,
        "inputs": inputs,
        "sources": [{"name": s.name, "path": s.path} for s in data.sources],
        "text_key": data.text_key,
        "target_key": data.target_key,
        "tokenizer_sha256": _sha256(path),
        "validation_fraction": data.validation_fraction,
        "shard_tokens": data.shard_tokens,
    }

    def build(out: Path) -> Json:
        sample = _require_both_splits(data)
        encoder, reason = fast_encoder(tokenizer, sample)
        jobs = [job for source in data.sources for job in _jobs(source, data, out, path, encoder.name)]
        results = _run(jobs, map_jobs or partial(run_jobs, workers=usable_cpus()), progress)
        for stray in out.rglob(".*.partial"):  # of workers that were killed
            stray.unlink(missing_ok=True)
        sources = {s.name: {**_joined(results[s.name]), "research_only": restricted[s.name]} for s in data.sources}
        made = {"vocab_size": size, "end_token": end, "special_tokens": special.as_json(), "sources": sources}
        return {**made, "encoder": {"library": encoder.name, "reason": reason}}

    return run_stage(directory / "shards", settings, times, build, resumable=True)


def tokenizer_path(data: DataConfig) -> Path:
    """Where the recipe's tokenizer is."""
    return Path(data.tokenizer) if data.tokenizer else Path(data.dir) / "tokenizer" / "tokenizer.json"


def _prepared(data: DataConfig, vocab_size: int, train: TrainConfig) -> Json:
    """The manifest of shards that are there already."""
    shards = Path(data.dir) / "shards"
    if not (shards / MANIFEST).exists():
        raise DataError(
            "data.sources is empty: name a file or directory of text, data.sources='[{name: books, path: books/}]', or, in data.dir, "
            f"what `qianyi data tokenize` has made; {shards} holds no shards"
        )
    manifest, path = read_manifest(shards), tokenizer_path(data)
    tokenizer = shared_tokenizer(path)
    _check_tokenizer(tokenizer, path, vocab_size)
    if _sha256(path) != manifest["settings"]["tokenizer_sha256"]:
        raise DataError(f"{path}: is not the tokenizer that {shards} was made with; set data.tokenizer to that")
    require_special_tokens(special_tokens(tokenizer), train, path)
    require_usable({name: source.get("research_only", 0) for name, source in manifest["sources"].items()}, data.commercial)
    return manifest


def _check_tokenizer(tokenizer: Tokenizer, path: Path, vocab_size: int) -> int:
    size = id_count(tokenizer)
    if size > vocab_size:
        raise DataError(f"{path}: the tokenizer has {size} tokens, model.vocab_size is {vocab_size}; raise it to that")
    return size


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _jobs(source: SourceConfig, data: DataConfig, out: Path, tokenizer: Path, library: str) -> Iterator[Job]:
    digest = _sha256(tokenizer)
    for number, spans in enumerate(plan_units(source.path, data.text_key, data.shard_tokens)):
        yield Job(
            out=str(out),
            source=source.name,
            number=number,
            spans=[(span.path, span.start, span.stop) for span in spans],
            text_key=data.text_key,
            target_key=data.target_key,
            tokenizer=str(tokenizer),
            tokenizer_sha256=digest,
            library=library,
            validation_fraction=data.validation_fraction,
            shard_tokens=data.shard_tokens,
        )


def _run(jobs: list[Job], map_jobs: MapJobs, progress: Progress) -> dict[str, list[Json]]:
    """Results of all units by source, in order; those that have a record are not done again."""
    left = [job for job in jobs if not job.record.exists()]
    done = [0, 0]

    def count(source: str, documents: int, n_bytes: int) -> None:
        done[:] = done[0] + documents, done[1] + n_bytes
        progress(f"tokenizing {source}", *done)

    if len(left) == 1:
        tokenize_job(left[0], partial(count, left[0].source))
    else:
        for result in map_jobs(tokenize_unit, [asdict(job) for job in left]):
            count(result["source"], *(sum(result[split][unit] for split in SPLITS) for unit in ("documents", "bytes")))
    by_source: dict[str, list[Json]] = {}
    for job in jobs:
        by_source.setdefault(job.source, []).append(json.loads(job.record.read_text(encoding="utf-8")))
    return by_source


def _joined(units: list[Json]) -> Json:
    """The units of a source as one: sums, and lists one after another."""
    joined: Json = {"blank_documents": sum(unit["blank_documents"] for unit in units)}
    for split in SPLITS:
        parts = [unit[split] for unit in units]
        sums = {name: sum(part[name] for part in parts) for name in ("documents", "tokens", "bytes")}
        joined[split] = {**sums, **{name: [entry for part in parts for entry in part[name]] for name in ("shards", "index")}}
    return joined


def _manifest_if_any(out: Path) -> Json | None:
    return read_manifest(out) if (out / MANIFEST).exists() else None


def _make_tokenizer(
    data: DataConfig, vocab_size: int, special: list[str], inputs: list[Json], times: dict[str, int], progress: Progress
) -> None:
    path = tokenizer_path(data)
    if not path.exists():
        (path.parent / MANIFEST).unlink(missing_ok=True)  # it was lost: train it again
    size = data.tokenizer_vocab_size or vocab_size
    settings = {
        "inputs": inputs,
        "vocab_size": size,
        "special_tokens": special,
        "text_key": data.text_key,
        "target_key": data.target_key,
        "validation_fraction": data.validation_fraction,
    }

    def build(out: Path) -> Json:
        _require_both_splits(data)
        texts = (text for source in data.sources for text in _training_texts(source, data, progress))
        tokenizer = train_tokenizer(texts, size, special)
        (out / path.name).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        return {"entries": id_count(tokenizer)}

    run_stage(path.parent, settings, times, build)


def _training_texts(source: SourceConfig, data: DataConfig, progress: Progress) -> Iterator[str]:
    n_bytes = 0
    for number, item in enumerate(_items(source, data), 1):
        if isinstance(item, TokenDocument):
            raise DataError(f"{item.origin}: has tokens already; data.tokenizer must name the tokenizer that they are of")
        if not is_validation(item, data.validation_fraction):
            n_bytes += sum(len(text.encode()) for text in item.texts)
            yield from item.texts
        progress(f"tokenizer: reading {source.name}", number, n_bytes)
        if n_bytes >= _TOKENIZER_BYTES:
            return


def _require_both_splits(data: DataConfig) -> list[str]:
    """Refuse a source without text for one of the splits before hours are spent on it; most are through after a few documents.

    Returns:
        Some texts of each source.
    """
    sample: list[str] = []
    for source in data.sources:
        counts, blank, size = [0, 0], 0, 0
        for item in _items(source, data):
            if is_blank(item):
                blank += 1
                continue
            counts[is_validation(item, data.validation_fraction)] += 1
            if isinstance(item, Document) and size < _SAMPLE_CHARACTERS:
                texts = [text[:_SAMPLE_CHARACTERS] for text in item.texts]
                sample += texts
                size += sum(map(len, texts))
            if all(counts) and (size >= _SAMPLE_CHARACTERS or sum(counts) >= _SAMPLE_DOCUMENTS):
                break
        if not all(counts):
            raise DataError(_explain_empty(source, counts, blank))
    return sample


def _explain_empty(source: SourceConfig, counts: list[int], blank: int) -> str:
    if not any(counts):
        return f"data.sources.{source.name}: {source.path} holds no text ({blank} blank documents)"
    split, remedy = ("train", "lower") if counts[1] else ("validation", "raise")
    return (
        f"data.sources.{source.name}: none of its {sum(counts)} documents fell into the {split} split; "
        f"{remedy} data.validation_fraction, or split the text into more documents (one JSON line each)"
    )


def _items(source: SourceConfig, data: DataConfig) -> Iterator[Item]:
    for unit in plan_units(source.path, data.text_key, data.shard_tokens):
        for span in unit:
            yield from read_items(span, data.text_key, data.target_key)
