"""What a compiled step depends on, so that a run can tell whether it is about to run what was proven."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from qianyi.config.schema import Config
from qianyi.errors import ConfigError

FILE = "fingerprint.json"
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")
"""What traces and compiles. Where a machine has no libtpu or plugin, it is not compared."""
PARTS = {"model", "layout", "optimizer", "schedule"}
"""Of a recipe, all of which shape the program."""
IDLE = {"steps", "eval_every", "eval_batches"}
"""Of `train`, what does not."""


def fingerprint(
    config: Config, device_kind: str, n_devices: int, options: Mapping[str, Any], found: Mapping[str, str]
) -> dict[str, Any]:
    """Of a step; `found`: versions of packages."""
    shaping = config.model_dump(mode="json", include=PARTS) | {"train": config.train.model_dump(mode="json", exclude=IDLE)}
    text = json.dumps(shaping, sort_keys=True)
    return {
        "packages": {name: found[name] for name in PACKAGES if name in found},
        "options": dict(options),
        "target": {"device_kind": device_kind, "n_devices": n_devices, "layout": config.layout.words},
        "recipe_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "recipe": shaping,
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Of the packages that are installed."""
    found: dict[str, str] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_fingerprint(directory: Path, now: Mapping[str, Any]) -> None:
    """Whether what is about to run is what a compile report is of.

    Raises:
        ConfigError: it is not; every difference is named.
    """
    path = directory / FILE
    try:
        then: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"run.compiled={directory}: no compile report there ({path.name}: {error})") from None
    differences = list(_differences(then, now))
    if differences:
        listed = "\n  ".join(differences)
        raise ConfigError(
            f"run.compiled={directory}: this is not the program that was compiled:\n  {listed}\n"
            "compile again, change it back, or train without the check: run.compiled=null"
        )


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    both = then["packages"].keys() & now["packages"].keys()
    found = [_said(name, then["packages"][name], now["packages"][name]) for name in sorted(both)]
    names = sorted(then["options"].keys() | now["options"].keys())
    found += [_said(f"run.compiler_options {name}", then["options"].get(name), now["options"].get(name)) for name in names]
    found += [_said(name, then["target"][name], now["target"][name]) for name in then["target"]]
    if then["recipe_sha256"] != now["recipe_sha256"]:
        flat_then, flat_now = _flat(then["recipe"]), _flat(now["recipe"])
        found += [_said(key, flat_then.get(key), flat_now.get(key)) for key in sorted(flat_then.keys() | flat_now.keys())]
    return [line for line in dict.fromkeys(found) if line]


def _said(name: str, then: Any, now: Any) -> str:
    return "" if then == now else f"{name}: {now}, compiled with {then}"


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {key: value for name, inner in tree.items() for key, value in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()}
