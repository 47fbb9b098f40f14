"""How good the near-duplicates are: exact Jaccard similarity of all pairs of a sample of documents.

A document is in the sample if a MinHash that the bands do not use falls below a bound. So two documents of similarity J are in it together
with probability p J + p^2 (1 - J), not p^2, and a pair counts for the inverse of that (Horvitz and Thompson 1952).
"""

import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.dedup.keys import Refs, Sketches, Spans
from qianyi.corpus.dedup.settings import Sketching
from qianyi.corpus.kernels.minhash import candidate_probability
from qianyi.corpus.kernels.ngrams import Hashes, Places, fold_table, grams, walk

TRUE_SIMILARITY = 0.8
"""Pairs of this exact similarity and more should be found."""
_LEAST = 0.3  # pairs below are not listed
_BINS = np.linspace(_LEAST, 1, 15)


@dataclass(frozen=True)
class Pairs:
    """Pairs of sampled documents of exact similarity 0.3 and more."""

    a: Places
    b: Places
    jaccard: NDArray[np.float64]


def bound(probability: float) -> np.uint64:
    """Largest draw of a document of the sample."""
    return np.uint64(min(int(probability * 2.0**64), 2**64 - 1))


def sample_table(texts: Spans, sketches: Sketches, refs: Refs, ngram: int, probability: float) -> pa.Table:
    """Of the documents in the sample: `ref`, `shingles` (distinct hashes, ascending), `bands`."""
    if not probability:
        sketches = Sketches(sketches.bands, sketches.codes, sketches.draws, np.zeros(len(texts), np.bool_))
    rows = np.flatnonzero(sketches.some & (sketches.draws <= bound(probability)))
    sets = [shingles(texts, int(row), ngram) for row in rows]
    bands = sketches.bands[rows]
    return pa.table(
        {
            "ref": refs[rows],
            "shingles": _lists(np.concatenate([*sets, np.empty(0, np.uint64)]), np.array([len(s) for s in sets], np.int64)),
            "bands": _lists(bands.ravel(), np.full(len(rows), bands.shape[1])),
        }
    )


def shingles(texts: Spans, row: int, n: int) -> Hashes:
    """Distinct hashes of the n-grams of one text, ascending."""
    size = int(texts.ends[row] - texts.starts[row])
    tokens, out = np.empty(size, np.uint64), np.empty(size, np.uint64)
    begins, ends = np.empty(size, np.int64), np.empty(size, np.int64)
    n_tokens = walk(texts.data, texts.starts[row], texts.ends[row], fold_table(), tokens, begins, ends)
    return np.unique(out[: grams(tokens, n_tokens, n, out)])


def exact_pairs(sets: Hashes, bounds: Places) -> Pairs:
    """All pairs of sets that share an element and have a Jaccard similarity of at least 0.3.

    Args:
        sets: elements, distinct within a set.
        bounds: where each set begins and the last ends, [sets + 1].
    """
    n = len(bounds) - 1
    owners = np.repeat(np.arange(n), np.diff(bounds))
    _, element = np.unique(sets, return_inverse=True)
    order = np.argsort(element, kind="stable")
    posted = np.searchsorted(element[order], np.arange(element.max(initial=-1) + 2))
    a, b, jaccard = _exact_pairs(element, bounds, owners[order], posted, _LEAST)
    return Pairs(a, b, jaccard)


def report_table(sample: pa.Table, refs: Refs, chosen: Places, how: Sketching, probability: float) -> pa.Table:
    """One row with what `quality` says, as `json`, of survivors: `chosen` is the place of the survivor of each of `refs`."""
    survivor = dict(zip(refs.tolist(), refs[chosen].tolist(), strict=True))
    return pa.table({"json": [json.dumps(quality(sample, survivor, how, probability))]})


def quality(sample: pa.Table, survivor: dict[int, int], how: Sketching, probability: float) -> Any:
    """Recall and precision at a similarity of 0.8, and how often pairs were candidates, beside theory.

    Args:
        sample: rows of `sample_table`, by ref.
        survivor: who stays in the place of each document; those that are missing stay.
        how: of the sample.
        probability: of being in the sample.

    Returns:
        JSON: `recall`, of true pairs of which one goes at least; `precision`, of documents that went those that are truly like the one that
        stays in their place; `s_curve`, by exact similarity. A number is null where there is no pair to measure it on.
    """
    refs = sample["ref"].to_numpy()
    shingle = sample["shingles"].combine_chunks()
    found = exact_pairs(shingle.flatten().to_numpy(), np.append(0, np.cumsum(_lengths(sample["shingles"]))))
    bands = sample["bands"].combine_chunks().flatten().to_numpy().reshape(len(refs), how.bands)
    weights = 1 / (probability * (found.jaccard + probability * (1 - found.jaccard)))
    candidate = (bands[found.a] == bands[found.b]).any(axis=1)
    ids = [(int(refs[a]), int(refs[b])) for a, b in zip(found.a, found.b, strict=True)]
    one_goes = np.array([survivor.get(a, a) != a or survivor.get(b, b) != b for a, b in ids], np.bool_)
    removed = np.array([survivor.get(a) == b or survivor.get(b) == a for a, b in ids], np.bool_)
    true = found.jaccard >= TRUE_SIMILARITY
    return {
        "documents": len(refs),
        "probability": probability,
        "similarity": TRUE_SIMILARITY,
        "true_pairs": int(true.sum()),
        "found_pairs": int(removed.sum()),
        "recall": _share(one_goes, weights, true),
        "precision": _share(true, weights, removed),
        "s_curve": _s_curve(found.jaccard, candidate, weights, how),
    }


def _s_curve(jaccard: NDArray[np.float64], candidate: NDArray[np.bool_], weights: NDArray[np.float64], how: Sketching) -> Any:
    bins: list[dict[str, Any]] = []
    for low, high in itertools.pairwise(_BINS):
        here = (jaccard >= low) & ((jaccard < high) | (high == _BINS[-1]))
        theory = [candidate_probability(float(j), how.bands, how.rows) for j in jaccard[here]]
        expected = float(np.average(theory, weights=weights[here])) if theory else None
        bins.append(
            {
                "from": round(float(low), 3),
                "pairs": int(here.sum()),
                "candidates": _share(candidate, weights, here),
                "expected": None if expected is None else round(expected, 4),
                "curve": round(candidate_probability(float(low + high) / 2, how.bands, how.rows), 4),
            }
        )
    return bins


def _share(what: NDArray[np.bool_], weights: NDArray[np.float64], among: NDArray[np.bool_]) -> float | None:
    total = weights[among].sum()
    return round(float(weights[among & what].sum() / total), 4) if total > 0 else None


def _lists(values: Hashes, lengths: Places) -> pa.Array:
    return pa.LargeListArray.from_arrays(np.append(0, np.cumsum(lengths)), pa.array(values, pa.uint64()))


def _lengths(column: pa.ChunkedArray) -> Places:
    return np.asarray(pc.call_function("list_value_length", [column])).astype(np.int64)


@njit(cache=True, nogil=True)
def _exact_pairs(
    element: Places, bounds: Places, owners: Places, posted: Places, least: float
) -> tuple[Places, Places, NDArray[np.float64]]:
    n = len(bounds) - 1
    shared, touched = np.zeros(n, np.int64), np.empty(n, np.int64)
    a, b, jaccard = [np.int64(0) for _ in range(0)], [np.int64(0) for _ in range(0)], [0.0 for _ in range(0)]
    for i in range(n):
        n_touched = 0
        for place in range(bounds[i], bounds[i + 1]):
            for other in range(posted[element[place]], posted[element[place] + 1]):
                j = owners[other]
                if j > i:
                    if shared[j] == 0:
                        touched[n_touched] = j
                        n_touched += 1
                    shared[j] += 1
        for t in range(n_touched):
            j = touched[t]
            together = (bounds[i + 1] - bounds[i]) + (bounds[j + 1] - bounds[j]) - shared[j]
            if shared[j] >= least * together:
                a.append(np.int64(i))
                b.append(np.int64(j))
                jaccard.append(shared[j] / together)
            shared[j] = 0
    return np.array(a), np.array(b), np.array(jaccard)
