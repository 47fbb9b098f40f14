"""A refused value in one line: the place, the key, what was expected, what was found."""

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, get_args

from pydantic_core import ErrorDetails

from qianyi.config.schema import Config
from qianyi.config.source import Flat, inline

DEFAULT = "default"

_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a group of keys",
}
"""Pydantic's error types, in the words of a recipe."""

_Location = tuple[int | str, ...]


def explain(errors: Sequence[ErrorDetails], flat: Flat) -> Iterator[str]:
    """One line for each mistake; the alternatives of one key (a word or a list, say) are one mistake."""
    for location, alternatives in groupby(errors, key=lambda error: _split(error)[0]):
        yield _explain(location, list(alternatives), flat)


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?`: by the whole dotted name, else by its last part; empty when nothing is near."""
    close = difflib.get_close_matches(name, known, 1, 0.7)
    if not close:
        last = {k.rsplit(".", 1)[-1]: k for k in known}
        close = [last[m] for m in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), 1, 0.6)]
    return f"; did you mean `{close[0]}`?" if close else ""


def _split(error: ErrorDetails) -> tuple[_Location, _Location]:
    """The key of an error, and the place inside its value; pydantic puts the name of an alternative, `tuple[str, ...]`, between."""
    location = error["loc"]
    for i, part in enumerate(location):
        if isinstance(part, str) and "[" in part and error["type"] != "extra_forbidden":
            return location[:i], location[i + 1 :]
    return location, ()


def _explain(location: _Location, alternatives: list[ErrorDetails], flat: Flat) -> str:
    # Of `a word or a list of words`, the alternative that got furthest is the one that was meant.
    depth = max(len(_split(error)[1]) for error in alternatives)
    meant = [error for error in alternatives if len(_split(error)[1]) == depth]
    error = meant[0]
    location += _split(error)[1]
    key, place = ".".join(map(str, location)), _place(location, error["msg"], flat)
    match error["type"]:
        case "value_error":
            return f"{place}: {key}: {error['msg'].removeprefix('Value error, ')}"
        case "missing":
            return f"{place}: `{key}` is missing"
        case "extra_forbidden":
            return f"{place}: unknown key `{key}`{nearest(str(location[-1]), _siblings(location))}"
        case _:
            return f"{place}: {key}: expected {' or '.join(map(_expected, meant))}, found {shown(error['input'])}{_hint(meant)}"


def shown(value: Any) -> str:
    """A value as a recipe would say it, cut when it is long."""
    text = inline(value)
    return f"`{text}`" if len(text) <= 60 else f"`{text[:57]}...`"


def _hint(errors: Sequence[ErrorDetails]) -> str:
    value, types = errors[0]["input"], {error["type"] for error in errors}
    if isinstance(value, str):
        return nearest(
            value, [choice for e in errors if e["type"] == "literal_error" for choice in re.findall("'([^']*)'", e["msg"])]
        )
    return "; quote it to make it text" if "string_type" in types and isinstance(value, int | float) else ""


def _place(location: _Location, message: str, flat: Flat) -> str:
    """Where a value was set; for a group of keys, where those were that the message names."""
    for length in range(len(location), 0, -1):
        entry = flat.get(".".join(map(str, location[:length])))
        if entry is not None:
            return entry.origin_of(location[length:])
    group = f"{location[0]}."
    named = (v.origin for k, v in flat.items() if k.startswith(group) and re.search(rf"\b{k.removeprefix(group)}\b", message))
    return ", ".join(dict.fromkeys(named)) or DEFAULT


def _expected(error: ErrorDetails) -> str:
    if error["type"] == "string_pattern_mismatch":
        return f"text that matches {error.get('ctx', {}).get('pattern')}"
    message = error["msg"].removeprefix("Input should be ")
    return _EXPECTED.get(error["type"], message if error["type"] == "literal_error" else f"a value {message}")


def _siblings(location: _Location) -> list[str]:
    """The keys that exist beside a location."""
    part: Any = Config
    for name in location[:-1]:
        part = get_args(part)[0] if isinstance(name, int) else part.model_fields[name].annotation
    return list(part.model_fields)
