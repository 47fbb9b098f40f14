"""`qianyi data decontaminate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qianyi.cli.data_dedup import read_settings
from qianyi.corpus.decontaminate import DecontaminateSettings, decontaminate, decontamination_report
from qianyi.corpus.parts import Options
from qianyi.data.stage import write_json


def run(
    inputs: Sequence[Path], out: Path, evalsets: Sequence[Path], chosen: dict[str, Any], options: Options, report: Path | None
) -> None:
    """Decontaminate, then print what was found; `chosen` are settings of `DecontaminateSettings` that were given."""
    decontaminate(inputs, out, evalsets, read_settings("decontaminate", DecontaminateSettings, chosen), options)
    found = decontamination_report(out)
    if report:
        write_json(report, found)
    table = Table("evaluation set", "n-gram", "items", "too short", "found", "share", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, entry in found["evalsets"].items():
        row = (entry["ngram"], entry["items"], entry["too_short"], entry["found"])
        table.add_row(name, *(f"{number:,}" for number in row), f"{entry['share']:.2%}")
    console = Console(highlight=False)
    console.print(table)
    cut = found["counts"].get("documents_cut", 0)
    console.print(f"{found['documents']:,} documents kept, {cut:,} of them cut, {found['dropped']:,} dropped: {out}")
