"""The best layouts of a recipe on a cluster.

Every layout that the recipe allows is costed: there is no heuristic, so the best one is the optimum of the cost model. Memory is cheap to
compute and goes first; what does not fit is not timed.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qianyi.config.check import check
from qianyi.config.load import load
from qianyi.config.objective import target_length
from qianyi.config.schema import Config
from qianyi.errors import ConfigError
from qianyi.plan.build import case_of, machine_numbers, method_numbers, model_numbers, precision_of, preset_of, remat_numbers
from qianyi.plan.case import Case, Layout
from qianyi.plan.cluster import Cluster
from qianyi.plan.constants import Constants, Table, constants
from qianyi.plan.layouts import GATHERS, REMATS, Candidates, candidates, exists
from qianyi.plan.memory import memory, total_bytes
from qianyi.plan.stack import OURS, stack
from qianyi.plan.step import step_seconds, terms

Floats = NDArray[np.float64]
USABLE = 0.92
"""Share of a chip's memory that a plan fills: half of the measured peaks are predicted within 7%, held out (docs/accuracy.md)."""
LONGEST = 4.0
"""Times the best step's time, beyond which a layout is not worth its small memory."""


@dataclass(frozen=True)
class Choice:
    """One layout, costed."""

    overrides: tuple[str, ...]
    config: Config
    seconds: float
    """Of a step."""
    terms: dict[str, float]
    """Seconds by what they are spent on."""
    memory: dict[str, float]
    """Bytes per chip by what they hold, the runtime's own included."""
    case: Case

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())


@dataclass(frozen=True)
class Found:
    """What a search found."""

    choices: tuple[Choice, ...]
    """Best first, each of another layout."""
    considered: int
    fitting: int
    least_bytes: float
    """Of all that were considered: what the smallest needs per chip."""
    front: tuple[Choice, ...]
    """Fastest for their memory: no other is both faster and smaller."""


def case_of_candidates(config: Config, cluster: Cluster, found: Candidates) -> Case:
    """Candidates as one case of arrays."""
    ranks = found.replica * found.data * found.expert
    shard = found.data * found.context
    layout = Layout(
        seq_len=float(config.train.seq_len),
        batch_size=float(config.train.batch_size),
        microbatch=config.train.batch_size / (ranks * found.accumulation),
        data=ranks.astype(np.float64),
        shard=shard.astype(np.float64),
        expert_shard=shard.astype(np.float64),
        tensor=found.model.astype(np.float64),
        context=found.context.astype(np.float64),
        expert=found.expert.astype(np.float64),
        stage=found.stage.astype(np.float64),
        chunks=found.chunks.astype(np.float64),
        zero=found.zero.astype(np.float64),
        gather_each=(found.gather == GATHERS.index("layer")).astype(np.float64),
    )
    method = method_numbers(config)
    names = [preset_of(config.model)] if config.model.offloaded_activations else REMATS
    presets = np.array([remat_numbers(name, config.model, skips_last=True) for name in names])
    again, attention, products, elementwise = presets[found.remat].T
    staged = found.stage > 1
    return Case(
        model=model_numbers(config.model, config.train.seq_len, target_length(config.train)),
        layout=layout,
        method=replace(
            method,
            recompute=again + staged,
            recompute_attention=attention + staged,
            keep_products=products,
            keep_elementwise=elementwise,
        ),
        machine=machine_numbers(cluster, precision_of(config)),
    )


def search(
    recipe: str,
    cluster: Cluster,
    overrides: list[str] | None = None,
    fixed: dict[str, int] | None = None,
    *,
    own: Table | None = None,
    keep: int = 5,
    usable: float = USABLE,
) -> Found:
    """The best layouts. `fixed`: mesh axes that are decided; `own`: constants that replace those that ship; `usable`: share of a chip's
    memory that may be filled.

    Raises:
        ConfigError: none fits, or the recipe cannot be divided among so many chips; the message says what would.
    """
    base = load(recipe, [*(overrides or []), *_ONE_DEVICE])
    config = base.config
    every = candidates(config, cluster, fixed)
    if not len(every):
        raise ConfigError(_no_layout(config, cluster, fixed or {}))
    k = constants(stack(OURS), cluster.chip, precision_of(config), own)
    case = case_of_candidates(config, cluster, every)
    needed = np.broadcast_to(total_bytes(case, k), len(every))
    fits = np.flatnonzero(needed <= usable * cluster.chip.hbm_bytes)
    if not len(fits):
        raise ConfigError(_nothing_fits(config, cluster, float(needed.min())))
    seconds = np.broadcast_to(step_seconds(case.take(fits), k), len(fits))
    order = np.lexsort((needed[fits], _axes_in_use(every)[fits], _about(seconds)))
    build = _Builder(recipe, overrides or [], config, cluster, every, case, k)
    best = build.first(fits[order], keep)
    if not best:
        check(load(recipe, [*(overrides or []), *every.overrides(int(fits[order][0]), config)]).config)
    return Found(
        choices=best,
        considered=len(every),
        fitting=len(fits),
        least_bytes=float(needed.min()),
        front=build.some(fits[_front(seconds, needed[fits])], 12),
    )


def _about(seconds: Floats) -> Floats:
    """To a thousandth: what differs by less is as fast."""
    return np.asarray(np.round(np.log(seconds), 3), np.float64)


def _axes_in_use(every: Candidates) -> NDArray[np.int64]:
    axes = (every.replica, every.stage, every.data, every.context, every.expert, every.model)
    return np.sum([axis > 1 for axis in axes], axis=0)


_ONE_DEVICE = [f"layout.{axis}=1" for axis in ("replica", "stage", "data", "context", "expert", "model", "chunks")] + [
    "layout.zero=3",
    "layout.gather=auto",
    "layout.schedule=1f1b",
    "layout.exchange=auto",
    "train.accumulation=1",
]


def cost(config: Config, cluster: Cluster, overrides: tuple[str, ...] = (), own: Table | None = None) -> Choice:
    """A recipe with the layout that it has.

    Raises:
        ConfigError: the layout has another number of devices than the cluster.
    """
    if config.layout.n_devices != cluster.n_chips:
        raise ConfigError(
            f"layout {config.layout.words} has {config.layout.n_devices:,} devices, {cluster.name} has {cluster.n_chips:,} chips"
        )
    return _choice(overrides, config, case_of(config, cluster), constants(stack(OURS), cluster.chip, precision_of(config), own))


@dataclass(frozen=True)
class _Builder:
    recipe: str
    overrides: list[str]
    config: Config
    cluster: Cluster
    every: Candidates
    case: Case
    k: Constants

    def first(self, indices: Any, keep: int) -> tuple[Choice, ...]:
        """The first of these that the recipe's own rules accept, each with another mesh."""
        found: list[Choice] = []
        seen: set[tuple[int, ...]] = set()
        for i in indices:
            if len(found) == keep:
                break
            mesh = self.mesh(int(i))
            choice = None if mesh in seen else self.one(int(i))
            if choice is not None:
                seen.add(mesh)
                found.append(choice)
        return tuple(found)

    def some(self, indices: Any, keep: int) -> tuple[Choice, ...]:
        """So many of these, evenly spread, the first and the last among them, but for what the recipe's own rules refuse."""
        wanted = sorted({round(i) for i in np.linspace(0, len(indices) - 1, min(keep, len(indices)))})
        return tuple(choice for choice in (self.one(int(indices[i])) for i in wanted) if choice is not None)

    def mesh(self, i: int) -> tuple[int, ...]:
        every = self.every
        axes = (every.replica, every.stage, every.data, every.context, every.expert, every.model)
        return tuple(int(axis[i]) for axis in axes)

    def one(self, i: int) -> Choice | None:
        overrides = self.every.overrides(i, self.config)
        config = load(self.recipe, [*self.overrides, *overrides]).config
        try:
            check(config)
        except ConfigError:
            return None
        return _choice(tuple(overrides), config, self.case.take(np.array([i])), self.k)


def _choice(overrides: tuple[str, ...], config: Config, case: Case, k: Constants) -> Choice:
    def scalars(found: dict[str, Any]) -> dict[str, float]:
        return {name: float(np.ravel(value)[0]) for name, value in found.items()}

    seconds, held = scalars(terms(case, k)), scalars(memory(case))
    whole = float(np.ravel(total_bytes(case, k))[0])
    return Choice(
        overrides=overrides,
        config=config,
        seconds=sum(seconds.values()),
        terms=seconds,
        memory=held | {"runtime": whole - sum(held.values())},
        case=case,
    )


def _front(seconds: Floats, needed: Floats) -> Any:
    """Indices of what no other beats in both time and memory, fastest first, as far as anyone would wait."""
    order = np.lexsort((needed, seconds))
    order = order[seconds[order] <= LONGEST * seconds.min()]
    least = np.minimum.accumulate(needed[order])
    best = np.concatenate([[True], needed[order][1:] < least[:-1]])
    return order[best]


def _no_layout(config: Config, cluster: Cluster, fixed: dict[str, int]) -> str:
    m = config.model
    said = f" with {', '.join(f'layout.{k}={v}' for k, v in fixed.items())}" if fixed else ""
    step = cluster.domain_chips if cluster.n_domains > 1 else 1
    fewer = next((n for n in range(cluster.n_chips - step, 0, -step) if exists(config, n, fixed)), None)
    nearest = f"; {fewer:,} chips would do" if fewer else ""
    return (
        f"{cluster.name}: no layout{said} divides train.batch_size={config.train.batch_size} sequences, {m.n_heads} heads, "
        f"{m.n_layers} layers and d_model={m.d_model} among {cluster.n_chips:,} chips{nearest}"
    )


def _nothing_fits(config: Config, cluster: Cluster, least: float) -> str:
    hbm = cluster.chip.hbm_bytes
    return (
        f"{cluster.name}: nothing fits: the smallest layout needs {least / 1e9:.1f} GB per chip, and a plan fills {USABLE:.0%} of the "
        f"{hbm / 1e9:.0f} GB of {cluster.chip.name}; about {least / (USABLE * hbm):.1f} times as many chips would do"
    )
