"""Rules on optimizer and schedule; see `qianyi.config.check`."""

from collections.abc import Iterator

from qianyi.config.optimizer import OptimizerConfig, ScheduleConfig
from qianyi.config.schema import Config


def schedule(config: Config) -> Iterator[str]:
    """Phases fit into the run, and the kind reads what is set."""
    warmup, steps = config.schedule.warmup_steps, config.train.steps
    if warmup >= steps:
        yield f"schedule.warmup_steps={warmup} leaves nothing of train.steps={steps}; use {steps // 10} or so"
    decay_steps = round(config.schedule.decay_fraction * steps)
    if config.schedule.kind == "wsd" and warmup < steps < warmup + decay_steps:
        yield (
            f"schedule.warmup_steps={warmup} and the decay over the last {decay_steps} steps (schedule.decay_fraction="
            f"{config.schedule.decay_fraction}) overlap in train.steps={steps}; warm up over {steps - decay_steps} at most"
        )
    kind, hold = config.schedule.kind, config.schedule.hold_steps
    for name, readers in (("decay_fraction", ("wsd",)), ("final_ratio", ("cosine", "wsd", "linear")), ("hold_steps", ("rsqrt",))):
        value = getattr(config.schedule, name)
        if kind not in readers and value != ScheduleConfig.model_fields[name].default:
            yield f"schedule.{name}={value} changes nothing with schedule.kind={kind}; leave it out ({', '.join(readers)})"
    if kind == "rsqrt" and 0 < hold <= warmup:
        yield f"schedule.hold_steps={hold} changes nothing with schedule.warmup_steps={warmup}: the peak lasts until the later of them"
    if kind == "rsqrt" and hold >= steps:
        yield f"schedule.hold_steps={hold} leaves nothing of train.steps={steps} to decay in; use {steps // 10} or so"


def scaling(config: Config) -> Iterator[str]:
    """A rule has a base to scale from."""
    rule, base = config.schedule.scale_rule, config.schedule.base_batch_size
    if rule != "none" and base is None:
        yield (
            f"schedule.scale_rule={rule} needs schedule.base_batch_size, the sequences per step for which optimizer.learning_rate="
            f"{config.optimizer.learning_rate:g} was found"
        )
    if rule == "none" and base is not None:
        yield f"schedule.base_batch_size={base} changes nothing with schedule.scale_rule=none; use linear or sqrt, or leave it out"


MUP_KINDS = ("adamw", "lion", "muon")
"""Optimizers whose learning rate `qianyi.model.width` carries over to other widths."""
_ADAM = ("b1", "b2", "eps")
_READ_BY = {
    "adamw": (*_ADAM, "decay_power"),
    "lamb": _ADAM,
    "lars": ("momentum", "nesterov", "trust_coefficient"),
    "adafactor": (
        *("eps", "decay_power", "momentum"),
        *("second_moment_exponent", "update_rms", "parameter_scaling", "factored"),
    ),
    "lion": ("b1", "b2", "decay_power"),
    "sgd": ("momentum", "nesterov", "decay_power"),
    "muon": (*_ADAM, "decay_power", "momentum", "newton_schulz_steps"),
}
"""Keys of `optimizer` that a kind reads, beside those that all read."""


def optimizer(config: Config) -> Iterator[str]:
    """What is set is read by the kind."""
    o = config.optimizer
    of_some = {key for keys in _READ_BY.values() for key in keys}
    for name, field in OptimizerConfig.model_fields.items():
        if name in of_some and name not in _READ_BY[o.kind] and getattr(o, name) != field.default:
            readers = ", ".join(kind for kind, keys in _READ_BY.items() if name in keys)
            yield f"optimizer.{name}={getattr(o, name)} changes nothing with optimizer.kind={o.kind}; leave it out ({readers} read it)"
    if config.model.mup_base_width and o.kind not in MUP_KINDS:
        yield f"model.mup_base_width has rules for optimizer.kind={', '.join(MUP_KINDS)}, not for {o.kind}; use one of them or leave it out"
    if o.nesterov and o.momentum == 0:
        yield "optimizer.nesterov=True changes nothing with optimizer.momentum=0; leave one of them out"
    if o.decay_power != 1 and not o.weight_decay:
        yield f"optimizer.decay_power={o.decay_power} changes nothing with optimizer.weight_decay=0; leave it out"
