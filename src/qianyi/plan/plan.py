"""The answer to a user's question: which layout, how long, how much, what will break."""

from dataclasses import dataclass
from datetime import date

from qianyi.config.counts import parameter_count
from qianyi.config.load import load
from qianyi.config.ramp import at_batch_size, tokens_before
from qianyi.config.schema import Config
from qianyi.errors import ConfigError
from qianyi.plan.build import case_of, method_numbers, optimizer_bytes, precision_of
from qianyi.plan.campaign import Campaign, Site, StepSeconds, by_deadline, campaign
from qianyi.plan.chips import Chip, chip
from qianyi.plan.cluster import Cluster, cluster, make_cluster, torus_shape
from qianyi.plan.constants import Table, constants
from qianyi.plan.money import Power, PriceRange
from qianyi.plan.reliability import Reliability, checkpoint_bytes, write_seconds
from qianyi.plan.search import Choice, Found, cost, search
from qianyi.plan.size import BASE, batch_sequences, model_overrides
from qianyi.plan.stack import OURS, stack
from qianyi.plan.step import step_seconds

STORAGE_BYTES_PER_SECOND_PER_HOST = 2e9
"""What a host writes to a shared file system: BLOOM's 2.3 TB in 40 s from 48 hosts are 1.2 GB/s (Le Scao et al. 2022);
Narayanan et al. 2021 report 273 GB/s from 384 hosts, 0.7 GB/s; local disks and object stores do more."""
SNAPSHOT_BYTES_PER_SECOND = 10e9
"""From a chip to its host's memory, which is all that an asynchronous checkpoint stops training for."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a user asks."""

    recipe: str | None = None
    params: float | None = None
    """In place of a recipe."""
    tokens: float | None = None
    """Of the whole run; None: the recipe's steps."""
    cluster: str
    """`h100:128x8`; or a chip alone, and the number of chips is part of the answer."""
    overrides: tuple[str, ...] = ()
    axes: tuple[tuple[str, int], ...] = ()
    """Mesh axes that are decided."""
    deadline_days: float | None = None
    budget_dollars: float | None = None
    price: PriceRange | None = None
    own: Table | None = None
    """Constants of the cost model that replace those that ship."""
    precisions: tuple[str, ...] = ()
    """Values of model.matmul to choose among; empty: the recipe's."""
    keeps_layout: bool = False
    """Cost the recipe's own layout; do not search."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An answer."""

    question: Question
    recipe: str
    overrides: tuple[str, ...]
    """Of the recipe, with the layout that was chosen."""
    cluster: Cluster
    found: Found
    campaign: Campaign

    @property
    def best(self) -> Choice:
        return self.found.choices[0]

    @property
    def config(self) -> Config:
        return self.best.config

    @property
    def mfu(self) -> float:
        """Model FLOPs over those of the chips' bfloat16 peak (convention: `qianyi.config.counts.MFU_CONVENTION`)."""
        train = self.config.train
        flops = float(self.best.case.model.flops_per_token) * train.batch_size * train.seq_len
        return flops / (self.best.seconds * self.cluster.n_chips * self.cluster.chip.bf16_flops)

    @property
    def tokens_per_second(self) -> float:
        return self.config.train.batch_size * self.config.train.seq_len / self.best.seconds


def answer(question: Question) -> Plan:
    """The best plan.

    Raises:
        ConfigError: unknown chip, impossible shape, nothing fits, a deadline or budget that cannot be met; each with
            the numbers and the nearest thing that works.
    """
    recipe, overrides = _recipe(question)
    if ":" in question.cluster or question.cluster.endswith((".yaml", ".yml")):
        plan = _in_best_precision(question, recipe, overrides, cluster(question.cluster))
        _check_limits(plan)
        return plan
    return _sized(question, recipe, overrides, chip(question.cluster))


def _recipe(question: Question) -> tuple[str, tuple[str, ...]]:
    """A recipe and overrides that say the question's model and length."""
    if (question.recipe is None) == (question.params is None):
        raise ConfigError("plan: name a RECIPE, or a size with --params and --tokens")
    overrides = list(question.overrides)
    if question.params is not None:
        if question.tokens is None:
            raise ConfigError(
                f"--params {question.params:.3g}: say --tokens too (20 per parameter is compute-optimal: {20 * question.params:.3g})"
            )
        base = load(BASE).config
        batch = batch_sequences(question.params, question.tokens, base.train.seq_len)
        overrides = [*model_overrides(question.params), "train.batch_ramp=[]", f"train.batch_size={batch}", *overrides]
    recipe = question.recipe or BASE
    if question.tokens is not None:
        train = load(recipe, overrides).config.train
        whole = train.batch_size * train.seq_len
        behind = tokens_before(train, train.steps) - train.steps * whole if train.batch_ramp else 0
        steps = max(1, round((question.tokens - behind) / whole))
        overrides.append(f"train.steps={steps}")
        if question.params is not None:
            overrides.append(f"schedule.warmup_steps={min(2000, max(1, steps // 50))}")
    return recipe, tuple(overrides)


def _in_best_precision(question: Question, recipe: str, overrides: tuple[str, ...], on: Cluster) -> Plan:
    """The fastest of the precisions that the chip has and the recipe allows."""
    plans: list[Plan] = []
    refused: list[ConfigError] = []
    for matmul in question.precisions:
        try:
            plans.append(_on(question, recipe, (*overrides, f"model.matmul={matmul}"), on))
        except ConfigError as error:
            refused.append(error)
    if plans:
        return min(plans, key=lambda plan: plan.best.seconds)
    if refused:
        raise refused[0]
    return _on(question, recipe, overrides, on)


def _on(question: Question, recipe: str, overrides: tuple[str, ...], on: Cluster) -> Plan:
    if question.keeps_layout:
        config = load(recipe, overrides).config
        choice = cost(config, on, own=question.own)
        if choice.memory_bytes > on.chip.hbm_bytes:
            raise ConfigError(
                f"{recipe} with layout {config.layout.words} needs {choice.memory_bytes / 1e9:.1f} GB per chip, {on.chip.name} has "
                f"{on.chip.hbm_bytes / 1e9:.0f} GB; without --keep-layout a layout that fits is searched"
            )
        found = Found(choices=(choice,), considered=1, fitting=1, least_bytes=choice.memory_bytes, front=(choice,))
    else:
        found = search(recipe, on, list(overrides), dict(question.axes), own=question.own)
    best = found.choices[0]
    return Plan(
        question=question,
        recipe=recipe,
        overrides=(*overrides, *best.overrides),
        cluster=on,
        found=found,
        campaign=campaign(best.config, _seconds_by_batch(best.config, on, question.own), site(best.config, on, question.price)),
    )


def _seconds_by_batch(config: Config, on: Cluster, own: Table | None) -> StepSeconds:
    """Seconds of a step of any batch size of a ramp."""
    k = constants(stack(OURS), on.chip, precision_of(config), own)

    def seconds(batch_size: int) -> float:
        return float(step_seconds(case_of(at_batch_size(config, batch_size), on), k))

    return seconds


def checkpoint_size_bytes(config: Config) -> float:
    """Parameters and optimizer state."""
    stored = float(method_numbers(config).stored_bytes)
    return checkpoint_bytes(parameter_count(config.model), stored + optimizer_bytes(config))


def site(config: Config, on: Cluster, price: PriceRange | None = None) -> Site:
    """Failures, prices and power of a cluster."""
    of = on.chip
    size = checkpoint_size_bytes(config)
    hosts = max(1, on.n_chips // of.chips_per_host)
    stop = write_seconds(size, SNAPSHOT_BYTES_PER_SECOND * on.n_chips)
    durable = write_seconds(size, STORAGE_BYTES_PER_SECOND_PER_HOST * hosts)
    known = PriceRange(of.price_low, of.price_high) if of.price_low else None
    return Site(
        n_chips=on.n_chips,
        reliability=Reliability(write_seconds=max(stop, 1.0), lag_seconds=max(durable, 1.0)),
        price=price or known,
        power=Power(tdp_watts=of.tdp_watts) if of.tdp_watts else None,
    )


def _check_limits(plan: Plan) -> None:
    """A deadline or budget that cannot be met is refused, with what can."""
    question, run = plan.question, plan.campaign
    if question.deadline_days is not None and run.wall_days > question.deadline_days:
        seconds = _seconds_by_batch(plan.config, plan.cluster, question.own)
        there = site(plan.config, plan.cluster, question.price)
        shorter = by_deadline(plan.config, seconds, there, wall_days=question.deadline_days)
        raise ConfigError(
            f"{plan.cluster.name} needs {run.wall_days:.1f} days for {run.tokens / 1e9:,.0f}B tokens, the deadline is "
            f"{question.deadline_days:.1f}: "
            f"by then {shorter.tokens / 1e9:,.0f}B tokens are done; or take about "
            f"{run.wall_days / question.deadline_days:.1f} times as many chips (--cluster {plan.cluster.chip.name} finds how many)"
        )
    dollars = run.bill.dollars
    if question.budget_dollars is not None:
        if dollars is None:
            raise ConfigError(f"--budget: no price of {plan.cluster.chip.name} is known; give one with --price")
        if dollars.low > question.budget_dollars:
            share = question.budget_dollars / dollars.low
            raise ConfigError(
                f"{plan.cluster.name} costs ${dollars.low:,.0f} to ${dollars.high:,.0f}, the budget is ${question.budget_dollars:,.0f}: "
                f"it pays for {share * run.tokens / 1e9:,.0f}B tokens at the lowest price"
            )


def sizes(of: Chip) -> list[Cluster]:
    """Clusters of a chip to choose among: doubling, from one chip to 16,384."""
    found: list[Cluster] = []
    for n in (2**i for i in range(15)):
        if of.torus_axes:
            slices = -(-n // of.domain_chips)
            shape = "x".join(map(str, torus_shape(of, n // slices)))
            found.append(make_cluster(of, shape + (f"*{slices}" if slices > 1 else "")))
        else:
            per_host = min(8, of.domain_chips, n)
            found.append(make_cluster(of, f"{n // per_host}x{per_host}"))
    return found


def _sized(question: Question, recipe: str, overrides: tuple[str, ...], of: Chip) -> Plan:
    """The cheapest number of chips that meets the deadline, or the fastest within the budget."""
    if question.deadline_days is None and question.budget_dollars is None:
        raise ConfigError(
            f"--cluster {question.cluster}: say how many, such as {of.name}:{'x'.join(map(str, sizes(of)[7].domain))}, or "
            f"give --deadline or --budget"
        )
    tried: list[str] = []
    fitting: list[Plan] = []
    for on in sizes(of):
        try:
            plan = _in_best_precision(question, recipe, overrides, on)
        except ConfigError as error:
            tried.append(str(error).splitlines()[0])
            continue
        fitting.append(plan)
        if question.deadline_days is not None and plan.campaign.wall_days <= question.deadline_days:
            break
    good = [p for p in fitting if _within(p)]
    if good:
        return good[-1] if question.deadline_days is None else good[0]
    if not fitting:
        raise ConfigError(f"no number of {of.name} up to 16,384 fits: {tried[-1]}")
    fastest = min(fitting, key=lambda p: p.campaign.wall_days)
    dollars = fastest.campaign.bill.dollars
    raise ConfigError(
        f"no number of {of.name} up to 16,384 keeps the deadline and the budget; the fastest is {fastest.cluster.name}: "
        f"{fastest.campaign.wall_days:.1f} days" + (f", ${dollars.low:,.0f} to ${dollars.high:,.0f}" if dollars else "")
    )


def _within(plan: Plan) -> bool:
    question, run = plan.question, plan.campaign
    in_time = question.deadline_days is None or run.wall_days <= question.deadline_days
    dollars = run.bill.dollars
    if question.budget_dollars is not None and dollars is None:
        raise ConfigError(f"--budget: no price of {plan.cluster.chip.name} is known; give one with --price")
    return in_time and (question.budget_dollars is None or dollars is None or dollars.low <= question.budget_dollars)


def days(text: str, today: date) -> float:
    """`30d`, `12h`, `45`, or a date such as 2027-03-01, from today.

    Raises:
        ConfigError: none of these, or a day that has passed.
    """
    word = text.strip().lower()
    try:
        if word.count("-") == 2:
            left = (date.fromisoformat(word) - today).days
            if left <= 0:
                raise ConfigError(f"--deadline {text}: the day has passed")
            return float(left)
        value = float(word.rstrip("dh")) / (24 if word.endswith("h") else 1)
    except ValueError:
        raise ConfigError(f"--deadline {text}: expected days (30d), hours (12h) or a date (2027-03-01)") from None
    if value <= 0:
        raise ConfigError(f"--deadline {text}: expected more than nothing")
    return value
