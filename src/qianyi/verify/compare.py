"""Two runs of one small recipe, leaf by leaf."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from numpy.typing import NDArray

from qianyi.config.schema import Config
from qianyi.config.stages import layer_places
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.rules import batch_spec
from qianyi.program.collectives import Collective, collectives, merge
from qianyi.train.state import TrainState, init_state, reorder_layers
from qianyi.train.step import Batch, LossAndGradients, make_loss_and_gradients
from qianyi.train.update import make_update

HostTree = Any
HELD = 0.02
"""The share of a parameter down to which float32 holds its changes to 1e-5: spacing 2**-23 over 0.02 is 6e-6."""
STEPS = 3
"""Training steps that are compared."""


class Outcome(NamedTuple):
    """What a layout computed, on the host, layers in the order of the model."""

    losses: dict[str, float]
    """Of the first batch: loss, z_loss, balance_loss, sentence_loss, grad_norm."""
    gradients: HostTree
    initial: HostTree
    """Parameters before the first step."""
    updates: HostTree
    """Parameters after it minus those before."""
    training: list[float]
    """Loss of each of STEPS training steps."""
    change: HostTree
    """Parameters after them minus those before."""


@dataclass(frozen=True)
class Leaf:
    """How far one array is from the reference."""

    name: str
    error: float
    """|ours - reference| / |reference|, norms over the leaf; see `compare_trees` for leaves whose value is rounding alone."""


class Runner:
    """A recipe on its layout, compiled: the two halves of the training step."""

    def __init__(self, config: Config):
        self.config = config
        self.mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
        with jax.set_mesh(self.mesh):
            self._state = init_state(config, self.mesh)
            self._batches = [_place(host_batch(config, seed), config, self.mesh) for seed in range(STEPS)]
            self._gradients = jax.jit(make_loss_and_gradients(config)).lower(self._state.params, self._batches[0]).compile()
            self._first: LossAndGradients = self._gradients(self._state.params, self._batches[0])

    def gradients(self, n: int = 0) -> HostTree:
        """Of a batch, STEPS of which there are, at the initial parameters."""
        out = self._gradients(self._state.params, self._batches[n]) if n else self._first
        return _natural(jax.device_get(out.gradients), self.config)

    def value(self, name: str) -> float:
        """A scalar of the first batch: loss, z_loss, balance_loss, sentence_loss, grad_norm."""
        return float(getattr(self._first, name))

    def text(self) -> str:
        """The compiled program for loss and gradients."""
        return self._gradients.as_text() or ""

    def collectives(self) -> list[Collective]:
        """What a step sends: for gradients, and for the update."""
        programs = self.text(), self._compile_update(self.config).as_text() or ""
        return merge(collectives(program, self.mesh.shape) for program in programs)

    def train(self, eps: float) -> Outcome:
        """A few steps, with this epsilon in Adam."""
        optimizer = self.config.optimizer.model_copy(update={"eps": eps})
        update = self._compile_update(self.config.model_copy(update={"optimizer": optimizer}))
        before, state = self._params(self._state), self._state
        training: list[float] = []
        after: list[HostTree] = []
        for batch in self._batches:
            out = self._gradients(state.params, batch)
            training.append(float(out.loss))
            state = update(state, out.gradients, out.grad_norm)
            after.append(jax.tree.map(np.subtract, self._params(state), before))
        losses = {name: self.value(name) for name in ("loss", "z_loss", "balance_loss", "sentence_loss", "grad_norm")}
        return Outcome(losses, self.gradients(), before, after[0], training, after[-1])

    def _compile_update(self, config: Config) -> Any:
        with jax.set_mesh(self.mesh):
            return jax.jit(make_update(config)).lower(self._state, self._first.gradients, self._first.grad_norm).compile()

    def _params(self, state: TrainState) -> HostTree:
        return _natural(jax.device_get(state.params), self.config)


def compare_trees(ours: HostTree, reference: HostTree, floor: float, of: HostTree | None = None) -> list[Leaf]:
    """The error of every leaf, the largest first.

    Args:
        floor: a leaf whose reference is smaller than this share of the whole tree has no digits of its own (the gradient of a key bias is
            exactly zero, since it shifts all scores of a query alike): its error is measured against that share.
        of: for differences of parameters, the parameters: a difference is measured against a fiftieth of its parameter at least, since
            float32 parameters hold no finer steps.
    """
    smallest = floor * norm(reference)
    held = [0.0] * len(jax.tree.leaves(reference)) if of is None else jax.tree.leaves(of)
    leaves: list[Leaf] = []
    for (path, a), b, w in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(reference), held, strict=True):
        size = max(float(np.linalg.norm(b)), smallest, HELD * float(np.linalg.norm(w)))
        error = float(np.linalg.norm(a - b)) / size if size else 0.0
        leaves.append(Leaf("/".join(str(key.key) for key in path), error))
    return sorted(leaves, key=lambda leaf: -leaf.error if np.isfinite(leaf.error) else -np.inf)


def norm(tree: HostTree) -> float:
    return float(np.sqrt(sum(float(np.sum(np.square(a, dtype=np.float64))) for a in jax.tree.leaves(tree))))


def host_batch(config: Config, seed: int) -> dict[str, NDArray[np.int32]]:
    """Random tokens. Unevenly over rows some targets are not scored, so that a mean of means is not the mean; documents end unevenly."""
    random = np.random.default_rng(seed)
    train, vocab = config.train, config.model.vocab_size
    tokens = random.integers(0, vocab, (train.batch_size, train.seq_len + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    targets[random.random(targets.shape) < np.linspace(0, 0.5, train.batch_size)[:, None]] = -1
    batch = {"inputs": tokens[:, :-1], "targets": targets}
    if train.document_mask:
        batch["documents"] = np.cumsum(random.random(targets.shape) < 0.1, axis=1).astype(np.int32)
    return batch | _family_rows(config, random)


def _family_rows(config: Config, random: np.random.Generator) -> dict[str, NDArray[np.int32]]:
    """What batches of the model's family have beside tokens and targets."""
    m, n, length = config.model, config.train.batch_size, config.train.seq_len
    ends = random.integers(length // 2, length + 1, (n, 1))
    padding = (np.arange(length)[None] >= ends).astype(np.int32)
    rows: dict[str, NDArray[np.int32]] = {}
    if m.kind == "encoder":
        rows["documents"] = padding
    if m.segments:
        rows["segments"] = (np.arange(length)[None] >= ends // 2).astype(np.int32) % m.segments
    if m.sentence_head:
        rows["sentence"] = np.where(random.random((n, 1)) < 0.2, -1, random.integers(0, 2, (n, 1))).astype(np.int32)
    if m.kind == "encoder_decoder":
        rows |= {"sources": random.integers(0, m.vocab_size, (n, length)).astype(np.int32), "source_documents": padding}
    return rows


def _natural(tree: HostTree, config: Config) -> HostTree:
    """Layers in the model's order, without empty places."""
    blocks = reorder_layers(tree["blocks"], layer_places(config), range(config.model.n_blocks))
    return {**tree, "blocks": jax.device_get(blocks)}


def _place(batch: dict[str, NDArray[np.int32]], config: Config, mesh: jax.sharding.Mesh) -> Batch:
    sharding = NamedSharding(mesh, batch_spec(config.layout))
    return {name: jax.device_put(array, sharding) for name, array in batch.items()}
