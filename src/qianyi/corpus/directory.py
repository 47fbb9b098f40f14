"""The life of a corpus directory: planned, filled unit by unit, finished; taken up again or made anew."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qianyi import __version__
from qianyi.corpus.document import PLAN, is_corpus
from qianyi.data.stage import MANIFEST, Json, write_json
from qianyi.errors import DataError

RUN = "run.json"
FORMAT = 1
"""Of the directory; another number is made anew."""

_FILE_OF_UNIT = re.compile(r"\.?\d{5,}(-\d{3,})?\.(parquet|arrow|json)(\.partial)?")


def plan_of(stage: str, settings: Json, inputs: list[Json], units: list[Json]) -> Json:
    """All that determines the output."""
    digest = hashlib.sha256(_canonical(units).encode()).hexdigest()
    plan = {"format": FORMAT, "stage": stage, "settings": settings, "inputs": inputs, "units": len(units), "units_sha256": digest}
    return json.loads(_canonical(plan))  # as it will be read again: lists for tuples


def unit_names(n: int) -> list[str]:
    """Names of n units that sort as the units do."""
    width = max(5, len(str(n - 1)))
    return [f"{i:0{width}d}" for i in range(n)]


def finished(out: Path, plan: Json) -> Json | None:
    """The manifest, if the directory was made to this plan and its files are all there."""
    manifest = _read(out / MANIFEST)
    if manifest is None or not _same(manifest, plan) or not _are_there(out, manifest["files"]):
        return None
    return manifest


def begin(out: Path, plan: Json) -> None:
    """Keep what was made to the same plan, take away what was not; files of others are left alone."""
    before = _read(out / PLAN)
    (out / MANIFEST).unlink(missing_ok=True)
    if before is not None and _same(before, plan) and before["units_sha256"] == plan["units_sha256"]:
        return
    if before is None and any(not entry.name.startswith(".") and not is_corpus(entry) for entry in out.iterdir()):
        raise DataError(f"{out}: holds files that are not of a corpus; give an empty or a new directory")
    # Records go first, and the plan last: after a kill in between, what is left is still unfinished work to the other plan.
    for directory in sorted(_directories(out), key=lambda path: path.name != "done"):
        _remove_files(directory, keep=set())
    (out / RUN).unlink(missing_ok=True)
    write_json(out / PLAN, plan)


def write_record(out: Path, name: str, record: Json) -> None:
    """The unit is finished."""
    (out / "done").mkdir(exist_ok=True)
    write_json(out / "done" / f"{name}.json", record)


def unit_is_done(out: Path, name: str) -> bool:
    """Whether there is a record of the unit, and the files that it names."""
    record = _read(out / "done" / f"{name}.json")
    return record is not None and _are_there(out, record["files"])


def finish(out: Path, plan: Json, names: Sequence[str], allow: Sequence[str], *, strict: bool) -> Json:
    """Sum up the records, check the rules, remove strays, write the manifest.

    Raises:
        DataError: see `run_parts`.
    """
    total = _sum(json.loads((out / "done" / f"{name}.json").read_text(encoding="utf-8")) for name in names)
    _check_rules(out, plan["settings"], total, allow, strict=strict)
    mine = {entry["file"] for entry in total["files"]} | {f"done/{name}.json" for name in names}
    for directory in _directories(out):
        _remove_files(directory, keep=mine)
    manifest = {**plan, **total}
    write_json(out / MANIFEST, manifest)
    return manifest


def read_run(out: Path) -> Json | None:
    """What the last run noted, with the inputs that it read."""
    run, manifest = _read(out / RUN), _read(out / MANIFEST) or _read(out / PLAN)
    return None if run is None or manifest is None else {"inputs": manifest["inputs"], "input_times": run["input_times"]}


def note_times(out: Path, times: dict[str, int]) -> None:
    """Remember that inputs of these times are the same, so that they need not be read again."""
    run = _read(out / RUN)
    if run is not None and run["input_times"] != times:
        with suppress(OSError):  # where it cannot be written, they are read again the next time
            write_json(out / RUN, {**run, "input_times": times})


def _sum(records: Iterable[Json]) -> Json:
    files: list[Json] = []
    sources: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    columns: dict[str, str] = {}
    for record in records:
        files += record["files"]
        for name, numbers in record["sources"].items():
            sources.setdefault(name, Counter({"documents": 0, "bytes": 0, "dropped": 0})).update(numbers)
        reasons.update(record["reasons"])
        counts.update(record["counts"])
        columns |= record["columns"]
    by_source = {name: dict(numbers) for name, numbers in sorted(sources.items())}
    return {
        **{key: sum(numbers[key] for numbers in by_source.values()) for key in ("documents", "bytes", "dropped")},
        "sources": by_source,
        "reasons": dict(sorted(reasons.items())),
        "counts": dict(sorted(counts.items())),
        "columns": columns,
        "qianyi": __version__,
        "files": files,
    }


def _check_rules(out: Path, settings: Json, total: Json, allow: Sequence[str], *, strict: bool) -> None:
    reasons: dict[str, int] = total["reasons"]
    if strict and reasons:
        raise DataError(f"{out}: {_listed(reasons)} (--strict: nothing may be dropped)")
    for rule in settings.get("rules", []):
        if rule not in allow and not reasons.get(rule) and not total["counts"].get(rule):
            n = total["documents"] + total["dropped"]
            raise DataError(
                f"{out}: rule `{rule}` matches none of {n:,} documents: if that is right, run again with --allow {rule}; "
                "nothing is lost"
            )
    if reasons and not total["documents"]:
        most = max(reasons, key=lambda reason: reasons[reason])
        if most not in allow:
            raise DataError(
                f"{out}: no document is left: {_listed(reasons)}. Look at {out / 'dropped'}; if that is right, run again with "
                f"--allow {most}; nothing is lost"
            )


def _listed(reasons: dict[str, int]) -> str:
    most = sorted(reasons.items(), key=lambda item: -item[1])[:5]
    return ", ".join(f"{n:,} dropped by `{reason}`" for reason, n in most)


def _same(made: Json, plan: Json) -> bool:
    """Made to this plan; a corpus that is input may have been moved."""
    return all(made.get(key) == plan[key] for key in ("format", "stage", "settings")) and [
        _unnamed(i) for i in made["inputs"]
    ] == [_unnamed(i) for i in plan["inputs"]]


def _unnamed(entry: Json) -> Json:
    return {key: value for key, value in entry.items() if key != "corpus"}


def _are_there(out: Path, files: list[Json]) -> bool:
    try:
        return all((out / entry["file"]).stat().st_size == entry["bytes"] for entry in files)
    except OSError:
        return False


def _directories(out: Path) -> list[Path]:
    """Directories of files of units; a corpus that lies within is another's."""
    return [path for path in out.iterdir() if path.is_dir() and not is_corpus(path)]


def _remove_files(directory: Path, keep: set[str]) -> None:
    for path in directory.iterdir():
        if _FILE_OF_UNIT.fullmatch(path.name) and f"{directory.name}/{path.name}" not in keep:
            path.unlink()
    with suppress(OSError):  # not empty
        directory.rmdir()


def _read(path: Path) -> Json | None:
    """A JSON object, or nothing if it is missing or broken: then it is made again."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _canonical(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
