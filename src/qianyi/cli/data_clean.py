"""`qianyi data clean`."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from qianyi.corpus.clean.stage import clean, filter_measured
from qianyi.corpus.parts import Options
from qianyi.data.stage import Json
from qianyi.errors import ConfigError


def run(corpora: list[Path], out: Path, measured: Path | None, rules: Path | None, *, report: bool, options: Options) -> None:
    """Clean corpora, or, with `measured`, apply rules to what was measured before."""
    if bool(corpora) == (measured is not None):
        raise ConfigError("data clean: name corpus directories to measure and filter, or --measured DIR to filter again")
    manifest = clean(corpora, out, rules, options) if measured is None else filter_measured(measured, out, rules, options)
    show(manifest, out)
    if report:
        Console(highlight=False).print(report_table(manifest))


def show(manifest: Json, out: Path) -> None:
    """What was kept, by source."""
    table = Table(box=None, pad_edge=False)
    for name in ("source", "kept", "dropped", "share kept", "MB"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for name, n in manifest["sources"].items():
        share = n["documents"] / max(1, n["documents"] + n["dropped"])
        table.add_row(name, f"{n['documents']:,}", f"{n['dropped']:,}", f"{share:.1%}", f"{n['bytes'] / 1e6:,.1f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{out}: the kept; {out}/dropped: what was dropped, each with the rule, the value and the bound")


def report_table(manifest: Json) -> Table:
    """Of each rule of each kind that documents are of: how many fail it, fail it first, and have failed by then."""
    counts: Json = manifest["counts"]
    table = Table(box=None, pad_edge=False)
    for name in ("kind", "documents", "rule", "alone", "first", "cumulative"):
        table.add_column(name, justify="left" if name in {"kind", "rule"} else "right")
    for kind, entry in manifest["settings"]["kinds"].items():
        documents, dropped = counts.get(f"kind/{kind}", 0), 0
        for number, rule in enumerate(entry["rules"] if documents else []):
            alone, first = (counts[f"{which}/{kind}/{rule['rule']}"] for which in ("alone", "first"))
            dropped += first
            head = ("", "") if number else (kind, f"{documents:,}")
            table.add_row(*head, rule["rule"], f"{alone:,}", f"{first:,}", f"{dropped / documents:.2%}")
    return table
