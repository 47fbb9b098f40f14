"""From pairs to clusters, and who survives of each: union-find over all pairs, which one machine holds."""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.dedup.keys import Refs
from qianyi.corpus.kernels.ngrams import Places


@dataclass(frozen=True)
class Clusters:
    """Texts that are linked by pairs."""

    refs: Refs
    """Ascending."""
    roots: Places
    """[refs]: place of the smallest ref of the same cluster."""

    def sizes(self) -> dict[int, int]:
        """How many clusters there are of each size."""
        counts = np.bincount(np.unique(self.roots, return_counts=True)[1]) if len(self.roots) else np.zeros(0, np.int64)
        return {int(size): int(counts[size]) for size in np.flatnonzero(counts)}


@dataclass(frozen=True)
class Ranks:
    """By what a survivor is chosen, for each ref of clusters."""

    stays: NDArray[np.bool_]
    """It is of another corpus, out of which nothing is taken."""
    quality: NDArray[np.float64]
    """Larger survives; NaN counts as least."""
    ids: NDArray[np.str_]
    """The smaller survives."""


def clusters(a: Refs, b: Refs) -> Clusters:
    """Connected components of pairs; the same for any order of them."""
    refs = np.unique(np.concatenate([a, b]))
    roots = np.arange(len(refs))
    _unite(np.searchsorted(refs, a), np.searchsorted(refs, b), roots)
    return Clusters(refs, roots)


def survivors(found: Clusters, ranks: Ranks) -> Places:
    """[refs]: place of who survives in the place of each; itself if it does. All that `stays` do."""
    n = len(found.refs)
    quality = np.where(np.isnan(ranks.quality), -np.inf, ranks.quality)
    order = np.lexsort((found.refs, ranks.ids, -quality, ~ranks.stays, found.roots))
    roots = found.roots[order]
    first = np.ones(n, np.bool_)
    first[1:] = roots[1:] != roots[:-1]
    chosen = np.empty(n, np.int64)
    chosen[order] = np.repeat(order[first], np.diff(np.append(np.flatnonzero(first), n)))
    return np.where(ranks.stays, np.arange(n), chosen)


@njit(cache=True, nogil=True)
def _unite(a: Places, b: Places, roots: Places) -> None:
    for i in range(len(a)):
        x, y = _find(roots, a[i]), _find(roots, b[i])
        if x < y:
            roots[y] = x
        elif y < x:
            roots[x] = y
    for i in range(len(roots)):
        roots[i] = _find(roots, i)


@njit(cache=True, nogil=True)
def _find(roots: Places, i: int) -> int:
    while roots[i] != i:
        roots[i] = roots[roots[i]]
        i = roots[i]
    return i
