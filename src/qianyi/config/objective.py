"""What an objective implies, from a config alone: how many tokens are read for a sequence, how long its targets are, and which rules
(see `qianyi.config.check`) it brings."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from qianyi.config.schema import Config, ObjectiveConfig, TrainConfig

MODEL_KINDS = {
    "causal": "decoder",
    "prefix": "decoder",
    "mlm": "encoder",
    "span_corruption": "encoder_decoder",
    "seq2seq": "encoder_decoder",
}
"""The kind of model that each objective trains."""
MIN_SEQ_LEN = 4
"""Special tokens, and a token of text that is seen and one that is not, must fit."""


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


def fits_model(config: Config) -> Iterator[str]:
    """Rule: the objective, the model and the data are of one kind."""
    kind, model = config.train.objective.kind, config.model.kind
    if model != MODEL_KINDS[kind]:
        kinds = " or ".join(k for k, m in MODEL_KINDS.items() if m == model)
        yield (
            f"train.objective.kind={kind} trains a model.kind={MODEL_KINDS[kind]}, not {model}; set that, or "
            f"train.objective.kind={kinds}"
        )
    if kind == "prefix" and (config.train.document_mask or config.layout.context > 1):
        yield "train.objective.kind=prefix, whose tokens see what follows, goes with neither train.document_mask nor layout.context > 1"
    asked = config.train.objective.sentence != "none"
    if kind == "mlm" and asked != config.model.sentence_head:
        yield (
            f"train.objective.sentence={config.train.objective.sentence} asks {'a' if asked else 'no'} question that "
            f"model.sentence_head answers; set model.sentence_head={str(asked).lower()}"
        )
    if kind == "seq2seq" and config.data.target_key is None:
        yield "train.objective.kind=seq2seq needs pairs: data.target_key names the field of their targets"
    if kind != "seq2seq" and config.data.target_key is not None:
        yield f"data.target_key={config.data.target_key} makes pairs, which train.objective.kind={kind} does not know; leave it out"


def without_effect(config: Config) -> Iterator[str]:
    """Rule: settings of another objective would change nothing."""
    objective = config.train.objective
    spans = objective.kind == "span_corruption" or (objective.kind == "prefix" and objective.blank_fraction > 0)
    read = {
        "mask_fraction": spans or objective.kind == "mlm",
        "mean_span": spans,
        "sentence": objective.kind == "mlm",
        "target_len": objective.kind in {"span_corruption", "seq2seq"},
        "blank_fraction": objective.kind == "prefix",
    }
    for name, is_read in read.items():
        value = getattr(objective, name)
        if not is_read and value != ObjectiveConfig.model_fields[name].default:
            yield f"train.objective.{name}={value} changes nothing with train.objective.kind={objective.kind}; leave it out"


def lengths_fit(config: Config) -> Iterator[str]:
    """Rule: sources and targets have room, and targets split over devices."""
    train, layout, objective = config.train, config.layout, config.train.objective
    if objective.kind != "causal" and train.seq_len < MIN_SEQ_LEN:
        yield f"train.seq_len={train.seq_len} is too short for train.objective.kind={objective.kind}; use {MIN_SEQ_LEN} or more"
        return
    length = target_length(train)
    if objective.kind == "seq2seq" and length is None:
        yield f"train.objective.kind=seq2seq needs train.objective.target_len, such as {train.seq_len}"
    if length is None:
        return
    if objective.kind == "span_corruption" and length < (needed := needed_target_length(train)):
        yield (
            f"train.objective.target_len={length} is too small: what is masked for train.seq_len={train.seq_len} (mask_fraction "
            f"{objective.mask_fraction}, mean_span {objective.mean_span}) takes {needed} tokens; use {needed} or more"
        )
    if length > config.model.max_seq_len:
        yield f"train.objective.target_len={length} is longer than model.max_seq_len={config.model.max_seq_len}"
    if length % layout.model:
        yield (
            f"layout.model={layout.model} does not divide train.objective.target_len={length} (sequence parallelism); "
            f"use {length + -length % layout.model}"
        )


def row_lengths(train: TrainConfig) -> dict[str, int]:
    """What a row of a batch holds, and how many numbers of each: the keys that `qianyi.data.objective` makes."""
    length, targets = train.seq_len, target_length(train) or train.seq_len
    rows = {"inputs": targets, "targets": targets}
    match train.objective.kind:
        case "causal":
            return rows | ({"documents": length} if train.document_mask else {})
        case "mlm":
            return rows | {"segments": length, "sentence": 1, "documents": length}
        case "prefix":
            return rows | {"prefix": 1}
        case "span_corruption" | "seq2seq":
            return rows | {"sources": length, "source_documents": length}
