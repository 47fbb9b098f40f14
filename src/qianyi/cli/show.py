"""`qianyi show`."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from qianyi.cli.data import epoch_warnings, train_tokens
from qianyi.cli.layout import layout_overrides
from qianyi.config.check import check
from qianyi.config.load import dump, load
from qianyi.config.mixture import epochs
from qianyi.config.ramp import ramp_stages
from qianyi.config.schema import Config
from qianyi.config.summary import summary
from qianyi.data.stage import MANIFEST, read_manifest
from qianyi.monitor.words import gibibytes


def run(recipe: str, overrides: list[str], layout: str | None) -> None:
    resolved = load(recipe, [*overrides, *layout_overrides(layout)] if layout else overrides)
    check(resolved.config)
    for label, sentence in summary(resolved.config).items():
        print(f"# {label + ':':15} {sentence}")
    train = resolved.config.train
    for stage, following in pairwise(ramp_stages(train)):
        if stage.first_step < train.steps:
            sequences = f"{stage.batch_size:,} sequences per step up to step {following.first_step:,}"
            print(f"# {'Ramp:':15} {sequences}")
    for sentence in _data(resolved.config):
        print(f"# {'Data:':15} {sentence}")
    print(f"# {'Devices:':15} {resolved.config.layout.n_devices:,} ({resolved.config.layout.words})")
    if layout:
        _show_layout(resolved.config)
    print(dump(resolved), end="")


def _data(config: Config) -> Iterator[str]:
    """How often each source is read, where the shards are there to be counted."""
    shards = Path(config.data.dir) / "shards"
    if not (shards / MANIFEST).exists():
        return
    tokens = train_tokens(read_manifest(shards))
    weighed = {name for stage in config.data.stages for name in stage.weights}
    named = {source.name for source in config.data.sources} or tokens.keys()
    if named != tokens.keys() or not weighed <= tokens.keys():
        return  # shards of other sources, which `prepare` will make anew
    read = epochs(config.data, config.train, tokens)
    yield "epochs of " + ", ".join(f"{name} {times:.2f}" for name, times in read.items())
    yield from epoch_warnings(read)


def _show_layout(config: Config) -> None:
    """What lies on a device and what it sends, as comments above the recipe."""
    from qianyi.train.footprint import held, sends  # noqa: PLC0415 - JAX takes a second, which `show` alone does not need

    on_device = held(config)
    print(f"# layout: {config.layout.words}, ZeRO {config.layout.zero}")
    print("# a device holds, without activations:")
    for name, size in asdict(on_device).items():
        print(f"#   {name.replace('_', ' '):50} {gibibytes(size):>12}")
    print("# a device sends per step:")
    for s in sends(config):
        print(f"#   {s.what:50} {gibibytes(s.bytes_per_device):>12}  over {s.axes}")
