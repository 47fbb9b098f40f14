"""From a window of tokens to a row of a batch: what the model sees, and what it has to say.

An objective is a pure function of a window and what is drawn for it, which follows from its place in the training sequence alone: batches
depend neither on how often a run was interrupted nor on how many processes make them.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qianyi.config.schema import TrainConfig
from qianyi.data.masked import MaskedTokens
from qianyi.data.packing import Packed
from qianyi.data.shards import TokenStream
from qianyi.data.spans import Prefix, SequenceToSequence, SpanCorruption
from qianyi.data.special import SpecialTokens, require_special_tokens
from qianyi.data.windows import Chance, Pairs, Row, Tokens, Windows, fill


class Objective(Protocol):
    """One way to learn from text."""

    needs: str
    """What a source must hold at least, in words."""

    def windows(self, stream: TokenStream, partial: bool) -> Windows | Pairs | Packed:
        """What rows are made of; `partial`: also what fills no row."""
        ...

    def row(self, window: Tokens, chance: Chance) -> Row:
        """The row that one of `windows` makes."""
        ...


class Causal:
    """Every next token: `inputs` and `targets`; with a document mask also `documents`, the number of the document, in its row, that an
    input token belongs to."""

    def __init__(self, seq_len: int, end_token: int | None = None):
        """`end_token`: given where attention is to stay within documents."""
        self._seq_len, self._end_token = seq_len, end_token
        self.needs = f"sequence of {seq_len} + 1"

    def windows(self, stream: TokenStream, partial: bool) -> Windows:
        return Windows(stream, self._seq_len + 1, self._seq_len, partial)

    def row(self, window: Tokens, chance: Chance) -> Row:
        row = {"inputs": fill(window[:-1], self._seq_len, 0), "targets": fill(window[1:], self._seq_len, -1)}
        if self._end_token is None:
            return row
        ends = (row["inputs"] == self._end_token).astype(np.int32)
        return {**row, "documents": np.cumsum(ends, dtype=np.int32) - ends}


class PackedCausal:
    """Every token of documents that are packed by best fit: `inputs`, `targets` and `documents` as of `Causal`, with padding at the end,
    which is a document of its own."""

    needs = "document"

    def __init__(self, seq_len: int, end_token: int):
        self._seq_len, self._end_token = seq_len, end_token

    def windows(self, stream: TokenStream, partial: bool) -> Packed:
        return Packed(stream, self._seq_len, self._end_token)

    def row(self, window: Tokens, chance: Chance) -> Row:
        inputs, targets, documents = window
        return {"inputs": inputs, "targets": targets, "documents": documents}


def make_objective(train: TrainConfig, manifest: dict[str, Any], shards: Path, packing: str = "concat") -> Objective:
    """The objective of a recipe, for tokens of the shards with this manifest; `packing` is data.packing.

    Raises:
        DataError: their tokenizer lacks a special token.
    """
    end = manifest["end_token"]
    if train.objective.kind == "causal" and packing == "best_fit":
        return PackedCausal(train.seq_len, end)
    if train.objective.kind == "causal":
        return Causal(train.seq_len, end if train.document_mask else None)
    special = SpecialTokens.from_json(manifest["special_tokens"])
    require_special_tokens(special, train, shards)
    match train.objective.kind:
        case "mlm":
            return MaskedTokens(train, special, end, manifest["vocab_size"])
        case "span_corruption":
            return SpanCorruption(train, special, end)
        case "prefix":
            return Prefix(train, special, end)
        case "seq2seq":
            return SequenceToSequence(train, special, end)
