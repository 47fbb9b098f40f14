"""Batch-size ramps: how many sequences a step takes and where they begin in the endless training sequence, without JAX.

Stages of smaller batches come before `train.batch_size`. Sequences keep their order whatever the stages are: a ramp decides how many of
them a step takes, and no more.
"""

from typing import NamedTuple

from qianyi.config.schema import Config, TrainConfig


class Stage(NamedTuple):
    """Steps of one batch size."""

    first_step: int
    first_sequence: int
    batch_size: int


def ramp_stages(train: TrainConfig) -> list[Stage]:
    """All stages in order; the last is that of the full batch and has no end."""
    stages: list[Stage] = []
    step = sequence = 0
    for stage in train.batch_ramp:
        stages.append(Stage(step, sequence, stage.batch_size))
        steps = -(-stage.sequences // stage.batch_size)
        step += steps
        sequence += steps * stage.batch_size
    return [*stages, Stage(step, sequence, train.batch_size)]


def batch_size_of(train: TrainConfig, step: int) -> int:
    """Sequences of a step (0 is the first)."""
    return _stage_of(train, step).batch_size


def sequences_before(train: TrainConfig, step: int) -> int:
    """Sequences of all steps before this one."""
    stage = _stage_of(train, step)
    return stage.first_sequence + (step - stage.first_step) * stage.batch_size


def tokens_before(train: TrainConfig, step: int) -> int:
    """Tokens of all steps before this one."""
    return sequences_before(train, step) * train.seq_len


def at_batch_size(config: Config, batch_size: int) -> Config:
    """The recipe of one stage: a microbatch has the rows that it has in the full batch, and there are fewer of them."""
    train = config.train
    accumulation = train.accumulation * batch_size // train.batch_size
    stage = train.model_copy(update={"batch_size": batch_size, "accumulation": accumulation, "batch_ramp": ()})
    return config.model_copy(update={"train": stage})


def _stage_of(train: TrainConfig, step: int) -> Stage:
    return max(stage for stage in ramp_stages(train) if stage.first_step <= step)
