"""The compilers: where they are, and how one is started.

They are packages that hold no more than compilers need: libtpu, and the CUDA plugin with ptxas. Compiling is a process of its own: the
plugin looks for a GPU in every process that can import it, flags are read once, and a compiler's memory goes back when it ends.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qianyi.compile.target import Target, device_description
from qianyi.errors import ConfigError, QianyiError, ResourceError

PACKAGES = {"tpu": ("libtpu",), "cuda": ("jax_plugins/xla_cuda12", "nvidia/cuda_nvcc")}
WHERE = "QIANYI_COMPILERS"
"""Environment variable: a directory that holds the packages, where they are not installed beside Qianyi."""
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask the cloud which TPU this is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compilers, unlike TPUs, may be several at a time
    "TPU_LOG_DIR": "disabled",
}
GPU_FLAGS = "--xla_gpu_autotune_level=0"
"""Autotuning runs kernels."""
REMATERIALIZED = "Involuntary full rematerialization"
"""What the partitioner says when a sharding makes it gather an array whole."""


class CompileError(QianyiError):
    """The compiler refuses the program."""

    def __init__(self, message: str, argument_bytes: int = 0) -> None:
        super().__init__(message)
        self.argument_bytes = argument_bytes
        """Of the state on one device."""


@dataclass(frozen=True)
class Compiled:
    """What a compiler made."""

    text: str
    """The scheduled program of one device."""
    memory: dict[str, int]
    """Bytes of one device, as the compiler counts them: argument, output, alias, temp, peak, and of the host."""
    lower_seconds: float
    compile_seconds: float
    versions: dict[str, str]
    compiler_rss_bytes: int
    rematerialized: tuple[str, ...]
    """Lines of its log: arrays that it gathers whole, not asked to."""
    remarks: list[str]
    """On how the program came about."""
    device_kind: str
    """What JAX calls the chip."""
    options: dict[str, Any]
    """Of the compiler, beside its defaults."""
    replicated: list[dict[str, Any]]
    """Arrays of the state that are the same on several devices: name, bytes of one device, axes along which they are."""

    def needed_bytes(self, platform: str) -> int:
        """What a device must have: on a TPU the peak; on a GPU, whose temporaries are one block, that with all else, if it is more."""
        block = self.memory["argument"] + self.memory["output"] - self.memory["alias"] + self.memory["temp"]
        return max(self.memory["peak_memory"], block) if platform == "cuda" else self.memory["peak_memory"]


def compile_step(recipe: str, overrides: Sequence[str], target: Target, options: Mapping[str, Any] | None = None) -> Compiled:
    """Compiles the training step of a recipe for a target. `options`: of the compiler, in place of those of `qianyi.parallel.options`.

    Raises:
        ConfigError: the recipe does not go with its layout or with the chips.
        ResourceError: the compiler is not installed.
        CompileError: it refuses the program; the message is its reason.
    """
    paths = _paths(target)
    with tempfile.TemporaryDirectory(prefix="qianyi-compile-") as directory:
        request = {
            "recipe": str(Path(recipe).resolve()) if Path(recipe).exists() else recipe,
            "overrides": list(overrides),
            "target": {k: v for k, v in asdict(target).items() if k != "cluster"},
            "description": device_description(target.cluster.chip.name) if target.platform == "cuda" else None,
            "options": None if options is None else dict(options),
        }
        Path(directory, "request.json").write_text(json.dumps(request))
        log = _run(directory, paths)
        result: dict[str, Any] = json.loads(Path(directory, "result.json").read_text())
        if "error" in result:
            raise ConfigError(result["error"]) if result["is_ours"] else CompileError(result["error"], result["argument_bytes"])
        text = Path(directory, "program.txt").read_text()
    rematerialized = tuple(line.strip() for line in log.splitlines() if REMATERIALIZED in line)
    return Compiled(text=text, rematerialized=rematerialized, **result["compiled"])


def _paths(target: Target) -> list[str]:
    paths = [*([os.environ[WHERE]] if WHERE in os.environ else []), *sys.path]
    missing = [package for package in PACKAGES[target.platform] if not any(Path(path, package).is_dir() for path in paths)]
    if missing:
        what = "TPU" if target.platform == "tpu" else "GPU"
        raise ResourceError(
            f"no {what} compiler here ({', '.join(missing)} not found): pip install 'qianyi[compile]', or set {WHERE} to a "
            "directory that holds the packages"
        )
    return paths


def _run(directory: str, paths: list[str]) -> str:
    """The log of a compiler that has ended, its result in the directory."""
    flags = f"{GPU_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
    env = os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "qianyi.compile.job", directory]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if not Path(directory, "result.json").exists():
        why = {-9: "it was killed: out of memory?"}.get(done.returncode, f"it ended with {done.returncode}")
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise CompileError(f"the compiler stopped without a result: {why}\n{last}")
    return done.stderr
