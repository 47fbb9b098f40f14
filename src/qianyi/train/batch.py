"""The shape of a batch, for those who compile the step without data."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from qianyi.config.objective import row_lengths
from qianyi.config.schema import Config
from qianyi.parallel.rules import batch_spec


def abstract_batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of the batch that a step of `train.batch_size` rows takes: int32 [batch, length]."""
    sharding = NamedSharding(mesh, batch_spec(config.layout))
    rows = config.train.batch_size
    return {
        name: jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=sharding)
        for name, length in row_lengths(config.train).items()
    }
