"""Parallelism is a table: logical dim of an array -> mesh axes.

A parameter names its dims (`("embed", "ffn")`); this table alone decides how it lies on the mesh. Six axes always exist, each of size
one or more:

    replica  data parallelism with replicated parameters (slices, islands)
    stage    pipeline stages
    data     data parallelism over which parameters, gradients and optimizer state may be sharded (ZeRO, FSDP)
    context  parts of a sequence; the same may be sharded over it
    expert   experts of a mixture; rows of the batch for everything else
    model    tensor parallelism, and sequence parallelism between the matmuls

Code that runs on a device names axes and never asks whether one is "on": an axis of size one costs nothing
(`qianyi.parallel.collectives` leaves its collectives out of the program).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jax.sharding import PartitionSpec as P

from qianyi.config.schema import LayoutConfig
from qianyi.parallel.mesh import BATCH_AXES

SHARDING_AXES = ("data", "context")
"""Axes over which ZeRO and FSDP shard."""


@dataclass(frozen=True)
class Rules:
    """The table of one layout."""

    axes_of_dim: Mapping[str, tuple[str, ...]]
    axis_sizes: Mapping[str, int]

    def spec(self, dims: tuple[str, ...]) -> P:
        """How an array with these dims lies on the mesh; axes of size one are left out.

        Raises:
            KeyError: a dim is not in the table.
            ValueError: two dims of one array would lie on the same axis.
        """
        entries = [tuple(axis for axis in self.axes_of_dim[dim] if self.axis_sizes[axis] > 1) for dim in dims]
        used = [axis for entry in entries for axis in entry]
        if len(used) != len(set(used)):
            raise ValueError(f"dims {dims} collide: {entries}")
        return P(*(entry[0] if len(entry) == 1 else entry or None for entry in entries))


def make_rules(layout: LayoutConfig, *, gradients: bool = False) -> Rules:
    """The table for a layout: where parameters lie or, with `gradients`, their gradients and optimizer state.

    Tensor parallelism splits heads, ffn and vocabulary; ZeRO and FSDP the residual width; the pipeline layers.
    """
    sharded = layout.zero == 3 or (gradients and layout.zero >= 1)
    return Rules(
        axes_of_dim={
            "batch": BATCH_AXES,
            # Devices of `context` get whole rows of tokens and take their own positions from them: a few KiB.
            "sequence": (),
            "vocab": ("model",),
            "heads": ("model",),
            "kv_heads": ("model",),
            # Multi-query attention: every device of `model` has the one head, and sums its gradient.
            "one_head": (),
            "ffn": ("model",),
            "experts": ("expert",),
            "embed": SHARDING_AXES if sharded else (),
            # What projections from a latent vector are sharded along, having no residual width.
            "latent": SHARDING_AXES if sharded else (),
            "rank": (),
            "layers": ("stage",),
            # Layers that all stages have: those before the pipeline, an encoder's.
            "whole_layers": (),
            "positions": (),
            "buckets": (),
            "label": (),
            "head_dim": (),
            # Norm scales and residual biases: a few KiB per layer, replicated because gathering them costs more than it saves.
            "residual": (),
            "router": (),
            "operand": (),
            "history": (),
        },
        axis_sizes=layout.sizes,
    )


def batch_spec(layout: LayoutConfig) -> P:
    """How a batch, [batch, sequence], lies on the mesh."""
    return make_rules(layout).spec(("batch", "sequence"))
