"""Validation loss, perplexity, accuracy and bits per byte, and what they must beat: baselines computed from the same text."""

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


def evaluate(eval_step: EvalStep, params: Tree, batches: Iterable[tuple[Batch, int | None]], step: int) -> EvalEvent:
    """Score every token of `batches` once.

    Args:
        eval_step: from `make_eval_step`: summed cross-entropy in nats, tokens whose target has the highest logit, tokens scored.
        params: as the step's layout places them.
        batches: (batch, UTF-8 bytes of the text that its scored tokens stand for; None where they are not all of a text).
        step: training steps completed, for the event.

    Raises:
        DataError: there is nothing to score.
    """
    began_seconds = time.perf_counter()
    sums: list[tuple[Array, Array, Array]] = []
    sizes: list[int | None] = []
    for batch, batch_bytes in batches:
        sums.append(eval_step(params, batch))
        sizes.append(batch_bytes)
    counted = jax.device_get(sums)
    nats = math.fsum(float(cross_entropy) for cross_entropy, _, _ in counted)
    right, tokens = (sum(int(sums_of_batch[i]) for sums_of_batch in counted) for i in (1, 2))
    known = [size for size in sizes if size is not None]
    n_bytes = sum(known) if len(known) == len(sizes) else None
    if not tokens or n_bytes == 0:
        raise DataError("the validation split has nothing to score; raise data.validation_fraction and prepare the data again")
    return EvalEvent(
        step=step,
        loss=nats / tokens,
        perplexity=math.exp(min(nats / tokens, 700)),
        accuracy=right / tokens,
        bits_per_byte=None if n_bytes is None else nats / math.log(2) / n_bytes,
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
    return float(-np.log2(_smoothed(train_counts)[targets]).sum() / n_bytes)


def unigram_loss(target_counts: NDArray[np.int64], targets: NDArray[np.int32]) -> float:
    """Nats per token of a model that knows how often each token is a target in training (add-one smoothed) and nothing else."""
    return float(-np.log(_smoothed(target_counts)[targets]).mean())


def unigram_accuracy(target_counts: NDArray[np.int64], targets: NDArray[np.int32]) -> float:
    """Share of targets that are the token which is most often one in training."""
    return float((targets == target_counts.argmax()).mean())


def _smoothed(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return (counts + 1) / (counts.sum() + len(counts))


def gzip_bits_per_byte(text: bytes) -> float:
    """The general-purpose compressor gzip at its best level, on the validation text alone."""
    return 8 * len(gzip.compress(text, 9)) / len(text)
