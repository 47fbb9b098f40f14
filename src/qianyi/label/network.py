"""Networks that classify texts, trained on the processor within minutes: a small Transformer, and convolutions over characters."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
from jax import Array

from qianyi.config.schema import LayoutConfig
from qianyi.errors import DataError
from qianyi.label.charcnn import SHORTEST, charcnn_logits, charcnn_params
from qianyi.label.encoder import encoder_logits, encoder_model, encoder_params
from qianyi.label.linear import Arrays, Floats, Labels, log_softmax
from qianyi.label.sequences import FIRST, PADDING, UNKNOWN, Sequences, batches, sequences_of, symbols_of
from qianyi.label.vocabulary import Vocabulary, count_units, make_vocabulary
from qianyi.label.word2vec import vectors_of_rows
from qianyi.model.param import Tree, init
from qianyi.parallel.mesh import make_mesh


@dataclass(frozen=True)
class Shape:
    """Sizes of a network, and how it is trained."""

    kind: Literal["transformer", "charcnn"]
    width: int = 64
    layers: int = 2
    longest: int = 192
    """Units or characters that are read of a text."""
    limit: int = 30_000
    """Rows of the vocabulary."""
    epochs: int = 4
    rate: float = 2e-3
    symbols: int = 8192
    """Of a batch, padding counted."""
    dropout: float = 0.3
    forget: float = 0.1
    """Share of symbols that a training text loses, anew each time it is read: they become unknown."""
    smoothing: float = 0.05
    """Of labels."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """To which texts are filled up."""
        if self.kind == "charcnn":
            return (self.longest,)
        return (*(n for n in (32, 64, 128) if n < self.longest), self.longest)


TRANSFORMER = Shape("transformer")
CHARCNN = Shape("charcnn", longest=501, limit=6_000, epochs=6, symbols=32 * 501, dropout=0.5, forget=0.05)


@dataclass(frozen=True)
class Network:
    """A trained network."""

    labels: tuple[str, ...]
    shape: Shape
    vocabulary: Vocabulary
    params: Tree

    def log_probabilities(self, texts: pa.Array) -> Floats:
        """[texts, labels]."""
        symbols = symbols_of(texts, self.shape.kind == "charcnn")
        return predict(self.params, sequences_of(symbols, self.vocabulary), len(self.labels), self.shape)

    def arrays(self) -> Arrays:
        flat, _ = jax.tree_util.tree_flatten_with_path(self.params)
        named = {"params" + jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(a) for path, a in flat}
        return named | {"hashes": self.vocabulary.hashes, "counts": self.vocabulary.counts}

    @staticmethod
    def of(labels: tuple[str, ...], shape: Shape, arrays: Arrays) -> "Network":
        vocabulary = make_vocabulary(arrays["hashes"], arrays["counts"])
        like = declared(shape, len(vocabulary), len(labels))
        flat, tree = jax.tree_util.tree_flatten_with_path(jax.eval_shape(lambda: init(like, jax.random.key(0))))
        names = ["params" + jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
        return Network(labels, shape, vocabulary, jax.tree_util.tree_unflatten(tree, [arrays[name] for name in names]))


def declared(shape: Shape, n_rows: int, n_labels: int) -> Tree:
    """The parameters of a network."""
    if shape.kind == "charcnn":
        if shape.longest < SHORTEST:
            raise DataError(f"convolutions over characters need longest={SHORTEST} characters or more, not {shape.longest}")
        return charcnn_params(n_rows + FIRST, shape.longest, 32, shape.width, 256, n_labels)
    return encoder_params(encoder_model(n_rows + FIRST, shape.width, shape.layers, shape.longest), n_labels)


def logits_of(shape: Shape, n_rows: int) -> Callable[[Tree, Array, Array | None], Array]:
    """(parameters, ids [B, T], key or None) -> logits [B, C]."""
    if shape.kind == "charcnn":
        return partial(charcnn_logits, dropout=shape.dropout)
    model = encoder_model(n_rows + FIRST, shape.width, shape.layers, shape.longest)
    return partial(encoder_logits, m=model, dropout=shape.dropout)


def train_network(
    texts: pa.Array,
    targets: Labels,
    labels: tuple[str, ...],
    shape: Shape,
    *,
    held: tuple[pa.Array, Labels] | None = None,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda _epoch, _accuracy: None,
) -> Network:
    """Trains with AdamW, the rate rising over the first tenth of the steps and falling as a cosine.

    Args:
        targets: index of the label of each text.
        held: texts and targets that are not learned: the epoch that does best on them is kept. None: the last.
        progress: told each epoch and the share of `held` that is right (nan without).
    """
    symbols = symbols_of(texts, shape.kind == "charcnn")
    vocabulary = count_units(symbols.hashes, 2, shape.limit)
    sequences = sequences_of(symbols, vocabulary)
    if not len(vocabulary):
        raise DataError(f"nothing to learn from: no word occurs twice in {len(texts):,} texts")
    params: Tree = init(declared(shape, len(vocabulary), len(labels)), jax.random.key(seed))
    if shape.kind == "transformer":
        table = vectors_of_rows(symbols, vocabulary, shape.width, seed=seed)
        known = 0.5 * table / max(float(table.std()), 1e-6) / np.sqrt(shape.width)
        params["encoder"]["embedding"]["tokens"] = params["encoder"]["embedding"]["tokens"].at[FIRST:].set(known)
    watched = None if held is None else (sequences_of(symbols_of(held[0], shape.kind == "charcnn"), vocabulary), held[1])
    return Network(labels, shape, vocabulary, _fit(params, sequences, targets, watched, len(labels), shape, seed, progress))


def _fit(
    params: Tree,
    sequences: Sequences,
    targets: Labels,
    watched: tuple[Sequences, Labels] | None,
    n_labels: int,
    shape: Shape,
    seed: int,
    progress: Callable[[int, float], None],
) -> Tree:
    random = np.random.default_rng(seed)
    rounds = [list(batches(sequences, shape.lengths, shape.symbols, random)) for _ in range(shape.epochs)]
    total = sum(map(len, rounds))
    rate = optax.warmup_cosine_decay_schedule(0.0, shape.rate, max(total // 10, 1), max(total, 2))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    logits = logits_of(shape, _n_rows(params, shape))
    best, best_right = params, -1.0

    @jax.jit
    def step(params: Tree, state: Any, ids: Array, target: Array, key: Array) -> tuple[Tree, Any]:
        forget, drop = jax.random.split(key)
        lost = jax.random.bernoulli(forget, shape.forget, ids.shape) & (ids != PADDING)
        seen = jnp.where(lost, UNKNOWN, ids)
        wanted = jnp.eye(n_labels)[target] * (1 - shape.smoothing) + shape.smoothing / n_labels
        loss = lambda p: optax.softmax_cross_entropy(logits(p, seen, drop), wanted).mean()  # noqa: E731
        update, state = optimizer.update(jax.grad(loss)(params), state, params)
        return cast(Tree, optax.apply_updates(params, update)), state

    with _one_device():
        state, n = optimizer.init(params), 0
        for epoch, found in enumerate(rounds):
            for texts, ids in found:
                params, state = step(params, state, *_full(ids, targets[texts], shape), jax.random.key(seed * 1_000_003 + n))
                n += 1
            right = float("nan")
            if watched is not None:
                right = float((predict(params, watched[0], n_labels, shape).argmax(1) == watched[1]).mean())
            if not right <= best_right:
                best, best_right = params, -1.0 if np.isnan(right) else right
            progress(epoch, right)
    return jax.device_get(best)


def predict(params: Tree, sequences: Sequences, n_labels: int, shape: Shape) -> Floats:
    """Log-probabilities [texts, labels]."""
    out = np.zeros((len(sequences), n_labels), np.float32)
    with _one_device():
        forward = _forward(shape, _n_rows(params, shape))
        for texts, ids in batches(sequences, shape.lengths, shape.symbols, None):
            full, _ = _full(ids, np.zeros(len(ids), np.int32), shape)
            out[texts] = np.asarray(forward(params, full))[: len(texts)]
    return log_softmax(out)


def _full(ids: Any, targets: Labels, shape: Shape) -> tuple[Any, Labels]:
    """A batch with as many rows as all of its length have (its own again and again), so that few shapes are compiled."""
    rows = max(shape.symbols // ids.shape[1], 1)
    return np.resize(ids, (rows, ids.shape[1])), np.resize(targets, rows)


@cache
def _forward(shape: Shape, n_rows: int) -> Callable[[Tree, Array], Array]:
    logits = logits_of(shape, n_rows)
    return jax.jit(lambda params, ids: logits(params, ids, None))


def _n_rows(params: Tree, shape: Shape) -> int:
    table = params["characters"] if shape.kind == "charcnn" else params["encoder"]["embedding"]["tokens"]
    return int(table.shape[0]) - FIRST


def _one_device() -> AbstractContextManager[Any]:
    return jax.set_mesh(make_mesh(LayoutConfig(), jax.devices()[:1]))
