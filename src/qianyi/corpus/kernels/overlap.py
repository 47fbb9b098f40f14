"""Which n-grams of texts are in a set of n-grams: 64-bit hashes in ascending order, found through a table of their first bits."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.kernels.ngrams import ALONE, Bytes, Hashes, Number, Places, Table, mix, token_class, walk

WORD, CHARACTER = 3, 2
"""Weight of a word, and of a character that is a token: what three characters of Chinese say takes two words of English."""

_STEP = np.uint64(0xD1342543DE82EF95)
_INVERSE = np.uint64(pow(0xD1342543DE82EF95, -1, 2**64))
_NONE = np.int64(-1)


@njit(cache=True, nogil=True)
def weights(data: Bytes, begins: Places, n_tokens: int, table: Table, out: Places) -> int:
    """Fill the weight of each token; returns their sum."""
    total = 0
    for i in range(n_tokens):
        entry, _ = token_class(data, begins[i], table)
        out[i] = CHARACTER if entry & ALONE else WORD
        total += out[i]
    return total


@njit(cache=True, nogil=True)
def weighted_grams(tokens: Hashes, heavy: Places, n_tokens: int, n: int, hashes: Hashes, sizes: Places) -> int:
    """From each token on the shortest run that weighs as much as n words.

    Args:
        tokens: hashes.
        heavy: weights.
        n_tokens: how many.
        n: words.
        hashes: filled with a hash of each run, as many as returned.
        sizes: filled with the number of its tokens.

    Returns:
        How many runs are long enough; the first begins at the first token, and so on.
    """
    h, leaving = np.uint64(n), np.uint64(1)  # leaving: the factor of the first token of the run
    weight, end = 0, 0
    body = np.uint64(0)
    for i in range(n_tokens):
        while weight < n * WORD and end < n_tokens:
            body = body * _STEP + tokens[end]
            leaving *= _STEP
            weight += heavy[end]
            end += 1
        if weight < n * WORD:
            return i
        hashes[i], sizes[i] = mix(body ^ mix(h ^ np.uint64(end - i))), end - i
        leaving *= _INVERSE
        body -= leaving * tokens[i]
        weight -= heavy[i]
    return n_tokens


def prefix_table(grams: Hashes) -> tuple[Places, int]:
    """Where the hashes with each value of their first bits begin, [2^bits + 1], and by how much to shift a hash for those bits."""
    bits = max(1, min(24, len(grams).bit_length()))
    bounds = np.arange(2**bits, dtype=np.uint64) << np.uint64(64 - bits)
    return np.append(np.searchsorted(grams, bounds), len(grams)).astype(np.int64), 64 - bits


@njit(cache=True, nogil=True, inline="always")
def find(h: Number, grams: Hashes, prefixes: Places, shift: int) -> Number:
    """Place of a hash in `grams`, or -1."""
    first = np.int64(np.uint64(h) >> np.uint64(shift))
    for i in range(prefixes[first], prefixes[first + 1]):
        if grams[i] == h:
            return i
    return _NONE


@njit(cache=True, nogil=True)
def matches(
    data: Bytes, starts: Places, ends: Places, table: Table, lengths: Places, grams: Hashes, prefixes: Places, shift: int
) -> tuple[Places, Places, Places, Places]:
    """Every n-gram of the spans that is in the set.

    Args:
        data: bytes.
        starts: of the spans.
        ends: of the spans.
        table: of `fold_table`.
        lengths: in words; each is looked for.
        grams: hashes, ascending.
        prefixes: of `prefix_table`.
        shift: of `prefix_table`.

    Returns:
        Of each match: the span, the place in `grams`, and where it begins and ends in `data`.
    """
    longest = 0
    for row in range(len(starts)):
        longest = max(longest, (ends[row] - starts[row]) // 2 + 1)
    tokens, hashes = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    begins, finishes = np.empty(longest, np.int64), np.empty(longest, np.int64)
    heavy, sizes = np.empty(longest, np.int64), np.empty(longest, np.int64)
    out = np.empty((1024, 4), np.int64)
    n = 0
    for row in range(len(starts)):
        n_tokens = walk(data, starts[row], ends[row], table, tokens, begins, finishes)
        weights(data, begins, n_tokens, table, heavy)
        for length in lengths:
            for i in range(weighted_grams(tokens, heavy, n_tokens, length, hashes, sizes)):
                gram = find(hashes[i], grams, prefixes, shift)
                if gram >= 0:
                    if n == len(out):
                        out = np.concatenate((out, np.empty_like(out)))
                    out[n, 0], out[n, 1], out[n, 2], out[n, 3] = row, gram, begins[i], finishes[i + sizes[i] - 1]
                    n += 1
    return out[:n, 0].copy(), out[:n, 1].copy(), out[:n, 2].copy(), out[:n, 3].copy()


@njit(cache=True, nogil=True)
def covered(
    gram: NDArray[np.bool_], bounds: Places, postings: Places, positions: Places, sizes: Places, tokens: Places
) -> Places:
    """How many tokens of each item lie in n-grams that are marked.

    Args:
        gram: marks, by place in the set.
        bounds: where the postings of each n-gram begin, and the last end.
        postings: items.
        positions: first token of the n-gram in all tokens of all items.
        sizes: tokens of the n-gram.
        tokens: where the tokens of each item begin in all tokens, and the last end, [items + 1].
    """
    marks = np.zeros(tokens[-1], np.bool_)
    for g in range(len(gram)):
        if gram[g]:
            for p in range(bounds[g], bounds[g + 1]):
                marks[positions[p] : positions[p] + sizes[p]] = True
    out = np.zeros(len(tokens) - 1, np.int64)
    for item in range(len(out)):
        out[item] = marks[tokens[item] : tokens[item + 1]].sum()
    return out
