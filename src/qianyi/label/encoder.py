"""A Transformer encoder that classifies: the project's own blocks between a table of units and a layer for labels.

Dims: B text, T unit, D width, C label.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P
from tokenizers import Tokenizer

from qianyi.config.schema import Config, ModelConfig
from qianyi.errors import DataError
from qianyi.label.sequences import PADDING
from qianyi.model.block import norm
from qianyi.model.param import Param, Tree
from qianyi.model.transformer import gather_outer, model_hidden, model_params, own_tokens
from qianyi.train.weights import make_gather


@dataclass(frozen=True)
class Start:
    """A pretrained encoder, which learns labels from where it is."""

    model: ModelConfig
    params: Tree
    tokenizer: Tokenizer
    """Puts the special tokens around a text; neither fills up nor cuts off."""


def start_from(model: ModelConfig, params: Tree, tokenizer: Tokenizer) -> Start:
    """Without the heads of its pretraining.

    Raises:
        DataError: the model is no encoder.
    """
    if model.kind != "encoder":
        raise DataError(f"a classifier starts from an encoder, such as BERT, and this model is of kind {model.kind}")
    plain = model.model_copy(update={"mlm_head": False, "sentence_head": False, "remat": "none"})
    return Start(plain, {name: params[name] for name in model_params(plain)}, tokenizer)


def encoder_model(vocab_size: int, width: int, layers: int, longest: int) -> ModelConfig:
    """Pre-norm blocks with rotary positions, in float32."""
    return ModelConfig.model_validate(
        {
            "kind": "encoder",
            "vocab_size": vocab_size,
            "n_layers": layers,
            "d_model": width,
            "n_heads": max(width // 32, 1),
            "d_ff": 2 * width,
            "max_seq_len": longest,
            "position": "rope",
            "mlm_head": False,
            "init_std": 0.05,
            "dtype": "float32",
            "remat": "none",
        }
    )


def encoder_params(m: ModelConfig, n_labels: int) -> Tree:
    D = m.d_model
    out = Param((3 * D, n_labels), ("embed", "label"), 0.02)
    return {"encoder": model_params(m), "out": out, "bias": Param((n_labels,), ("label",), kind="vector")}


def encoder_logits(params: Tree, ids: Array, key: Array | None, m: ModelConfig, dropout: float) -> Array:
    """float32 [B, C] of ids int32 [B, T], from the mean and the largest of hidden states and the mean of embeddings.

    Args:
        key: draws what is dropped in training; None: nothing is.
    """
    config = Config(model=m)
    gather = make_gather(config)

    def on_device(weights: Tree, ids: Array) -> Array:
        outer = gather_outer(weights, gather)
        there = (ids != PADDING)[..., None]
        known = jnp.maximum(ids, 0)
        rows = {"inputs": known, "documents": (ids == PADDING).astype(jnp.int32)}
        rows |= {"segments": jnp.zeros_like(ids)} if m.segments else {}
        x, _ = model_hidden(weights, outer, own_tokens(rows), config, gather)
        x = norm(x, outer["final_norm"], m) if m.final_norm else x
        n = jnp.maximum(there.sum(1), 1)
        embedded = jnp.where(there, outer["embedding"]["tokens"][known], 0).sum(1) / jnp.sqrt(n)
        return jnp.concatenate([jnp.where(there, x, 0).sum(1) / n, jnp.where(there, x, -1e4).max(1), embedded], axis=-1)

    pooled = jax.shard_map(on_device, in_specs=(P(), P()), out_specs=P())(params["encoder"], ids)
    if key is not None:
        pooled = jnp.where(jax.random.bernoulli(key, 1 - dropout, pooled.shape), pooled / (1 - dropout), 0)
    return pooled @ params["out"] + params["bias"]
