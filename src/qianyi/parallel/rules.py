"""Parallelism is a table: logical dim of an array -> mesh axis.

A parameter names its dims (`("embed", "ffn")`); this table alone decides how it lies on the mesh.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jax.sharding import PartitionSpec as P

from qianyi.config.schema import LayoutConfig
from qianyi.parallel.mesh import AXES, mesh_shape


@dataclass(frozen=True)
class Rules:
    """The table of one layout."""

    axis_of_dim: Mapping[str, str | None]
    axis_sizes: Mapping[str, int]

    def spec(self, dims: tuple[str, ...]) -> P:
        """How an array with these dims lies on the mesh; axes of size one are left out.

        Raises:
            KeyError: a dim is not in the table.
            ValueError: two dims of one array would lie on the same axis.
        """
        axes = [self.axis_of_dim[dim] for dim in dims]
        axes = [axis if axis is not None and self.axis_sizes[axis] > 1 else None for axis in axes]
        used = [axis for axis in axes if axis is not None]
        if len(used) != len(set(used)):
            raise ValueError(f"dims {dims} collide: {axes}")
        return P(*axes)


def make_rules(layout: LayoutConfig) -> Rules:
    """The table for a layout: tensor parallelism splits heads, ffn and vocabulary; FSDP splits the residual width."""
    return Rules(
        axis_of_dim={
            "vocab": "model",
            "heads": "model",
            "kv_heads": "model",
            "ffn": "model",
            "embed": "data" if layout.zero == 3 else None,
            "layers": None,
            "positions": None,
            "head_dim": None,
            # Norm scales and residual biases: a few KiB per layer, replicated because gathering them costs more than it saves.
            "residual": None,
        },
        axis_sizes=dict(zip(AXES, mesh_shape(layout), strict=True)),
    )
