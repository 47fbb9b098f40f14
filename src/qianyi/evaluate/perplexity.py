"""Validation loss, perplexity and bits per byte, and what they must beat: baselines computed from the same text."""

import gzip
import math
import time
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from qianyi.errors import DataError
from qianyi.events import EvalEvent
from qianyi.model.param import Tree
from qianyi.train.step import Batch

EvalStep = Callable[[Tree, Batch], tuple[Array, Array, Array]]


def evaluate(eval_step: EvalStep, params: Tree, batches: Iterable[tuple[Batch, int]], step: int) -> EvalEvent:
    """Score every token of `batches` once.

    Args:
        eval_step: from `make_eval_step`.
        params: as the step's layout places them.
        batches: (batch, UTF-8 bytes of the text that its scored tokens stand for).
        step: training steps completed, for the event.

    Raises:
        DataError: there is nothing to score.
    """
    began_seconds = time.perf_counter()
    sums: list[tuple[Array, Array, Array]] = []
    n_bytes = 0
    for batch, batch_bytes in batches:
        sums.append(eval_step(params, batch))
        n_bytes += batch_bytes
    nats = math.fsum(float(ce) for ce, _, _ in jax.device_get(sums))
    tokens = sum(int(n) for _, _, n in jax.device_get(sums))
    if not tokens or not n_bytes:
        raise DataError("the validation split has nothing to score; raise data.validation_fraction and prepare the data again")
    return EvalEvent(
        step=step,
        loss=nats / tokens,
        perplexity=math.exp(min(nats / tokens, 700)),
        bits_per_byte=nats / math.log(2) / n_bytes,
        tokens=tokens,
        bytes=n_bytes,
        seconds=time.perf_counter() - began_seconds,
        time=time.time(),
    )


def uniform_bits_per_byte(vocab_size: int, tokens: int, n_bytes: int) -> float:
    """A model that gives every token of the vocabulary the same probability."""
    return tokens * math.log2(vocab_size) / n_bytes


def unigram_bits_per_byte(train_counts: NDArray[np.int64], targets: NDArray[np.int32], n_bytes: int) -> float:
    """A model that knows how often each token occurs in the training split (add-one smoothed) and nothing else."""
    probability = (train_counts + 1) / (train_counts.sum() + len(train_counts))
    return float(-np.log2(probability[targets]).sum() / n_bytes)


def gzip_bits_per_byte(text: bytes) -> float:
    """The general-purpose compressor gzip at its best level, on the validation text alone."""
    return 8 * len(gzip.compress(text, 9)) / len(text)
