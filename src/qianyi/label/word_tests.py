"""How good word vectors are: analogies (Mikolov et al. 2013, "Efficient Estimation of Word Representations in Vector Space", section 4.1)
and similarities as people judge them (WordSim-353: Finkelstein et al. 2002; SimLex-999: Hill, Reichart & Korhonen 2015)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from qianyi.errors import DataError
from qianyi.label.word2vec import WordVectors


class Score(NamedTuple):
    """A score, and of how many questions all words were known."""

    value: float
    """Share of right answers, or Spearman's rank correlation; nan if no question counts."""
    questions: int
    of: int


def analogy_score(vectors: WordVectors, path: Path) -> Score:
    """Share of lines `a b c d` of a file of analogies of which d is nearest to b - a + c, among all words but a, b and c; in lower case.

    Raises:
        DataError: the file cannot be read.
    """
    lines = [line.lower().split() for line in _lines(path) if line.strip() and not line.startswith(":")]
    rows = np.array([vectors.rows(words) for words in lines if len(words) == 4]).reshape(-1, 4)
    known = rows[(rows >= 0).all(axis=1)]
    directions, right = vectors.directions, 0
    for first in range(0, len(known), 256):
        a, b, c, d = known[first : first + 256].T
        cosine = (directions[b] - directions[a] + directions[c]) @ directions.T
        for asked in (a, b, c):
            cosine[np.arange(len(a)), asked] = -np.inf
        right += int((cosine.argmax(axis=1) == d).sum())
    return Score(right / len(known) if len(known) else float("nan"), len(known), len(rows))


def similarity_score(vectors: WordVectors, path: Path) -> Score:
    """Spearman's correlation of cosines with the third column of a file `word<TAB>word<TAB>similarity`.

    Raises:
        DataError: the file cannot be read.
    """
    from scipy.stats import spearmanr  # noqa: PLC0415

    lines = [line.lower().split("\t") for line in _lines(path) if line.strip() and not line.startswith("#")]
    lines = [line for line in lines if len(line) >= 3 and line[2].strip().replace(".", "", 1).isdigit()]
    rows = [vectors.rows(line[:2]) for line in lines]
    known = [i for i, pair in enumerate(rows) if min(pair) >= 0]
    if len(known) < 2:
        return Score(float("nan"), len(known), len(lines))
    left, right = (vectors.directions[[rows[i][side] for i in known]] for side in (0, 1))
    rank = spearmanr((left * right).sum(axis=1), [float(lines[i][2]) for i in known])
    return Score(float(rank.statistic), len(known), len(lines))  # pyright: ignore[reportAttributeAccessIssue]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
