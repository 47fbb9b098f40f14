"""`qianyi recipes`."""

import sys

from rich.console import Console
from rich.table import Table

from qianyi.config import recipes
from qianyi.config.counts import parameter_count
from qianyi.config.load import load
from qianyi.config.summary import readable


def run() -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("devices", justify="right", no_wrap=True)
    table.add_column("what it is for")
    configs = {name: load(name).config for name in recipes.names()}
    for name, config in sorted(configs.items(), key=lambda item: parameter_count(item[1].model)):
        table.add_row(name, readable(parameter_count(config.model)), str(config.layout.n_devices), config.description)
    # Piped, every recipe is one line.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
