"""Rules applied to statistics: columns and bounds alone, no text."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qianyi.corpus.clean.rules import Bound, Kind

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Judgement:
    """What became of a batch of n documents."""

    kinds: list[str]
    """Of each document; empty where it is of none."""
    reasons: list[str]
    """The first rule that each fails; empty where it passes all."""
    details: list[str]
    """Value and bound, such as `stat_dup_lines 0.41 > 0.3 (en-prose)`."""
    alone: dict[str, int]
    """KIND/RULE: documents that fail it, whatever else they fail."""
    first: dict[str, int]
    """KIND/RULE: documents that fail it first; in the order of the rules."""


def judge(columns: pa.RecordBatch, kinds: list[Kind]) -> Judgement:
    """Find each document's kind, and the rules of it that the document fails.

    Args:
        columns: `label_language` and all columns that the kinds name.
    """
    n = columns.num_rows
    languages = np.array(columns.column("label_language").to_pylist(), object)
    names, reasons, details = ([""] * n for _ in range(3))
    alone: dict[str, int] = {}
    first: dict[str, int] = {}
    open_ = np.ones(n, bool)
    for kind in kinds:
        mine = open_ & _is_of(kind, languages, columns)
        open_ &= ~mine
        for row in np.flatnonzero(mine):
            names[row] = kind.name
        passed = mine.copy()
        for rule, bound in kind.rules.items():
            value = _value(bound, columns)
            failed = mine & ~_within(bound, value)
            now = failed & passed
            passed &= ~failed
            alone[f"{kind.name}/{rule}"], first[f"{kind.name}/{rule}"] = int(failed.sum()), int(now.sum())
            for row in np.flatnonzero(now):
                reasons[row], details[row] = rule, _detail(bound, value[row], kind.name)
    return Judgement(names, reasons, details, alone, first)


def _is_of(kind: Kind, languages: NDArray[np.object_], columns: pa.RecordBatch) -> Mask:
    mine = np.isin(languages, kind.languages) if kind.languages else np.ones(len(languages), bool)
    if not kind.when:
        return mine
    any_holds = np.zeros(len(languages), bool)
    for alternative in kind.when:
        all_hold = np.ones(len(languages), bool)
        for bound in alternative:
            all_hold &= _within(bound, _value(bound, columns))
        any_holds |= all_hold
    return mine & any_holds


def _value(bound: Bound, columns: pa.RecordBatch) -> NDArray[np.float64]:
    value = columns.column(bound.column).to_numpy(zero_copy_only=False).astype(np.float64)
    if bound.per is None:
        return value
    return value / np.maximum(columns.column(bound.per).to_numpy(zero_copy_only=False), 1)


def _within(bound: Bound, value: NDArray[np.float64]) -> Mask:
    low = -np.inf if bound.min is None else bound.min
    high = np.inf if bound.max is None else bound.max
    return (value >= low) & (value <= high)


def _detail(bound: Bound, value: float, kind: str) -> str:
    name = bound.column if bound.per is None else f"{bound.column}/{bound.per}"
    sign, limit = ("<", bound.min) if bound.min is not None and value < bound.min else (">", bound.max)
    return f"{name} {value:.4g} {sign} {limit:g} ({kind})"
