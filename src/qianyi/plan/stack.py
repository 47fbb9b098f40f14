"""Software stacks: what a training program does that a layout does not say (`data/stacks.yaml`)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Flags are 0 or 1; `data/stacks.yaml` says what they mean."""

    name: str
    lineage: str
    like: str = ""
    sequence_parallel: int = 1
    flash: int = 1
    dropout: int = 0
    remat: str = "none"
    skips_last: int = 0
    zero: int = 1
    gradient_bytes: float = 4
    reduce_bytes: float = 4
    optimizer_bytes: float = 12
    gathers_8_bits: int = 0
    overlaps: int = 1
    tensor_overlaps: int = 0
    interleaves: int = 0
    fills_once: int = 0
    balances: int = 0
    host_gbps: float = 0.0
    source: str = ""


OURS = "qianyi"


def stack(name: str) -> Stack:
    return Stack(name=name, **_data()["stacks"][name])


def stack_of_run(row: Mapping[str, str]) -> Stack:
    """Of a row of `published_runs.csv`: the first rule all of whose patterns are found in the row."""
    for rule in _data()["runs"]:
        if all(_fits(pattern, row.get(key, ""), key) for key, pattern in rule.items() if key != "stack"):
            return stack(rule["stack"])
    raise AssertionError("the last two rules fit every run")


def _fits(pattern: str, text: str, key: str) -> bool:
    return bool(re.fullmatch(pattern, text) if key == "source_group" else re.search(pattern, text))


@cache
def _data() -> dict[str, Any]:
    return yaml.safe_load((files("qianyi.plan.data") / "stacks.yaml").read_text())
