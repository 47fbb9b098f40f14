"""Networks that classify texts, trained on the processor within minutes: a small Transformer, a pretrained one, and convolutions over
characters. Each answers together with a linear classifier of n-grams, weighted by what either knows of held-out texts.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
from jax import Array

from qianyi.config.schema import LayoutConfig, ModelConfig
from qianyi.errors import DataError
from qianyi.label.charcnn import SHORTEST, charcnn_logits, charcnn_params
from qianyi.label.encoder import Start, encoder_logits, encoder_model, encoder_params
from qianyi.label.linear import Arrays, Floats, Labels, Tfidf, log_softmax, train_tfidf
from qianyi.label.reader import Reader, Tokens, Words, reader_of
from qianyi.label.sequences import FIRST, PADDING, Sequences, batches, symbols_of
from qianyi.label.vocabulary import count_units
from qianyi.label.word2vec import vectors_of_rows
from qianyi.model.param import Tree, init
from qianyi.parallel.mesh import make_mesh

HELD_SHARE = 0.1
"""Of labelled texts, by which the network and the linear classifier are weighed."""
STEPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.3)
"""Weights that either may have. They need not sum to one, since each thinks too much or too little of what it knows."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a network, and how it is trained."""

    kind: Literal["transformer", "charcnn"]
    width: int = 64
    layers: int = 2
    longest: int = 192
    """Units, characters or tokens that are read of a text."""
    limit: int = 30_000
    """Rows of the vocabulary."""
    epochs: int = 3
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
        return (*(n for n in (32, 48, 64, 128) if n < self.longest), self.longest)


TRANSFORMER = Shape("transformer")
CHARCNN = Shape("charcnn", longest=231, limit=6_000, epochs=12, rate=1e-3, symbols=32 * 231, dropout=0.5)
PRETRAINED = Shape("transformer", longest=128, epochs=2, rate=1e-4, symbols=1024, dropout=0.1, forget=0.0)


@dataclass(frozen=True)
class Network:
    """A trained network and the linear classifier that it is added to."""

    labels: tuple[str, ...]
    shape: Shape
    reader: Reader
    model: ModelConfig | None
    """Of a Transformer."""
    wide: Tfidf
    weights: tuple[float, float]
    """Of the network's log-probabilities and of the linear classifier's."""
    params: Tree

    def log_probabilities(self, texts: pa.Array) -> Floats:
        """[texts, labels]."""
        own = _predict(self.params, self.reader.read(texts), len(self.labels), self.shape, self.model)
        return combined(own, self.wide.log_probabilities(texts), self.weights)

    def arrays(self) -> Arrays:
        flat, _ = jax.tree_util.tree_flatten_with_path(self.params)
        named = {_name(path): np.asarray(a) for path, a in flat}
        wide = {f"wide/{name}": a for name, a in self.wide.arrays().items()}
        model = {} if self.model is None else {"model": np.array(self.model.model_dump_json())}
        return named | wide | model | {"weights": np.array(self.weights)} | self.reader.arrays()

    @staticmethod
    def of(labels: tuple[str, ...], shape: Shape, arrays: Arrays) -> "Network":
        reader = reader_of(arrays)
        model = ModelConfig.model_validate_json(str(arrays["model"])) if "model" in arrays else None
        wide = Tfidf.of(labels, {name.removeprefix("wide/"): a for name, a in arrays.items() if name.startswith("wide/")})
        like = jax.eval_shape(lambda: init(declared(shape, model, reader.n_ids, len(labels)), jax.random.key(0)))
        flat, tree = jax.tree_util.tree_flatten_with_path(like)
        params = jax.tree_util.tree_unflatten(tree, [arrays[_name(path)] for path, _ in flat])
        of_network, of_wide = (float(weight) for weight in arrays["weights"])
        return Network(labels, shape, reader, model, wide, (of_network, of_wide), params)


def _name(path: Any) -> str:
    return "params/" + jax.tree_util.keystr(path, simple=True, separator="/")


def declared(shape: Shape, model: ModelConfig | None, n_ids: int, n_labels: int) -> Tree:
    """The parameters of one network."""
    if model is not None:
        return encoder_params(model, n_labels)
    if shape.longest < SHORTEST:
        raise DataError(f"convolutions over characters need longest={SHORTEST} characters or more, not {shape.longest}")
    return charcnn_params(n_ids, shape.longest, 32, shape.width, 256, n_labels)


def logits_of(shape: Shape, model: ModelConfig | None) -> Callable[[Tree, Array, Array | None], Array]:
    """(parameters, ids [B, T], key or None) -> logits [B, C] of the network alone."""
    if model is None:
        return partial(charcnn_logits, dropout=shape.dropout)
    return partial(encoder_logits, m=model, dropout=shape.dropout)


def train_network(
    texts: pa.Array,
    targets: Labels,
    labels: tuple[str, ...],
    shape: Shape,
    *,
    start: Start | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Network:
    """Trains with AdamW, the rate rising over the first tenth of the steps and falling as a cosine.

    A tenth of the texts is held out to weigh the network and the linear classifier, which then learns from all.

    Args:
        targets: index of the label of each text.
        start: what a Transformer begins with; None: vectors of its words and random numbers.
        progress: told what was done.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    held, learned = np.split(order, [max(int(len(order) * HELD_SHARE), 1)])
    some, others = texts.take(pa.array(learned)), texts.take(pa.array(held))
    # First, since what it needs may not be installed.
    wide = train_tfidf(some, targets[learned], labels).log_probabilities(others)
    begin = _begin(some, shape, len(labels), seed) if start is None else _begin_from(start, len(labels), seed)
    reader, model, begun = begin
    params = _fit(begun, Lessons(reader.read(some), targets[learned], len(labels)), shape, model, reader.unknown, seed, progress)
    own = _predict(params, reader.read(others), len(labels), shape, model)
    weights = best_weights(own, wide, targets[held])
    progress(f"weights: {weights[0]} of the network, {weights[1]} of n-grams")
    return Network(labels, shape, reader, model, train_tfidf(texts, targets, labels), weights, params)


def best_weights(own: Floats, wide: Floats, targets: Labels) -> tuple[float, float]:
    """With the largest likelihood of the targets, from a grid of `STEPS`."""

    def loss(weights: tuple[float, float]) -> float:
        return -float(combined(own, wide, weights)[np.arange(len(targets)), targets].mean())

    return min(product(STEPS, STEPS), key=loss)


def combined(own: Floats, wide: Floats, weights: tuple[float, float]) -> Floats:
    """Log-probabilities of two as one's."""
    return log_softmax(weights[0] * own + weights[1] * wide)


def _begin(texts: pa.Array, shape: Shape, n_labels: int, seed: int) -> tuple[Words, ModelConfig | None, Tree]:
    """How texts are read, a Transformer's sizes, and the parameters, which begin with vectors of words or characters."""
    symbols = symbols_of(texts, shape.kind == "charcnn")
    vocabulary = count_units(symbols.hashes, 2, shape.limit)
    if not len(vocabulary):
        raise DataError(f"nothing to learn from: no word occurs twice in {len(texts):,} texts")
    reader = Words(vocabulary, shape.kind == "charcnn")
    model = None if reader.characters else encoder_model(reader.n_ids, shape.width, shape.layers, shape.longest)
    params: Tree = init(declared(shape, model, reader.n_ids, n_labels), jax.random.key(seed))
    holder, name = (params, "characters") if model is None else (params["encoder"]["embedding"], "tokens")
    vectors = vectors_of_rows(symbols, vocabulary, holder[name].shape[1], seed=seed)
    known = 0.5 * vectors / max(float(vectors.std()), 1e-6) / np.sqrt(vectors.shape[1])
    holder[name] = holder[name].at[FIRST:].set(known)
    return reader, model, params


def _begin_from(start: Start, n_labels: int, seed: int) -> tuple[Tokens, ModelConfig, Tree]:
    fresh = init(encoder_params(start.model, n_labels), jax.random.key(seed))
    return Tokens(start.tokenizer), start.model, fresh | {"encoder": start.params}


@dataclass(frozen=True)
class Lessons:
    """What is learned from."""

    sequences: Sequences
    targets: Labels
    n_labels: int


def _fit(
    params: Tree,
    lessons: Lessons,
    shape: Shape,
    model: ModelConfig | None,
    unknown: int,
    seed: int,
    progress: Callable[[str], None],
) -> Tree:
    random = np.random.default_rng(seed)
    rounds = [list(batches(lessons.sequences, shape.lengths, shape.symbols, random)) for _ in range(shape.epochs)]
    total = sum(map(len, rounds))
    rate = optax.warmup_cosine_decay_schedule(0.0, shape.rate, max(total // 10, 1), max(total, 2))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    step = _step(shape, model, unknown, lessons.n_labels, optimizer)
    with _one_device():
        state, key = optimizer.init(params), jax.random.key(seed)
        for epoch, found in enumerate(rounds):
            losses: list[Array] = []
            for texts, ids in found:
                full = _full(shape, ids, lessons.targets[texts])
                key, own = jax.random.split(key)
                params, state, loss = step(params, state, *full, own)
                losses.append(loss)
            progress(f"epoch {epoch + 1} of {shape.epochs}: loss {float(np.mean(jax.device_get(losses))):.3f}")
        return jax.device_get(params)


def _step(
    shape: Shape, model: ModelConfig | None, unknown: int, n_labels: int, optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Tree, Any, Array]]:
    """(parameters, state, ids, targets, key) -> parameters, state and loss after one step."""
    logits = logits_of(shape, model)

    @jax.jit
    def step(params: Tree, state: Any, ids: Array, target: Array, key: Array) -> tuple[Tree, Any, Array]:
        forget, drop = jax.random.split(key)
        lost = jax.random.bernoulli(forget, shape.forget, ids.shape) & (ids != PADDING)
        seen = jnp.where(lost, unknown, ids)
        wanted = jnp.eye(n_labels)[target] * (1 - shape.smoothing) + shape.smoothing / n_labels

        def loss_of(p: Tree) -> Array:
            return optax.softmax_cross_entropy(logits(p, seen, drop), wanted).mean()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        update, state = optimizer.update(gradient, state, params)
        return cast(Tree, optax.apply_updates(params, update)), state, loss

    return step


def _predict(params: Tree, sequences: Sequences, n_labels: int, shape: Shape, model: ModelConfig | None) -> Floats:
    """Log-probabilities [texts, labels]."""
    out = np.zeros((len(sequences), n_labels), np.float32)
    with _one_device():
        forward = _forward(shape, None if model is None else model.model_dump_json())
        for texts, ids in batches(sequences, shape.lengths, shape.symbols, None):
            out[texts] = np.asarray(forward(params, *_full(shape, ids)))[: len(texts)]
    return log_softmax(out)


def _full(shape: Shape, ids: Any, *more: Any) -> list[Any]:
    """Arrays of a batch with as many rows as all of its length have (their own again and again), so that few shapes are compiled."""
    rows = max(shape.symbols // ids.shape[1], 1)
    return [np.resize(a, (rows, *a.shape[1:])) for a in (ids, *more)]


@cache
def _forward(shape: Shape, model: str | None) -> Callable[[Tree, Array], Array]:
    logits = logits_of(shape, None if model is None else ModelConfig.model_validate_json(model))
    return jax.jit(lambda params, ids: logits(params, ids, None))


def _one_device() -> AbstractContextManager[Any]:
    return jax.set_mesh(make_mesh(LayoutConfig(), jax.devices()[:1]))
