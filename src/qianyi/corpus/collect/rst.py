"""reStructuredText to plain text: marks, directives and their options go, what people read stays."""

import re

_ADORNMENT = re.compile(r"^([=\-`:.'\"~^_*+#<>])\1{2,}\s*$")
_COMMENT = re.compile(r"^(\s*)\.\. (?![\w-]+::|\[|_|\|)|^(\s*)\.\.\s*$")
_DIRECTIVE = re.compile(r"^(\s*)\.\. (?:\|[^|]+\| )?([\w:-]+)::\s*(.*)$")
_SILENT = frozenset(
    {
        "toctree", "index", "contents", "highlight", "highlightlang", "raw", "include", "literalinclude", "image", "figure", "only",
        "tabularcolumns", "kernel-doc", "module", "currentmodule", "moduleauthor", "sectionauthor", "csv-table", "kernel-figure",
        "kernel-render", "kernel-abi", "kernel-feat", "meta", "default-role", "role",
    }
)  # fmt: skip
"""Directives whose arguments and content nobody reads as prose."""
_INLINE = (
    (re.compile(r":[\w:+.-]+:`([^`<]*?)\s*<[^`>]*>`"), r"\1"),
    (re.compile(r":[\w:+.-]+:`[~!]?([^`]*)`"), r"\1"),
    (re.compile(r"``(.+?)``"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"(?<![*\w])\*{1,2}(\S(?:[^*\n]*?\S)?)\*{1,2}(?![*\w])"), r"\1"),
    (re.compile(r"::$"), ":"),
)


def rst_to_text(source: str) -> tuple[str, str | None]:
    """The text of a document and its title."""
    kept: list[str] = []
    title: str | None = None
    lines = source.expandtabs().split("\n")
    skip_deeper_than: int | None = None
    options = False
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if skip_deeper_than is not None:
            if not line.strip() or indent > skip_deeper_than:
                continue
            skip_deeper_than = None
        if options and re.match(r"\s+:[\w -]+:", line):
            continue
        options = False
        if _ADORNMENT.match(line):
            if title is None and kept and kept[-1].strip() and (i == 0 or lines[i - 1].strip()):
                title = kept[-1].strip()
            continue
        if directive := _DIRECTIVE.match(line):
            if directive[2] in _SILENT:
                skip_deeper_than = len(directive[1])
            else:
                options = True
                kept.append(_inline(directive[1] + directive[3]))
        elif comment := _COMMENT.match(line):
            skip_deeper_than = len(comment[1] or comment[2] or "")
        elif re.match(r"\s*\.\. (_[^:]*:|\[)", line):
            kept.append("")
        elif not re.match(r"^:[\w -]+:(\s|$)", line) or kept:  # fields before any text are of the file
            kept.append(_inline(line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in kept)).strip(), title


def _inline(line: str) -> str:
    for pattern, replacement in _INLINE:
        line = pattern.sub(replacement, line)
    return line
