"""How a network reads texts: by a vocabulary that was counted in what it learned from, or by the tokenizer of its pretraining."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from qianyi.data.special import special_tokens
from qianyi.label.linear import Arrays
from qianyi.label.sequences import FIRST, UNKNOWN, Sequences, sequences_of, symbols_of
from qianyi.label.vocabulary import Vocabulary, make_vocabulary

TEXTS_AT_ONCE = 1024


class Reader(Protocol):
    """Texts as numbers."""

    @property
    def n_ids(self) -> int: ...

    @property
    def unknown(self) -> int:
        """What stands for a symbol that is hidden in training."""
        ...

    def read(self, texts: pa.Array) -> Sequences: ...

    def arrays(self) -> Arrays: ...


@dataclass(frozen=True)
class Words:
    """By a vocabulary of units or of characters."""

    vocabulary: Vocabulary
    characters: bool
    unknown: int = UNKNOWN

    @property
    def n_ids(self) -> int:
        return len(self.vocabulary) + FIRST

    def read(self, texts: pa.Array) -> Sequences:
        return sequences_of(symbols_of(texts, self.characters), self.vocabulary)

    def arrays(self) -> Arrays:
        return {"hashes": self.vocabulary.hashes, "counts": self.vocabulary.counts, "characters": np.array(self.characters)}


@dataclass(frozen=True)
class Tokens:
    """By a tokenizer, with the special tokens that it puts around a text."""

    tokenizer: Tokenizer

    @property
    def n_ids(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def unknown(self) -> int:
        return special_tokens(self.tokenizer).roles.get("mask", 0)

    def read(self, texts: pa.Array) -> Sequences:
        found, lengths = [np.zeros(0, np.int32)], [0]
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            some = [text or "" for text in texts.slice(first, TEXTS_AT_ONCE).to_pylist()]
            for encoding in self.tokenizer.encode_batch_fast(some):
                found.append(np.array(encoding.ids, np.int32))
                lengths.append(len(encoding.ids))
        return Sequences(np.concatenate(found), np.cumsum(lengths, dtype=np.int64))

    def arrays(self) -> Arrays:
        return {"tokenizer": np.frombuffer(self.tokenizer.to_str().encode(), np.uint8)}


def reader_of(arrays: Arrays) -> Reader:
    """What `arrays` gave."""
    if "tokenizer" in arrays:
        return Tokens(Tokenizer.from_str(arrays["tokenizer"].tobytes().decode()))
    return Words(make_vocabulary(arrays["hashes"], arrays["counts"]), bool(arrays["characters"]))
