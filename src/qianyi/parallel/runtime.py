"""Bring JAX up: platform, virtual devices, and the other processes of the run."""

import os

import jax

from qianyi.config.schema import RunConfig
from qianyi.errors import ConfigError, ResourceError


def initialize(run: RunConfig) -> None:
    """Set the backend up; to be called once, before anything else touches a device.

    A run of several processes is described by the environment: `QIANYI_NUM_PROCESSES`, `QIANYI_PROCESS_ID` and
    `QIANYI_COORDINATOR` (host:port of process 0), or `QIANYI_NUM_PROCESSES=auto` to let JAX ask Slurm, Open MPI or the
    TPU pod.

    Raises:
        ConfigError: the environment variables are incomplete.
        ResourceError: the backend or the other processes cannot be reached.
    """
    if run.platform != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(run.platform, run.platform))
    if run.virtual_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", run.virtual_devices)
    try:
        _join_processes(os.environ)
        jax.devices()
    except RuntimeError as error:
        raise ResourceError(f"run.platform={run.platform}: the backend does not start: {error}") from error


def _join_processes(env: "os._Environ[str]") -> None:
    count = env.get("QIANYI_NUM_PROCESSES", "1")
    if count == "auto":
        jax.distributed.initialize()
    elif count != "1":
        missing = [name for name in ("QIANYI_PROCESS_ID", "QIANYI_COORDINATOR") if name not in env]
        if missing or not count.isdigit():
            raise ConfigError(
                f"environment: QIANYI_NUM_PROCESSES={count} needs a number or `auto`, with QIANYI_PROCESS_ID and "
                f"QIANYI_COORDINATOR (host:port); missing: {', '.join(missing) or 'none'}"
            )
        address = env["QIANYI_COORDINATOR"]
        jax.distributed.initialize(address, int(count), int(env["QIANYI_PROCESS_ID"]))
