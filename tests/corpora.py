"""Small corpora in two languages, and what they are prepared into."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer

from qianyi.config.schema import DataConfig, SourceConfig
from qianyi.data.prepare import prepare, tokenizer_path
from qianyi.data.tokenizer import load_tokenizer


def silent(*_: object) -> None:
    """No progress shown."""


def corpus(n: int, seed: int) -> list[str]:
    source = random.Random(seed)
    words = ["moon", "river", "明月", "江水", "mountain", "千亿", "the", "and", "。", "，\n", "🌙"]
    return ["".join(source.choices(words, k=source.randrange(20, 200))) for _ in range(n)]


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts), encoding="utf-8")
    return path


def one_source(root: Path, texts: list[str], **settings: object) -> DataConfig:
    """Texts in root/x.jsonl, to be prepared in root/out."""
    source = SourceConfig(name="x", path=str(jsonl(root / "x.jsonl", texts)))
    return DataConfig.model_validate({"dir": str(root / "out"), "sources": (source,), "validation_fraction": 0.1, **settings})


def two_sources(root: Path) -> DataConfig:
    """Two sources, prepared in root/out with 400 tokens."""
    a, b = jsonl(root / "a.jsonl", corpus(200, 1)), jsonl(root / "b.jsonl", corpus(60, 2))
    sources = (SourceConfig(name="a", path=str(a)), SourceConfig(name="b", path=str(b)))
    data = DataConfig(dir=str(root / "out"), sources=sources, validation_fraction=0.1)
    prepare(data, 400, silent)
    return data


def tokenizer_of(data: DataConfig) -> Tokenizer:
    return load_tokenizer(tokenizer_path(data))


def files_of(root: Path) -> dict[str, bytes]:
    """All files below a directory, by name."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
