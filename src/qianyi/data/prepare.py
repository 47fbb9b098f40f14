"""From text to token shards in two stages: train a tokenizer, then tokenize, split and pack.

    DIR/tokenizer/tokenizer.json
    DIR/shards/{train,validation}/SOURCE/00000.bin ...

A document is in the validation split when a hash of its text says so: the same text is always on the same side, wherever
it comes from. A pair is two texts, each ended by the end-of-text token; that of its source says on which side it is.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from qianyi.config.schema import DataConfig, SourceConfig, TrainConfig
from qianyi.data.read import Document, read_documents, source_files
from qianyi.data.shards import FORMAT, ShardWriter, token_dtype
from qianyi.data.special import require_special_tokens, reserved_names, special_tokens
from qianyi.data.stage import MANIFEST, Json, describe_files, read_manifest, run_stage
from qianyi.data.tokenizer import end_token, id_count, load_tokenizer, train_tokenizer
from qianyi.errors import DataError

SPLITS = ("train", "validation")
Progress = Callable[[str, int, int], None]
"""(what is being done, documents so far, bytes of text so far)."""

_CAUSAL = TrainConfig()
_BATCH_PIECES = 256
_BATCH_CHARACTERS = 1 << 21
_PIECE_CHARACTERS = 1 << 19
_LINE_START = re.compile(r"(?<=\n)(?=\S)")
_TOKENIZER_BYTES = 256 << 20
"""Text per source that a tokenizer is trained on at most; more changes little and costs memory."""


def prepare(data: DataConfig, vocab_size: int, progress: Progress, train: TrainConfig = _CAUSAL) -> Json:
    """Make the tokenizer and the shards of a recipe, unless they are there; `train` says which special tokens are needed.

    Returns:
        The manifest of the shards.

    Raises:
        DataError: a source cannot be read, is empty, or has no document for one of the splits; the tokenizer lacks a token.
        ResourceError: the disk is full.
    """
    if not data.sources:
        raise DataError("data.sources is empty: name a file or directory of text, data.sources='[{name: books, path: books/}]'")
    files = [file for source in data.sources for file in source_files(source.path)]
    directory = Path(data.dir)
    progress("checking the inputs", 0, 0)
    inputs, times = describe_files(files, _manifest_if_any(directory / "shards"))
    if data.tokenizer is None:
        _make_tokenizer(data, vocab_size, reserved_names(train), inputs, times, progress)
    path = tokenizer_path(data)
    tokenizer = load_tokenizer(path)
    size, end = id_count(tokenizer), end_token(tokenizer, path)
    if size > vocab_size:
        raise DataError(f"{path}: the tokenizer has {size} tokens, model.vocab_size is {vocab_size}; raise it to that")
    special = special_tokens(tokenizer)
    require_special_tokens(special, train, path)
    settings = {
        "format": FORMAT,
        "inputs": inputs,
        "sources": [{"name": s.name, "path": s.path} for s in data.sources],
        "text_key": data.text_key,
        "target_key": data.target_key,
        "tokenizer_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "validation_fraction": data.validation_fraction,
        "shard_tokens": data.shard_tokens,
    }

    def build(out: Path) -> Json:
        _require_both_splits(data)
        packed = {s.name: _pack_source(s, data, tokenizer, end, out, progress) for s in data.sources}
        return {"vocab_size": size, "end_token": end, "special_tokens": special.as_json(), "sources": packed}

    return run_stage(directory / "shards", settings, times, build)


def tokenizer_path(data: DataConfig) -> Path:
    """Where the recipe's tokenizer is."""
    return Path(data.tokenizer) if data.tokenizer else Path(data.dir) / "tokenizer" / "tokenizer.json"


def is_validation(text: str, fraction: float) -> bool:
    """Does the hash of a text put it into the validation split."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


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
    for number, document in enumerate(_documents(source, data), 1):
        if not is_validation(document.text, data.validation_fraction):
            n_bytes += sum(len(text.encode()) for text in document.texts)
            yield from document.texts
        progress(f"tokenizer: reading {source.name}", number, n_bytes)
        if n_bytes >= _TOKENIZER_BYTES:
            return


def _require_both_splits(data: DataConfig) -> None:
    """Refuse a source without text for one of the splits before hours are spent on it; most are through after a few documents."""
    for source in data.sources:
        counts, blank = [0, 0], 0
        for document in _documents(source, data):
            if _is_blank(document):
                blank += 1
            else:
                counts[is_validation(document.text, data.validation_fraction)] += 1
            if all(counts):
                break
        else:
            raise DataError(_explain_empty(source, counts, blank))


def _explain_empty(source: SourceConfig, counts: list[int], blank: int) -> str:
    if not any(counts):
        return f"data.sources.{source.name}: {source.path} holds no text ({blank} blank documents)"
    split, remedy = ("train", "lower") if counts[1] else ("validation", "raise")
    return (
        f"data.sources.{source.name}: none of its {sum(counts)} documents fell into the {split} split; "
        f"{remedy} data.validation_fraction, or split the text into more documents (one JSON line each)"
    )


@dataclass(frozen=True)
class _Piece:
    """A text, or a part of a long one."""

    text: str
    split: str
    ends_text: bool
    ends_document: bool
    """The last of a document: of a pair, the end of the target."""


def _pack_source(
    source: SourceConfig, data: DataConfig, tokenizer: Tokenizer, end: int, out: Path, progress: Progress
) -> dict[str, Any]:
    dtype = token_dtype(id_count(tokenizer))
    writers = {split: ShardWriter(out / split / source.name, dtype, data.shard_tokens) for split in SPLITS}
    counts = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
    blank = 0

    def pieces() -> Iterator[_Piece]:
        nonlocal blank
        for document in _documents(source, data):
            if _is_blank(document):
                blank += 1
                continue
            split = SPLITS[is_validation(document.text, data.validation_fraction)]
            for i, text in enumerate(document.texts, 1):
                *parts, last = cut(text)
                yield from (_Piece(part, split, False, False) for part in parts)
                yield _Piece(last, split, True, i == len(document.texts))

    for batch in _batches(pieces()):
        encodings = tokenizer.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
        for piece, encoding in zip(batch, encodings, strict=True):
            tokens = [*encoding.ids, end] if piece.ends_text else encoding.ids
            writers[piece.split].add(tokens)
            count = counts[piece.split]
            count["documents"] += piece.ends_document
            count["tokens"] += len(tokens)
            count["bytes"] += len(piece.text.encode())
        documents, n_bytes = (sum(count[unit] for count in counts.values()) for unit in ("documents", "bytes"))
        progress(f"packing {source.name}", documents, n_bytes)
    packed = {split: {**counts[split], "shards": writers[split].close()} for split in SPLITS}
    return {"blank_documents": blank, **packed}


def cut(text: str) -> list[str]:
    """A long text in pieces, cut where a line ends and the next begins with a mark (no token of ours spans that), if such a
    place is near: to encode a text takes some hundred times its size in memory."""
    pieces: list[str] = []
    start = 0
    while len(text) - start > 2 * _PIECE_CHARACTERS:
        line = _LINE_START.search(text, start + _PIECE_CHARACTERS, start + 2 * _PIECE_CHARACTERS)
        stop = line.start() if line else start + 2 * _PIECE_CHARACTERS
        pieces.append(text[start:stop])
        start = stop
    return [*pieces, text[start:]]


def _documents(source: SourceConfig, data: DataConfig) -> Iterator[Document]:
    return read_documents(source.path, data.text_key, data.target_key)


def _is_blank(document: Document) -> bool:
    return any(not text or text.isspace() for text in document.texts)


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if len(batch) == _BATCH_PIECES or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
