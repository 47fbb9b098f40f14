"""Web pages to their main content, by resiliparse; title, address and language go into the metadata."""

import re
from html import unescape
from typing import BinaryIO

from resiliparse.extract.html2text import extract_plain_text  # pyright: ignore[reportMissingModuleSource]
from resiliparse.parse.html import HTMLTree

from qianyi.corpus.collect.decode import decode
from qianyi.corpus.collect.found import Found, Reading, Refusal, Results
from qianyi.corpus.collect.streams import read_all
from qianyi.data.stage import Json

_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w:.-]+)|<\?xml[^>]{0,100}?encoding\s*=\s*["']([\w.-]+)""", re.IGNORECASE
)
_ADDRESSES = ('link[rel="canonical"]', "href"), ('meta[property="og:url"]', "content")
_SKIPPED = [
    '[role="dialog"]', '[aria-modal="true"]', '[role="navigation"]', '[class*="cookie"]', '[id*="cookie"]', '[class*="consent"]',
    "#comments", ".comments", "nav", "aside",
]  # fmt: skip
_LINK, _TAG = re.compile(r"<a [^>]*>.*?</a>"), re.compile(r"</?[a-z][a-z0-9]*(?: [^>]*)?>")
_MENU_LINKS = 4
"""In a row, with nothing between; fewer may be part of a text, unless they are its first or last lines."""
_LONGEST_OPENING = 60
_END = "\n"
"""Stands after the last line; no line holds it."""
_SURELY_CHARACTERS = 500
_LEAST_SHARE = 0.1
"""Of all visible text: where the main content is less, the page is not built as pages are, and all of it is taken."""


def read_html(stream: BinaryIO, origin: str, reading: Reading) -> Results:
    """A page, one document."""
    data = read_all(stream, reading.max_document_bytes)
    if not data:
        raise Refusal("empty", "the file has no bytes")
    yield page(data, origin, reading)


def page(data: bytes, origin: str, reading: Reading, declared: str | None = None) -> Found:
    """The document of the bytes of a page.

    Args:
        data: as they came.
        origin: of the document.
        reading: `html` says how much of the page is taken.
        declared: the encoding that the server names, if any.

    Raises:
        Refusal: the page is not text or has none.
    """
    tag = _DECLARED.search(data[:2048])
    html, encoding = decode(data, declared or ((tag[1] or tag[2]).decode("ascii", "replace") if tag else None))
    tree = HTMLTree.parse(html)
    text = _tidy(main_text(tree) if reading.html == "main" else extract_plain_text(tree, preserve_formatting=True))
    if not text.strip():
        raise Refusal("empty", "the page has no visible text", html[:200])
    meta = _meta(tree) | reading.meta_of(origin)
    return Found(origin, text, meta if encoding == "utf-8" else meta | {"encoding": encoding})


def main_text(tree: HTMLTree) -> str:
    """The main content of a page as plain text with its paragraphs and lists.

    resiliparse leaves out what is named as a menu or the like; menus without a name are told by their lines, which are links and
    nothing else.
    """
    marked = extract_plain_text(
        tree,
        preserve_formatting="minimal_html",
        main_content=True,
        alt_texts=False,
        links=True,
        comments=False,
        skip_elements=_SKIPPED,
    )
    lines = marked.split("\n")
    main = _plain(_without_menus(lines))
    if len(main) < _LEAST_SHARE * len(marked):  # a page of links is what it is
        main = _plain(lines)
    if len(main) > _SURELY_CHARACTERS:
        return main
    everything = extract_plain_text(tree, preserve_formatting=True, alt_texts=False)
    return main if len(main) >= _LEAST_SHARE * len(everything) and main.strip() else everything


def _without_menus(lines: list[str]) -> list[str]:
    """Lines without runs of links, nor the headings right above them."""
    kept: list[str] = []
    run: list[str] = []
    n_links = 0
    for line in [*lines, _END]:
        if line is not _END and (not line.strip() or _is_links(line)):
            run.append(line)
            n_links += line.count("</a>")
            continue
        at_the_edge = line is _END or not any(map(str.strip, kept))
        if n_links >= _MENU_LINKS or (n_links and at_the_edge):
            while kept and n_links >= _MENU_LINKS and (not kept[-1].strip() or re.fullmatch(r"\s*<h\d>.*</h\d>\s*", kept[-1])):
                kept.pop()
            run = [""]
        kept += [*run, line]
        run, n_links = [], 0
    return kept[:-1]


def _is_links(line: str) -> bool:
    """Whether no letter of a line is outside a link, and one is in it; or whether it opens or closes a list."""
    if "<a " not in line:
        return len(line) < _LONGEST_OPENING and bool(re.fullmatch(r"\s*(</?(ul|ol|li|p)>\s*)+", line))
    return not re.search(r"\w", _TAG.sub("", _LINK.sub("", line)))


def _plain(lines: list[str]) -> str:
    """The text of reduced HTML."""
    text = re.sub(r"<li>\s*", "• ", "\n".join(lines))
    return unescape(_TAG.sub("", text))


def _tidy(text: str) -> str:
    """Without blanks at the ends of lines, nor more than one empty line."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)).strip()


def _meta(tree: HTMLTree) -> Json:
    meta: Json = {}
    if title := (tree.title or "").strip():
        meta["title"] = re.sub(r"\s+", " ", title)
    head = tree.head
    for selector, attribute in _ADDRESSES if head is not None else ():
        if head is not None and (found := head.query_selector(selector)) and found.getattr(attribute):
            meta["url"] = found.getattr(attribute)
            break
    root = tree.document.query_selector("html") if tree.document else None
    if root is not None and root.getattr("lang"):
        meta["lang"] = root.getattr("lang")
    return meta
