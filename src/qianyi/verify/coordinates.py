"""The coordinate check (Yang et al. 2022, figure 5 and appendix D.1): do activations move equally far as a model grows wider?

The recipe, made small, is trained for a few steps on one batch at several widths, once as it is and once with maximal update
parametrization from the narrowest. Where hyperparameters carry over from one width to another, training changes an activation by about as
much at every width; elsewhere the change grows or vanishes with it. The activations themselves say less: the initial logits of muP vanish
with the width, as they are meant to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from qianyi.config.check import check
from qianyi.config.schema import Config, LayoutConfig, ModelConfig, ScheduleConfig
from qianyi.errors import ConfigError
from qianyi.model.embedding import embed
from qianyi.model.param import Tree
from qianyi.model.stack import Flags, local_flags
from qianyi.model.transformer import Batch, first_layers, gather_outer, layers, model_logits, own_tokens
from qianyi.parallel.mesh import make_mesh
from qianyi.train.state import init_state
from qianyi.train.step import make_train_step
from qianyi.train.weights import make_gather
from qianyi.verify.shrink import shrink

BATCH, SEQ_LEN, VOCAB = 8, 32, 256
FLAT = 0.2
"""A slope of this size, either way, still counts as flat: the change grows or shrinks by 15% as the width doubles."""
PLACES = ("embedding", "blocks", "logits")
"""Where activations are looked at: the embedding's output, the outputs of all blocks together, the logits."""


class Size(NamedTuple):
    """Of an activation."""

    activation: float
    """Mean absolute value."""
    change: float
    """Mean absolute difference from the initialization."""


@dataclass(frozen=True)
class Coordinates:
    """What was measured with one parametrization."""

    name: str
    widths: tuple[int, ...]
    sizes: dict[str, list[list[Size]]]
    """[step][width] for each of PLACES; step 0 is the initialization."""

    @property
    def slopes(self) -> dict[str, float]:
        """Of the logarithm of the change after the last step over that of the width, by least squares, at each of PLACES."""
        return {place: _slope(self.widths, [size.change for size in by_step[-1]]) for place, by_step in self.sizes.items()}

    @property
    def flat(self) -> bool:
        return all(abs(slope) <= FLAT for slope in self.slopes.values())


def check_coordinates(config: Config, widths: Sequence[int], steps: int) -> Iterator[Coordinates]:
    """Without muP, then with it.

    Raises:
        ConfigError: the model is no decoder, or has parts for which there is no rule.
    """
    m = config.model
    if m.kind != "decoder":
        raise ConfigError(f"coord-check is for decoders; model.kind is {m.kind}")
    if m.outside_mup:
        raise ConfigError(f"coord-check: no rule says how {', '.join(m.outside_mup)} of the model grows with the width")
    for name, base in (("standard", None), ("muP", widths[0])):
        recipes = [at_width(config, width, widths[0], base) for width in widths]
        for recipe in recipes:
            check(recipe)
        runs = [measure(recipe, steps) for recipe in recipes]
        sizes = {place: [[run[step][place] for run in runs] for step in range(steps + 1)] for place in PLACES}
        yield Coordinates(name, tuple(widths), sizes)


def at_width(config: Config, width: int, narrowest: int, mup_base_width: int | None) -> Config:
    """The recipe, small, at a width: heads keep their width and grow in number, the feed-forward layer grows in proportion."""
    small, m = shrink(config, LayoutConfig()), config.model
    n_heads, n_kv_heads, head_dim = _heads_at(m, narrowest)
    grown = width // narrowest
    model = small.model.model_copy(
        update={
            "vocab_size": VOCAB,
            "d_model": width,
            "n_heads": n_heads * grown,
            "n_kv_heads": 1 if m.kv_heads == 1 else n_kv_heads * grown,
            "head_dim": head_dim,
            "d_ff": round(narrowest * m.d_hidden / m.d_model) * grown,
            "max_seq_len": SEQ_LEN,
            "dtype": "float32",
            "mup_base_width": mup_base_width,
            "mup_base_head_dim": None,
        }
    )
    train = small.train.model_copy(
        update={"batch_size": BATCH, "seq_len": SEQ_LEN, "accumulation": 1, "document_mask": False, "noise_scale": False}
    )
    # The learning rate is the recipe's, and there from the first step on.
    parts = {"model": model, "train": train, "schedule": ScheduleConfig(kind="constant"), "optimizer": config.optimizer}
    return small.model_copy(update=parts)


def measure(config: Config, steps: int) -> list[dict[str, Size]]:
    """Of activations at the initialization and after each step, all on one batch."""
    mesh = make_mesh(config.layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        state, step, look = init_state(config, mesh), make_train_step(config), make_look(config)
        batch = _batch(config)
        seen = [jax.device_get(look(state.params, batch))]
        for _ in range(steps):
            state, _ = step(state, batch)
            seen.append(jax.device_get(look(state.params, batch)))
    first = seen[0]
    return [{p: Size(float(np.abs(a[p]).mean()), float(np.abs(a[p] - first[p]).mean())) for p in PLACES} for a in seen]


def make_look(config: Config) -> Any:
    """Jitted (params, batch) -> activations at each of PLACES, on one device."""
    gather = make_gather(config)

    def on_device(params: Tree, batch: Batch) -> dict[str, Array]:
        rows, outer = own_tokens(batch), gather_outer(params, gather)
        bias_table = outer.get("relative", {}).get("own")

        def layer(x: Array, part: tuple[Tree, Flags]) -> tuple[Array, Array]:
            weights, flags = jax.tree.map(lambda a: a[None], part)
            x, _ = layers(weights, x, rows, config, gather, flags, bias_table)
            return x, x

        x, _ = first_layers(params, outer, rows, config, gather)
        _, blocks = lax.scan(layer, x, (params["blocks"], Flags(local=local_flags(config.model))))
        embedded, logits = embed(outer["embedding"], rows, config.model), model_logits(params, batch, config, gather)
        return {"embedding": embedded, "blocks": blocks, "logits": logits}

    return jax.jit(jax.shard_map(on_device, in_specs=(P(), P()), out_specs=P()))


def _slope(widths: Sequence[int], values: Sequence[float]) -> float:
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


def _heads_at(m: ModelConfig, narrowest: int) -> tuple[int, int, int]:
    """Query heads, key/value heads and head width of the narrowest model: as many share a key/value head as in the recipe (where there is
    but one, all), no head is wider than there, together they are about as wide as the model."""
    shared = 2 if m.kv_heads == 1 else m.n_heads // m.kv_heads
    width = max(2, min(m.d_head, narrowest // shared) // 2 * 2)
    groups = max(1, round(narrowest / (shared * width)))
    return groups * shared, groups, width


def _batch(config: Config) -> dict[str, Array]:
    """Tokens as frequent as words are (Zipf): there is something to learn that all positions agree on."""
    train, ranks = config.train, np.arange(1, config.model.vocab_size + 1)
    probabilities = (1 / ranks) / (1 / ranks).sum()
    tokens = np.random.default_rng(0).choice(len(ranks), (train.batch_size, train.seq_len + 1), p=probabilities)
    return {"inputs": jnp.asarray(tokens[:, :-1], jnp.int32), "targets": jnp.asarray(tokens[:, 1:], jnp.int32)}
