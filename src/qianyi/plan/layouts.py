"""Every layout that a recipe could have on a cluster, as arrays.

The rules are those of `qianyi.config.check`, which has the last word on what a search chooses. GPipe is left out: by the cost model 1F1B
takes as long and keeps less.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from qianyi.config.schema import Config
from qianyi.plan.cluster import Cluster

Ints = NDArray[np.int64]

REMATS = ("matmuls", "full", "none")
GATHERS = ("layer", "step")


@dataclass(frozen=True)
class Candidates:
    """One element per candidate; columns as the recipe's keys."""

    replica: Ints
    stage: Ints
    data: Ints
    context: Ints
    expert: Ints
    model: Ints
    accumulation: Ints
    chunks: Ints
    zero: Ints
    gather: Ints
    """Index into GATHERS."""
    remat: Ints
    """Index into REMATS."""

    def __len__(self) -> int:
        return len(self.data)

    def overrides(self, i: int, config: Config) -> list[str]:
        """A candidate as overrides of its recipe: what differs from the schema's defaults, and what the recipe must not keep."""
        layout = {axis: int(getattr(self, axis)[i]) for axis in ("replica", "stage", "data", "context", "expert", "model")}
        zero = int(self.zero[i])
        layout |= {"zero": zero, "chunks": int(self.chunks[i])}
        gather = GATHERS[int(self.gather[i])] if zero == 3 else "auto"
        words = {"gather": gather, "schedule": "1f1b", "exchange": "auto"}
        keys = [f"layout.{k}={v}" for k, v in (layout | words).items()]
        remat = [] if config.model.offloaded_activations else [f"model.remat={REMATS[int(self.remat[i])]}"]
        return [*keys, f"train.accumulation={int(self.accumulation[i])}", *remat]


def candidates(config: Config, cluster: Cluster, fixed: dict[str, int] | None = None) -> Candidates:
    """All of them. `fixed`: axes that must have these sizes."""
    rows = list(_rows(config, cluster.n_chips, fixed or {}))
    table = np.array(rows, np.int64).reshape(len(rows), 11)
    return Candidates(*table.T)


def exists(config: Config, n_chips: int, fixed: dict[str, int] | None = None) -> bool:
    """So many chips have a layout at all."""
    return next(_rows(config, n_chips, fixed or {}), None) is not None


def _rows(config: Config, n_chips: int, fixed: dict[str, int]) -> Iterator[tuple[int, ...]]:
    # A recipe that moves activations to the host keeps its table.
    remats = range(len(REMATS)) if not config.model.offloaded_activations else (0,)
    for axes in _axes(config, n_chips, fixed):
        replica, stage, data, context, expert, _ = axes
        ranks = replica * data * expert
        for accumulation in divisors(config.train.batch_size // ranks):
            if accumulation < stage or not _ramp_fits(config, ranks, stage, accumulation):
                continue
            for chunks, (zero, gather), remat in product(
                _chunks(config, stage, accumulation), _shardings(config, stage, data * context, accumulation), remats
            ):
                yield (*axes, accumulation, chunks, zero, gather, remat)


def _axes(config: Config, n_chips: int, fixed: dict[str, int]) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Sizes of the mesh axes, in the order of `qianyi.config.schema.AXES`."""

    def sizes(axis: str, left: int) -> list[int]:
        return [n for n in divisors(left) if n == fixed.get(axis, n)]

    for model in sizes("model", n_chips):
        if not _tensor_fits(config, model):
            continue
        for stage in sizes("stage", n_chips // model):
            if not _stage_fits(config, stage):
                continue
            for context in sizes("context", n_chips // model // stage):
                if not _context_fits(config, context, model):
                    continue
                left = n_chips // model // stage // context
                if config.train.batch_size % left:
                    continue
                for expert in sizes("expert", left):
                    if not _experts_fit(config, expert):
                        continue
                    for data in sizes("data", left // expert):
                        if _data_fits(config, data * context) and left // expert // data == fixed.get(
                            "replica", left // expert // data
                        ):
                            yield left // expert // data, stage, data, context, expert, model


def _tensor_fits(config: Config, model: int) -> bool:
    m = config.model
    sizes = [m.n_heads, m.d_hidden, m.vocab_size, *([m.moe.d_ff] if m.moe.d_ff else [])]
    return all(size % model == 0 for size in sizes) and (m.kv_heads == 1 or m.kv_heads % model == 0)


def _stage_fits(config: Config, stage: int) -> bool:
    m = config.model
    alone = m.kind == "encoder_decoder" or m.position == "relative" or m.matmul == "fp8_delayed" or config.train.noise_scale
    return stage == 1 or (stage <= m.n_blocks and not alone)


def _context_fits(config: Config, context: int, model: int) -> bool:
    m, length = config.model, config.train.seq_len
    whole = m.kind != "decoder" or m.position == "relative" or m.attention.kernel == "fused"
    if context > 1 and (whole or length % (2 * context) or config.train.objective.kind == "prefix"):
        return False
    return length // context % model == 0


def _experts_fit(config: Config, expert: int) -> bool:
    moe = config.model.mixture
    return expert == 1 if moe is None else moe.n_experts % expert == 0


def _data_fits(config: Config, shards: int) -> bool:
    latent = config.model.latent
    ranks = [latent.kv_rank, latent.query_rank] if latent else []
    return config.model.d_model % shards == 0 and all(rank % shards == 0 for rank in ranks)


def _ramp_fits(config: Config, ranks: int, stage: int, accumulation: int) -> bool:
    """Every stage of a ramp is whole microbatches, and fills the pipeline."""
    micro = config.train.batch_size // accumulation
    sizes = [s.batch_size for s in config.train.batch_ramp]
    enough = 2 if config.train.noise_scale else 1
    fits = all(size % micro == 0 and size >= stage * micro and size >= enough * micro for size in sizes)
    return micro % ranks == 0 and fits and accumulation >= enough


def _chunks(config: Config, stage: int, accumulation: int) -> list[int]:
    """Chunks of a stage that leave no place without a layer; interleaving pays in whole rounds of microbatches."""
    if stage == 1:
        return [1]
    most = -(-config.model.n_blocks // stage)
    whole_rounds = accumulation % stage == 0
    return [v for v in divisors(most) if v == 1 or (whole_rounds and stage * v <= config.model.n_blocks)]


def _shardings(config: Config, stage: int, shards: int, accumulation: int) -> list[tuple[int, int]]:
    """(zero, index into GATHERS)."""
    once_and_each = [(3, 0), (3, 1)]
    if shards == 1:
        return once_and_each  # of the cast to the type of computation
    others = [(0, 1), (1, 1)] if stage > 1 else [(0, 1), (1, 1), (2, 0)]
    return [*others, *once_and_each]


def divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})
