"""The table of corpora that package registries carry: `corpus:NAME`, and the groups `corpus:en`, `corpus:zh`, `corpus:all`."""

import difflib
from functools import cache
from importlib import resources
from typing import Any

import yaml

from qianyi.errors import DataError

LANGUAGES = ("en", "zh")


@cache
def corpora() -> dict[str, dict[str, Any]]:
    """The table: of each name title, language, packages, files, licence and how it is read."""
    text = resources.files("qianyi.corpus.collect").joinpath("corpora.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def corpus_names(name: str) -> list[str]:
    """The corpora that `corpus:name` stands for. Groups leave out what is for research only; it is named one by one.

    Raises:
        DataError: there is no such corpus.
    """
    table = corpora()
    if name in {*LANGUAGES, "all"}:
        return [n for n, entry in table.items() if name in {entry["language"], "all"} and not entry.get("research_only")]
    if name not in table:
        near = difflib.get_close_matches(name, table, 1)
        hint = f"; did you mean corpus:{near[0]}?" if near else ""
        raise DataError(f"corpus:{name}: no such corpus{hint} There are {', '.join([*LANGUAGES, 'all', *table])}")
    return [name]
