"""Options of the compiler that matter, by chip: a table with sources (`options.yaml`), the same whether a step is compiled to be read or to
run."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jax
import yaml

Value = bool | int | str


def compiler_options(own: Mapping[str, Value | None] | None = None) -> dict[str, Value]:
    """Of the chips of the mesh in use (absent ones included), or else of this process; with one's own, of which None takes one away."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = device.device_kind if device is not None else jax.devices()[0].device_kind
    merged = {**table_of(kind), **(own or {})}
    return {name: value for name, value in merged.items() if value is not None}


def table_of(device_kind: str) -> dict[str, Value]:
    """What the table has for a chip, by the name that JAX gives it."""
    return {
        name: option["value"]
        for group in _table().values()
        if any(device_kind.startswith(kind) for kind in group["device_kinds"])
        for name, option in group["options"].items()
    }


@cache
def _table() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((files("qianyi.parallel") / "options.yaml").read_text())
