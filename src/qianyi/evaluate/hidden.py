"""Hidden states of a model, and embeddings of texts made of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qianyi.config.schema import Config, ModelConfig
from qianyi.model.block import norm
from qianyi.model.param import Tree
from qianyi.model.transformer import Batch, gather_outer, model_hidden, own_tokens
from qianyi.train.weights import make_gather


def text_batch(tokenizer: Tokenizer, texts: list[str]) -> dict[str, NDArray[np.int32]]:
    """Texts as a batch of an encoder, all as long as the longest: `inputs`, `segments`, and `documents`, which are 1 where padding is."""
    encodings = tokenizer.encode_batch(texts)
    length = max(len(e.ids) for e in encodings)

    def padded(rows: list[list[int]], padding: int) -> NDArray[np.int32]:
        return np.array([row + [padding] * (length - len(row)) for row in rows], np.int32)

    return {
        "inputs": padded([e.ids for e in encodings], 0),
        "segments": padded([e.type_ids for e in encodings], 0),
        "documents": padded([[0] * len(e.ids) for e in encodings], 1),
    }


def make_hidden(m: ModelConfig) -> Callable[[Tree, Batch], Array]:
    """Jitted (params, batch) -> float32 hidden states [B, T, D] after the last layer and norm, on a mesh of one device."""
    config = Config(model=m)

    def on_device(params: Tree, batch: Batch) -> Array:
        outer = gather_outer(params, make_gather(config))
        x, _ = model_hidden(params, outer, own_tokens(batch), config, make_gather(config))
        return (norm(x, outer["final_norm"], m) if m.final_norm else x).astype(jnp.float32)

    return jax.jit(jax.shard_map(on_device, in_specs=(P(), P()), out_specs=P()))


def mean_embeddings(hidden: Array, documents: Array) -> Array:
    """[B, D] of length one: means of hidden states [B, T, D] where documents [B, T] are 0, the rest being padding (Reimers & Gurevych 2019,
    section 3)."""
    mean = jnp.mean(hidden, axis=1, where=(documents == 0)[..., None])
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)
