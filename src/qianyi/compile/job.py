"""One compilation, as a process: `python -m qianyi.compile.job DIRECTORY` reads request.json there, writes program.txt and result.json."""

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental.topologies import get_topology_desc

from qianyi.compile.fingerprint import PACKAGES, versions
from qianyi.config.load import load
from qianyi.errors import QianyiError
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.options import compiler_options
from qianyi.train.batch import abstract_batch
from qianyi.train.state import abstract_state
from qianyi.train.step import make_train_step

NO_TILES = "Couldn't find output tile sizes"
"""What XLA says of a product for which its kernels have no tiles. Where there is a GPU, it would have tried cuBLAS first."""
ASSEMBLER = "nvidia-cuda-nvcc-cu12"
"""The package of ptxas, which makes a GPU's code but not its schedule: reported, not compared."""


def main(directory: Path) -> None:
    request = json.loads((directory / "request.json").read_text())
    result: dict[str, Any] = {"argument_bytes": 0}
    try:
        _compile(request, directory, result)
    except QianyiError as error:
        result |= {"error": str(error), "is_ours": True}
    except jax.errors.JaxRuntimeError as error:
        result |= {"error": str(error), "is_ours": False}
    (directory / "result.json").write_text(json.dumps(result))


def _compile(request: dict[str, Any], directory: Path, result: dict[str, Any]) -> None:
    config = load(request["recipe"], request["overrides"]).config
    devices = absent_devices(request["target"], request["description"])
    mesh = make_mesh(config.layout, devices)
    begun = time.perf_counter()
    with jax.set_mesh(mesh):
        options = compiler_options(config.run.compiler_options) if request["options"] is None else request["options"]
        state = abstract_state(config, mesh)
        result["argument_bytes"] = sum(_bytes(array) for array in jax.tree.leaves(state))
        step: Any = make_train_step(config, options)
        lowered = step.lower(state, abstract_batch(config, mesh))
        lowered_at = time.perf_counter()
        compiled, remarks = _compiled(lowered)
    done = time.perf_counter()
    (directory / "program.txt").write_text(compiled.as_text() or "")
    memory: Any = compiled.memory_analysis()
    names = [name for name in dir(memory) if name.endswith("_in_bytes")]
    result["compiled"] = {
        "memory": {name.removesuffix("_in_bytes").removesuffix("_size"): int(getattr(memory, name)) for name in names},
        "lower_seconds": lowered_at - begun,
        "compile_seconds": done - lowered_at,
        "versions": versions((*PACKAGES, ASSEMBLER)),
        "compiler_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "device_kind": devices[0].device_kind,
        "options": options,
        "replicated": _replicated(state),
        "remarks": remarks,
    }


def _compiled(lowered: Any) -> tuple[Any, list[str]]:
    """The program, and what is to be said of how it came about."""
    try:
        return lowered.compile(), []
    except jax.errors.JaxRuntimeError as error:
        if NO_TILES not in str(error):
            raise
    said = f"XLA's own kernels cannot do a product of this size ({NO_TILES}): all products are cuBLAS's"
    return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False}), [said]


def _replicated(state: Any) -> list[dict[str, Any]]:
    """Arrays that are the same along axes of the mesh."""
    found: list[dict[str, Any]] = []
    for path, array in jax.tree_util.tree_leaves_with_path(state):
        used = {axis for entry in array.sharding.spec for axis in (entry if isinstance(entry, tuple) else (entry,))}
        axes = " x ".join(axis for axis, n in array.sharding.mesh.shape.items() if n > 1 and axis not in used)
        if axes and array.ndim:
            found.append({"name": jax.tree_util.keystr(path, simple=True, separator="/"), "bytes": _bytes(array), "axes": axes})
    return found


def _bytes(array: Any) -> int:
    """Of one device."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def absent_devices(target: dict[str, Any], description: str | None) -> Any:
    """Devices that only a compiler sees."""
    if target["platform"] == "tpu":
        slices = {"num_slices": target["slices"]} if target["slices"] > 1 else {}
        return get_topology_desc(target["topology"], "tpu", **slices, **target["options"]).devices
    return get_topology_desc("gpu", "cuda", target_config=description, topology=target["topology"]).devices


if __name__ == "__main__":
    main(Path(sys.argv[1]))
