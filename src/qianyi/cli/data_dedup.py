"""`qianyi data dedup`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from qianyi.config.part import Part
from qianyi.corpus.dedup.settings import DedupSettings
from qianyi.corpus.dedup.stage import dedup, dedup_report
from qianyi.corpus.parts import Json, Options
from qianyi.data.stage import write_json
from qianyi.errors import ConfigError

AnySettings = TypeVar("AnySettings", bound=Part)


def run(
    inputs: Sequence[Path], out: Path, chosen: dict[str, Any], against: Sequence[Path], options: Options, report: Path | None
) -> None:
    """Deduplicate, then print what was found; `chosen` are settings of `DedupSettings` that were given."""
    dedup(inputs, out, read_settings("dedup", DedupSettings, chosen), against, options)
    found = dedup_report(out)
    if report:
        write_json(report, found)
    _show(found, out)


def read_settings(verb: str, model: type[AnySettings], chosen: dict[str, Any]) -> AnySettings:
    """Settings of a verb.

    Raises:
        ConfigError: the first that is wrong.
    """
    try:
        return model.model_validate(chosen)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise ConfigError(f"data {verb}: {where}{first['msg'].removeprefix('Value error, ')}") from None


def _show(found: Json, out: Path) -> None:
    console = Console(highlight=False)
    table = Table("", "documents", "bytes", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("kept", f"{found['documents']:,}", f"{found['bytes']:,}")
    for reason, number in found["reasons"].items():
        table.add_row(reason, f"{number:,}", "")
    for name, number in found["counts"].items():
        table.add_row(name.removeprefix("bytes_of_").replace("_", " "), "", f"{number:,}")
    console.print(table)
    for kind, what in (("document", "documents"), ("line", "paragraphs")):
        if sizes := found.get(f"{kind}_clusters"):
            largest = max(sizes)
            console.print(f"clusters of {what}: {sum(sizes.values()):,}, the largest of {largest:,}")
    if sample := found.get("sample"):
        shown = [f"{name} {sample[name]:.3f}" for name in ("recall", "precision") if sample[name] is not None]
        if shown:
            console.print(
                f"near duplicates, against exact Jaccard {sample['similarity']} on {sample['documents']:,} documents: {', '.join(shown)}"
            )
    console.print(str(out))
