"""Maximal update parametrization (muP): what was tuned at one width holds at another (Yang et al. 2022, "Tensor Programs V", table 8).

With `model.mup_base_width` a model of width D is the wider or narrower sibling of one of that width, with heads and the feed-forward layer
grown along. For m = D / base:

                                  initial deviation   learning rate of Adam, Lion   multiplier
    embedding, positions, output          1                       1                 logits 1 / m
    matrices from width to width       m ** -1/2             1 / m (Muon m ** -1/2)
    routers (width to experts)            1 / m                  1 / m
    biases, norm scales                   1                       1
    attention scores                                                                sqrt(base head width / head width), beside the usual

A router is the table's output weight, with its multiplier written into deviation and rate. Weight decay is not scaled: decoupled from the
learning rate of a matrix it shrinks equally at every width, as in the authors' package.
"""

import math
from dataclasses import replace

from qianyi.config.schema import ModelConfig
from qianyi.model.param import Param, Tree, map_params

WIDTH_DIMS = {"embed", "residual", "heads", "kv_heads", "one_head", "ffn"}
"""Dims of the residual stream and of layers within a block. A single head of keys and values does not grow; its matrix is treated alike."""


def width_ratio(m: ModelConfig) -> float:
    """The width relative to that for which hyperparameters were found."""
    return m.d_model / (m.mup_base_width or m.d_model)


def scale_deviations(params: Tree, m: ModelConfig) -> Tree:
    """The declarations with the initial deviations of this width."""
    ratio = width_ratio(m)

    def scaled(p: Param) -> Param:
        return replace(p, std=p.std / (ratio if p.kind == "router" else math.sqrt(ratio))) if _is_hidden(p) else p

    return map_params(scaled, params)


def rate_multipliers(params: Tree, m: ModelConfig) -> Tree:
    """Of the learning rate of Adam, for every parameter."""
    return map_params(lambda p: 1 / width_ratio(m) if _is_hidden(p) else 1.0, params)


def query_multiplier(m: ModelConfig) -> float:
    """Of queries, beside their usual scale: at the base head width it is one."""
    return math.sqrt((m.mup_base_head_dim or m.d_head) / m.d_head)


def _is_hidden(p: Param) -> bool:
    """Is what the parameter sums over as wide as the model, and what comes out not the vocabulary?"""
    return p.kind == "router" or (p.kind == "matrix" and sum(dim in WIDTH_DIMS for dim in p.dims) > 1)
