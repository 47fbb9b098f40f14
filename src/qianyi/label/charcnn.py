"""A network of convolutions over characters: Zhang, Zhao & LeCun 2015, "Character-level Convolutional Networks for Text Classification".

Table 1 in small: six convolutions of widths 7, 7, 3, 3, 3, 3, pooling by 3 after the first, second and last, then three linear layers.
Where the paper has one of 70 characters, a learned vector stands for each code point of the training texts, so that Chinese needs no
pinyin.

Dims: B text, T character, D features, C label.
"""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array, lax

from qianyi.label.sequences import PADDING
from qianyi.model.param import Param, Tree

KERNELS = (7, 7, 3, 3, 3, 3)
POOL = 3
POOLED = (0, 1, 5)
"""After which convolutions the largest of each 3 is taken (Table 1)."""
SHORTEST = 123
"""Characters; lengths are 96 + 27 n, of which n columns are left (section 2.4)."""


def columns(length: int) -> int:
    """Positions that are left of `length` characters."""
    for layer, width in enumerate(KERNELS):
        length -= width - 1
        length = length // POOL if layer in POOLED else length
    return length


def charcnn_params(vocab_size: int, length: int, embedded: int, features: int, hidden: int, n_labels: int) -> Tree:
    params: Tree = {"characters": Param((vocab_size, embedded), ("vocab", "embed"), 1 / math.sqrt(embedded))}
    inputs = embedded
    for layer, width in enumerate(KERNELS):
        params[f"conv{layer}"] = Param((width, inputs, features), ("window", "embed", "ffn"), math.sqrt(2 / (width * inputs)))
        params[f"conv{layer}_bias"] = Param((features,), ("ffn",), kind="vector")
        inputs = features
    sizes = (columns(length) * features, hidden, hidden, n_labels)
    for layer, (rows, outputs) in enumerate(pairwise(sizes)):
        params[f"linear{layer}"] = Param((rows, outputs), ("embed", "ffn"), math.sqrt(2 / rows) if layer < 2 else 0.02)
        params[f"linear{layer}_bias"] = Param((outputs,), ("ffn",), kind="vector")
    return params


def charcnn_logits(params: Tree, ids: Array, key: Array | None, dropout: float) -> Array:
    """float32 [B, C] of ids int32 [B, T].

    Args:
        key: draws what is dropped before the second and third linear layer in training; None: nothing is.
    """
    x = params["characters"][ids] * (ids != PADDING)[..., None]
    for layer in range(len(KERNELS)):
        x = lax.conv_general_dilated(x, params[f"conv{layer}"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
        x = jax.nn.relu(x + params[f"conv{layer}_bias"])
        if layer in POOLED:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, POOL, 1), (1, POOL, 1), "VALID")
    x = x.reshape(x.shape[0], -1)
    for layer in range(3):
        if layer > 0 and key is not None:
            kept = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - dropout, x.shape)
            x = jnp.where(kept, x / (1 - dropout), 0)
        x = x @ params[f"linear{layer}"] + params[f"linear{layer}_bias"]
        x = jax.nn.relu(x) if layer < 2 else x
    return x
