"""The training loop. It takes an iterator of batches, runs the step, and reports; it knows no data format and no sink.

The device never waits for the host: while step n runs, the metrics of step n-1 are read and reported.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import psutil
from jax import Array

from qianyi.config.counts import flops_per_token
from qianyi.config.ramp import batch_size_of, tokens_before
from qianyi.config.schema import Config
from qianyi.errors import QianyiError
from qianyi.events import StepEvent
from qianyi.train.noise import NoiseScale
from qianyi.train.step import Batch, Metrics, TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls."""

    emit: Callable[[StepEvent], None]
    """Once per step, in order."""
    evaluate: Callable[[TrainState, int], None]
    """Every train.eval_every steps, and after the last."""
    save: Callable[[TrainState, int], None]
    """When a checkpoint is due, when told to stop, and after the last step."""
    stop: Callable[[int], bool]
    """Asked after every step: has the process been told to end?"""


class NotFiniteError(QianyiError):
    """Loss or gradient became NaN or infinite."""


def train_loop(
    config: Config,
    train_step: TrainStep,
    state: TrainState,
    batches: Iterator[Batch],
    peak_flops: float | None,
    hooks: Hooks,
) -> TrainState:
    """Run from `state` to train.steps, or until told to stop.

    Args:
        config: the recipe.
        train_step: from `make_train_step`.
        state: where to begin; donated.
        batches: from the batch of step `state.step` on.
        peak_flops: of all devices together, for the MFU; None where unknown.
        hooks: what to call.

    Raises:
        NotFiniteError: loss or gradient is NaN or infinite; no state after that is saved.
    """
    start = step = int(state.step)
    meter = _Meter(config, peak_flops)
    saves = _SaveTimer(config)
    pending: tuple[int, Metrics] | None = None

    def report() -> None:
        nonlocal pending
        if pending is not None:
            hooks.emit(_require_finite(meter.event(*pending)))
            pending = None

    for batch in batches:
        state, metrics = train_step(state, batch)
        step += 1
        report()  # the step before, while this one runs
        pending = (step, metrics)
        stopping, last = hooks.stop(step), step == config.train.steps
        # Validation comes before the save, so that a run that continues from the save has it.
        if last or (config.train.eval_every and step % config.train.eval_every == 0 and not stopping):
            report()
            hooks.evaluate(state, step)
            meter.pause()
        if stopping or last or saves.due(step):
            report()
            hooks.save(state, step)
        if stopping or last:
            break
    report()
    assert step > start or start >= config.train.steps, "no batch came"
    return state


class _Meter:
    """Turns metrics on the device into events, and keeps the time between them."""

    def __init__(self, config: Config, peak_flops: float | None):
        self._train = config.train
        self._flops_per_token = flops_per_token(config.model, config.train.seq_len)
        self._has_balance_loss = config.model.mixture is not None
        self._has_sentence_loss = config.model.sentence_head
        self._noise_scale = NoiseScale()
        self._peak_flops = peak_flops
        self._last_seconds = time.perf_counter()

    def pause(self) -> None:
        """Leave the time since the last event out of the next one's step."""
        self._last_seconds = time.perf_counter()

    def event(self, step: int, metrics: Metrics) -> StepEvent:
        values: Metrics = jax.device_get(metrics)
        now_seconds = time.perf_counter()
        seconds, self._last_seconds = now_seconds - self._last_seconds, now_seconds
        tokens = tokens_before(self._train, step)
        tokens_per_second = (tokens - tokens_before(self._train, step - 1)) / seconds
        return StepEvent(
            step=step,
            tokens=tokens,
            loss=_scalar(values.loss),
            z_loss=_scalar(values.z_loss),
            balance_loss=_scalar(values.balance_loss) if self._has_balance_loss else None,
            sentence_loss=_scalar(values.sentence_loss) if self._has_sentence_loss else None,
            grad_norm=_scalar(values.grad_norm),
            grad_noise_scale=self._noise(step, values),
            learning_rate=_scalar(values.learning_rate),
            step_seconds=seconds,
            tokens_per_second=tokens_per_second,
            mfu=None if self._peak_flops is None else self._flops_per_token * tokens_per_second / self._peak_flops,
            memory_bytes=memory_bytes(),
            time=time.time(),
        )

    def _noise(self, step: int, values: Metrics) -> float | None:
        if values.microbatch_grad_norm is None:
            return None
        norms = _scalar(values.grad_norm), _scalar(values.microbatch_grad_norm)
        microbatch_size = self._train.batch_size // self._train.accumulation
        return self._noise_scale.add(*norms, batch_size_of(self._train, step - 1), microbatch_size)


class _SaveTimer:
    """Is a checkpoint due, by steps or by time?"""

    def __init__(self, config: Config):
        self._every_steps = config.checkpoint.every_steps
        self._every_seconds = 60 * config.checkpoint.every_minutes
        self._last_seconds = time.monotonic()

    def due(self, step: int) -> bool:
        by_steps = self._every_steps > 0 and step % self._every_steps == 0
        if by_steps or self._by_time():
            self._last_seconds = time.monotonic()
            return True
        return False

    def _by_time(self) -> bool:
        if not self._every_seconds:
            return False
        over = time.monotonic() - self._last_seconds >= self._every_seconds
        if jax.process_count() > 1:
            # All processes must save the same step: process 0's clock decides.
            from jax.experimental import multihost_utils  # noqa: PLC0415 - imports slowly, needed by few

            return bool(multihost_utils.broadcast_one_to_all(over))
        return over


def memory_bytes() -> int:
    """The most bytes in use on a local device; on CPU, the resident set of this process."""
    in_use = [(d.memory_stats() or {}).get("bytes_in_use", 0) for d in jax.local_devices() if d.platform != "cpu"]
    return max(in_use) if in_use else psutil.Process().memory_info().rss


def _require_finite(event: StepEvent) -> StepEvent:
    if not (math.isfinite(event.loss) and math.isfinite(event.grad_norm)):
        raise NotFiniteError(
            f"step {event.step}: loss {event.loss}, gradient norm {event.grad_norm}; stopped without saving. "
            "Lower optimizer.learning_rate or lengthen schedule.warmup_steps; the same command continues from the newest checkpoint"
        )
    return event


def _scalar(value: Array) -> float:
    return float(value)
