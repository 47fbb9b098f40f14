"""Learning rate over steps: linear warm-up, then a decay."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from qianyi.config.optimizer import ScheduleConfig
from qianyi.config.schema import Config


def learning_rate(config: Config) -> Callable[[Any], Any]:
    """The learning rate of step n (0 is the first) of a recipe."""
    return make_schedule(config.schedule, config.peak_learning_rate, config.train.steps)


def make_schedule(schedule: ScheduleConfig, peak: float, steps: int) -> Callable[[Any], Any]:
    """The learning rate of step n (0 is the first): the warm-up ends, and the run ends, exactly at their last steps.

    cosine: half a period from the peak to final_ratio * peak (Loshchilov & Hutter 2017). wsd: constant, then linear over the last
    decay_fraction of all steps (Hu et al. 2024, MiniCPM). linear, constant: as they say. rsqrt: with the inverse square root of the step,
    after the warm-up (Vaswani et al. 2017, section 5.3) or after hold_steps (Raffel et al. 2020, section 3.1.2; PaLM, section 5).
    """
    warmup, final = schedule.warmup_steps, schedule.final_ratio
    held = max(warmup, schedule.hold_steps, 1)
    decay_steps = schedule.decay_fraction * steps if schedule.kind == "wsd" else steps - warmup

    def rate(step: Array) -> Array:
        done = step + 1.0
        progress = jnp.clip((done - (steps - decay_steps)) / max(decay_steps, 1), 0, 1)
        factor = {
            "cosine": final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress)),
            "wsd": 1 - (1 - final) * progress,
            "linear": 1 - (1 - final) * progress,
            "constant": jnp.ones_like(progress),
            "rsqrt": jnp.sqrt(held / jnp.maximum(done, held)),
        }[schedule.kind]
        return peak * jnp.minimum(done / max(warmup, 1), 1) * factor

    return rate
