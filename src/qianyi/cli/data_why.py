"""`qianyi data why`."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from qianyi.corpus.why import Found, why


def run(path: Path, document: str) -> None:
    """Print what became of a document in each stage."""
    story = why(path, document)
    console = Console(highlight=False, markup=False)
    console.print(f"{story.id}\n{story.origin} (source {story.source})", soft_wrap=True)
    for found in story.stages:
        console.print(f"{found.directory}: {_outcome(found)}", soft_wrap=True)
        if found.columns:
            console.print(_columns(found))
    console.print(f"begins: {story.stages[-1].head[:200]!r}" if story.stages else "no stage has it", soft_wrap=True)


def _outcome(found: Found) -> str:
    if not found.is_kept:
        return f"dropped: {found.reason}" + (f" ({found.detail})" if found.detail else "")
    size = len((found.text or "").encode())
    return f"kept, {size:,} bytes" + (", text changed" if found.has_changed else "")


def _columns(found: Found) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in found.columns.items():
        table.add_row("  " + name, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table
