"""Special tokens that objectives need: what they are called, which a tokenizer trained here gets, which a given one has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from qianyi.config.objective import corruption_spans
from qianyi.config.schema import TrainConfig
from qianyi.errors import DataError

NAMES = {
    "padding": ("<pad>", "[PAD]"),
    "mask": ("[MASK]", "<mask>"),
    "class": ("[CLS]", "<cls>", "<s>"),
    "separator": ("[SEP]", "<sep>", "</s>"),
    "prefix mask": ("[gMASK]",),
    "start": ("<sop>", "<|startofpiece|>"),
    "stop": ("<eop>", "<|endofpiece|>"),
}
"""Names in use: of Devlin et al. 2019 (BERT), Liu et al. 2019 (RoBERTa), Raffel et al. 2020 (T5), Zeng et al. 2022 (GLM-130B). A tokenizer
trained here takes the first."""
SENTINELS = 100
"""Sentinels of a tokenizer trained here, as T5 has them; more where a window has more spans."""


class SpecialTokens(NamedTuple):
    """Ids of a tokenizer's special tokens."""

    roles: Mapping[str, int]
    """By the keys of NAMES; only those that it has."""
    sentinels: tuple[int, ...]
    """<extra_id_0>, <extra_id_1>, ..."""

    def as_json(self) -> dict[str, Any]:
        return {"roles": dict(self.roles), "sentinels": list(self.sentinels)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "SpecialTokens":
        return cls(found["roles"], tuple(found["sentinels"]))


def reserved_names(train: TrainConfig) -> list[str]:
    """Special tokens, beside the end of a text, of a tokenizer that is trained for an objective."""
    n_sentinels = _sentinels_needed(train)
    sentinels = [_sentinel(i) for i in range(max(n_sentinels, SENTINELS))] if n_sentinels else []
    return [*(NAMES[role][0] for role in _roles_needed(train)), *sentinels]


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """The special tokens that a tokenizer has."""
    ids = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
    roles = {role: next((ids[name] for name in names if name in ids), None) for role, names in NAMES.items()}
    count = next(i for i in range(len(ids) + 1) if _sentinel(i) not in ids)
    return SpecialTokens({r: i for r, i in roles.items() if i is not None}, tuple(ids[_sentinel(i)] for i in range(count)))


def require_special_tokens(found: SpecialTokens, train: TrainConfig, path: Path) -> None:
    """Refuse a tokenizer without the special tokens of an objective.

    Raises:
        DataError: one is missing.
    """
    kind, remedy = train.objective.kind, "add it to the tokenizer, or leave data.tokenizer out to train one that has it"
    for role in _roles_needed(train):
        if role not in found.roles:
            names = " or ".join(NAMES[role])
            raise DataError(f"{path}: train.objective.kind={kind} needs a {role} token, {names}; {remedy}")
    needed = _sentinels_needed(train)
    if len(found.sentinels) < needed:
        raise DataError(
            f"{path}: train.objective.kind={kind} masks {needed} spans of a window and needs as many sentinels, {_sentinel(0)} to "
            f"{_sentinel(needed - 1)}, of which there are {len(found.sentinels)}; shorten train.seq_len, raise train.objective.mean_span, "
            "or leave data.tokenizer out to train one that has them"
        )


def _roles_needed(train: TrainConfig) -> tuple[str, ...]:
    match train.objective.kind:
        case "causal":
            return ()
        case "mlm":
            return ("padding", "mask", "class", "separator")
        case "span_corruption" | "seq2seq":
            return ("padding",)
        case "prefix":
            blanks = ("mask", "stop") if train.objective.blank_fraction else ()
            return ("prefix mask", "start", *blanks)


def _sentinels_needed(train: TrainConfig) -> int:
    return corruption_spans(train).runs if train.objective.kind == "span_corruption" else 0


def _sentinel(i: int) -> str:
    return f"<extra_id_{i}>"
