"""A stage over a corpus: one function run on each unit of work, its output in a corpus directory.

What is in the directory depends on the stage, its settings, its inputs and the units, and on nothing else: not on the number of workers,
the engine, or how often the run was killed. `plan.json` says what is being made; a unit is finished when its record is in `done/`; the
manifest comes last. What the clock knows is in `run.json`.
"""

import errno
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qianyi.corpus import directory
from qianyi.corpus.document import corpus_manifest, read_batches
from qianyi.corpus.engine import engine_of, map_units, worker_count
from qianyi.corpus.inputs import describe_inputs
from qianyi.corpus.progress import Progress, progress_of
from qianyi.corpus.turn import turn, working
from qianyi.corpus.worker import Task
from qianyi.corpus.writer import UnitWriter
from qianyi.data.stage import Json, write_json
from qianyi.errors import DataError, ResourceError, StoppedError

__all__ = ["Json", "Options", "Work", "Writer", "part_units", "read_batches", "run_parts"]


class Writer(Protocol):
    """Takes what one unit makes."""

    def keep(self, batch: pa.RecordBatch) -> None:
        """Documents that go on, in order; columns as in `DOCUMENT` and more."""
        ...

    def drop(self, batch: pa.RecordBatch, reason: str | Sequence[str], detail: Sequence[str] | None = None) -> None:
        """Documents that do not go on; one reason, or one for each."""
        ...

    def count(self, name: str, n: int) -> None:
        """Add to a number of the manifest, summed over units."""
        ...

    def attach(self, name: str, table: pa.Table) -> None:
        """A table beside the documents: NAME/00000.parquet, recorded and hashed as parts are; once for each unit and name."""
        ...

    def scatter(self, name: str, table: pa.Table, buckets: NDArray[np.integer[Any]], n_buckets: int) -> None:
        """Rows for a later stage by bucket (see `qianyi.corpus.buckets`); once for each unit and name."""
        ...


Work = Callable[[Json, Json, Writer], None]
"""(unit, settings, writer): a function of a module; unit and settings are JSON."""


@dataclass(frozen=True)
class Options:
    """How a stage is run; nothing here changes what comes out."""

    workers: int = 1
    """Processes (0: one for each core, or one if there is little to do)."""
    engine: str = "auto"
    """`native`, `ray`, or `auto`: Ray if RAY_ADDRESS is set."""
    strict: bool = False
    """The first document that would be dropped is an error."""
    allow: tuple[str, ...] = ()
    """Rules that may drop everything, or match nothing."""
    progress: bool = False
    """Show it on standard error."""


def run_parts(
    out: Path, stage: str, settings: Json, units: list[Json], work: Work, inputs: list[Path], options: Options | None = None
) -> Json:
    """Make the corpus directory `out`, unless it is there with the same settings and inputs.

    Args:
        out: the directory; what another run to the same end has finished is kept.
        stage: name of the stage.
        settings: all that determines the output besides units and inputs. Each name in the list `rules`, if there is one, must match a
            document: drop one for that reason, or be counted.
        units: the pieces of work, in the order of their output; their `bytes`, where given, are for the progress shown.
        work: makes the output of one unit.
        inputs: files, and finished corpus directories, that units read.
        options: how it is run.

    Returns:
        The manifest.

    Raises:
        DataError: input or output cannot be used, or a rule drops everything or matches nothing (see `Options.allow`).
        ResourceError: disk or memory is full; what was finished is kept.
        StoppedError: Ctrl-C; likewise.
    """
    options = options or Options()
    if any(i.resolve() == out.resolve() for i in inputs):
        raise DataError(f"{out}: would be input and output of `{stage}`; give another output directory")
    progress = progress_of(stage, options.progress)
    with _clear_errors(out):
        described, times = describe_inputs(inputs, directory.read_run(out))
        plan = directory.plan_of(stage, settings, described, units)
        if manifest := directory.finished(out, plan):
            directory.note_times(out, times)
            return manifest
        out.mkdir(parents=True, exist_ok=True)
        with turn(out, progress.wait) as token:
            if manifest := directory.finished(out, plan):
                return manifest
            directory.begin(out, plan)
            names = directory.unit_names(len(units))
            job = partial(do_unit, str(out), token, work, settings, options.strict)
            run = _do_units(out, dict(zip(names, units, strict=True)), job, options, progress)
            write_json(out / directory.RUN, {"input_times": times, **run})
            return directory.finish(out, plan, names, options.allow, strict=options.strict)


def part_units(corpus: Path) -> list[Json]:
    """One unit for each part of a finished corpus directory, in order: `part` (path), `name` (its stem), `corpus`, `rows`, `bytes`.

    Raises:
        DataError: it is not a finished corpus directory.
    """
    entries = [entry for entry in corpus_manifest(corpus)["files"] if entry["file"].startswith("parts/")]
    paths = [corpus / entry["file"] for entry in entries]
    return [
        {"part": str(path), "name": path.stem, "corpus": str(corpus), "rows": entry["rows"], "bytes": entry["text_bytes"]}
        for path, entry in zip(paths, entries, strict=True)
    ]


def _do_units(out: Path, units: dict[str, Json], job: Task, options: Options, progress: Progress) -> Json:
    """Do what has no record yet; what the clock knows of it."""
    todo: list[Json] = [{"name": name, "unit": unit} for name, unit in units.items() if not directory.unit_is_done(out, name)]
    sizes = {name: int(unit.get("bytes", 0)) for name, unit in units.items()}
    todo_bytes = sum(sizes[job["name"]] for job in todo)
    engine = engine_of(options.engine)
    known_bytes = todo_bytes if engine == "native" and all("bytes" in unit for unit in units.values()) else None
    if options.workers != 1:
        todo.sort(key=lambda job: -sizes[job["name"]])  # the largest first, or all wait for it at the end
    began, done_bytes = time.time(), 0
    with progress.shown(len(units), len(units) - len(todo), todo_bytes):
        try:
            for result in map_units(job, todo, options.workers, options.engine, known_bytes):
                done_bytes += sizes[result["name"]]
                progress.advance(sizes[result["name"]])
        except KeyboardInterrupt:
            left = sum(not directory.unit_is_done(out, name) for name in units)
            raise StoppedError(
                f"{out}: stopped; {len(units) - left} of {len(units)} pieces are finished: the same command goes on"
            ) from None
    return {
        "began": began,
        "seconds": time.time() - began,
        "units": len(todo),
        "units_done_before": len(units) - len(todo),
        "bytes": done_bytes,
        "workers": worker_count(options.workers, len(todo), known_bytes),
        "engine": engine,
    }


def do_unit(out: str, token: str, work: Work, settings: Json, strict: bool, job: Json) -> Json:
    """Make the files of one unit, then its record; runs in a worker."""
    with working(Path(out), token):
        writer = UnitWriter(Path(out), job["name"], strict=strict)
        try:
            work(job["unit"], settings, writer)
            record = writer.close()
        except BaseException:
            writer.discard()
            raise
        directory.write_record(Path(out), job["name"], record)
    return {"name": job["name"]}


@contextmanager
def _clear_errors(out: Path) -> Generator[None]:
    """What the system refuses, as one message."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(
            f"{out}: a worker ran out of memory ({str(error) or 'no more could be had'}); use fewer workers; the same command goes on"
        ) from None
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ResourceError(f"{out}: the disk is full; free some room and run the same command again, it goes on") from None
        raise DataError(f"{error.filename or out}: {error.strerror or error}") from None
