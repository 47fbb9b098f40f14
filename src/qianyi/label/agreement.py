"""How far two annotators agree beyond chance."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Agreement(NamedTuple):
    """Cohen's kappa of two annotators."""

    kappa: float
    """1: always; 0: as often as by chance; nan: both gave one and the same label to all, so chance explains everything."""
    standard_error: float
    observed: float
    """Share of texts with the same label."""
    texts: int


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> Agreement:
    """Cohen 1960, "A Coefficient of Agreement for Nominal Scales"; the error of large samples is that of Fleiss, Cohen & Everitt 1969,
    "Large Sample Standard Errors of Kappa and Weighted Kappa", equation 13.

    Args:
        first, second: labels of the same texts, in order.
    """
    n = len(first)
    if n == 0:
        return Agreement(math.nan, math.nan, math.nan, 0)
    labels = sorted({*first, *second})
    index = {label: i for i, label in enumerate(labels)}
    p = np.zeros((len(labels), len(labels)))
    for a, b in zip(first, second, strict=True):
        p[index[a], index[b]] += 1 / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, chance = float(np.trace(p)), float(rows @ columns)
    if chance > 1 - 1e-12:
        return Agreement(math.nan, math.nan, observed, n)
    kappa = (observed - chance) / (1 - chance)
    both = rows[None, :] + columns[:, None]  # of row i, column j: the first's share of j and the second's of i
    on = float((np.diag(p) * (1 - (rows + columns) * (1 - kappa)) ** 2).sum())
    off = (1 - kappa) ** 2 * float((p * both**2).sum() - (np.diag(p) * np.diag(both) ** 2).sum())
    left = (kappa - chance * (1 - kappa)) ** 2
    error = math.sqrt(max(on + off - left, 0.0) / n) / (1 - chance)
    return Agreement(kappa, error, observed, n)
