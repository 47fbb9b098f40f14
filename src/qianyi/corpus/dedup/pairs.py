"""From the keys of a bucket to pairs of texts."""

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.dedup.keys import Refs, codes_of
from qianyi.corpus.kernels.minhash import packed_similarity
from qianyi.corpus.kernels.ngrams import Hashes, Places

_ALL_PAIRS = 8
"""Groups up to this size are compared each with each; larger ones each with the first and with the one before."""


def groups(keys: Hashes, refs: Refs) -> tuple[Places, Places]:
    """Rows whose key occurs more than once.

    Returns:
        Rows by key, then by ref; and where the rows of each key begin, and the last end: [groups + 1].
    """
    order = np.argsort(keys)
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    member = np.zeros(len(keys), np.bool_)
    member[1:] |= same
    member[:-1] |= same
    rows = order[member]
    if len(rows) == 0:
        return np.empty(0, np.int64), np.zeros(1, np.int64)
    begins = np.concatenate([[True], keys[rows[1:]] != keys[rows[:-1]]])
    rows = rows[np.lexsort((rows, refs[rows], np.cumsum(begins)))]
    return rows, np.append(np.flatnonzero(begins), len(rows))


def equal_pairs(exact: pa.Table) -> pa.Table:
    """`a`, `b` (refs, a < b), `similarity` 1: each text with the first that has its 128 bits of hash."""
    low, high = (exact[name].to_numpy() for name in ("key", "check"))
    refs = exact["ref"].to_numpy()
    rows, bounds = groups(low ^ (high << np.uint64(1) | high >> np.uint64(63)), refs)
    first = np.repeat(rows[bounds[:-1]], np.diff(bounds)) if len(rows) else rows
    same = (low[first] == low[rows]) & (high[first] == high[rows]) & (refs[first] < refs[rows])
    return _pairs(refs[first[same]], refs[rows[same]], np.ones(int(same.sum()), np.float32))


def similar_pairs(banded: pa.Table, n_hashes: int, similarity: float) -> tuple[pa.Table, int]:
    """As `equal_pairs`, of texts that share a band and are estimated to be similar enough; and how many candidates there were.

    The similarity is the estimate as float32.
    """
    refs = banded["ref"].to_numpy()
    rows, bounds = groups(banded["key"].to_numpy(), refs)
    a, b = np.empty(_count_pairs(bounds), np.int64), np.empty(_count_pairs(bounds), np.int64)
    _fill_pairs(rows, bounds, a, b)
    once = first_of_each(refs[a], refs[b])
    a, b = a[once], b[once]
    estimated = np.empty(len(a), np.float32)
    packed_similarity(codes_of(banded), a, b, n_hashes, estimated)
    enough = estimated >= similarity
    return _pairs(refs[a[enough]], refs[b[enough]], estimated[enough]), len(a)


def codes_of_pairs(banded: pa.Table, found: pa.Table) -> pa.Table:
    """`ref`, `code` of the texts of pairs that were found in a bucket, by ref."""
    wanted = np.unique(np.concatenate([found["a"].to_numpy(), found["b"].to_numpy()]))
    distinct, rows = np.unique(banded["ref"].to_numpy(), return_index=True)
    return banded.select(["ref", "code"]).take(pa.array(rows[np.searchsorted(distinct, wanted)]))


def first_of_each(a: Refs, b: Refs) -> Places:
    """Places of distinct pairs, ordered by them; equal refs are no pair."""
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    return order[new & (a != b)]


def _pairs(a: Refs, b: Refs, similarity: NDArray[np.float32]) -> pa.Table:
    return pa.table({"a": a, "b": b, "similarity": similarity})


@njit(cache=True, nogil=True)
def _count_pairs(bounds: Places) -> int:
    n = 0
    for g in range(len(bounds) - 1):
        size = bounds[g + 1] - bounds[g]
        n += size * (size - 1) // 2 if size <= _ALL_PAIRS else 2 * size - 3
    return n


@njit(cache=True, nogil=True)
def _fill_pairs(rows: Places, bounds: Places, a: Places, b: Places) -> None:
    n = 0
    for g in range(len(bounds) - 1):
        first, end = bounds[g], bounds[g + 1]
        for j in range(first + 1, end):
            begin = first if end - first <= _ALL_PAIRS else j - 1
            for i in range(begin, j):
                a[n], b[n] = rows[i], rows[j]
                n += 1
            if begin > first:
                a[n], b[n] = rows[first], rows[j]
                n += 1
