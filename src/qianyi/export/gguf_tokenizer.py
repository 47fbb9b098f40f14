"""The tokenizer inside a GGUF file: its vocabulary and merges are there, but of the way it cuts a text into words only the name.

The ways are those of each model's tokenizer.json; llama.cpp keeps the same list (`llama-vocab.cpp`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from qianyi.errors import CheckpointError

_CONTROL, _USER_DEFINED = 3, 4
"""Values of `tokenizer.ggml.token_type`: found in texts as a whole; a control token is no text."""


@dataclass(frozen=True)
class Words:
    """How a text is cut into words, within which BPE merges."""

    steps: tuple[Any, ...]
    """Pre-tokenizers, one after the other."""
    whole_words: bool = False
    """A word that is a token is not built from merges."""
    begins: bool = False
    """Texts begin with the start token, unless the file says otherwise."""


def _split(*patterns: str) -> tuple[Any, ...]:
    return (
        *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)

WORDS = {
    "gpt-2": Words((_GPT2,)),
    "smollm": Words((pre_tokenizers.Digits(individual_digits=True), _GPT2)),
    "llama-bpe": Words(_split(_LLAMA3), whole_words=True, begins=True),
    "qwen2": Words(_split(_QWEN2)),
    "deepseek-r1-qwen": Words(_split(_QWEN2)),
    "deepseek-coder": Words(_split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
    "deepseek-v3": Words(_split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)),
}
"""By `tokenizer.ggml.pre`."""


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """A byte-level BPE tokenizer from the metadata of a GGUF file.

    Raises:
        CheckpointError: it is of another kind, or cuts texts in a way that is not known.
    """
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise CheckpointError(f"tokenizer.ggml.model is {kind}; known is gpt2 (byte-level BPE)")
    if pre not in WORDS:
        raise CheckpointError(f"tokenizer.ggml.pre is {pre}; known are {', '.join(WORDS)}")
    words, tokens = WORDS[pre], metadata["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in metadata["tokenizer.ggml.merges"])]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=words.whole_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(words.steps))
    tokenizer.decoder = decoders.ByteLevel()
    _add_special(tokenizer, tokens, metadata.get("tokenizer.ggml.token_type", []))
    start = metadata.get("tokenizer.ggml.bos_token_id")
    if start is not None and metadata.get("tokenizer.ggml.add_bos_token", words.begins):
        begin_with(tokenizer, start)
    return tokenizer


def begin_with(tokenizer: Tokenizer, token: int) -> None:
    """Every text begins with this token, where special tokens are added."""
    name = tokenizer.id_to_token(token)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[name, "$A"], pair=[name, "$A", "$B:1"], special_tokens=[(name, token)]
    )


def _add_special(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        found = [token for token, kind in zip(tokens, kinds, strict=False) if kind == wanted]
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special) for token in found])
