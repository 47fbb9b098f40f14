"""Whether documents that `qianyi data dedup` removes as near duplicates are like the one that stays, by exact Jaccard similarity.

    python benchmarks/data_corpus.py --cache build/corpus --only boost-doc,libreoffice-help-en
    python benchmarks/data_survivors.py build/corpus/sources/boost-doc.jsonl build/corpus/sources/libreoffice-help-en.jsonl

Of each file's first lines of 200 characters and more: how many go as near duplicates, how many of these truly have a similarity of
0.8 and of 0.7 to the one that stays in their place, and of the pairs that truly have 0.8 how many lose one at least.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from machine import ROOT

from qianyi.corpus.collect.collect import CollectSettings, collect
from qianyi.corpus.dedup.keys import spans_of
from qianyi.corpus.dedup.sample import exact_pairs, shingles
from qianyi.corpus.dedup.settings import DedupSettings
from qianyi.corpus.dedup.stage import dedup
from qianyi.corpus.document import read_dropped, read_parts

SETTINGS = DedupSettings(paragraphs="off", substring_bytes=0, sample_documents=0)
LEAST_CHARACTERS = 200


def measure(file: Path, megabytes: float, work: Path) -> str:
    """A row of the table."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    chosen, size = work / "some.jsonl", 0
    with file.open(encoding="utf-8") as lines, chosen.open("w", encoding="utf-8") as out:
        for line in lines:
            if len(line) < LEAST_CHARACTERS:
                continue
            size += out.write(line)
            if size > megabytes * 1e6:
                break
    collect(CollectSettings.model_validate({"sources": [{"path": str(chosen)}]}), work / "collect")
    dedup([work / "collect"], work / "dedup", SETTINGS)
    texts = {row["id"]: row["text"] for batch in read_parts(work / "collect", ["id", "text"]) for row in batch.to_pylist()}
    gone = [row for batch in read_dropped(work / "dedup") for row in batch.to_pylist()]
    number = {name: i for i, name in enumerate(texts)}
    spans = spans_of(pa.array(texts.values()))
    sets = [shingles(spans, row, SETTINGS.sketching.ngram) for row in range(len(texts))]

    def jaccard(a: int, b: int) -> float:
        common = len(np.intersect1d(sets[a], sets[b], assume_unique=True))
        return common / max(1, len(sets[a]) + len(sets[b]) - common)

    near = [row for row in gone if row["reason"] == "near_duplicate"]
    like = np.array([jaccard(number[row["id"]], number[row["detail"].rsplit(" ", 1)[1]]) for row in near])
    pairs = exact_pairs(np.concatenate(sets), np.append(0, np.cumsum([len(s) for s in sets])))
    went = np.zeros(len(texts), np.bool_)
    went[[number[row["id"]] for row in gone]] = True
    true = pairs.jaccard >= 0.8
    lost = went[pairs.a[true]] | went[pairs.b[true]]
    shares = [f"{found.mean():.3f}" if len(found) else "-" for found in (like >= 0.8, like >= 0.7, lost)]
    return f"| {file.stem} | {len(texts):,} | {len(gone):,} | {len(near):,} | {shares[0]} | {shares[1]} | {true.sum():,} | {shares[2]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSONL with a field `text`")
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "data_survivors", help="emptied first")
    args = parser.parse_args()
    print("| corpus | documents | go | near | truly 0.8 | 0.7 | pairs of 0.8 | one goes |\n|---|---|---|---|---|---|---|---|")
    for file in args.files:
        print(measure(file, args.megabytes, args.work), flush=True)


if __name__ == "__main__":
    main()
