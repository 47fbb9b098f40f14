"""`qianyi data diff`."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from qianyi.corpus.diff import Difference, diff


def run(a: Path, b: Path, samples: int) -> None:
    """Print what two corpora, or two pipelines' outputs, do not have in common."""
    console = Console(highlight=False, markup=False)
    for difference in diff(a, b, samples):
        console.print(f"{difference.stage}: {difference.a} | {difference.b}", soft_wrap=True)
        console.print(_numbers(difference))
        _samples(console, difference)


def _numbers(found: Difference) -> Table:
    table = Table("", "first", "second", "change", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    rows = {"documents": found.documents, "bytes": found.size_bytes}
    rows |= {f"source {name}": pair for name, pair in found.sources.items() if pair[0] != pair[1]}
    rows |= {f"dropped by {name}": pair for name, pair in found.reasons.items() if pair[0] != pair[1]}
    rows |= {"only here": (found.n_only_a, found.n_only_b), "other text": (found.n_changed, found.n_changed)}
    for name, (first, second) in rows.items():
        table.add_row(name, f"{first:,}", f"{second:,}", f"{second - first:+,}" if second != first else "")
    return table


def _samples(console: Console, found: Difference) -> None:
    for title, documents in (("only in the first", found.only_a), ("only in the second", found.only_b)):
        for document in documents:
            console.print(f"{title}: {document.id} {document.origin}\n    {document.head!r}", soft_wrap=True)
    for changed in found.changed:
        console.print(f"changed: {changed.id} {changed.origin}\n  - {changed.before!r}\n  + {changed.after!r}", soft_wrap=True)
