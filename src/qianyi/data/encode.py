"""Texts to token ids: with tiktoken where it does what the tokenizer says, several times faster, else with `tokenizers` itself.

In tiktoken's place a compiled walk (`qianyi.data.bpe`) does the texts that it can, faster again, where it knows how words are split.

A byte-level BPE of `tokenizers` is a list of merges, one of tiktoken a rank of every token; text is merged alike by both where each token
comes of its own bytes (Sennrich et al. 2016, algorithm 1; what merges first is what has the lowest rank). What else a tokenizer.json may
say (a normalizer, added tokens) is left to `tokenizers`, text by text where it can be told which text it concerns. Equal ids are not taken
for granted: `fast_encoder` compares both on a sample before it is used.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import tiktoken
from tokenizers import Tokenizer

from qianyi.data import bpe
from qianyi.data.bpe import Merger, Tokens
from qianyi.data.tokenizer import SPLIT

_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the ByteLevel pre-tokenizer splits by when it is told to (Radford et al. 2019, as their code has it)."""


class Encoder(Protocol):
    """Token ids of texts, special tokens in them being just text."""

    name: str
    """The library that does it."""

    def __call__(self, texts: Sequence[str]) -> list[Tokens]:
        """uint32 [tokens] of each text."""
        ...


class SlowEncoder:
    """`tokenizers` itself."""

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> list[Tokens]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]


class FastEncoder:
    """The same ids by tiktoken; texts with what only `tokenizers` knows go there."""

    name = "tiktoken"

    def __init__(self, tokenizer: Tokenizer):
        """
        Raises:
            InexpressibleError: tiktoken cannot do what this tokenizer says.
        """
        rules = _rules(tokenizer)
        self._slow, self._normalizer, self._added = SlowEncoder(tokenizer), tokenizer.normalizer, rules.added
        # tiktoken's ids are its ranks, so ranks are counted here, and a table turns them into ids.
        self._ids = np.array(list(rules.ids.values()), np.uint32)
        ranks = {token: rank for rank, token in enumerate(rules.ids)}
        core = tiktoken.Encoding("qianyi", pat_str=rules.split, mergeable_ranks=ranks, special_tokens={})._core_bpe
        self._encode = cast(Callable[[str, frozenset[str]], bytes], core.encode_to_tiktoken_buffer)
        self._walk = None if rules.merger is None else Merger(*rules.merger)

    def __call__(self, texts: Sequence[str]) -> list[Tokens]:
        if self._walk is None:
            return self.by_tiktoken(texts)
        normalized = [self._normalized(text) for text in texts]
        cut_out = [any(content in text for content in self._added) for text in texts]
        data = [b"" if cut else text.encode() for text, cut in zip(normalized, cut_out, strict=True)]
        tokens, bounds = self._walk(b"".join(data), np.cumsum([len(text) for text in data], dtype=np.int64))
        found = [tokens[a:b] for a, b in itertools.pairwise([0, *bounds.tolist()])]
        return [one if len(one) or not text else self._encode_text(text) for one, text in zip(found, texts, strict=True)]

    def by_tiktoken(self, texts: Sequence[str]) -> list[Tokens]:
        """The same without the walk."""
        return [self._encode_text(text) for text in texts]

    def _normalized(self, text: str) -> str:
        return text if self._normalizer is None or text.isascii() else self._normalizer.normalize_str(text)

    def _encode_text(self, text: str) -> Tokens:
        if any(content in text for content in self._added):
            return self._slow([text])[0]
        return self._ids[np.frombuffer(self._encode(self._normalized(text), _NO_TOKENS), np.uint32)]


class InexpressibleError(Exception):
    """Why a tokenizer cannot be done by tiktoken."""


@dataclass(frozen=True)
class _Rules:
    """A tokenizer.json as tiktoken needs it."""

    split: str
    ids: dict[bytes, int]
    """In the order in which tokens are made by merging."""
    added: tuple[str, ...]
    """Tokens that are cut out of a text before it is split."""
    merger: tuple[int, Tokens, Tokens, Tokens] | None
    """What a `Merger` is made of; None where it does not know the regular expression."""


def fast_encoder(tokenizer: Tokenizer, sample: Sequence[str]) -> tuple[Encoder, str | None]:
    """The fastest encoder that gives the tokenizer's ids on a sample and on some texts that are hard to split.

    Returns:
        The encoder; why it is not tiktoken, None where it is.
    """
    slow = SlowEncoder(tokenizer)
    try:
        fast = _fast(tokenizer)
    except InexpressibleError as reason:
        return slow, str(reason)
    texts = [*_HARD_TEXTS, *sample]
    for text, found, also in zip(texts, fast(texts), fast.by_tiktoken(texts), strict=True):
        [wanted] = slow([text])  # one at a time: it takes a hundred times the size of a text
        if not np.array_equal(found, wanted) or not np.array_equal(also, wanted):
            return slow, f"tiktoken's ids differ on a sample, in {text[:40]!r}"
    return fast, None


def encoder_of(tokenizer: Tokenizer, library: str) -> Encoder:
    """The encoder that `fast_encoder` chose, by its name, without the comparison."""
    return _fast(tokenizer) if library == FastEncoder.name else SlowEncoder(tokenizer)


def _fast(tokenizer: Tokenizer) -> FastEncoder:
    """One that was just made serves again."""
    digest = hashlib.sha256(tokenizer.to_str().encode()).digest()
    if digest not in _MADE:
        _MADE.clear()
        _MADE[digest] = FastEncoder(tokenizer)
    return _MADE[digest]


def _rules(tokenizer: Tokenizer) -> _Rules:
    spec = json.loads(tokenizer.to_str())
    model = spec["model"]
    _require(model["type"] == "BPE", f"its model is {model['type']}, not BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        _require(not model.get(key), f"its BPE has {key}")
    added = {token["content"] for token in spec["added_tokens"]}
    vocab = {token: i for token, i in model["vocab"].items() if token not in added}
    _require(set("".join(vocab)) <= set(_BYTES), "its vocabulary is not of bytes")
    cut_out = tuple(token["content"] for token in spec["added_tokens"] if not token["special"])
    if spec["normalizer"] is not None:
        _require(spec["normalizer"]["type"] in {"NFC", "NFKC", "NFD", "NFKD"}, "its normalizer is not Unicode's")
    ids = {_bytes(token): vocab[token] for token in _merge_order(model, vocab)}
    split = _split_of(spec["pre_tokenizer"])
    return _Rules(split, ids, cut_out, None if model.get("ignore_merges") else _merger_of(split, model, vocab))


def _merger_of(split: str, model: dict[str, Any], vocab: dict[str, int]) -> tuple[int, Tokens, Tokens, Tokens] | None:
    known = {_GPT2_SPLIT: bpe.GPT2, SPLIT: bpe.QIANYI}
    if split not in known:
        return None
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    singles = {byte: vocab[character] for character, byte in _BYTES.items()}
    return (
        known[split],
        np.array([singles[byte] for byte in range(256)], np.uint32),
        np.array([(vocab[a], vocab[b]) for a, b in pairs], np.uint32).reshape(-1, 2),
        np.array([vocab[a + b] for a, b in pairs], np.uint32),
    )


def _split_of(pre_tokenizer: dict[str, Any] | None) -> str:
    """The regular expression whose matches are merged on their own."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    last = steps[-1] or {"type": "none"}
    _require(last["type"] == "ByteLevel" and not last["add_prefix_space"], "its pre-tokenizer does not end in plain bytes")
    if len(steps) == 1 and last.get("use_regex", True):
        return _GPT2_SPLIT
    _require(len(steps) == 2 and not last.get("use_regex", True), "its pre-tokenizer has several steps")
    split = steps[0]
    plain = split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"] and "Regex" in split["pattern"]
    _require(plain, "its pre-tokenizer is not one regular expression")
    return split["pattern"]["Regex"]


def _merge_order(model: dict[str, Any], vocab: dict[str, int]) -> list[str]:
    """Single bytes first, then tokens in the order in which merges make them."""
    singles = [token for token in vocab if len(token) == 1]
    _require(len(singles) == 256, "not every byte is a token")
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    made = dict.fromkeys("".join(pair) for pair in pairs)  # of a token that two merges make, the first counts
    _require(len(made) + len(singles) == len(vocab) and made.keys() <= vocab.keys(), "some tokens come of no merge")
    return [*sorted(singles, key=lambda token: vocab[token]), *made]


def _bytes(token: str) -> bytes:
    return token.translate(_TO_LATIN).encode("latin-1")


def _byte_characters() -> dict[str, int]:
    """Character -> byte of a byte-level vocabulary: printable ones stand for themselves, the others follow from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _require(true: bool, otherwise: str) -> None:
    if not true:
        raise InexpressibleError(otherwise)


_BYTES = _byte_characters()
_TO_LATIN = {ord(character): chr(byte) for character, byte in _BYTES.items()}
_MADE: dict[bytes, FastEncoder] = {}
_NO_TOKENS = frozenset[str]()
_HARD_TEXTS = (
    "",
    "I'll, I'LL; it'S they'ſe  don\u2019t\tx\r\n\r\n  y \n\u3000\u00a0z\u2028\x85",
    "１２３ 12345 ½ ٣٤ Ⅷ 三国 千亿，。！？「」 한국어 かな カナ ไทย हिन्दी",
    "👩\u200d👩\u200d👧🏽 e\u0301 \ufeff\u200b\u0000 <|endoftext|> </s> [SEP]",
    "def f(x):\n\treturn {'a': x**2}  # 注释\n\n\n    if x:\n        pass   \n",
    "    " * 50 + "\n" * 50 + "!" * 300 + "千" * 300,
)
