"""The device mesh: six axes that always exist, each of size one or more.

    replica  data parallelism with replicated parameters (slices, islands)
    stage    pipeline stages
    data     data parallelism over which parameters may be sharded (FSDP)
    context  parts of a sequence
    expert   experts of a mixture
    model    tensor parallelism, and sequence parallelism between the matmuls

Code that runs on a device names axes and never asks whether one is "on": an axis of size one costs nothing
(`qianyi.parallel.collectives` leaves its collectives out of the program).
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from qianyi.config.schema import LayoutConfig
from qianyi.errors import ResourceError

AXES = ("replica", "stage", "data", "context", "expert", "model")
BATCH_AXES = ("replica", "data")
"""Axes over which the rows of a batch are split."""


def mesh_shape(layout: LayoutConfig) -> tuple[int, ...]:
    """Sizes of `AXES` under a layout."""
    return (layout.replica, 1, layout.data, 1, 1, layout.model)


def make_mesh(layout: LayoutConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (all devices when None), ordered so that neighbours on `model` are close.

    Raises:
        ResourceError: there are not exactly as many devices as the layout needs.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) != layout.n_devices:
        hint = "run.virtual_devices=N simulates N devices on a CPU" if devices[0].platform == "cpu" else "change layout.*"
        raise ResourceError(
            f"layout needs {layout.n_devices} devices (replica {layout.replica} x data {layout.data} x model {layout.model}), "
            f"found {len(devices)} ({devices[0].device_kind}): {hint}"
        )
    return jax.make_mesh(mesh_shape(layout), AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=tuple(devices))
