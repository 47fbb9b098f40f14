"""Predictions for rows of a table of runs."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qianyi.plan.constants import constants
from qianyi.plan.memory import total_bytes
from qianyi.plan.rows import CannotPredictError, published
from qianyi.plan.step import step_seconds

ADDED = ("predicted_step_seconds", "predicted_tokens_per_s_per_chip", "predicted_memory_bytes_per_chip", "reason")


@dataclass(frozen=True)
class Predicted:
    """The columns that a prediction adds; texts, empty where there is none."""

    predicted_step_seconds: str = ""
    predicted_tokens_per_s_per_chip: str = ""
    predicted_memory_bytes_per_chip: str = ""
    reason: str = ""


def predict(row: Mapping[str, str]) -> Predicted:
    """Of one row."""
    try:
        run = published(row)
    except CannotPredictError as error:
        return Predicted(reason=str(error))
    k = constants(run.stack, run.cluster.chip, run.precision)
    seconds = float(np.ravel(step_seconds(run.case, k))[0])
    layout = run.case.layout
    rate = float(layout.batch_size * layout.seq_len) / (seconds * run.cluster.n_chips)
    return Predicted(f"{seconds:.6g}", f"{rate:.6g}", f"{float(np.ravel(total_bytes(run.case, k))[0]):.0f}")
