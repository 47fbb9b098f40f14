"""The device mesh: the six axes of `qianyi.parallel.rules` over real devices."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh

from qianyi.config.schema import AXES, BATCH_AXES, LayoutConfig
from qianyi.errors import ResourceError

TOKEN_AXES = (*BATCH_AXES, "context")
"""Axes over which tokens are split."""
LOSS_AXES = tuple(axis for axis in AXES if axis != "model")
"""Axes over which a device's share of the loss differs."""


def make_mesh(layout: LayoutConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (all devices when None), ordered so that neighbours on `model` are close.

    Devices of several slices (joined by a data-centre network) are split between slices along `replica` first, then `stage`, then
    `data`: what sends least goes over the slow network.

    Raises:
        ResourceError: there are not exactly as many devices as the layout needs, or slices do not divide it.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) != layout.n_devices:
        hint = "run.virtual_devices=N simulates N devices on a CPU" if devices[0].platform == "cpu" else "change layout.*"
        raise ResourceError(
            f"layout needs {layout.n_devices} devices ({layout.words}), found {len(devices)} ({devices[0].device_kind}): {hint}"
        )
    shape, explicit = tuple(layout.sizes.values()), (AxisType.Explicit,) * len(AXES)
    n_slices = len({getattr(d, "slice_index", 0) for d in devices})
    if n_slices == 1:
        # Axes may share a physical axis of a TPU's torus: there are more of them than of those.
        return Mesh(create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES, axis_types=explicit)
    across = slice_shape(layout, n_slices)
    within = tuple(size // n for size, n in zip(shape, across, strict=True))
    return Mesh(create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True), AXES, axis_types=explicit)


def abstract_mesh(layout: LayoutConfig) -> AbstractMesh:
    """The axes of a mesh, without devices."""
    return AbstractMesh(tuple(layout.sizes.values()), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def slice_shape(layout: LayoutConfig, n_slices: int) -> tuple[int, ...]:
    """How many parts of each of `AXES` lie on different slices.

    Raises:
        ResourceError: replica x stage x data cannot be split so.
    """
    across, left = dict.fromkeys(AXES, 1), n_slices
    for axis in ("replica", "stage", "data"):
        across[axis] = math.gcd(layout.sizes[axis], left)
        left //= across[axis]
    if left > 1:
        raise ResourceError(
            f"{n_slices} slices do not divide layout.replica {layout.replica} x stage {layout.stage} x data {layout.data}: "
            f"one of these axes must cross the slices; set layout.replica={n_slices}"
        )
    return tuple(across.values())
