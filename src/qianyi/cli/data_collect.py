"""`qianyi data collect`."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from qianyi.corpus.collect.collect import CollectSettings, collect
from qianyi.corpus.collect.registry import corpora
from qianyi.corpus.collect.source import parse_source
from qianyi.corpus.parts import Options
from qianyi.data.stage import Json
from qianyi.errors import ConfigError


def run(sources: list[str], out: Path, settings: dict[str, Any], cache: Path | None, options: Options) -> None:
    """Collect `sources`; `settings` are those of every source (see `SourceSettings`), None where the command line says nothing."""
    given = {key: value for key, value in settings.items() if value is not None}
    try:
        parsed = [parse_source(source, **given) for source in sources]
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}") from None
    manifest = collect(CollectSettings(sources=parsed, cache=str(cache) if cache else None), out, options)
    show(manifest, out)


def show(manifest: Json, out: Path) -> None:
    """Documents, bytes and refusals by source."""
    table = Table(box=None, pad_edge=False)
    for name in ("source", "documents", "MB", "dropped"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for name, numbers in manifest["sources"].items():
        table.add_row(name, f"{numbers['documents']:,}", f"{numbers['bytes'] / 1e6:,.1f}", f"{numbers['dropped']:,}")
    console = Console(highlight=False)
    console.print(table)
    for reason, n in manifest["reasons"].items():
        console.print(f"{n:,} dropped as `{reason}`; see {out / 'dropped'}")


def list_corpora() -> None:
    """The table of corpora that registries carry."""
    table = Table(box=None, pad_edge=False)
    for name in ("path", "language", "title", "licence", "use"):
        table.add_column(name, no_wrap=name == "path")
    for name, entry in corpora().items():
        use = "research only" if entry.get("research_only") else ""
        table.add_row(f"corpus:{name}", entry["language"], entry["title"], entry["licence"], use)
    Console(highlight=False).print(table)
