"""From a recipe's name and overrides to a checked `Config`, remembering where every value came from.

A recipe is one YAML file; `extends: NAME_OR_PATH` begins from another. Mappings merge key by key, lists are replaced.
Overrides are `key.sub=value` with YAML values. All mistakes are reported together, each with its place.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from qianyi.config import recipes
from qianyi.config.schema import Config
from qianyi.errors import ConfigError

DEFAULT = "default"
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Resolved:
    """A recipe, and the place that each of its values came from."""

    config: Config
    origins: dict[str, str]
    """Dotted key -> "default", "gpt3-175b.yaml:12" or "command line"."""


@dataclass(frozen=True)
class _Value:
    """A scalar or list as written, and where."""

    value: Any
    origin: str


_Flat = dict[str, _Value]
"""Dotted key -> value, in the order of merging."""


def load(recipe: str, overrides: Sequence[str] = ()) -> Resolved:
    """Resolve a recipe.

    Args:
        recipe: the name of a shipped recipe, or the path of a YAML file.
        overrides: `key.sub=value`.

    Raises:
        ConfigError: everything that is wrong, one line each.
    """
    flat = _read(_find(recipe, None), ())
    for override in overrides:
        key, value = _parse_override(override)
        flat = _merge(flat, {key: _Value(value, COMMAND_LINE)})
    unknown = _unknown_keys(flat)
    problems = list(unknown.values())
    flat = {key: entry for key, entry in flat.items() if key not in unknown}
    try:
        config = Config.model_validate_json(_to_json(flat))
    except ValidationError as error:
        raise ConfigError("\n".join([*problems, *(_explain(e, flat) for e in error.errors())])) from None
    if problems:
        raise ConfigError("\n".join(problems))
    origins = {key: flat[key].origin if key in flat else DEFAULT for key in leaf_keys(Config)}
    return Resolved(config, origins)


def dump(resolved: Resolved, *, origins: bool = True) -> str:
    """The whole config as YAML that loads back to itself, each line with its origin as a comment."""
    lines: list[str] = []
    values = resolved.config.model_dump(mode="json")
    for key in leaf_keys(Config):
        *parents, name = key.split(".")
        value = values
        for part in parents:
            value = value[part]
        if parents and f"{parents[0]}:" not in lines:
            lines.append(f"{parents[0]}:")
        text = f"{'  ' * len(parents)}{name}: {_inline(value[name])}"
        lines.append(f"{text:<48} # {resolved.origins[key]}" if origins else text)
    return "\n".join(lines) + "\n"


def leaf_keys(part: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key that a user may set, dotted."""
    keys: list[str] = []
    for name, field in part.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += leaf_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


class _Loader(yaml.SafeLoader):
    """YAML with floats as people write them: `1e-4` is a number."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _find(recipe: str, beside: Path | None) -> Path:
    """The file of a recipe; a relative path is looked up beside the file that names it."""
    if recipe in recipes.names():
        return recipes.path(recipe)
    path = Path(recipe) if beside is None else beside.parent / recipe
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return path
    raise ConfigError(
        f"recipe `{recipe}`: no shipped recipe has this name{_nearest(recipe, recipes.names())} and no file {path} exists; "
        "`qianyi recipes` lists the names"
    )


def _read(path: Path, above: tuple[Path, ...]) -> _Flat:
    if path.resolve() in above:
        raise ConfigError(f"{path}: `extends` goes round in a circle: {' -> '.join(p.name for p in (*above, path))}")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: expected `key: value` lines, found {node.tag.rsplit(':', 1)[-1]}")
    flat = dict(_flatten(node, "", path))
    base = flat.pop("extends", None)
    if base is None:
        return flat
    if not isinstance(base.value, str):
        raise ConfigError(f"{base.origin}: extends: expected the name of a recipe or a path, found {base.value!r}")
    inherited = _read(_find(base.value, path), (*above, path.resolve()))
    inherited.pop("description", None)
    return _merge(inherited, flat)


def _flatten(node: yaml.MappingNode, prefix: str, path: Path) -> Iterator[tuple[str, _Value]]:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        if key in seen:
            raise ConfigError(f"{path}:{line}: `{key}` is set twice (first in line {seen[key]})")
        seen[key] = line
        if isinstance(value_node, yaml.MappingNode):
            yield from _flatten(value_node, f"{key}.", path)
        else:
            yield key, _Value(_construct(value_node), f"{path.name}:{line}")


def _construct(node: yaml.Node) -> Any:
    return _Loader("").construct_object(node, deep=True)


def _merge(base: _Flat, over: _Flat) -> _Flat:
    """`over` wins; a whole value replaces the parts of a group of the same name and the other way round."""
    kept = {k: v for k, v in base.items() if not any(o.startswith(f"{k}.") for o in over)}
    return {**kept, **over}


def _parse_override(override: str) -> tuple[str, Any]:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"{COMMAND_LINE}: `{override}`: expected key.sub=value, such as train.steps=100")
    try:
        return key.strip(), yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"{COMMAND_LINE}: `{override}`: the value is not valid YAML; quote it") from None


def _unknown_keys(flat: _Flat) -> dict[str, str]:
    """Keys that do not exist, or are groups, each with what is wrong."""
    known = leaf_keys(Config)
    groups = {k.rsplit(".", 1)[0] for k in known if "." in k}
    wrong: dict[str, str] = {}
    for key, entry in flat.items():
        if key in groups and entry.value is not None:
            example = next(k for k in known if k.startswith(f"{key}."))
            wrong[key] = f"{entry.origin}: `{key}` is a group of keys, such as `{example}`; found {entry.value!r}"
        elif key not in known and key not in groups:
            wrong[key] = f"{entry.origin}: unknown key `{key}`{_nearest(key, known)}"
    return wrong


def _nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?`: by the whole dotted name, else by its last part."""
    close = difflib.get_close_matches(name, known, 1, 0.7)
    if not close:
        last = {k.rsplit(".", 1)[-1]: k for k in known}
        close = [last[m] for m in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), 1, 0.6)]
    return f"; did you mean `{close[0]}`?" if close else ""


def _to_json(flat: _Flat) -> str:
    """Nested JSON; validation in JSON mode is strict, but lists become tuples and integers serve as floats."""

    tree: dict[str, Any] = {}
    for key, entry in flat.items():
        *parents, name = key.split(".")
        if not parents and entry.value is None:
            continue  # `model:` with nothing under it
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = entry.value
    return json.dumps(tree, default=str)


def _explain(error: ErrorDetails, flat: _Flat) -> str:
    """One line: place, key, what was expected, what was found."""
    location = [str(part) for part in error["loc"]]
    key = next((k for n in range(len(location), 0, -1) if (k := ".".join(location[:n])) in flat), ".".join(location[:2]))
    origin = flat[key].origin if key in flat else _group_origin(key, flat)
    detail = ".".join(location[len(key.split(".")) :])
    where = f"{key}{f' ({detail})' if detail and key in flat else ''}"
    if error["type"] == "value_error":
        return f"{origin}: {where}: {error['msg'].removeprefix('Value error, ')}"
    return f"{origin}: {where}: expected {_expected(error, key)}, found {error['input']!r}"


def _group_origin(group: str, flat: _Flat) -> str:
    places = dict.fromkeys(v.origin for k, v in flat.items() if k.startswith(f"{group}."))
    return ", ".join(places) or DEFAULT


def _expected(error: ErrorDetails, key: str) -> str:
    message = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    choices = _choices(key)
    if choices and error["type"] == "literal_error":
        return f"{message}{_nearest(str(error['input']), choices)}"
    return message[:1].lower() + message[1:]


def _choices(key: str) -> list[str]:
    part: Any = Config
    for name in key.split("."):
        if not (isinstance(part, type) and issubclass(part, BaseModel)) or name not in part.model_fields:
            return []
        part = part.model_fields[name].annotation
    options = [part, *get_args(part)]
    return [str(c) for o in options if str(get_origin(o)).endswith("Literal") for c in get_args(o)]


def _inline(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("\n...\n")
    return text.strip()
