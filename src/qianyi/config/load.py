"""From a recipe's name and overrides to a `Config`, remembering where every value came from.

A recipe is one YAML file; `extends: NAME_OR_PATH` begins from another. Mappings merge key by key, lists are replaced.
Overrides are `key.sub=value` with YAML values. All mistakes are reported together, each with its place.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from qianyi.config import recipes
from qianyi.config.explain import DEFAULT, explain, nearest, shown
from qianyi.config.schema import Config
from qianyi.config.source import COMMAND_LINE, Flat, Value, inline, parse_file, parse_override
from qianyi.errors import ConfigError


@dataclass(frozen=True)
class Resolved:
    """A recipe, and the place that each of its values came from."""

    config: Config
    origins: dict[str, str]
    """Dotted key -> "default", "gpt3-175b.yaml:12" or "command line"."""


def load(recipe: str, overrides: Sequence[str] = ()) -> Resolved:
    """Resolve a recipe.

    Args:
        recipe: the name of a shipped recipe, or the path of a YAML file.
        overrides: `key.sub=value`.

    Raises:
        ConfigError: everything that is wrong, one line each.
    """
    problems: list[str] = []
    flat = _read(_find(recipe), ())
    for override in overrides:
        try:
            flat = _merge(flat, parse_override(override))
        except ConfigError as error:
            problems.append(str(error))
    unknown = _unknown_keys(flat)
    problems += unknown.values()
    flat = {key: entry for key, entry in flat.items() if key not in unknown}
    try:
        config = Config.model_validate_json(_to_json(flat))
    except ValidationError as error:
        raise ConfigError("\n".join([*problems, *explain(error.errors(), flat)])) from None
    if problems:
        raise ConfigError("\n".join(problems))
    return Resolved(config, {key: _origin(key, flat) for key in leaf_keys(Config)})


def dump(resolved: Resolved) -> str:
    """The whole config as YAML that loads back to itself, each line with its origin as a comment."""
    lines: list[str] = []
    values = resolved.config.model_dump(mode="json")
    group: list[str] = []
    for key in leaf_keys(Config):
        *parents, name = key.split(".")
        value = values
        for part in parents:
            value = value[part]
        for depth, part in enumerate(parents):
            if parents[: depth + 1] != group[: depth + 1]:
                lines.append(f"{'  ' * depth}{part}:")
        group = parents
        text = f"{'  ' * len(parents)}{name}: {inline(value[name])}"
        lines.append(f"{text:<48} # {resolved.origins[key]}")
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


def mapping_keys(part: type[BaseModel]) -> list[str]:
    """Those whose value may be a mapping."""
    keys: list[str] = []
    for key in leaf_keys(part):
        kind: Any = part
        for name in key.split("."):
            kind = kind.model_fields[name].annotation
        if any(get_origin(alternative) is dict for alternative in (kind, *get_args(kind))):
            keys.append(key)
    return keys


def _find(recipe: str, beside: Path | None = None) -> Path:
    """The file of a recipe; a relative path is looked up beside the file that names it."""
    if recipe in recipes.names():
        return recipes.path(recipe)
    path = Path(recipe) if beside is None else beside.parent / recipe
    if path.is_file():
        return path
    state = "is not a file" if path.exists() else "does not exist"
    raise ConfigError(
        f"recipe `{recipe}`: no shipped recipe has this name{nearest(Path(recipe).stem, recipes.names())}; as a path, {path} {state}; "
        "`qianyi recipes` lists what ships"
    )


def _read(path: Path, above: tuple[Path, ...]) -> Flat:
    """A file and all that it extends; `above` are the files that extend it."""
    if path.resolve() in above:
        raise ConfigError(f"`extends` goes round in a circle: {' -> '.join(p.name for p in (*above, path))}")
    flat = parse_file(path)
    base = flat.pop("extends", None)
    if base is None:
        return flat
    if not isinstance(base.value, str):
        raise ConfigError(f"{base.origin}: extends: expected the name of a recipe or a path, found {shown(base.value)}")
    try:
        file = _find(base.value, path)
        inherited = _read(file, (*above, path.resolve()))
    except ConfigError as error:
        # The chain of files leads from the command line to the mistake.
        raise ConfigError(f"{base.origin}: extends: {error}") from None
    inherited.pop("description", None)
    return _merge(inherited, flat)


def _merge(base: Flat, more: Flat) -> Flat:
    """`more` over `base`. Where a value may be a word or a mapping, one replaces the other."""
    replaced: set[str] = set()
    for key in mapping_keys(Config):
        if key in more:
            replaced |= {k for k in base if k.startswith(f"{key}.")}
        elif any(k.startswith(f"{key}.") for k in more):
            replaced.add(key)
    return {k: v for k, v in base.items() if k not in replaced} | more


def _origin(key: str, flat: Flat) -> str:
    """Where a value was set, or the entries of a mapping."""
    entries = [v.origin for k, v in flat.items() if k == key or k.startswith(f"{key}.")]
    return ", ".join(dict.fromkeys(entries)) or DEFAULT


def _unknown_keys(flat: Flat) -> dict[str, str]:
    """Keys that do not exist, or are groups, each with what is wrong."""
    known = leaf_keys(Config)
    groups = {k.rsplit(".", 1)[0] for k in known if "." in k}
    wrong: dict[str, str] = {}
    for key, entry in flat.items():
        if key in groups and not _says_nothing(entry):
            example = next(k for k in known if k.startswith(f"{key}."))
            wrong[key] = f"{entry.origin}: `{key}` is a group of keys, such as `{example}`; found {shown(entry.value)}"
        elif key not in known and key not in groups and key.rpartition(".")[0] not in mapping_keys(Config):
            wrong[key] = f"{entry.origin}: unknown key `{key}`{nearest(key, known)}"
    return wrong


def _says_nothing(entry: Value) -> bool:
    """`model:` with nothing under it is common in files; on the command line `model=` must mean something and does not."""
    return entry.value is None and entry.origin != COMMAND_LINE


def _to_json(flat: Flat) -> str:
    """Nested JSON; validation in JSON mode is strict, but lists become tuples and integers serve as floats."""
    tree: dict[str, Any] = {}
    for key, entry in flat.items():
        *parents, name = key.split(".")
        if not parents and name != "description" and entry.value is None:
            continue
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = entry.value
    return json.dumps(tree, default=str)
