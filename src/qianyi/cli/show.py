"""`qianyi show`."""

from qianyi.cli.recipes import readable
from qianyi.config.check import check
from qianyi.config.counts import parameter_count
from qianyi.config.load import dump, load


def run(recipe: str, overrides: list[str]) -> None:
    resolved = load(recipe, overrides)
    check(resolved.config)
    train, layout = resolved.config.train, resolved.config.layout
    step_tokens = train.batch_size * train.seq_len
    count = parameter_count(resolved.config.model)
    print(f"# {count:,} parameters ({readable(count)}), {layout.n_devices} devices")
    print(f"# {step_tokens:,} tokens per step, {readable(step_tokens * train.steps)} tokens in {train.steps:,} steps")
    print(dump(resolved), end="")
