"""From pairs to who survives, which one machine decides.

Pairs make clusters by union-find. But A may be like B, and B like C, where A is not like C: so a text goes only if it is like one that
survives. In order of rank, a text survives unless it is equal to, or as similar as is asked to, a survivor of its cluster.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.dedup.keys import Refs
from qianyi.corpus.kernels.minhash import code_similarity
from qianyi.corpus.kernels.ngrams import Hashes, Places


@dataclass(frozen=True)
class Clusters:
    """Texts that are linked by pairs."""

    refs: Refs
    """Ascending."""
    pairs: tuple[Places, Places]
    """[pairs]: places of what was paired."""
    roots: Places
    """[refs]: place of the smallest ref of the same cluster."""


@dataclass(frozen=True)
class Ranks:
    """By what a survivor is chosen, for each ref of clusters."""

    stays: NDArray[np.bool_]
    """It is of another corpus, out of which nothing is taken."""
    quality: NDArray[np.float64]
    """Larger survives; NaN counts as least."""
    ids: NDArray[np.str_]
    """The smaller survives."""

    @property
    def order(self) -> Places:
        """Places, the first rank first."""
        quality = np.where(np.isnan(self.quality), -np.inf, self.quality)
        return np.lexsort((np.arange(len(self.ids)), self.ids, -quality, ~self.stays))


@dataclass(frozen=True)
class Sketched:
    """What tells whether two texts of a cluster are similar, whether they were paired or not."""

    codes: Hashes
    """[refs, words] of `pack`; no word where nothing was compared by MinHash."""
    n_hashes: int
    least: float
    """Estimated similarity from which they are."""
    most: int = 1000
    """Survivors of a cluster with which each text of it is compared; in a larger one it is looked up who else it is paired with."""


def clusters(a: Refs, b: Refs) -> Clusters:
    """Connected components of pairs; the same for any order of them."""
    refs = np.sort(np.concatenate([a, b]))  # of so many numbers faster than `np.unique`, which hashes them first
    refs = refs[np.append(True, refs[1:] != refs[:-1])] if len(refs) else refs
    pairs = np.searchsorted(refs, a), np.searchsorted(refs, b)
    return Clusters(refs, pairs, components(*pairs, len(refs)))


def components(a: Places, b: Places, n: int) -> Places:
    """[n]: of places that pairs connect, the smallest."""
    roots = np.arange(n)
    _unite(a, b, roots)
    return roots


def survivors(
    roots: Places, equals: Places, pairs: tuple[Places, Places], how: Sketched, stays: NDArray[np.bool_], order: Places
) -> Places:
    """Who survives in the place of each.

    Args:
        roots: [refs], of the clusters.
        equals: [refs]: place that is the same for all that are equal.
        pairs: places of the similar ones.
        how: their sketches.
        stays: [refs]: survives whatever it is like.
        order: places by rank, those that stay first.

    Returns:
        [refs]: place of the survivor that the text is equal or similar to, the first in rank; itself if it survives.
    """
    first = np.full(len(order), -1)
    first[equals[order[::-1]]] = order[::-1]
    by_cluster = order[np.argsort(roots[order], kind="stable")]
    first = first[equals]
    one, other = first[np.concatenate(pairs)], first[np.concatenate(pairs[::-1])]  # of equals the first in rank stands for all
    by_one = np.argsort(one, kind="stable")
    begins = np.searchsorted(one[by_one], np.arange(len(order) + 1))
    chosen = np.full(len(order), -1)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    alive = np.empty(how.most, np.int64)
    _choose(by_cluster, roots, first, stays, rank, begins, other[by_one], how.codes, how.n_hashes, how.least, alive, chosen)
    return chosen


def sizes(chosen: Places) -> dict[int, int]:
    """How many survivors there are with so many texts, themselves among them, of two and more."""
    counts = np.bincount(np.bincount(chosen, minlength=1))
    return {int(size): int(counts[size]) for size in np.flatnonzero(counts) if size > 1}


@njit(cache=True, nogil=True)
def _choose(
    by_cluster: Places,
    roots: Places,
    first: Places,
    stays: NDArray[np.bool_],
    rank: Places,
    begins: Places,
    paired: Places,
    codes: Hashes,
    n_hashes: int,
    least: float,
    alive: Places,
    chosen: Places,
) -> None:
    n_alive, root = 0, -1
    for i in by_cluster:
        if roots[i] != root:
            n_alive, root = 0, roots[i]
        if first[i] != i and not stays[i]:
            chosen[i] = chosen[first[i]]
            continue
        if not stays[i]:
            for k in range(n_alive):
                if code_similarity(codes, alive[k], i, n_hashes) >= least:
                    chosen[i] = alive[k]
                    break
            if chosen[i] < 0 and n_alive == len(alive):
                for k in range(begins[i], begins[i + 1]):
                    j = paired[k]
                    if chosen[j] == j and (chosen[i] < 0 or rank[j] < rank[chosen[i]]):
                        chosen[i] = j
        if chosen[i] < 0:
            chosen[i] = i
            if n_alive < len(alive):
                alive[n_alive] = i
                n_alive += 1


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
