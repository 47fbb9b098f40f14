"""One unit of work of `qianyi.data.prepare`: the documents of some files as tokens in shards of their own."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qianyi.data.encode import Encoder, encoder_of
from qianyi.data.read import Document, Span
from qianyi.data.shards import ShardWriter, token_dtype
from qianyi.data.stage import Json, write_json
from qianyi.data.tokenized import TokenDocument, read_items
from qianyi.data.tokenizer import cut, end_token, id_count, shared_tokenizer, token_bytes
from qianyi.errors import DataError

SPLITS = ("train", "validation")
Item = Document | TokenDocument
Progress = Callable[[int, int], None]
"""(documents, bytes of text) since the last call."""
_BATCH_PIECES = 256
_BATCH_CHARACTERS = 1 << 19


@dataclass(frozen=True)
class Job:
    """A unit and what is to be done with it; all of it JSON, for workers anywhere."""

    out: str
    """Directory of the shards."""
    source: str
    number: int
    """Of the unit in its source."""
    spans: list[tuple[str, int, int | None]]
    text_key: str
    target_key: str | None
    tokenizer: str
    tokenizer_sha256: str
    library: str
    """The encoder's name."""
    validation_fraction: float
    shard_tokens: int

    @property
    def record(self) -> Path:
        """Where it says that it is done."""
        return Path(self.out) / "done" / self.source / f"{self.number:05d}.json"


def tokenize_unit(job: Json) -> Json:
    """As `tokenize_job`, of and to JSON; the result names its `source` too."""
    return {"source": job["source"], **tokenize_job(Job(**job))}


def tokenize_job(job: Job, progress: Progress | None = None) -> Json:
    """Write the shards of a unit and its record.

    Returns:
        `blank_documents` and, for each split, documents, tokens, bytes (of text), shards and index.

    Raises:
        DataError: a document cannot be read, or has a token that the tokenizer does not know.
    """
    tools = _tools(job.tokenizer, job.tokenizer_sha256, job.library)
    writers = {
        split: ShardWriter(Path(job.out) / split / job.source, tools.dtype, job.shard_tokens, job.number) for split in SPLITS
    }
    counts = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
    blank = 0

    def pieces() -> Iterator[_Piece]:
        nonlocal blank
        for span in job.spans:
            for item in read_items(Span(*span), job.text_key, job.target_key):
                if is_blank(item, tools.end):
                    blank += 1
                else:
                    yield from _pieces_of(item, SPLITS[is_validation(item, job.validation_fraction)], tools)

    for batch in _batches(pieces()):
        documents = n_bytes = 0
        for piece, tokens in zip(batch, tools.encode(batch), strict=True):
            whole = np.append(tokens, tokens.dtype.type(tools.end)) if piece.ends_text else tokens
            writers[piece.split].add(whole, piece.ends_document)
            count = counts[piece.split]
            for unit, n in (("documents", piece.ends_document), ("tokens", len(whole)), ("bytes", piece.n_bytes)):
                count[unit] += int(n)
            documents += piece.ends_document
            n_bytes += piece.n_bytes
        if progress:
            progress(documents, n_bytes)
    result: Json = {"blank_documents": blank}
    for split, writer in writers.items():
        result[split] = {**counts[split], "shards": writer.close(), "index": writer.index}
    job.record.parent.mkdir(parents=True, exist_ok=True)
    write_json(job.record, result)
    return result


def is_validation(item: Item | str, fraction: float) -> bool:
    """Does the hash of a text, or of tokens, put it into the validation split."""
    if isinstance(item, TokenDocument):
        data = item.tokens.astype("<i4").tobytes()
    else:
        data = (item if isinstance(item, str) else item.text).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") < fraction * 2**64


def is_blank(item: Item, end: int | None = None) -> bool:
    """Nothing is said in it."""
    if isinstance(item, TokenDocument):
        return not len(item.tokens) or (len(item.tokens) == 1 and item.tokens[0] == end)
    return any(not text or text.isspace() for text in item.texts)


@dataclass(frozen=True)
class _Piece:
    """A text, or a part of a long one, or the tokens of a document but its last."""

    content: str | NDArray[Any]
    n_bytes: int
    split: str
    ends_text: bool
    ends_document: bool
    """The last of a document: of a pair, the end of the target."""


class _Tools:
    """A tokenizer and what is derived from it."""

    def __init__(self, tokenizer: Tokenizer, encoder: Encoder, path: Path):
        self._encoder: Encoder = encoder
        self.end, self.size = end_token(tokenizer, path), id_count(tokenizer)
        self.dtype, self.token_bytes = token_dtype(self.size), token_bytes(tokenizer)

    def encode(self, batch: "list[_Piece]") -> list[NDArray[Any]]:
        texts = iter(self._encoder([piece.content for piece in batch if isinstance(piece.content, str)]))
        return [next(texts) if isinstance(piece.content, str) else piece.content for piece in batch]


@lru_cache(maxsize=2)
def _tools(path: str, _sha256: str, library: str) -> _Tools:
    tokenizer = shared_tokenizer(Path(path))
    return _Tools(tokenizer, encoder_of(tokenizer, library), Path(path))


def _pieces_of(item: Item, split: str, tools: _Tools) -> Iterator[_Piece]:
    if isinstance(item, TokenDocument):
        tokens = item.tokens[:-1] if item.tokens[-1] == tools.end else item.tokens
        if tokens.min() < 0 or tokens.max() >= tools.size:
            found = f"{tokens.min()} to {tokens.max()}"
            raise DataError(
                f"{item.origin}: tokens are {found}, the tokenizer's 0 to {tools.size - 1}; is it another tokenizer's?"
            )
        yield _Piece(tokens, int(tools.token_bytes[tokens].sum()), split, True, True)
        return
    for i, text in enumerate(item.texts, 1):
        *parts, last = cut(text)
        yield from (_Piece(part, len(part.encode()), split, False, False) for part in parts)
        yield _Piece(last, len(last.encode()), split, True, i == len(item.texts))


def _batches(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.content)
        if len(batch) == _BATCH_PIECES or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
