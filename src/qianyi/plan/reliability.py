"""Failures and goodput: how often a run is interrupted, how often to save it, and what share of the time advances it.

Failures come at random and independently (a Poisson process): a chip that worked for a month is no more and no less likely to fail. One
failing chip stops the whole job, so a job of n chips is interrupted n times as often as a chip.
"""

import math
from dataclasses import dataclass

from qianyi.errors import ConfigError

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True, kw_only=True)
class FailureRecord:
    """What a published run or fleet met."""

    name: str
    chip: str
    chip_hours: float
    """Observed."""
    interruptions: float
    """That stopped a job unexpectedly, in those chip-hours."""
    source: str

    @property
    def chip_hours_between(self) -> float:
        """Chip-hours from one interruption to the next, on average."""
        return self.chip_hours / self.interruptions


RECORDS = (
    FailureRecord(
        name="Llama 3 405B",
        chip="H100",
        chip_hours=16_384 * 54 * 24,
        interruptions=419,
        source="The Llama 3 Herd of Models (2024), section 3.3.4 and table 5: 419 unexpected interruptions of 16,384 GPUs in 54 days",
    ),
    FailureRecord(
        name="Meta RSC-1",
        chip="A100",
        chip_hours=1000 * 24 * 8,
        interruptions=6.50,
        source="Kokolis et al. 2024 (arXiv 2410.21680): 6.50 failures per 1000 node-days, 8 GPUs each, jobs of all sizes, 11 months",
    ),
    FailureRecord(
        name="OPT-175B",
        chip="A100",
        chip_hours=992 * 60 * 24,
        interruptions=100,
        source="Zhang et al. 2022 (OPT), section 2.5: more than 100 hosts replaced in two months of 992 GPUs",
    ),
    FailureRecord(
        name="BLOOM",
        chip="A100",
        chip_hours=384 * 7 * 24,
        interruptions=1,
        source="BigScience 2022 (BLOOM): 1 to 2 GPU failures a week among 384; here 1",
    ),
    FailureRecord(
        name="TPU v4 fleet",
        chip="TPU v4",
        chip_hours=4 * 24,
        interruptions=0.0008,
        source="Zu et al. 2024 (NSDI), section 5.2: 0.08 % of machines (4 chips) fail each day; links and software not counted",
    ),
)
"""Newest first among GPUs. They differ fivefold and more: a fleet's age, its checks and what is counted matter as much as the chip."""

DEFAULT = RECORDS[0]
"""The largest run with a full record, and the median of all."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How often a job is interrupted, and what saving and restarting it cost."""

    chip_hours_between: float = DEFAULT.chip_hours_between
    """Chip-hours from one unexpected interruption to the next."""
    write_seconds: float
    """Training stands still so long to save; of an asynchronous checkpoint, to copy the state to the host."""
    lag_seconds: float = 0.0
    """After that, until the checkpoint can be restored from: what an asynchronous one takes to reach storage."""
    restart_seconds: float = 600.0
    """From a failure to the first step after it: notice, replace the host, start, compile, read the checkpoint."""

    def __post_init__(self) -> None:
        positive = {"chip_hours_between": self.chip_hours_between, "write_seconds": self.write_seconds}
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a positive number, not {value:g}")
        for name, value in {"lag_seconds": self.lag_seconds, "restart_seconds": self.restart_seconds}.items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must not be negative, and is {value:g}")

    def seconds_between(self, n_chips: int) -> float:
        """From one interruption of a job to the next, on average."""
        return self.chip_hours_between * HOUR / n_chips


@dataclass(frozen=True, kw_only=True)
class LostTime:
    """Seconds of a run's wall-clock time that do not advance it, and those that do; expected values."""

    productive_seconds: float
    writing_seconds: float
    """Training stood still for checkpoints that were completed."""
    recomputing_seconds: float
    """Work was done again that no checkpoint had kept, unfinished checkpoints included."""
    restarting_seconds: float
    interruptions: float

    @property
    def wall_seconds(self) -> float:
        return self.productive_seconds + self.writing_seconds + self.recomputing_seconds + self.restarting_seconds

    @property
    def effective_ratio(self) -> float:
        """Effective training time ratio (ETTR, also goodput): the share of wall-clock time that advances the run."""
        return self.productive_seconds / self.wall_seconds


def young_interval(write_seconds: float, seconds_between_failures: float) -> float:
    """Work between checkpoints that loses least, to first order: sqrt(2 x write x MTBF) (Young 1974)."""
    return math.sqrt(2 * write_seconds * seconds_between_failures)


def daly_interval(write_seconds: float, seconds_between_failures: float) -> float:
    """The same to higher order, right also where failures are frequent (Daly 2006, equation 37). It does not depend on the restart time."""
    if write_seconds >= 2 * seconds_between_failures:
        return seconds_between_failures
    ratio = write_seconds / (2 * seconds_between_failures)
    return young_interval(write_seconds, seconds_between_failures) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - write_seconds


def lost_time(productive_seconds: float, interval_seconds: float, n_chips: int, reliability: Reliability) -> LostTime:
    """Expected fate of a run that is saved after every `interval_seconds` of work.

    Exact for failures at random that may also hit writing and restarting (Daly 2006, equation 20): a segment of interval + write takes
    MTBF x exp((restart + lag) / MTBF) x (exp((interval + write) / MTBF) - 1). A checkpoint that becomes durable `lag` after training went
    on costs that much work more per failure, as a longer restart would, if a lag ends before the next checkpoint begins.

    Raises:
        ConfigError: an interval shorter than the lag, or failures so frequent that the run would never end.
    """
    between = reliability.seconds_between(n_chips)
    segment = interval_seconds + reliability.write_seconds
    if reliability.lag_seconds > segment:
        raise ConfigError(
            f"a checkpoint reaches storage after {reliability.lag_seconds:.0f} s, but the next follows after {segment:.0f} s; "
            f"save every {reliability.lag_seconds - reliability.write_seconds:.0f} s or less often"
        )
    repeat = reliability.restart_seconds + reliability.lag_seconds
    if (segment + repeat) / between > 50:
        raise ConfigError(
            f"{n_chips:,} chips are interrupted every {between:.0f} s, but {segment:.0f} s of work and saving and {repeat:.0f} s of "
            f"restarting must pass without: the run would not end; use fewer chips or shorten these"
        )
    segments = productive_seconds / interval_seconds
    wall = segments * between * math.exp(repeat / between) * math.expm1(segment / between)
    interruptions = wall / between
    writing = segments * reliability.write_seconds
    restarting = interruptions * between * -math.expm1(-reliability.restart_seconds / between)
    return LostTime(
        productive_seconds=productive_seconds,
        writing_seconds=writing,
        recomputing_seconds=max(0.0, wall - productive_seconds - writing - restarting),
        restarting_seconds=restarting,
        interruptions=interruptions,
    )


def checkpoint_bytes(params: float, state_bytes: float) -> float:
    """Size of a checkpoint. `state_bytes` per parameter: 12 for float32 weights and Adam, 14 with another copy of weights in 2 bytes."""
    return params * state_bytes


def write_seconds(size_bytes: float, bytes_per_second: float) -> float:
    """Time to write a checkpoint at a bandwidth over all hosts together."""
    return size_bytes / bytes_per_second
