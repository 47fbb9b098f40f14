"""From text to token shards in two stages: train a tokenizer, then tokenize, split and pack.

    DIR/tokenizer/tokenizer.json
    DIR/shards/{train,validation}/SOURCE/00000.bin ...

A document is in the validation split when a hash of its text says so: the same text is always on the same side, wherever
it comes from.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from qianyi.config.schema import DataConfig, SourceConfig
from qianyi.data.read import read_documents, source_files
from qianyi.data.shards import FORMAT, ShardWriter, token_dtype
from qianyi.data.stage import MANIFEST, Json, describe_files, read_manifest, run_stage
from qianyi.data.tokenizer import end_token, load_tokenizer, train_tokenizer
from qianyi.errors import DataError

SPLITS = ("train", "validation")
Progress = Callable[[str, int, int], None]
"""(what is being done, documents so far, bytes of text so far)."""

_BATCH_DOCUMENTS = 256
_TOKENIZER_BYTES = 256 << 20
"""Text per source that a tokenizer is trained on at most; more changes little and costs memory."""


def prepare(data: DataConfig, vocab_size: int, progress: Progress) -> Json:
    """Make the tokenizer and the shards of a recipe, unless they are there.

    Returns:
        The manifest of the shards.

    Raises:
        DataError: a source cannot be read, is empty, or has no document for one of the splits.
        ResourceError: the disk is full.
    """
    if not data.sources:
        raise DataError("data.sources is empty: name a file or directory of text, data.sources='[{name: books, path: books/}]'")
    files = [file for source in data.sources for file in source_files(source.path)]
    directory = Path(data.dir)
    inputs, times = describe_files(files, _manifest_if_any(directory / "shards"))
    path = Path(data.tokenizer) if data.tokenizer else tokenizer_path(data)
    if data.tokenizer is None:
        _make_tokenizer(data, vocab_size, inputs, times, progress)
    tokenizer = load_tokenizer(path)
    if tokenizer.get_vocab_size() > vocab_size:
        raise DataError(
            f"{path}: the tokenizer has {tokenizer.get_vocab_size()} tokens, model.vocab_size is {vocab_size}; raise it to that"
        )
    settings = {
        "format": FORMAT,
        "inputs": inputs,
        "sources": [{"name": s.name, "path": s.path} for s in data.sources],
        "text_key": data.text_key,
        "tokenizer_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "validation_fraction": data.validation_fraction,
        "shard_tokens": data.shard_tokens,
    }

    def build(out: Path) -> Json:
        end = end_token(tokenizer, path)
        packed = {s.name: _pack_source(s, data, tokenizer, end, out, progress) for s in data.sources}
        return {"vocab_size": tokenizer.get_vocab_size(), "end_token": end, "sources": packed, "input_times": times}

    return run_stage(directory / "shards", settings, build)


def tokenizer_path(data: DataConfig) -> Path:
    """Where the recipe's tokenizer is."""
    return Path(data.tokenizer) if data.tokenizer else Path(data.dir) / "tokenizer" / "tokenizer.json"


def is_validation(text: str, fraction: float) -> bool:
    """Does the hash of a text put it into the validation split."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _manifest_if_any(out: Path) -> Json | None:
    return read_manifest(out) if (out / MANIFEST).exists() else None


def _make_tokenizer(data: DataConfig, vocab_size: int, inputs: list[Json], times: dict[str, int], progress: Progress) -> None:
    size = data.tokenizer_vocab_size or vocab_size
    settings = {
        "inputs": inputs,
        "vocab_size": size,
        "text_key": data.text_key,
        "validation_fraction": data.validation_fraction,
    }

    def build(out: Path) -> Json:
        texts = (text for source in data.sources for text in _training_texts(source, data, progress))
        tokenizer = train_tokenizer(texts, size)
        tokenizer.save(str(out / "tokenizer.json"))
        return {"entries": tokenizer.get_vocab_size(), "input_times": times}

    run_stage(Path(data.dir) / "tokenizer", settings, build)


def _training_texts(source: SourceConfig, data: DataConfig, progress: Progress) -> Iterator[str]:
    n_bytes = 0
    for number, document in enumerate(read_documents(source.path, data.text_key), 1):
        if n_bytes < _TOKENIZER_BYTES and not is_validation(document.text, data.validation_fraction):
            n_bytes += len(document.text.encode())
            yield document.text
        progress(f"tokenizer: reading {source.name}", number, n_bytes)


def _pack_source(
    source: SourceConfig, data: DataConfig, tokenizer: Tokenizer, end: int, out: Path, progress: Progress
) -> dict[str, Any]:
    dtype = token_dtype(tokenizer.get_vocab_size())
    writers = {split: ShardWriter(out / split / source.name, dtype, data.shard_tokens) for split in SPLITS}
    counts = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
    blank = 0
    for documents in _batches(read_documents(source.path, data.text_key)):
        texts = [d.text for d in documents if d.text.strip()]
        blank += len(documents) - len(texts)
        for text, encoding in zip(texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            split = SPLITS[is_validation(text, data.validation_fraction)]
            writers[split].add([*encoding.ids, end])
            count = counts[split]
            count["documents"] += 1
            count["tokens"] += len(encoding.ids) + 1
            count["bytes"] += len(text.encode())
        progress(
            f"packing {source.name}",
            sum(c["documents"] for c in counts.values()),
            sum(c["bytes"] for c in counts.values()),
        )
    packed: dict[str, Any] = {"blank_documents": blank}
    for split in SPLITS:
        if not counts[split]["documents"]:
            raise DataError(_explain_empty(source, split, counts, blank))
        packed[split] = {**counts[split], "shards": writers[split].close()}
    return packed


def _explain_empty(source: SourceConfig, split: str, counts: dict[str, dict[str, int]], blank: int) -> str:
    documents = sum(c["documents"] for c in counts.values())
    if not documents:
        return f"data.sources.{source.name}: {source.path} holds no text ({blank} blank documents)"
    remedy = "raise" if split == "validation" else "lower"
    return (
        f"data.sources.{source.name}: none of its {documents} documents fell into the {split} split; "
        f"{remedy} data.validation_fraction, or split the text into more documents (one JSON line each)"
    )


def _batches(documents: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, _BATCH_DOCUMENTS)):
        yield batch
