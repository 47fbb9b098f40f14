"""The model as a pipeline sees it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from qianyi.config.schema import Config
from qianyi.config.stages import EMPTY, layer_places
from qianyi.model.decoder import Batch, Gather, decoder_embed, decoder_head, decoder_layers, own_tokens
from qianyi.model.param import Tree
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
    """The decoder in parts; `total` turns the sums of the loss into what is differentiated and what is reported, `gather` makes the
    weights of a layer whole."""
    layout = config.layout
    places = np.asarray(layer_places(config)).reshape(layout.stage, layout.chunks, -1)
    even = bool((places != EMPTY).all())

    def embed(outer: Tree, rows: Batch) -> Array:
        return decoder_embed(outer, own_tokens(rows), config.model)

    def layers(blocks: Tree, chunk: Array, x: Array, rows: Batch) -> tuple[Array, Array]:
        live = None if even else jnp.asarray(places != EMPTY)[lax.axis_index("stage"), chunk]
        x, balance = decoder_layers(blocks, x, own_tokens(rows), config, gather, live)
        return x, balance / config.train.accumulation

    def head(outer: Tree, x: Array, rows: Batch) -> tuple[Array, Any]:
        return total(decoder_head(outer, x, own_tokens(rows), config))

    return Parts(embed, layers, head)
