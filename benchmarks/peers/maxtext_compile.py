"""MaxText's training step, compiled for TPUs that are not here by its own `train_compile`, which is only watched.

`python maxtext_compile.py DIRECTORY KEY=VALUE ...` writes what `qianyi.compile.job` writes: program.txt and result.json. MaxText builds its
mesh, its abstract state and its step; what is put in its place is the function that compiles, by the same calls with a clock around each.
"""

import json
import os
import resource
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["DECOUPLE_GCLOUD"] = "TRUE"  # its own switch for machines without Google Cloud

import jax
from maxtext.trainers.pre_train import train_compile
from maxtext.utils import max_utils

VERSIONS = ("maxtext", "jax", "jaxlib", "libtpu")


def main(directory: Path, settings: list[str]) -> None:
    def compile_and_keep(
        func: Any,
        args: Any,
        kwargs: Any,
        mesh: Any,
        in_shardings: Any,
        out_shardings: Any,
        static_argnums: Any,
        donate_argnums: Any,
        config: Any,
        rules: Any,
    ) -> Any:
        begun = time.perf_counter()
        with jax.set_mesh(mesh), rules:
            jitted = jax.jit(
                func,
                in_shardings=in_shardings,
                out_shardings=out_shardings,
                static_argnums=static_argnums,
                donate_argnums=donate_argnums,
            )
            lowered = jitted.lower(*args, **kwargs)
        lowered_at = time.perf_counter()
        compiled = lowered.compile(compiler_options=max_utils.parse_libtpu_flags_to_dict(config.compile_xla_flags))
        done = time.perf_counter()
        keep(directory, compiled, lowered_at - begun, done - lowered_at, mesh)
        return compiled

    train_compile.jit_and_compile = compile_and_keep
    base = Path(sys.modules["maxtext.configs"].__path__[0]) / "base.yml"
    common = ["run_name=benchmark", "hardware=tpu", "enable_checkpointing=false", "dataset_type=synthetic", "log_config=false"]
    train_compile.main(["train_compile", str(base), *common, f"base_output_directory={directory}", "jax_cache_dir=", *settings])


def keep(directory: Path, compiled: Any, lower_seconds: float, compile_seconds: float, mesh: Any) -> None:
    memory = compiled.memory_analysis()
    names = [name for name in dir(memory) if name.endswith("_in_bytes")]
    result = {
        "memory": {name.removesuffix("_in_bytes").removesuffix("_size"): int(getattr(memory, name)) for name in names},
        "lower_seconds": lower_seconds,
        "compile_seconds": compile_seconds,
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "compiler_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "n_devices": mesh.size,
        "axes": dict(mesh.shape),
    }
    (directory / "program.txt").write_text(compiled.as_text())
    (directory / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
