"""Generate text: a prompt is read at once, then one token at a time, with a key/value cache."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec as P
from tokenizers import Tokenizer

from qianyi.config.schema import ModelConfig
from qianyi.errors import DataError
from qianyi.model.param import Tree, compute_dtypes
from qianyi.model.transformer import Cache, decoder_extend, empty_cache, model_params

Extend = Callable[[Tree, Array, Array, Cache], tuple[Array, Cache]]

_MIN_BUCKET = 16
"""Prompts and caches are padded to a power of two at least this long, so that few programs are compiled."""


def make_extend(m: ModelConfig) -> Extend:
    """Jitted (params, tokens [1, T], start, cache) -> (logits [1, T, V], cache), on a mesh of one device."""

    dtypes = compute_dtypes(model_params(m), m.dtype)

    def cast(name: str, part: Tree) -> Tree:
        return jax.tree.map(lambda w, dtype: w.astype(dtype), part, dtypes[name])

    on_device = partial(decoder_extend, m=m, gather=cast)
    return jax.jit(jax.shard_map(on_device, in_specs=(P(), P(), P(), P()), out_specs=(P(), P())), donate_argnums=3)


def generate_tokens(
    extend: Extend,
    params: Tree,
    m: ModelConfig,
    prompt: list[int],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[int]:
    """Token after token, the same for the same seed; ends after max_tokens or when the model's context is full.

    Args:
        extend: from `make_extend`.
        params: whole, on one device.
        m: the model.
        prompt: token ids, at least one.
        max_tokens: how many to generate at most.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_p: sample from the likeliest tokens that together have this probability (Holtzman et al. 2020).
        seed: of the sampler.

    Raises:
        DataError: the prompt leaves no room in the context.
    """
    if len(prompt) >= m.max_seq_len:
        raise DataError(f"the prompt has {len(prompt)} tokens; model.max_seq_len is {m.max_seq_len}: shorten the prompt")
    length = min(m.max_seq_len, len(prompt) + max_tokens)
    tokens = np.zeros((1, _bucket(len(prompt), m)), np.int32)
    tokens[0, : len(prompt)] = prompt
    # Positions after the prompt hold padding; each is overwritten before any query may look at it.
    logits, cache = extend(params, jnp.asarray(tokens), jnp.int32(0), empty_cache(m, 1, _bucket(length, m)))
    last = logits[0, len(prompt) - 1]
    key = jax.random.key(seed)
    for position in range(len(prompt), length):
        token = int(sample(last, jax.random.fold_in(key, position), temperature, top_p))
        yield token
        if position + 1 < length:
            logits, cache = extend(params, jnp.full((1, 1), token, jnp.int32), jnp.int32(position), cache)
            last = logits[0, 0]


def _bucket(length: int, m: ModelConfig) -> int:
    return min(max(_MIN_BUCKET, 1 << (length - 1).bit_length()), m.max_seq_len)


@jax.jit
def sample(logits: Array, key: Array, temperature: float, top_p: float) -> Array:
    """One token id from logits [V]."""
    scaled = logits / jnp.maximum(temperature, 1e-6)
    ordered = jnp.sort(scaled, descending=True)
    before = jnp.cumsum(jax.nn.softmax(ordered)) - jax.nn.softmax(ordered)
    threshold = jnp.min(jnp.where(before < top_p, ordered, jnp.inf))
    drawn = jax.random.categorical(key, jnp.where(scaled >= threshold, scaled, -jnp.inf))
    return jnp.where(temperature == 0, jnp.argmax(logits), drawn)


def stream_text(tokenizer: Tokenizer, prompt: list[int], tokens: Iterator[int], end: frozenset[int]) -> Iterator[str]:
    """Text as it becomes complete: a character whose bytes are spread over tokens is held back until it is whole.

    Args:
        tokenizer: of the model.
        prompt: what the tokens continue; a tokenizer may write the first token of a text differently.
        tokens: from `generate_tokens`.
        end: tokens that end the text.
    """
    ids = list(prompt)
    shown = len(tokenizer.decode(ids, skip_special_tokens=True))
    for token in tokens:
        if token in end:
            break
        ids.append(token)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if not text.endswith("\ufffd"):
            yield text[shown:]
            shown = len(text)
    rest = tokenizer.decode(ids, skip_special_tokens=True)[shown:]
    if rest:
        yield rest
