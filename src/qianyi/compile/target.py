"""What a step is compiled for: chips that are not here, as JAX's compilers want them described."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from qianyi.config.explain import nearest
from qianyi.errors import ConfigError
from qianyi.plan.chips import chips
from qianyi.plan.cluster import Cluster, cluster

TPU_TOPOLOGIES = {
    "tpu-v2": "v2",
    "tpu-v3": "v3",
    "tpu-v4": "v4",
    "tpu-v5e": "v5e",
    "tpu-v5p": "v5p",
    "tpu-v6e": "v6e",
    "tpu-v7": "tpu7x",
}
"""By chip: what libtpu calls its topologies."""
CORES_PER_CHIP = {"tpu-v2": 2, "tpu-v3": 2, "tpu-v7": 2}
"""Devices that JAX sees for each chip, where it is not one: cores that do not work as one (v4 and v5p have two that do)."""


OPTIONS = {"tpu-v4": {"chip_config_name": "megacore"}}
"""By chip: what it is asked for so that its cores work as one, as JAX has them on real ones."""


@dataclass(frozen=True)
class Target:
    """A cluster and its compiler."""

    cluster: Cluster
    platform: Literal["tpu", "cuda"]
    topology: str
    """`v5p:4x8x8`, or `1x32x8`: partitions, hosts, GPUs of each."""
    slices: int
    n_devices: int
    """That JAX sees."""
    options: Mapping[str, Any]
    """Of the topology."""

    @property
    def hbm_bytes_per_device(self) -> int:
        """What a program may use: of a TPU what its compiler gives, of a GPU what its data sheet says."""
        if self.platform == "tpu":
            return int(tpus()[self.cluster.chip.name]["hbm_gib"] * 2**30)
        return int(self.cluster.chip.hbm_bytes)


def target(text: str) -> Target:
    """From `tpu-v5p:4x8x8`, `tpu-v6e:16x16*4`, `h100:32x8` or the path of a YAML file (`qianyi.plan.cluster`).

    Raises:
        ConfigError: there is no such chip or shape, or no compiler for it.
    """
    found = cluster(text)
    chip = found.chip
    if chip.torus_axes:
        name = TPU_TOPOLOGIES.get(chip.name)
        if name is None:
            raise ConfigError(f"--target {text}: the TPU compiler knows {', '.join(TPU_TOPOLOGIES)}, not {chip.name}")
        shape = "x".join(str(d) for d in found.domain)
        return Target(
            found,
            "tpu",
            f"{name}:{shape}",
            found.n_domains,
            found.n_chips * CORES_PER_CHIP.get(chip.name, 1),
            # Unless told, the compiler takes a torus to be open, and a ring along two of its dimensions to be one line.
            {"wrap": (*found.wraps, False)[:3], **OPTIONS.get(chip.name, {})},
        )
    if chip.name not in gpus():
        known = [c.name for c in chips() if c.name in gpus() or c.name in TPU_TOPOLOGIES]
        raise ConfigError(
            f"--target {text}: there is no compiler for {chip.name}{nearest(chip.name, known)} (there is for {', '.join(known)})"
        )
    return Target(found, "cuda", f"1x{found.n_domains}x{found.domain[0]}", 1, found.n_chips, {})


@cache
def gpus() -> dict[str, dict[str, Any]]:
    """Limits of GPUs by chip, from `data/gpus.yaml`."""
    text = (files("qianyi.compile.data") / "gpus.yaml").read_text()
    return yaml.safe_load(text)["gpus"]


def device_description(chip: str) -> str:
    """A GPU as XLA's compiler wants it: a text proto of `GpuTargetConfigProto`."""
    found = gpus()[chip]
    major, minor = found["compute_capability"]
    limits = {**gpus()["common"], **{k: v for k, v in found.items() if k not in {"name", "compute_capability", "source"}}}
    lines = "\n".join(f"  {key}: {value}" for key, value in limits.items())
    return (
        f'platform_name: "CUDA"\ndevice_description_str: "{found["name"]}"\n'
        f"gpu_device_info {{\n  cuda_compute_capability {{ major: {major} minor: {minor} }}\n{lines}\n}}\n"
    )


@cache
def tpus() -> dict[str, dict[str, Any]]:
    """What is to be known of TPUs by chip, from `data/tpus.yaml`."""
    return yaml.safe_load((files("qianyi.compile.data") / "tpus.yaml").read_text())["tpus"]
