"""YAML with places: a file or an override as dotted keys, each value with the line that set it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from qianyi.errors import ConfigError

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Value:
    """A scalar or list as written, and where."""

    value: Any
    node: yaml.Node
    file: str
    """Name of the file, or `COMMAND_LINE`."""
    line: int
    """Line of its key."""

    @property
    def origin(self) -> str:
        return self._place(self.line)

    def origin_of(self, path: Sequence[int | str]) -> str:
        """The place of an item inside a list: `path` holds indices and keys, followed as far as they exist."""
        node, line = self.node, self.line
        for part in path:
            inner = _child(node, part)
            if inner is None:
                break
            node, line = inner, _line(inner)
        return self._place(line)

    def _place(self, line: int) -> str:
        return COMMAND_LINE if self.file == COMMAND_LINE else f"{self.file}:{line}"


Flat = dict[str, Value]
"""Dotted key -> value."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with floats as people write them: `1e-4` is a number."""


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `_Loader` would take for numbers."""


_FastLoader: Any = type("_FastLoader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
"""As `_Loader`, in C where PyYAML has it, with other words for mistakes."""


_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
for _side in (_Loader, _FastLoader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_file(path: Path) -> Flat:
    """Every value of a YAML file.

    Raises:
        ConfigError: the file cannot be read, or does not hold a tree of mappings.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    try:
        node = _compose(text)
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise _MistakeError(_line(node), f"expected `key: value` lines, found {_kind(node)}")
    except _MistakeError as mistake:
        raise ConfigError(f"{path}:{mistake.line}: {mistake.what}") from None
    return {
        key: value
        for key_node, value_node in node.value
        for key, value in _flatten(key_node.value, value_node, path.name, _line(key_node))
    }


def parse_override(override: str) -> Flat:
    """`key.sub=value`, the value in YAML.

    Raises:
        ConfigError: there is no key, or the value is not YAML.
    """
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"{COMMAND_LINE}: `{override}`: expected key.sub=value, such as train.steps=100")
    try:
        node = _compose(text) or yaml.ScalarNode("tag:yaml.org,2002:null", "")
    except _MistakeError as mistake:
        raise ConfigError(f"{COMMAND_LINE}: `{override}`: {mistake.what}") from None
    return dict(_flatten(key.strip(), node, COMMAND_LINE, 1))


def inline(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


class _MistakeError(Exception):
    """Something wrong in one line."""

    def __init__(self, line: int, what: str):
        self.line, self.what = line, what


def _compose(text: str) -> yaml.Node | None:
    """The tree of a text; None when it is empty."""
    try:
        try:
            node = yaml.compose(text, _FastLoader)
        except yaml.YAMLError:
            node = yaml.compose(text, _Loader)
        if node is not None:
            _check_tree(node, ())
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _MistakeError(line, f"not valid YAML: character {chr(error.character)!a} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise _MistakeError(error.problem_mark.line + 1 if error.problem_mark else 1, f"not valid YAML: {what}") from None
    except RecursionError:
        raise _MistakeError(1, "nested too deeply") from None
    return node


def _check_tree(node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
    """Refuse what YAML allows and no recipe means: keys set twice, keys that are lists, aliases of what contains them."""
    if any(node is outer for outer in above):
        raise _MistakeError(_line(node), "an alias refers to the value that it is part of")
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise _MistakeError(line, f"expected a word as key, found {_kind(key_node)}")
            if key in seen:
                raise _MistakeError(line, f"`{key}` is set twice (first in line {seen[key]})")
            seen[key] = line
            _check_tree(value_node, (*above, node))
        return
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_tree(item, (*above, node))
    try:
        _construct(node)
    except ValueError as error:
        raise _MistakeError(_line(node), f"not valid YAML: {error}") from None


def _flatten(key: str, node: yaml.Node, file: str, line: int) -> Iterator[tuple[str, Value]]:
    """Everything under a key; lists are values."""
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            yield from _flatten(f"{key}.{key_node.value}", value_node, file, _line(key_node))
    else:
        yield key, Value(_construct(node), node, file, line)


def _construct(node: yaml.Node) -> Any:
    return _Loader("").construct_object(node, deep=True)


def _child(node: yaml.Node, part: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
        return node.value[part]
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    return None


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _kind(node: yaml.Node) -> str:
    return {"MappingNode": "a group of keys", "SequenceNode": "a list"}.get(type(node).__name__, f"`{node.value}`")
