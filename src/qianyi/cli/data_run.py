"""`qianyi data run`."""

import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qianyi.config.explain import nearest
from qianyi.corpus.parts import Json, Options
from qianyi.corpus.pipeline import Stage, Step, read_pipeline, run_pipeline
from qianyi.errors import ConfigError


def run(file: Path, out: Path, stages: Mapping[str, Stage], options: Options) -> None:
    """Run a pipeline, then print what each stage kept."""
    pipeline = read_pipeline(_found(file), stages)
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


def _found(file: Path) -> Path:
    """A file, or a shipped pipeline by its name."""
    shipped = Path(str(files("qianyi.corpus"))) / "pipelines"
    if file.suffix or file.exists():
        return file
    if not (named := shipped / f"{file}.yaml").exists():
        names = sorted(path.stem for path in shipped.glob("*.yaml"))
        raise ConfigError(
            f"{file}: no such file, and no pipeline of this name{nearest(str(file), names)}; there are {', '.join(names)}"
        )
    return named


def _say(step: Step, directory: Path) -> None:
    print(f"{step.name} -> {directory}", file=sys.stderr)


def _numbers(manifest: Json) -> tuple[str, ...]:
    reasons: dict[str, int] = manifest["reasons"]
    most = sorted(reasons, key=lambda reason: (-reasons[reason], reason))[:3]
    shown = ", ".join(f"{reason} {reasons[reason]:,}" for reason in most)
    return f"{manifest['documents']:,}", f"{manifest['bytes'] / 1e6:,.1f}", f"{manifest['dropped']:,}", shown
