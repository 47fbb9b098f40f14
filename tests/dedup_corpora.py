"""Corpus directories of real text with duplicates of known kinds."""

import random
from functools import cache
from pathlib import Path

import pytest

from qianyi.corpus.dedup.settings import DedupSettings
from qianyi.corpus.document import document_batch
from qianyi.corpus.parts import Json, Writer, run_parts
from qianyi.data import builtin
from qianyi.errors import DataError

DOCUMENTS = DedupSettings(paragraphs="off", substring_bytes=0)


@cache
def real_texts(n: int = 40) -> list[str]:
    """Scenes of Shakespeare, then pieces of 三国演义, n of each."""
    try:
        return [text for name in ("shakespeare", "sanguo") for _, text in list(builtin.documents(f"builtin:{name}"))[:n]]
    except DataError as error:
        pytest.skip(str(error))


def noisy(text: str, rate: float, source: random.Random) -> str:
    """A share of the words, or of the characters in Chinese, replaced."""
    joint = "" if sum(character > "\u3000" for character in text[:200]) > 50 else " "
    unit = text.split(" ") if joint else list(text)
    return joint.join("另" if source.random() < rate else piece for piece in unit)


def make_corpus(out: Path, texts: list[str], per_part: int = 25, name: str = "books") -> Path:
    """A finished corpus directory; the origin of a document is its number."""
    units: list[Json] = [{"first": i, "texts": texts[i : i + per_part], "source": name} for i in range(0, len(texts), per_part)]
    run_parts(out, "collect", {}, units, _write, [])
    return out


def _write(unit: Json, settings: Json, writer: Writer) -> None:
    origins = [f"{unit['first'] + i:05d}" for i in range(len(unit["texts"]))]
    writer.keep(document_batch(unit["source"], origins, unit["texts"]))
