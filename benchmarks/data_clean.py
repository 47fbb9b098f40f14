"""How fast text is cleaned, what the rules keep, and how well languages are told, beside the peers.

    benchmarks/fetch_corpora.sh
    python benchmarks/data_clean.py rates
    python benchmarks/data_clean.py keep --datatrove PYTHON
    python benchmarks/data_clean.py languages [--peers]

Prints Markdown. Rates are MB of UTF-8 per second of CPU time of one core, the best of three. PYTHON is an interpreter with datatrove (see
benchmarks/peers/datatrove_rules.py); without it that column is left out. `--peers` measures pycld2, fastText alone and, where they are
installed, py3langid and lingua.
"""

import argparse
import html
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pycld2

from qianyi.corpus.clean.judge import judge
from qianyi.corpus.clean.language import _fasttext, _same_name, languages
from qianyi.corpus.clean.measure import measure
from qianyi.corpus.clean.pii import mask
from qianyi.corpus.clean.repair import repair
from qianyi.corpus.clean.rules import load_kinds
from qianyi.corpus.clean.variants import variants
from qianyi.corpus.kernels.statistics import statistics

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from junk import JUNK, junk  # noqa: E402
from real_text import CORPORA, ROOT  # noqa: E402

LANGUAGE_OF = {"peoples-daily": "zh", "manpages-zh": "zh", "sanguo": "zh", "poetry": "zh"}
PEER_DOCUMENTS = 150
"""Of each corpus datatrove sees so many, spread evenly: it is slow."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "keep", "languages"))
    parser.add_argument("--datatrove", metavar="PYTHON")
    parser.add_argument("--peers", action="store_true")
    asked = parser.parse_args()
    if asked.what == "rates":
        rates()
    elif asked.what == "keep":
        keep(asked.datatrove)
    else:
        recall(peers=asked.peers)


def rates() -> None:
    measure(_batch(["compile"]))
    print("| corpus | MB | documents | repair | mask | statistics | language | all |\n|---|---|---|---|---|---|---|---|")
    for name in CORPORA:
        texts = pa.array(CORPORA[name](), pa.string())
        mb = sum(len(t.encode()) for t in texts.to_pylist()) / 1e6
        repaired = repair(texts)[0]
        masked = mask(repaired)[0]
        measured = statistics(masked, *variants())
        steps: tuple[Callable[[], object], ...] = (
            lambda texts=texts: repair(texts),
            lambda repaired=repaired: mask(repaired),
            lambda masked=masked: statistics(masked, *variants()),
            lambda masked=masked, measured=measured: languages(masked, measured),
            lambda texts=texts: measure(pa.RecordBatch.from_pydict({"text": texts})),
        )
        cells = " | ".join(f"{mb / _seconds(step):.1f}" for step in steps)
        print(f"| {name} | {mb:.1f} | {len(texts)} | {cells} |", flush=True)


def _seconds(step: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        step()
        best = min(best, time.process_time() - began)
    return best


def keep(datatrove: str | None) -> None:
    print("| documents | n | kept | first reasons | datatrove: n | kept | MB/s |\n|---|---|---|---|---|---|---|")
    for name in CORPORA:
        texts = CORPORA[name]()
        print(_kept_row(name, texts) + (_peer_cells(datatrove, name, texts) if datatrove else "| | | |"), flush=True)
    for name in JUNK:
        print(_kept_row(f"junk: {name}", junk(name)) + "| | | |", flush=True)


def _kept_row(name: str, texts: list[str]) -> str:
    judgement = judge(measure(_batch(texts))[0], load_kinds())
    reasons = Counter(reason for reason in judgement.reasons if reason)
    kept = len(texts) - reasons.total()
    return f"| {name} | {len(texts)} | {kept / len(texts):.1%} | {', '.join(f'{r} {n}' for r, n in reasons.most_common(3))} "


def _peer_cells(python: str, name: str, texts: list[str]) -> str:
    some = texts[:: max(1, len(texts) // PEER_DOCUMENTS)][:PEER_DOCUMENTS]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "texts.json"
        file.write_text(json.dumps(some), encoding="utf-8")
        command = [python, str(HERE / "peers" / "datatrove_rules.py"), str(file), LANGUAGE_OF.get(name, "en")]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    mb = sum(len(t.encode()) for t in some) / 1e6
    return f"| {len(some)} | {result['kept'] / len(some):.1%} | {mb / result['seconds']:.2f} |"


def _batch(texts: Sequence[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"text": pa.array(texts, pa.string())})


def recall(*, peers: bool) -> None:
    """Of paragraphs of the Debian Administrator's Handbook in 26 languages, how many are told right."""
    paragraphs = handbook()
    texts = [text for _, text in paragraphs]
    batch = pa.array(texts, pa.string())
    measured = statistics(batch, *variants())
    predict = _fasttext()
    columns: dict[str, Callable[[], list[str]]] = {"Qianyi": lambda: languages(batch, measured).column(0).to_pylist()}
    if peers:
        columns["fastText"] = lambda: [next(iter(predict(text.replace("\n", " "))), "und") for text in texts]
        columns["pycld2"] = lambda: [_same_name(pycld2.detect(text)[2][0][1]) for text in texts]
        columns |= _installed_peers(texts)
    shares = {name: _recalls(paragraphs, told()) for name, told in columns.items()}
    print("| language | n | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns))
    for language, n in Counter(language for language, _ in paragraphs).items():
        print(f"| {language} | {n} | " + " | ".join(f"{s[language]:.3f}" for s in shares.values()) + " |")
    print("| mean | | " + " | ".join(f"{sum(s.values()) / len(s):.4f}" for s in shares.values()) + " |")


def _installed_peers(texts: list[str]) -> dict[str, Callable[[], list[str]]]:
    found: dict[str, Callable[[], list[str]]] = {}
    if find_spec("py3langid"):
        import py3langid  # noqa: PLC0415

        found["py3langid"] = lambda: [_same_name(py3langid.classify(text)[0]) for text in texts]
    if find_spec("lingua"):
        from lingua import LanguageDetectorBuilder  # noqa: PLC0415

        detector = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()

        def lingua() -> list[str]:
            told = (detector.detect_language_of(text) for text in texts)
            return [_same_name(language.iso_code_639_1.name.lower()) if language else "und" for language in told]

        found["lingua (low)"] = lingua
    return found


def _recalls(paragraphs: list[tuple[str, str]], told: list[str]) -> dict[str, float]:
    """Norwegian counts by either name of it."""
    right: Counter[str] = Counter()
    total = Counter(language for language, _ in paragraphs)
    for (language, _), found in zip(paragraphs, told, strict=True):
        wanted = {"nb", "nn"} if language == "nb-NO" else {language.split("-")[0]}
        right[language] += found in wanted
    return {language: right[language] / n for language, n in total.items()}


_SCRIPTS = {
    **dict.fromkeys(("zh-CN", "zh-TW", "ja-JP"), "[\u3040-\u30ff\u4e00-\u9fff]"),
    **dict.fromkeys(("ar-MA", "fa-IR"), "[\u0600-\u06ff]"),
    "ko-KR": "[\uac00-\ud7a3]",
    "ru-RU": "[а-я]",
    "el-GR": "[α-ω]",
}
_ENGLISH = {"the", "of", "and", "is", "to", "this", "that", "with", "for", "are"}


def handbook() -> list[tuple[str, str]]:
    """(language, paragraph of 20 to 400 characters), at most 300 of each; what is left untranslated is taken out.

    That is, of other languages: paragraphs of the English edition; those without a third of their own script; in Latin script those
    that share a fifth of their three-word sequences with the English edition or have 15% of English function words.
    """
    root = ROOT / "debian-handbook/usr/share/doc/debian-handbook/html"
    english = set(_paragraphs(root / "en-US"))
    known = set().union(*map(_triples, english))
    found: list[tuple[str, str]] = []
    for directory in sorted(d for d in root.iterdir() if (d / "index.html").exists()):
        texts = sorted(set(_paragraphs(directory)))
        if pattern := _SCRIPTS.get(directory.name):
            texts = [t for t in texts if t not in english and 3 * len(re.findall(pattern, t)) > len(t)]
        elif directory.name != "en-US":
            texts = [t for t in texts if t not in english and _is_translated(t, known)]
        found += [(directory.name, text) for text in texts[:: max(1, len(texts) // 300)][:300]]
    return found


def _paragraphs(directory: Path) -> list[str]:
    pages = [page.read_text(encoding="utf-8", errors="replace") for page in sorted(directory.glob("*.html"))]
    blocks = [m for page in pages for m in re.findall(r'(?s)<(?:p|div class="para")[^>]*>(.*?)</(?:p|div)>', page)]
    texts = (" ".join(html.unescape(re.sub("<[^>]+>", "", block)).split()) for block in blocks)
    return [text for text in texts if 20 <= len(text) <= 400]


def _triples(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def _is_translated(text: str, known: set[tuple[str, ...]]) -> bool:
    triples, words = _triples(text), re.findall(r"\w+", text.lower())
    few = sum(word in _ENGLISH for word in words) < 0.15 * len(words)
    return len(words) >= 6 and few and len(triples & known) < 0.2 * len(triples)


if __name__ == "__main__":
    main()
