"""Deduplication and decontamination beside peers: rates on one core, recall and precision, bytes of repeated substrings found.

Peers (rensa, datasketch, pydivsufsort) that are not installed are listed as such. Rates are MB of UTF-8 per second of CPU time, from Arrow
or Python strings to signatures, windows or matches, the best of some rounds. Quality is measured on real text of which parts were replaced
at random, so that exact Jaccard similarities from 0.5 to 1 occur evenly; a pair is true at 0.8 and more. For substrings, stretches of some
texts are put into others, and the truth is the suffix array's.

    python benchmarks/data_dedup.py [--text NAME=FILE_OR_DIRECTORY ...] [--megabytes 8] [--rounds 3]
"""

import argparse
import random
import time
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.dedup.keys import Spans, band_table, exact_table, sign, sketch, spans_of, window_table
from qianyi.corpus.dedup.pairs import similar_pairs
from qianyi.corpus.dedup.sample import exact_pairs, shingles
from qianyi.corpus.dedup.settings import DedupSettings
from qianyi.corpus.dedup.spans import merged, repeats
from qianyi.corpus.kernels.ngrams import fold_table
from qianyi.corpus.kernels.overlap import matches, prefix_table, weighted_grams
from qianyi.data.read import read_documents

SETTINGS = DedupSettings()
HOW = SETTINGS.sketching
TRUE = 0.8
Found = set[tuple[int, int]]


def read_text(path: str, limit_bytes: int) -> list[str]:
    """Documents of a source up to a size."""
    texts, size = [], 0
    for document in read_documents(path, "text"):
        if size > limit_bytes:
            break
        texts.append(document.text)
        size += len(document.text.encode())
    return texts


def is_chinese(text: str) -> bool:
    return sum(character > "\u3000" for character in text[:200]) > 50


def with_noise(texts: list[str]) -> list[str]:
    """Each text, and twice again with some of its words or characters replaced."""
    source = random.Random(0)
    out: list[str] = []
    for text in texts:
        joint = "" if is_chinese(text) else " "
        unit = text.split(joint) if joint else list(text)
        out.append(text)
        for rate in (source.uniform(0, 0.04), source.uniform(0, 0.1)):
            out.append(joint.join(source.choice(unit) if source.random() < rate else piece for piece in unit))
    return out


def with_stretches(texts: list[str], least: int, most: int) -> list[str]:
    """Each text with a stretch of so many characters of another put into its middle."""
    source = random.Random(1)
    out: list[str] = []
    for text in texts:
        other, half = source.choice(texts), len(text) // 2
        length = source.randrange(least, most)
        begin = source.randrange(max(1, len(other) - length))
        out.append(text[:half] + other[begin : begin + length] + text[half:])
    return out


def rate(work: Callable[[], object], n_bytes: int, rounds: int) -> float:
    work()
    seconds: list[float] = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return n_bytes / 1e6 / min(seconds)


def python_shingles(text: str) -> list[str]:
    """What a peer is fed with: 5-grams of words, or of characters in Chinese."""
    tokens = list("".join(text.split())) if is_chinese(text) else text.lower().split()
    joint = "" if is_chinese(text) else " "
    return list({joint.join(tokens[i : i + HOW.ngram]) for i in range(max(1, len(tokens) - HOW.ngram + 1))})


def with_rensa(texts: list[str]) -> Callable[[], Any]:
    rensa = import_module("rensa")

    def signatures() -> list[Any]:
        out: list[Any] = []
        for text in texts:
            minhash = rensa.RMinHash(num_perm=HOW.hashes, seed=1)
            minhash.update(python_shingles(text))
            out.append(minhash)
        return out

    return signatures


def with_datasketch(texts: list[str]) -> Callable[[], Any]:
    datasketch = import_module("datasketch")

    def signatures() -> list[Any]:
        out: list[Any] = []
        for text in texts:
            minhash = datasketch.MinHash(num_perm=HOW.hashes, seed=1)
            minhash.update_batch([shingle.encode() for shingle in python_shingles(text)])
            out.append(minhash)
        return out

    return signatures


def pairs_of_rensa(signed: list[Any]) -> Found:
    lsh = import_module("rensa").RMinHashLSH(threshold=TRUE, num_perm=HOW.hashes, num_bands=HOW.bands)
    for i, minhash in enumerate(signed):
        lsh.insert(i, minhash)
    return {(j, i) for i, m in enumerate(signed) for j in lsh.query(m) if j < i and m.jaccard(signed[j]) >= SETTINGS.similarity}


def pairs_of_datasketch(signed: list[Any]) -> Found:
    lsh = import_module("datasketch").MinHashLSH(num_perm=HOW.hashes, params=(HOW.bands, HOW.rows))
    for i, minhash in enumerate(signed):
        lsh.insert(i, minhash)
    return {(j, i) for i, m in enumerate(signed) for j in lsh.query(m) if j < i and m.jaccard(signed[j]) >= SETTINGS.similarity}


def our_pairs(texts: Spans) -> Found:
    banded = band_table(sketch(texts, HOW), np.arange(len(texts), dtype=np.uint64))
    found, _ = similar_pairs(banded, HOW.hashes, SETTINGS.similarity)
    return set(zip(found["a"].to_pylist(), found["b"].to_pylist(), strict=True))


def true_pairs(texts: Spans) -> Found:
    sets = [shingles(texts, i, HOW.ngram) for i in range(len(texts))]
    found = exact_pairs(np.concatenate(sets), np.append(0, np.cumsum([len(s) for s in sets])))
    true = found.jaccard >= TRUE
    return set(zip(found.a[true].tolist(), found.b[true].tolist(), strict=True))


def documents(name: str, texts: list[str], rounds: int) -> None:
    array = pa.array(texts)
    spans, size = spans_of(array), int(spans_of(array).ends[-1])
    refs = np.arange(len(texts), dtype=np.uint64)
    print(f"\n{name}: {size / 1e6:.1f} MB, {len(texts):,} documents")
    print(f"  exact hashes          {rate(lambda: exact_table(spans, refs), size, rounds):8.1f} MB/s")
    print(f"  signatures            {rate(lambda: sign(spans, HOW), size, rounds):8.1f} MB/s")
    print(f"  bands and sketches    {rate(lambda: band_table(sketch(spans, HOW), refs), size, rounds):8.1f} MB/s")
    print(f"  matches of 13-grams   {rate(finder(spans), size, rounds):8.1f} MB/s")
    for peer, make in (("rensa", with_rensa), ("datasketch", with_datasketch)):
        try:
            print(f"  {peer:22}{rate(make(texts), size, 1):8.1f} MB/s")
        except ImportError:
            print(f"  {peer:22}not installed")
    noised = with_noise(texts[: max(1, 3_000_000 * len(texts) // size)])
    true = true_pairs(spans_of(pa.array(noised)))
    print(f"  recall and precision at {TRUE}, {len(noised):,} documents, {len(true):,} true pairs")
    show_quality("here", our_pairs(spans_of(pa.array(noised))), true)
    for peer, make, pairs in (("rensa", with_rensa, pairs_of_rensa), ("datasketch", with_datasketch, pairs_of_datasketch)):
        try:
            show_quality(peer, pairs(make(noised)()), true)
        except ImportError:
            print(f"    {peer:20}not installed")


def show_quality(name: str, found: Found, true: Found) -> None:
    print(f"    {name:20}{len(found & true) / len(true):8.4f} {len(found & true) / max(1, len(found)):8.4f}")


def finder(spans: Spans) -> Callable[[], object]:
    """Looks for a hundred thousand 13-grams."""
    tokens = np.random.default_rng(0).integers(0, 2**64, 100_012, np.uint64)
    hashes, sizes = np.empty(len(tokens), np.uint64), np.empty(len(tokens), np.int64)
    count = weighted_grams(tokens, np.full(len(tokens), 3), len(tokens), 13, hashes, sizes)
    grams = np.unique(hashes[:count])
    prefixes, shift = prefix_table(grams)
    lengths = np.array([13])
    return lambda: matches(spans.data, spans.starts, spans.ends, fold_table(), lengths, grams, prefixes, shift)


def substrings(name: str, texts: list[str], rounds: int, n: int) -> None:
    spans = spans_of(pa.array(with_stretches(texts, n // 4, 4 * n)))
    size, refs = int(spans.ends[-1]), np.arange(len(texts), dtype=np.uint64)
    print(f"\n{name}: substrings of {n} bytes, {size / 1e6:.1f} MB")
    print(f"  windows               {rate(lambda: window_table(spans, refs, n), size, rounds):8.1f} MB/s")
    print(f"  windows and repeats   {rate(lambda: repeats(window_table(spans, refs, n), n), size, rounds):8.1f} MB/s")
    table = repeats(window_table(spans, refs, n), n)
    rows, begins, ends = merged(*(table[column].to_numpy() for column in ("ref", "begin", "end")))
    ours = np.zeros(size, np.bool_)
    for row, begin, end in zip(rows.astype(np.int64), begins, ends, strict=True):
        ours[spans.starts[row] + begin : spans.starts[row] + end] = True
    try:
        exact, seconds = by_suffix_array(spans, n)
    except ImportError:
        print("  pydivsufsort          not installed")
        return
    print(f"  pydivsufsort          {size / 1e6 / seconds:8.1f} MB/s (suffix array, common prefixes, marks)")
    print(f"  bytes that stood before: {exact.mean():.4f}; found {(ours & exact).sum() / max(1, exact.sum()):.4f} of them, "
          f"wrongly {(ours & ~exact).sum() / max(1, ours.sum()):.4f} of what was found")  # fmt: skip


def by_suffix_array(spans: Spans, n: int) -> tuple[NDArray[np.bool_], float]:
    peer = import_module("pydivsufsort")
    start = time.process_time()
    suffixes = peer.divsufsort(spans.data)
    common = peer.kasai(spans.data, suffixes)
    marks = np.zeros(len(spans.data), np.bool_)
    owner = np.repeat(spans.ends, spans.ends - spans.starts)
    _mark(suffixes.astype(np.int64), common.astype(np.int64), owner, n, marks)
    return marks, time.process_time() - start


@njit(cache=True)
def _mark(
    suffixes: NDArray[np.int64], common: NDArray[np.int64], owner: NDArray[np.int64], n: int, marks: NDArray[np.bool_]
) -> None:
    """Mark n bytes at every place whose n bytes, all of one document, are those of an earlier place."""
    first = 0
    for i in range(len(suffixes)):
        if i + 1 == len(suffixes) or common[i] < n:
            least = len(suffixes)
            for k in range(first, i + 1):
                if suffixes[k] + n <= owner[suffixes[k]]:
                    least = min(least, suffixes[k])
            for k in range(first, i + 1):
                place = suffixes[k]
                if place > least and place + n <= owner[place]:
                    begin = max(place, least + n) if owner[place] == owner[least] else place
                    marks[begin : place + n] = True
            first = i + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="append", metavar="NAME=PATH", help="a source of text; builtin ones unless given")
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--substring-bytes", type=int, default=SETTINGS.substring_bytes)
    arguments = parser.parse_args()
    versions: list[str] = []
    for package in ("numba", "rensa", "datasketch", "pydivsufsort"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    print(", ".join(versions))
    for entry in arguments.text or ["English=builtin:shakespeare", "Chinese=builtin:sanguo"]:
        name, path = entry.split("=", 1)
        texts = read_text(path, int(arguments.megabytes * 1e6))
        documents(name, texts, arguments.rounds)
        substrings(name, texts, arguments.rounds, arguments.substring_bytes)


if __name__ == "__main__":
    main()
