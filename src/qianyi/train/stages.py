"""The model as a pipeline sees it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from qianyi.config.schema import Config
from qianyi.config.stages import EMPTY, layer_places
from qianyi.model.embedding import head_loss
from qianyi.model.param import Tree
from qianyi.model.stack import Flags, Gather
from qianyi.model.transformer import Batch, first_layers, layers, own_tokens
from qianyi.ops.loss import LossSums
from qianyi.parallel.pipeline import Model, Parts
from qianyi.parallel.schedule import Schedule, make_schedule


def schedule_of(config: Config, *, backward: bool = True) -> Schedule:
    """The table of a recipe."""
    layout = config.layout
    return make_schedule(layout.schedule, layout.stage, config.train.accumulation, layout.chunks, backward=backward)


def in_chunks(weights: Tree, config: Config) -> Model:
    """Weights of this stage, blocks as [chunks, layers of a chunk, ...]."""
    chunks = config.layout.chunks
    blocks = jax.tree.map(lambda a: a.reshape(chunks, a.shape[0] // chunks, *a.shape[1:]), weights["blocks"])
    return Model({name: part for name, part in weights.items() if name != "blocks"}, blocks)


def pipeline_parts(total: Callable[[LossSums], tuple[Array, Any]], config: Config, gather: Gather) -> Parts:
    """The model in parts; `total` turns the sums of the loss into what is differentiated and what is reported, `gather` makes the
    weights of a layer whole."""

    def embed(outer: Tree, rows: Batch) -> Array:
        return first_layers(outer, outer, own_tokens(rows), config, gather)[0]

    def chunk_layers(blocks: Tree, chunk: Array, x: Array, rows: Batch) -> tuple[Array, Array]:
        x, balance = layers(blocks, x, own_tokens(rows), config, gather, _flags(config, chunk))
        return x, balance / config.train.accumulation

    def head(outer: Tree, x: Array, rows: Batch) -> tuple[Array, Any]:
        return total(head_loss(outer, x, own_tokens(rows), config))

    return Parts(embed, chunk_layers, head)


def _flags(config: Config, chunk: Array) -> Flags:
    """Of the layers in a chunk of this stage."""
    places = np.asarray(layer_places(config)).reshape(config.layout.stage, config.layout.chunks, -1)
    live, local = places != EMPTY, np.asarray(config.model.local_layers)[places]

    def here(flags: Any) -> Array:
        return jnp.asarray(flags)[lax.axis_index("stage"), chunk]

    return Flags(None if live.all() else here(live), here(local) if local.any() and not local.all() else None)
