"""Lengths that an objective implies, from a config alone: how many tokens are read for a sequence, and how long its targets are."""

from collections.abc import Callable
from typing import NamedTuple

from qianyi.config.schema import ObjectiveConfig, TrainConfig


class Spans(NamedTuple):
    """What spans make of a window of tokens."""

    window: int
    """Tokens read."""
    masked: int
    """Those of them that are masked."""
    runs: int
    """Spans that they are in."""


def spans_of(window: int, objective: ObjectiveConfig) -> Spans:
    """How many tokens of a window are masked, and in how many spans: mask_fraction and mean_span, rounded. One token at least is masked,
    and one at least is kept for each span (Raffel et al. 2020, section 3.1.4, as their code has it)."""
    masked = min(max(round(window * objective.mask_fraction), 1), window - 1)
    runs = min(max(round(masked / objective.mean_span), 1), window - masked)
    return Spans(window, masked, runs)


def corruption_spans(train: TrainConfig) -> Spans:
    """Spans of the window whose corrupted source (kept tokens, a sentinel for each span, the end) fills train.seq_len."""
    return _largest(train, lambda s: s.window - s.masked + s.runs + 1)


def blank_spans(train: TrainConfig) -> Spans:
    """Spans of the window that fills train.seq_len when a mask stands for each span, and each is repeated after a start token."""
    return _largest(train, lambda s: s.window + 2 * s.runs)


def target_length(train: TrainConfig) -> int | None:
    """Length of the decoder's sequences; None where there is one sequence alone, or where it must be given and is not."""
    objective = train.objective
    if objective.kind == "span_corruption" and objective.target_len is None:
        return needed_target_length(train)
    return objective.target_len if objective.kind in {"span_corruption", "seq2seq"} else None


def needed_target_length(train: TrainConfig) -> int:
    """Tokens of the targets of span corruption: each span after its sentinel, and the end."""
    spans = corruption_spans(train)
    return spans.masked + spans.runs + 1


def _largest(train: TrainConfig, length: Callable[[Spans], int]) -> Spans:
    """Of the largest window that makes no more than train.seq_len tokens."""
    window = 2  # one token kept, one masked
    while length(spans_of(window + 1, train.objective)) <= train.seq_len:
        window += 1
    return spans_of(window, train.objective)
