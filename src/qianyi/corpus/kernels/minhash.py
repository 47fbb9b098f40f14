"""MinHash signatures (Broder 1997) of n-grams, fused with the walk that finds them, and the keys of locality-sensitive hashing."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.kernels.ngrams import Bytes, Hashes, Places, Table, grams, mix, walk

Signatures = NDArray[np.uint32]
"""[rows, hashes]: equal in a place with the probability of the Jaccard similarity of two sets."""

_BLOCK = 2048  # grams at a time: they stay in the first cache while every hash passes over them


def coefficients(n_hashes: int, seed: int = 1) -> tuple[Signatures, Signatures]:
    """Multipliers (odd) and addends of the hashes, [n_hashes] each: the same for all corpora that are compared."""
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(0, 2**32, (2, n_hashes), np.uint32)
    return drawn[0] | np.uint32(1), drawn[1]


@njit(cache=True, nogil=True)
def signatures(
    data: Bytes,
    starts: Places,
    ends: Places,
    table: Table,
    n: int,
    multipliers: Signatures,
    addends: Signatures,
    out: Signatures,
    n_grams: Places,
) -> None:
    """Signatures of spans of a buffer.

    Args:
        data: bytes.
        starts: of the spans.
        ends: of the spans.
        table: of `fold_table`.
        n: tokens in a gram.
        multipliers: of `coefficients`.
        addends: of `coefficients`.
        out: [spans, hashes], filled; all ones where a span has no token.
        n_grams: filled with how many each span has, repeated ones included.
    """
    longest = 1
    for row in range(len(starts)):
        longest = max(longest, (ends[row] - starts[row]) // 2 + 1)
    tokens, begins, finishes = np.empty(longest, np.uint64), np.empty(longest, np.int64), np.empty(longest, np.int64)
    shingles = np.empty(longest, np.uint64)
    block = np.empty(_BLOCK, np.uint32)
    for row in range(len(starts)):
        count = grams(tokens, walk(data, starts[row], ends[row], table, tokens, begins, finishes), n, shingles)
        n_grams[row] = count
        signature = out[row]
        signature[:] = np.uint32(0xFFFFFFFF)
        for first in range(0, count, _BLOCK):
            size = min(_BLOCK, count - first)
            for i in range(size):
                block[i] = np.uint32(shingles[first + i] >> np.uint64(32))
            _lower(block[:size], multipliers, addends, signature)


@njit(cache=True, nogil=True)
def _lower(block: Signatures, multipliers: Signatures, addends: Signatures, signature: Signatures) -> None:
    for k in range(len(signature)):
        a, b, least = multipliers[k], addends[k], signature[k]
        for i in range(len(block)):
            # numba makes a product of two uint32 a uint64, which would bias the minimum: each step is cut back to 32 bits
            least = min(least, np.uint32(np.uint32(a * block[i]) + b))
        signature[k] = least


@njit(cache=True, nogil=True)
def band_keys(signed: Signatures, bands: int, out: Hashes) -> None:
    """One 64-bit hash of each band of a signature.

    Args:
        signed: [rows, hashes].
        bands: into how many equal bands the hashes are cut.
        out: [rows, bands], filled.
    """
    width = signed.shape[1] // bands
    for row in range(signed.shape[0]):
        for band in range(bands):
            h = mix(np.uint64(band) + np.uint64(1))
            for k in range(band * width, (band + 1) * width):
                h = mix(h ^ np.uint64(signed[row, k]))
            out[row, band] = h


def similarity(a: Signatures, b: Signatures) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of pairs of rows, [pairs]."""
    return (a == b).mean(axis=1)


def candidate_probability(jaccard: float, bands: int, rows: int) -> float:
    """That two documents share a band: 1 - (1 - J^rows)^bands (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4.2)."""
    return 1 - (1 - jaccard**rows) ** bands


@njit(cache=True, nogil=True)
def pack(signed: Signatures, out: Hashes) -> None:
    """Two bits of each hash, 32 to a number: b-bit minwise hashing (Li and Koenig 2010) with b = 2.

    Args:
        signed: [rows, hashes].
        out: [rows, ceil(hashes / 32)], filled.
    """
    out[:] = np.uint64(0)
    for row in range(signed.shape[0]):
        for k in range(signed.shape[1]):
            code = mix(np.uint64(signed[row, k])) >> np.uint64(62)
            out[row, k // 32] |= code << np.uint64(2 * (k % 32))


@njit(cache=True, nogil=True)
def packed_similarity(codes: Hashes, a: Places, b: Places, n_hashes: int, out: NDArray[np.float32]) -> None:
    """Estimated Jaccard similarity of pairs of rows from two bits of each hash, which agree by chance in a quarter of all cases.

    Args:
        codes: [rows, words] of `pack`.
        a: first row of each pair.
        b: second.
        n_hashes: that were packed.
        out: filled.
    """
    for i in range(len(a)):
        out[i] = code_similarity(codes, a[i], b[i], n_hashes)


@njit(cache=True, nogil=True)
def code_similarity(codes: Hashes, a: int, b: int, n_hashes: int) -> np.float32:
    """As `packed_similarity`, of two rows."""
    pairs_of_bits = np.uint64(0x5555555555555555)
    differing = 0
    for word in range(codes.shape[1]):
        x = codes[a, word] ^ codes[b, word]
        x = (x | x >> np.uint64(1)) & pairs_of_bits
        while x:
            x &= x - np.uint64(1)
            differing += 1
    return np.float32(1 - 4 / 3 * differing / n_hashes)
