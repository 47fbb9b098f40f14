"""Rules that involve several parts of a config, checked before anything is allocated.

Each rule yields problems; all of them are reported together, with the numbers and the nearest values that work.
"""

import math
from collections.abc import Iterator

from qianyi.config.schema import Config, LayoutConfig
from qianyi.errors import ConfigError, ResourceError

ACTIVATIONS = (
    "attn_norm",
    "query",
    "key",
    "value",
    "attn_out",
    "attn_proj",
    "mlp_norm",
    "mlp_up",
    "mlp_gate",
    "mlp_hidden",
    "mlp_out",
)
"""Activations of a block that `model.remat` may name."""
MATMUL_ACTIVATIONS = ("query", "key", "value", "attn_out", "attn_proj", "mlp_up", "mlp_gate")
"""What `model.remat=matmuls` keeps: with these, the backward pass repeats no matmul and no attention."""


def check(config: Config, n_devices: int | None = None) -> None:
    """Refuse what cannot run.

    Args:
        config: the recipe.
        n_devices: devices of the run; None where they are not known.

    Raises:
        ConfigError: all problems, one line each.
        ResourceError: there are fewer devices than the layout needs.
    """
    rules = (_tensor_axis, _data_axis, _batch, _lengths, _schedule, _remat, _sources, _platform)
    problems = [problem for rule in rules for problem in rule(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    if n_devices is not None:
        _check_devices(config, n_devices)


def _tensor_axis(config: Config) -> Iterator[str]:
    m, axis = config.model, config.layout.model
    for name, size in (("n_heads", m.n_heads), ("n_kv_heads", m.kv_heads), ("d_ff", m.d_hidden)):
        if size % axis:
            yield f"layout.model={axis} does not divide model.{name}={size}; {_divisors(size, axis)}"
    if m.vocab_size % axis:
        padded = m.vocab_size + -m.vocab_size % axis
        yield f"layout.model={axis} does not divide model.vocab_size={m.vocab_size}; pad it to {padded}"
    if config.train.seq_len % axis:
        yield (
            f"layout.model={axis} does not divide train.seq_len={config.train.seq_len} (sequence parallelism); "
            f"use {_multiples(config.train.seq_len, axis)}"
        )


def _data_axis(config: Config) -> Iterator[str]:
    layout, width = config.layout, config.model.d_model
    if layout.zero == 3 and width % layout.data:
        yield (
            f"layout.data={layout.data} does not divide model.d_model={width}, along which layout.zero=3 shards parameters; "
            f"{_divisors(width, layout.data)}, or use layout.zero=0"
        )


def _batch(config: Config) -> Iterator[str]:
    layout, train = config.layout, config.train
    parts = layout.batch_shards * train.accumulation
    if train.batch_size % parts:
        yield (
            f"train.batch_size={train.batch_size} does not split into layout.replica {layout.replica} x layout.data {layout.data} x "
            f"train.accumulation {train.accumulation} = {parts} equal parts; use {_multiples(train.batch_size, parts)}"
        )


def _lengths(config: Config) -> Iterator[str]:
    if config.train.seq_len > config.model.max_seq_len:
        yield f"train.seq_len={config.train.seq_len} is longer than model.max_seq_len={config.model.max_seq_len}"
    size = config.data.tokenizer_vocab_size
    if size is not None and size > config.model.vocab_size:
        yield f"data.tokenizer_vocab_size={size} is larger than model.vocab_size={config.model.vocab_size}"


def _schedule(config: Config) -> Iterator[str]:
    warmup, steps = config.schedule.warmup_steps, config.train.steps
    if warmup >= steps:
        yield f"schedule.warmup_steps={warmup} leaves nothing of train.steps={steps}; use {steps // 10} or so"
    decay_steps = round(config.schedule.decay_fraction * steps)
    if config.schedule.kind == "wsd" and warmup < steps < warmup + decay_steps:
        yield (
            f"schedule.warmup_steps={warmup} and the decay over the last {decay_steps} steps (schedule.decay_fraction="
            f"{config.schedule.decay_fraction}) overlap in train.steps={steps}; warm up over {steps - decay_steps} at most"
        )


def _remat(config: Config) -> Iterator[str]:
    if not isinstance(config.model.remat, str):
        for name in config.model.remat:
            if name not in ACTIVATIONS:
                yield f"model.remat names `{name}`; the activations are {', '.join(ACTIVATIONS)}"


def _sources(config: Config) -> Iterator[str]:
    names = [source.name for source in config.data.sources]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"data.sources has two sources named `{name}`"
    weighted = [source.name for source in config.data.sources if source.weight is not None]
    if weighted and len(weighted) < len(names):
        yield f"data.sources: {', '.join(sorted(set(names) - set(weighted)))} has no weight, others have; weigh all or none"


def _platform(config: Config) -> Iterator[str]:
    if config.run.virtual_devices and config.run.platform not in {"cpu", "auto"}:
        yield f"run.virtual_devices simulates devices on a CPU; run.platform is {config.run.platform}"


def _check_devices(config: Config, found: int) -> None:
    layout = config.layout
    needed = layout.n_devices
    if found == needed:
        return
    message = (
        f"layout.replica {layout.replica} x layout.data {layout.data} x layout.model {layout.model} = {needed} "
        f"{'device' if needed == 1 else 'devices'}, but {found} {'is' if found == 1 else 'are'} here; {_other_layout(layout, found)}"
    )
    if config.run.platform in {"cpu", "auto"}:
        message += f", or simulate {needed} on a CPU with run.platform=cpu run.virtual_devices={needed}"
    raise (ResourceError if found < needed else ConfigError)(message)


def _other_layout(layout: LayoutConfig, found: int) -> str:
    """The nearest layout for so many devices: `data` changes, and `model` and `replica` where they must."""
    model = math.gcd(layout.model, found)
    replica = math.gcd(layout.replica, found // model)
    values = {"replica": replica, "data": found // model // replica, "model": model}
    changed = [f"layout.{axis}={size}" for axis, size in values.items() if size != getattr(layout, axis)]
    return f"set {' '.join(changed)} to use {'it' if found == 1 else f'all {found}'}"


def _divisors(size: int, near: int) -> str:
    small = [n for n in range(1, math.isqrt(size) + 1) if size % n == 0]
    divisors = {*small, *(size // n for n in small)}
    nearest = sorted(sorted(divisors, key=lambda n: (abs(n - near), n))[:3])
    return f"{', '.join(map(str, nearest))} would"


def _multiples(size: int, of: int) -> str:
    """The multiples on both sides of a size."""
    below = size // of * of
    return f"{below} or {below + of}" if below else str(of)
