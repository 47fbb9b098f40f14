"""`qianyi data run`."""

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qianyi.corpus.parts import Json, Options
from qianyi.corpus.pipeline import Stage, Step, read_pipeline, run_pipeline


def run(file: Path, out: Path, stages: Mapping[str, Stage], options: Options) -> None:
    """Run a pipeline, then print what each stage kept."""
    pipeline = read_pipeline(file, stages)
    manifests = run_pipeline(pipeline, out, options, _say)
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "documents", "MB", "dropped", "most for"):
        table.add_column(name, justify="left" if name in {"stage", "most for"} else "right")
    for directory, manifest in zip(pipeline.directories(out), manifests, strict=True):
        if "documents" in manifest:
            table.add_row(directory.name, *_numbers(manifest))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{out}: `qianyi data why {out} DOCUMENT` follows a document")


def _say(step: Step, directory: Path) -> None:
    print(f"{step.name} -> {directory}", file=sys.stderr)


def _numbers(manifest: Json) -> tuple[str, ...]:
    reasons: dict[str, int] = manifest["reasons"]
    most = sorted(reasons, key=lambda reason: (-reasons[reason], reason))[:3]
    shown = ", ".join(f"{reason} {reasons[reason]:,}" for reason in most)
    return f"{manifest['documents']:,}", f"{manifest['bytes'] / 1e6:,.1f}", f"{manifest['dropped']:,}", shown
