"""A run's directory, read back: what the training loop and its commands left there."""

import json
import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from qianyi.config.load import load
from qianyi.config.schema import Config
from qianyi.errors import ConfigError, DataError
from qianyi.events import EvalEvent, StepEvent
from qianyi.monitor.environment import read_starts

Json = dict[str, Any]
Columns = Mapping[str, "array[float]"]
"""A value per event and field; NaN where the event has none."""

Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's directory holds; what may be missing and is, is empty."""

    directory: Path
    events: Columns
    evals: Columns
    starts: list[Json]
    samples: list[Json]
    facts: Json
    baselines: dict[str, float]
    """Bits per byte of the validation text by means that need no model."""
    sources: list[Json]
    recipe: str
    config: Config | None
    """None also where this version cannot read the recipe."""

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def steps(self) -> int:
        return int(self.events["step"][-1])

    @property
    def restarts(self) -> list[int]:
        """Steps after which the run was continued from a checkpoint."""
        return sorted({start["start_step"] for start in self.starts if 0 < start.get("start_step", 0) <= self.steps})

    @property
    def bits_per_byte(self) -> float:
        """Of the last validation; NaN where there was none, or where it scored not all text."""
        column = self.evals["bits_per_byte"]
        return column[-1] if column else math.nan


def read_run(directory: Path) -> Run:
    """Read what is in RUN; only events.jsonl must be there.

    Raises:
        DataError: there is no run, or a file is damaged.
    """
    events_path, config_path = directory / "events.jsonl", directory / "config.yaml"
    events = _columns(events_path, StepEvent)
    if not events["step"]:
        missing = (directory, "there is no such directory") if not directory.is_dir() else (events_path, "there is no such file")
        path, reason = (events_path, "it is empty") if events_path.exists() else missing
        raise DataError(f"{path}: no step recorded, {reason}; give the run.dir of a `qianyi train` that has done a step")
    facts, baselines = _checked(directory / "summary.json", _facts, ({}, {}))
    return Run(
        directory=directory,
        events=events,
        evals=_columns(directory / "evals.jsonl", EvalEvent),
        starts=read_starts(directory / "environment.json"),
        samples=list(_samples(directory / "samples.jsonl")),
        facts=facts,
        baselines=baselines,
        sources=_checked(directory / "data.json", _sources, []),
        recipe=config_path.read_text(encoding="utf-8", errors="replace") if config_path.exists() else "",
        config=_config(config_path),
    )


def _columns(path: Path, event_type: type[StepEvent] | type[EvalEvent]) -> Columns:
    """The events of a file by field: a million of them take a tenth of the memory that objects would."""
    columns = {field.name: array("d") for field in fields(event_type)}
    for number, row in _json_lines(path):
        for name, column in columns.items():
            try:
                value = math.nan if row[name] is None else float(row[name])
            except (KeyError, TypeError, ValueError, OverflowError):
                raise DataError(f"{path}:{number}: no number `{name}`, which every event has; mend or delete that line") from None
            column.append(value if math.isfinite(value) else math.nan)
    return columns


def _json_lines(path: Path) -> Iterator[tuple[int, Json]]:
    """The objects of a file and the numbers of their lines; what a kill left of the last line is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError:
                if not line.endswith(b"\n"):
                    return
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: not a JSON object; mend or delete that line")
            yield number, row


def _samples(path: Path) -> Iterator[Json]:
    for number, row in _json_lines(path):
        if not all(isinstance(row.get(key), str) for key in ("prompt", "text")):
            raise DataError(f"{path}:{number}: no `prompt` and `text`, which every sample has; mend or delete that line")
        text = row["prompt"] + row["text"]
        chinese = sum("\u4e00" <= character <= "\u9fff" for character in text) > len(text) / 4
        details = {key.replace("_", "-"): row[key] for key in ("step", "temperature", "top_p", "seed") if key in row}
        how = ", ".join(f"{key} {value}" for key, value in details.items())
        yield {"prompt": row["prompt"], "text": row["text"], "lang": "zh-Hans" if chinese else "en", "how": how}


def _checked(path: Path, read: Callable[[Any], Read], missing: Read) -> Read:
    if not path.exists():
        return missing
    try:
        return read(json.loads(path.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise DataError(
            f"{path}: damaged, or not what Qianyi writes there; delete it to leave its part of the report out"
        ) from None


def _facts(summary: Any) -> tuple[Json, dict[str, float]]:
    baselines = {name: float(value) for name, value in summary.pop("baselines", {}).items()}
    return summary, {name: value for name, value in baselines.items() if math.isfinite(value)}


def _sources(manifest: Any) -> list[Json]:
    def row(name: str, source: Json) -> Json:
        train, held = source["train"], source["validation"]
        return {
            "name": name,
            "documents": int(train["documents"]),
            "tokens": int(train["tokens"]),
            "bytes_per_token": train["bytes"] / train["tokens"],
            "held_documents": int(held["documents"]),
            "held_tokens": int(held["tokens"]),
        }

    return [row(name, source) for name, source in manifest["sources"].items()]


def _config(path: Path) -> Config | None:
    """The recipe, where this version can read it: a run of another one still has a report."""
    try:
        return load(str(path)).config if path.exists() else None
    except ConfigError:
        return None
