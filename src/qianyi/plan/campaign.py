"""A whole run: how long it takes on so many chips, what it costs, how often it breaks off and what loss to expect.

The time of a step comes from the caller's cost model as a function of the batch size, because a ramp begins with smaller batches, whose
pipeline bubbles are larger: time is summed over the stages of the ramp. Inverse questions (what can be afforded by a deadline, with a
budget) are answered by a campaign of fewer or more steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qianyi.config.counts import active_parameter_count, flops_per_token, parameter_count
from qianyi.config.ramp import ramp_stages, tokens_before
from qianyi.config.schema import Config, ModelConfig, TrainConfig
from qianyi.errors import ConfigError
from qianyi.plan.money import Bill, Power, PriceRange, bill
from qianyi.plan.reliability import DAY, HOUR, LostTime, Reliability, daly_interval, lost_time
from qianyi.plan.scaling import ADDITIVE_LAWS, KAPLAN, Allocation, Forecast, critical_batch_tokens, expected_losses, optima

StepSeconds = Callable[[int], float]
"""Sequences of a step -> seconds that it takes."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a run goes and on what terms."""

    n_chips: int
    reliability: Reliability
    price: PriceRange | None = None
    """Per chip and hour; None: unknown."""
    power: Power | None = None
    """None: unknown."""


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Steps of one batch size."""

    batch_size: int
    """Sequences."""
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """A run from its first step to its last; expected values."""

    steps: int
    tokens: int
    flops: float
    """Model FLOPs (`qianyi.config.counts.MFU_CONVENTION`)."""
    stages: tuple[StageTime, ...]
    checkpoint_steps: int
    """Steps between checkpoints that lose least, by Daly's formula."""
    checkpoint_seconds: float
    """The same in seconds of work, at the full batch."""
    time: LostTime
    bill: Bill
    losses: tuple[Forecast, ...]
    """Empty unless a decoder predicts every next token."""
    optima: tuple[Allocation, ...]
    """How laws of scaling would divide 6 x parameters x tokens of this run."""
    critical_batch_tokens: float | None
    """At the last loss that Kaplan et al. 2020 expect."""
    assumptions: tuple[str, ...]

    @property
    def productive_days(self) -> float:
        """If nothing failed and nothing were saved."""
        return self.time.productive_seconds / DAY

    @property
    def wall_days(self) -> float:
        return self.time.wall_seconds / DAY

    @property
    def interruptions(self) -> float:
        """Unexpected, of the whole run."""
        return self.time.interruptions

    @property
    def loss_range(self) -> tuple[float, float] | None:
        """Nats per token, over the laws of one text and tokenizer: Hoffmann et al. 2022 and its re-fit."""
        comparable = {law.name for law in ADDITIVE_LAWS}
        losses = [forecast.loss for forecast in self.losses if forecast.law in comparable]
        return (min(losses), max(losses)) if losses else None


def campaign(config: Config, step_seconds: StepSeconds, site: Site) -> Campaign:
    """The whole run of a recipe at a site.

    Raises:
        ConfigError: failures are so frequent that it would not end.
    """
    m, train = config.model, config.train
    stages = stage_times(train, step_seconds)
    productive = sum(stage.seconds for stage in stages)
    interval_steps = checkpoint_interval_steps(step_seconds(train.batch_size), site)
    interval = interval_steps * step_seconds(train.batch_size)
    time = lost_time(productive, interval, site.n_chips, site.reliability)
    cost = bill(time.wall_seconds / HOUR * site.n_chips, site.price, site.power)
    tokens = tokens_before(train, train.steps)
    losses = _losses(config, tokens)
    kaplan = [forecast.loss for forecast in losses if forecast.law == KAPLAN.name]
    return Campaign(
        steps=train.steps,
        tokens=tokens,
        flops=tokens * flops_per_token(m, train.seq_len),
        stages=stages,
        checkpoint_steps=interval_steps,
        checkpoint_seconds=interval,
        time=time,
        bill=cost,
        losses=losses,
        optima=optima(6 * active_parameter_count(m) * tokens) if losses else (),
        critical_batch_tokens=critical_batch_tokens(kaplan[0]) if kaplan else None,
        assumptions=(*_reliability_words(site), *cost.assumptions, *_loss_words(m, losses)),
    )


def by_deadline(config: Config, step_seconds: StepSeconds, site: Site, *, wall_days: float) -> Campaign:
    """The longest run of this recipe, in whole steps, that is expected to end within so many days.

    Raises:
        ConfigError: there is no time for a single step.
    """
    full = step_seconds(config.train.batch_size)
    interval = checkpoint_interval_steps(full, site) * full
    ratio = lost_time(interval, interval, site.n_chips, site.reliability).effective_ratio
    steps = steps_within(config.train, step_seconds, wall_days * DAY * ratio)
    if not steps:
        first = step_seconds(ramp_stages(config.train)[0].batch_size)
        raise ConfigError(
            f"{wall_days * DAY:.0f} s are too short for one step of {first:.0f} s, with {1 - ratio:.1%} of the time lost"
        )
    return campaign(_of_steps(config, steps), step_seconds, site)


def by_budget(config: Config, step_seconds: StepSeconds, site: Site, *, dollars: float) -> tuple[Campaign, Campaign]:
    """The longest runs that a sum pays for: at the highest price, and at the lowest.

    Raises:
        ConfigError: no price is known, or the sum does not pay for a single step.
    """
    if site.price is None:
        raise ConfigError("no price of this chip is known; give dollars per chip and hour")
    days = [dollars / (price * site.n_chips) / 24 for price in (site.price.high, site.price.low)]
    dear, cheap = (by_deadline(config, step_seconds, site, wall_days=d) for d in days)
    return dear, cheap


def stage_times(train: TrainConfig, step_seconds: StepSeconds) -> tuple[StageTime, ...]:
    """Of each batch size that the run reaches, in order."""
    stages = [stage for stage in ramp_stages(train) if stage.first_step < train.steps]
    ends = [stage.first_step for stage in stages[1:]] + [train.steps]
    return tuple(
        StageTime(
            batch_size=stage.batch_size,
            steps=end - stage.first_step,
            tokens=(end - stage.first_step) * stage.batch_size * train.seq_len,
            seconds=(end - stage.first_step) * step_seconds(stage.batch_size),
        )
        for stage, end in zip(stages, ends, strict=True)
    )


def steps_within(train: TrainConfig, step_seconds: StepSeconds, seconds: float) -> int:
    """Whole steps that fit, ramp included; train.steps does not matter."""
    stages = ramp_stages(train)
    left, steps = seconds, 0
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        fit = int(left / step_seconds(stage.batch_size) + 1e-9)
        if following is None or fit < following.first_step - stage.first_step:
            return steps + fit
        steps = following.first_step
        left -= (following.first_step - stage.first_step) * step_seconds(stage.batch_size)
    return steps


def checkpoint_interval_steps(step_seconds: float, site: Site) -> int:
    """Whole steps, at least one, nearest to Daly's interval, and enough that a checkpoint is durable before the next begins."""
    reliability = site.reliability
    best = daly_interval(reliability.write_seconds, reliability.seconds_between(site.n_chips))
    durable = -(-(reliability.lag_seconds - reliability.write_seconds) // step_seconds)
    return max(1, round(best / step_seconds), int(durable))


def _of_steps(config: Config, steps: int) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})


def _losses(config: Config, tokens: int) -> tuple[Forecast, ...]:
    m = config.model
    if m.kind != "decoder" or config.train.objective.kind != "causal":
        return ()
    embedding = m.vocab_size * m.d_model * (1 if m.tied_embeddings else 2)
    return expected_losses(active_parameter_count(m), tokens, embedding_params=embedding)


def _reliability_words(site: Site) -> tuple[str, ...]:
    r = site.reliability
    hours = r.seconds_between(site.n_chips) / HOUR
    return (
        f"failures: {r.chip_hours_between:,.0f} chip-hours between interruptions, one per {hours:.3g} h of this job",
        f"a checkpoint stops training for {r.write_seconds:.3g} s and is durable {r.lag_seconds:.3g} s later",
        f"a restart takes {r.restart_seconds:.3g} s",
        "validation, planned maintenance and waiting for chips not counted",
    )


def _loss_words(m: ModelConfig, losses: tuple[Forecast, ...]) -> tuple[str, ...]:
    if not losses:
        return ("loss: no published law for this objective",)
    far = max(forecast.extrapolation for forecast in losses)
    words = f"loss: laws of dense decoders, of their own text and tokenizer, up to {far:.3g} times beyond their runs"
    active, total = active_parameter_count(m), parameter_count(m)
    return (
        (words, f"loss: of {active:,} parameters that a token meets; experts beyond them not counted")
        if active < total
        else (words,)
    )
