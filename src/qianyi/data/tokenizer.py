"""A byte-level BPE tokenizer (Sennrich et al. 2016; Radford et al. 2019): every text has tokens, and comes back exactly."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from qianyi.errors import DataError

END_OF_TEXT = "<|endoftext|>"
_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "[SEP]")
MIN_VOCAB_SIZE = 257
"""All bytes and the end-of-text token."""

_PIECE_CHARACTERS = 1 << 19
_LINE_START = re.compile(r"(?<=\n)(?=\S)")

# Where a token may end at the latest: English contractions; a word with the character before it; up to three digits; a run of marks
# with the line ends after it; line ends; blanks. A run of Chinese characters is one word, in which BPE finds the frequent phrases.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: Sequence[str] = ()) -> Tokenizer:
    """Train on texts; token 0 is the end of a text, and `special` tokens follow it. The same texts give the same tokenizer.

    Raises:
        DataError: the vocabulary cannot hold all bytes and the special tokens.
    """
    least = MIN_VOCAB_SIZE + len(special)
    if vocab_size < least:
        more = f" with {len(special)} more special tokens" if special else ""
        raise DataError(f"a byte-level vocabulary{more} has at least {least} entries, not {vocab_size}; raise model.vocab_size")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json, to be used on documents: special tokens in them are just text, and nothing is cut off or padded.

    Raises:
        DataError: the file is missing or is no tokenizer.
    """
    if not path.exists():
        raise DataError(f"{path}: no tokenizer there; `qianyi data prepare RECIPE` makes one, or set data.tokenizer")
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name the tokenizer.json in it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DataError(
            f"{path}: not a tokenizer.json of the tokenizers library ({error}); "
            "delete it and run `qianyi data prepare RECIPE`, or set data.tokenizer to another"
        ) from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def shared_tokenizer(path: Path) -> Tokenizer:
    """As `load_tokenizer`, but not to be changed: all who ask for the same file share one, which takes 20 MB with 32,000 tokens."""
    try:
        digest = hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return load_tokenizer(path)  # which says what is wrong
    return _shared(path, digest)


@lru_cache(maxsize=1)
def _shared(path: Path, _sha256: bytes) -> Tokenizer:
    return load_tokenizer(path)


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


def end_token(tokenizer: Tokenizer, path: Path) -> int:
    """The id that ends a document.

    Raises:
        DataError: the tokenizer has none.
    """
    for name in _END_NAMES:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return token
    raise DataError(f"{path}: the tokenizer has no end-of-text token; one of {', '.join(_END_NAMES)} must be in it")


def id_count(tokenizer: Tokenizer) -> int:
    """Rows that an embedding table needs: the largest id + 1 (a vocabulary may have gaps)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.int32]:
    """[id_count]: the UTF-8 bytes that each token stands for; special tokens stand for none."""
    sizes = np.zeros(id_count(tokenizer), np.int32)
    added = tokenizer.get_added_tokens_decoder()
    learned = {token: i for token, i in tokenizer.get_vocab(with_added_tokens=False).items() if i not in added}
    # In a byte-level vocabulary each character of a token is one byte; others spell bytes as <0xE4> and blanks as ▁.
    byte_level = set("".join(learned)) <= set(pre_tokenizers.ByteLevel.alphabet())
    for token, i in learned.items():
        sizes[i] = len(token) if byte_level else _spelled_bytes(token)
    for i, token in added.items():
        sizes[i] = 0 if token.special else len(token.content.encode())
    return sizes


def _spelled_bytes(token: str) -> int:
    return 1 if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else len(token.replace("▁", " ").encode())
