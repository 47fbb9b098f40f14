"""Quality rules: bounds on columns, in tables by kind of document (`corpus/rules/*.yaml`).

    kinds:
      en-prose:
        languages: [en]                       # without: all
        when: [{stat_words: {min: 100}}]      # any of these holds; without: always
        rules:
          dup_lines: {column: stat_dup_lines, max: 0.3}
          urls: {column: stat_urls, per: stat_words, max: 0.05}

A document is judged by the first kind that it is of, rule after rule; what no kind takes is kept. A file of one's own is laid over
the shipped tables: a bound replaces the shipped one, `null` in place of a rule takes it away, a new kind comes before the shipped ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from qianyi.config.explain import nearest
from qianyi.config.source import Flat, Value, parse_file
from qianyi.data.stage import Json
from qianyi.errors import ConfigError

SHIPPED = ("en", "zh", "other")
_RULE_KEYS = ("column", "per", "min", "max")
_KIND_KEYS = ("languages", "when", "rules")


@dataclass(frozen=True)
class Bound:
    """Least and greatest value of a column, or of its ratio to another."""

    column: str
    min: float | None = None
    max: float | None = None
    per: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,) if self.per is None else (self.column, self.per)


@dataclass(frozen=True)
class Kind:
    """Documents that are judged alike."""

    name: str
    languages: tuple[str, ...] = ()
    """Empty: any."""
    when: tuple[tuple[Bound, ...], ...] = ()
    """All bounds of one of these hold; empty: any document."""
    rules: dict[str, Bound] = field(default_factory=dict[str, Bound])

    @property
    def bounds(self) -> Iterator[Bound]:
        """Those of `when` and of the rules."""
        for alternative in self.when:
            yield from alternative
        yield from self.rules.values()


def load_kinds(own: Path | None = None) -> list[Kind]:
    """The shipped kinds, with a file of one's own laid over them, in the order in which they are tried.

    Raises:
        ConfigError: a file is wrong; the message names file, line and key.
    """
    flat = _shipped()
    if own is not None:
        flat = _lay_over(flat, parse_file(own))
    return _kinds(flat)


@cache
def _shipped() -> Flat:
    flat: Flat = {}
    for name in SHIPPED:
        with as_file(files("qianyi.corpus") / "rules" / f"{name}.yaml") as path:
            flat |= parse_file(path)
    return flat


def own_rules(own: Path) -> list[str]:
    """The names of the rules that a file sets."""
    names = (key.split(".") for key, value in parse_file(own).items() if value.value is not None)
    return list(dict.fromkeys(parts[3] for parts in names if len(parts) == 5 and parts[2] == "rules"))


def to_json(kinds: list[Kind]) -> Json:
    """As settings of a stage."""
    return {
        kind.name: {
            "languages": list(kind.languages),
            "when": [[vars(bound) for bound in alternative] for alternative in kind.when],
            "rules": [{"rule": name, **vars(bound)} for name, bound in kind.rules.items()],
        }
        for kind in kinds
    }


def from_json(table: Json) -> list[Kind]:
    """What `to_json` gave."""
    return [
        Kind(
            name,
            tuple(kind["languages"]),
            tuple(tuple(Bound(**bound) for bound in alternative) for alternative in kind["when"]),
            {rule["rule"]: Bound(**{k: v for k, v in rule.items() if k != "rule"}) for rule in kind["rules"]},
        )
        for name, kind in table.items()
    ]


def check_columns(kinds: list[Kind], columns: list[str], where: Path) -> None:
    """All columns that rules ask for are there.

    Raises:
        ConfigError: one is not.
    """
    for kind in kinds:
        for bound in kind.bounds:
            for column in bound.columns:
                if column not in columns:
                    raise ConfigError(f"rules of {kind.name}: no column `{column}` in {where}{nearest(column, columns)}")


def _lay_over(shipped: Flat, own: Flat) -> Flat:
    """Kinds that are new come first; of a rule taken away no key is left, of one that is set anew in one key the others stay."""
    removed = [key for key, value in own.items() if value.value is None]
    for key in removed:
        if not any(k.startswith(f"{key}.") for k in shipped):
            raise ConfigError(
                f"{own[key].origin}: `{key}`: there is no such shipped rule to take away{nearest(key, _rule_keys(shipped))}"
            )
    known = {_kind_of(key) for key in shipped}
    new = {key: value for key, value in own.items() if _kind_of(key) not in known}
    changed = {key: value for key, value in own.items() if key not in new and value.value is not None}
    return new | {k: v for k, v in (shipped | changed).items() if not k.startswith(tuple(f"{key}." for key in removed))}


def _rule_keys(flat: Flat) -> list[str]:
    return list(dict.fromkeys(key.rsplit(".", 1)[0] for key in flat if ".rules." in key))


def _kind_of(key: str) -> str:
    return key.split(".")[1] if key.count(".") else ""


def _kinds(flat: Flat) -> list[Kind]:
    kinds: dict[str, dict[str, Any]] = {}
    rules: dict[str, dict[str, Flat]] = {}
    for key, value in flat.items():
        parts = key.split(".")
        if (
            parts[0] != "kinds"
            or len(parts) not in {3, 5}
            or parts[2] not in _KIND_KEYS
            or (len(parts) == 5) != (parts[2] == "rules")
        ):
            raise ConfigError(
                f"{value.origin}: `{key}`: expected kinds.KIND.languages, kinds.KIND.when or kinds.KIND.rules.RULE with "
                f"{', '.join(_RULE_KEYS)}"
            )
        kind = kinds.setdefault(parts[1], {})
        if len(parts) == 5:
            rules.setdefault(parts[1], {}).setdefault(parts[3], {})[parts[4]] = value
        else:
            kind[parts[2]] = _languages(key, value) if parts[2] == "languages" else _when(key, value)
    return [
        Kind(name, rules={rule: _rule(f"kinds.{name}.rules.{rule}", keys) for rule, keys in rules.get(name, {}).items()}, **parts)
        for name, parts in kinds.items()
    ]


def _languages(key: str, value: Value) -> tuple[str, ...]:
    if not isinstance(value.value, list) or not all(isinstance(item, str) for item in value.value):
        raise ConfigError(f"{value.origin}: `{key}`: expected a list of language codes such as [en, zh], found {value.value}")
    return tuple(value.value)


def _when(key: str, value: Value) -> tuple[tuple[Bound, ...], ...]:
    wrong = ConfigError(f"{value.origin}: `{key}`: expected a list such as [{{stat_words: {{max: 99}}}}], found {value.value}")
    if not isinstance(value.value, list):
        raise wrong
    alternatives: list[tuple[Bound, ...]] = []
    for alternative in value.value:
        if not isinstance(alternative, dict) or not all(isinstance(bound, dict) for bound in alternative.values()):
            raise wrong
        bounds = ({"column": column, **bound} for column, bound in alternative.items())
        alternatives.append(tuple(_bound(key, bound, dict.fromkeys(bound, value.origin)) for bound in bounds))
    return tuple(alternatives)


def _rule(key: str, keys: Flat) -> Bound:
    return _bound(key, {name: value.value for name, value in keys.items()}, {name: value.origin for name, value in keys.items()})


def _bound(key: str, values: dict[str, Any], origins: dict[str, str]) -> Bound:
    """A bound of checked values; `origins` says where each was set."""
    for name in values:
        if name not in _RULE_KEYS:
            known = ", ".join(_RULE_KEYS)
            raise ConfigError(f"{origins[name]}: `{key}.{name}`: unknown{nearest(name, _RULE_KEYS)}; a bound has {known}")
    origin = next(origins[name] for name in reversed(_RULE_KEYS) if name in origins)
    if not isinstance(values.get("column"), str) or not isinstance(values.get("per", ""), str):
        raise ConfigError(f"{origin}: `{key}`: expected the name of a column, such as column: stat_words")
    limits = {side: values[side] for side in ("min", "max") if side in values}
    if not limits or any(isinstance(limit, bool) or not isinstance(limit, int | float) for limit in limits.values()):
        raise ConfigError(f"{origin}: `{key}`: expected numbers as `min` or `max`, found {limits or 'neither'}")
    if limits.get("min", float("-inf")) > limits.get("max", float("inf")):
        raise ConfigError(f"{origin}: `{key}`: min {limits['min']} is above max {limits['max']}: nothing would pass")
    return Bound(values["column"], per=values.get("per"), **{side: float(limit) for side, limit in limits.items()})
