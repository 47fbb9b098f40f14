"""One compilation, as a process: `python -m qianyi.compile.job DIRECTORY` reads request.json there, writes program.txt and result.json."""

import json
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental.topologies import get_topology_desc

from qianyi.config.load import load
from qianyi.errors import QianyiError
from qianyi.parallel.mesh import make_mesh
from qianyi.train.batch import abstract_batch
from qianyi.train.state import abstract_state
from qianyi.train.step import make_train_step

VERSIONS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")


def main(directory: Path) -> None:
    request = json.loads((directory / "request.json").read_text())
    try:
        result, text = _compile(request)
        (directory / "program.txt").write_text(text)
    except (QianyiError, jax.errors.JaxRuntimeError) as error:
        result = {"error": str(error)}
    (directory / "result.json").write_text(json.dumps(result))


def _compile(request: dict[str, Any]) -> tuple[dict[str, Any], str]:
    config = load(request["recipe"], request["overrides"]).config
    devices = absent_devices(request["target"], request["description"])
    mesh = make_mesh(config.layout, devices)
    begun = time.perf_counter()
    with jax.set_mesh(mesh):
        step: Any = make_train_step(config)
        lowered = step.lower(abstract_state(config, mesh), abstract_batch(config, mesh))
        lowered_at = time.perf_counter()
        compiled = lowered.compile(compiler_options=request["flags"] or None)
    done = time.perf_counter()
    memory: Any = compiled.memory_analysis()
    names = [name for name in dir(memory) if name.endswith("_in_bytes")]
    result = {
        "memory": {name.removesuffix("_in_bytes").removesuffix("_size"): int(getattr(memory, name)) for name in names},
        "lower_seconds": lowered_at - begun,
        "compile_seconds": done - lowered_at,
        "versions": _versions(),
        "compiler_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "n_devices": len(devices),
    }
    return result, compiled.as_text() or ""


def absent_devices(target: dict[str, Any], description: str | None) -> Any:
    """Devices that only a compiler sees."""
    if target["platform"] == "tpu":
        slices = {"num_slices": target["slices"]} if target["slices"] > 1 else {}
        return get_topology_desc(target["topology"], "tpu", **slices, **target["options"]).devices
    return get_topology_desc("gpu", "cuda", target_config=description, topology=target["topology"]).devices


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
