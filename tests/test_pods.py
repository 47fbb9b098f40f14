"""The training step compiles for a TPU pod slice and for a GPU pod, neither of which is here.

XLA's compilers for TPU and CUDA need a description of the devices, not the devices. They are packages that ordinary environments do without
(a CUDA plugin complains wherever there is no GPU), so they are looked for in `.venv-pods` beside this repository's other environments too:

    pip install -c constraints.txt --no-deps --target .venv-pods libtpu jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12

Each compilation is a process of its own, which this file is the program of: flags and plugins stay out of the other tests.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.topologies import get_topology_desc
from jax.sharding import NamedSharding
from models import GPT, LLAMA, make_config

from qianyi.config.model import MoEConfig
from qianyi.config.schema import LayoutConfig, ModelConfig
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.rules import batch_spec
from qianyi.train.state import abstract_state
from qianyi.train.step import make_train_step

COMPILERS = Path(__file__).parents[1] / ".venv-pods"
PACKAGES = {"tpu": ("libtpu",), "cuda": ("jax_plugins/xla_cuda12", "nvidia/cuda_nvcc")}
TOPOLOGIES = {("tpu", 8): "v5p:2x2x2", ("tpu", 32): "v5p:2x4x4", ("cuda", 8): "1x1x8", ("cuda", 32): "1x4x8"}
"""By number of devices: chips along each direction of the torus; partitions, hosts, GPUs of a host."""
H100_SXM = """
    platform_name: "CUDA"
    device_description_str: "NVIDIA H100 80GB HBM3"
    gpu_device_info {
      cuda_compute_capability { major: 9 minor: 0 }
      core_count: 132
      fpus_per_core: 128
      clock_rate_ghz: 1.98
      device_memory_size: 84978434048
      memory_bandwidth: 3352320000000
      l2_cache_size: 52428800
      shared_memory_per_core: 233472
      shared_memory_per_block: 49152
      shared_memory_per_block_optin: 232448
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      threads_per_warp: 32
      threads_per_block_limit: 1024
      threads_per_core_limit: 2048
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
    }"""
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask the cloud which TPU this is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compilers, unlike TPUs, may be several at a time
    "TPU_LOG_DIR": "disabled",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",  # autotuning runs kernels
}
SEQ_LEN = 256
SIZES = {"dtype": "bfloat16", "d_model": 256, "n_heads": 4, "d_ff": 512, "max_seq_len": SEQ_LEN, "vocab_size": 1024}


class Case(NamedTuple):
    model: ModelConfig
    layout: LayoutConfig
    accumulation: int
    permutes: int
    """Arrays sent to a neighbour, by place in the program: an activation and a gradient in a pipeline; in a ring, keys and values
    forward, these and their gradients backward, and the gradients home."""


CASES = {
    "pipeline": Case(GPT.model_copy(update=SIZES), LayoutConfig(stage=2, data=2, model=2), 4, 2),
    "ring": Case(LLAMA.model_copy(update=SIZES | {"n_kv_heads": 2}), LayoutConfig(context=4, data=2, exchange="ring"), 1, 8),
    "five axes": Case(
        LLAMA.model_copy(update=SIZES | {"n_kv_heads": 2, "moe": MoEConfig(n_experts=8)}),
        LayoutConfig(stage=2, data=2, context=2, expert=2, model=2),
        accumulation=4,
        permutes=2,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", PACKAGES)
def test_step_compiles_for_a_pod(target: str, name: str) -> None:
    report, permutes = compile_apart(__file__, target, name), CASES[name].permutes
    assert report["devices"] == CASES[name].layout.n_devices
    assert report["temporary"] > 0
    # The state is updated in place: all that is not is a batch and a few scalars.
    assert report["argument"] - report["alias"] < 2**16
    assert report["written"] == permutes
    if target == "cuda" and name == "ring":
        assert report["permutes"]  # XLA unrolls the ring there, and sends several arrays as one message
    else:
        assert report["permutes"] == permutes
    # A device in a branch may have neighbours that are in another one.
    assert report["permutes_in_branches"] == 0


def compile_apart(program: str, target: str, name: str) -> dict[str, Any]:
    """What a program prints that compiles a case of it for a target; skips the test where there is no compiler."""
    paths = [str(COMPILERS), *sys.path]
    missing = [package for package in PACKAGES[target] if not any(Path(path, package).is_dir() for path in paths)]
    if missing:
        pytest.skip(f"no compiler for {target}: {', '.join(missing)} not found in {COMPILERS.name} or this environment")
    env = os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-W", "error", program, target, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert "Involuntary full rematerialization" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def absent_devices(target: str, n: int) -> Any:
    if target == "tpu":
        return get_topology_desc(TOPOLOGIES[target, n], target).devices
    return get_topology_desc("h100", target, target_config=H100_SXM, topology=TOPOLOGIES[target, n]).devices


def compile_step(target: str, case: Case) -> dict[str, Any]:
    """Compiles the step for absent devices; bytes are those of one device."""
    devices = absent_devices(target, case.layout.n_devices)
    rows = 2 * case.layout.batch_shards * case.accumulation
    config = make_config(case.model, case.layout, accumulation=case.accumulation, batch_size=rows, seq_len=SEQ_LEN)
    mesh = make_mesh(case.layout, devices)
    tokens = jax.ShapeDtypeStruct((rows, SEQ_LEN), jnp.int32, sharding=NamedSharding(mesh, batch_spec(case.layout)))
    with jax.set_mesh(mesh):
        lowered = make_train_step(config).lower(abstract_state(config, mesh), {"inputs": tokens, "targets": tokens})
        compiled = lowered.compile()
    memory: Any = compiled.memory_analysis()
    permutes = [line for line in compiled.as_text().splitlines() if re.search(r" collective-permute(-start)?\(", line)]
    return {
        "devices": len(devices),
        "argument": memory.argument_size_in_bytes,
        "alias": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "written": lowered.as_text().count("stablehlo.collective_permute"),
        "permutes": len(permutes),
        "permutes_in_branches": sum("/branch_" in line for line in permutes),
    }


if __name__ == "__main__":
    print(json.dumps(compile_step(sys.argv[1], CASES[sys.argv[2]])))
