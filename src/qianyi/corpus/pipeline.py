"""A pipeline: stages in a YAML file, run one after the other, each from the directory of the one before to its own.

    allow: [c4_bullets]            # rules that may match nothing or everything
    stages:
      - collect: {sources: [{path: texts}]}
      - clean
      - dedup: {near: true}

makes OUT/1-collect, OUT/2-clean and OUT/3-dedup. What is there already, with the same settings and inputs, is not made again.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from qianyi.config.explain import nearest, shown
from qianyi.config.source import Value, parse_file
from qianyi.corpus.document import corpus_manifest, is_corpus
from qianyi.corpus.parts import Options
from qianyi.data.stage import Json, write_json
from qianyi.errors import ConfigError, DataError

PIPELINE = "pipeline.json"


@dataclass(frozen=True)
class Stage:
    """What a name in a pipeline stands for."""

    settings: type[BaseModel]
    """The model of its settings; unknown keys must be errors."""
    run: Callable[[Any, list[Path], Path, Options], Json]
    """(settings, corpus directories to read, directory to make, options) -> manifest."""
    is_first: bool = False
    """It reads no corpus directory: it must be the first, and only it."""


@dataclass(frozen=True)
class Step:
    """A stage with its settings."""

    name: str
    stage: Stage
    settings: BaseModel


@dataclass(frozen=True)
class Pipeline:
    """Steps, in order, and rules that may match nothing or everything."""

    steps: tuple[Step, ...]
    allow: tuple[str, ...] = ()

    def directories(self, out: Path) -> list[Path]:
        """One for each step."""
        return [out / f"{number}-{step.name}" for number, step in enumerate(self.steps, 1)]


def read_pipeline(file: Path, stages: Mapping[str, Stage]) -> Pipeline:
    """The pipeline of a YAML file.

    Raises:
        ConfigError: one line for each mistake, with the file, line, key, what was expected and the nearest valid name.
    """
    flat = parse_file(file)
    for key, value in flat.items():
        if key not in {"stages", "allow"}:
            raise ConfigError(
                f"{value.origin}: unknown key `{key}`{nearest(key, ['stages', 'allow'])}; a pipeline has `stages` and `allow`"
            )
    if "stages" not in flat or not isinstance(flat["stages"].value, list) or not flat["stages"].value:
        raise ConfigError(f"{file}: expected a list `stages:`, such as `- clean` or `- dedup: {{near: true}}`")
    allow = flat["allow"].value if "allow" in flat else []
    if not isinstance(allow, list) or not all(isinstance(rule, str) for rule in allow):
        raise ConfigError(f"{flat['allow'].origin}: allow: expected a list of names of rules, found {shown(allow)}")
    mistakes: list[str] = []
    steps: list[Step] = []
    for index, entry in enumerate(flat["stages"].value):
        try:
            steps.append(_step(index, entry, flat["stages"], stages))
        except ConfigError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return Pipeline(tuple(steps), tuple(allow))


def run_pipeline(
    pipeline: Pipeline, out: Path, options: Options, begun: Callable[[Step, Path], None] = lambda _step, _out: None
) -> list[Json]:
    """Run all steps.

    Args:
        pipeline: the steps.
        out: gets a directory for each step.
        options: how they are run; the pipeline's `allow` is added.
        begun: is told of each step before it is run.

    Returns:
        Their manifests.

    Raises:
        DataError, ResourceError, StoppedError: as a step does; the steps before it are finished.
    """
    options = replace(options, allow=(*options.allow, *pipeline.allow))
    directories = pipeline.directories(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / PIPELINE, {"stages": [directory.name for directory in directories]})
    except OSError as error:
        raise DataError(f"{error.filename or out}: {error.strerror or error}") from None
    manifests: list[Json] = []
    inputs: list[Path] = []
    for step, directory in zip(pipeline.steps, directories, strict=True):
        begun(step, directory)
        manifests.append(step.stage.run(step.settings, inputs, directory, options))
        inputs = [directory]
    return manifests


def stage_directories(path: Path) -> list[Path]:
    """The corpus directories of a pipeline's output, or the one that `path` is, in order.

    Those that a stage made within its own come before it, unless they hold no documents (keys, edges).

    Raises:
        DataError: it is neither.
    """
    if is_corpus(path):
        return list(_with_inner(path))
    listed = _listed(path)
    names = listed or [entry.name for entry in path.iterdir() if re.match(r"\d+-", entry.name)] if path.is_dir() else []
    ordered = names if listed else sorted(names, key=lambda name: int(name.split("-")[0]))
    found = [inner for name in ordered if is_corpus(path / name) for inner in _with_inner(path / name)]
    if not found:
        raise DataError(f"{path}: neither a corpus directory nor what `qianyi data run` makes; give one of the two")
    return found


def _listed(path: Path) -> list[str] | None:
    try:
        return json.loads((path / PIPELINE).read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError):
        return None


def _with_inner(path: Path) -> Iterator[Path]:
    for inner in sorted(path.iterdir()):
        if inner.is_dir() and (inner / "parts").is_dir() and is_corpus(inner):
            yield inner
    corpus_manifest(path)
    yield path


def _step(index: int, entry: Any, listed: Value, stages: Mapping[str, Stage]) -> Step:
    name, given = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, None)
    if not isinstance(name, str):
        raise ConfigError(
            f"{listed.origin_of((index,))}: expected the name of a stage, or `name: settings`, found {shown(entry)}"
        )
    if name not in stages:
        raise ConfigError(
            f"{listed.origin_of((index,))}: no stage `{name}`{nearest(name, list(stages))}; there are {', '.join(stages)}"
        )
    stage = stages[name]
    if stage.is_first != (index == 0):
        where = "must be the first stage" if stage.is_first else f"reads a corpus: `{_first(stages)}` comes first"
        raise ConfigError(f"{listed.origin_of((index,))}: `{name}` {where}")
    try:
        # As JSON, whose lists are tuples where a model is strict.
        return Step(name, stage, stage.settings.model_validate_json(json.dumps(given or {}, default=str)))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(name, stage.settings, e, listed, index) for e in error.errors())) from None


def _first(stages: Mapping[str, Stage]) -> str:
    return "` or `".join(name for name, stage in stages.items() if stage.is_first)


def _explain(name: str, model: type[BaseModel], error: ErrorDetails, listed: Value, index: int) -> str:
    place = listed.origin_of((index, name, *error["loc"]))
    key = ".".join(map(str, (name, *error["loc"])))
    match error["type"]:
        case "extra_forbidden":
            known = _keys_beside(model, error["loc"])
            return f"{place}: unknown key `{key}`{nearest(str(error['loc'][-1]), known)}; there are {', '.join(known)}"
        case "missing":
            return f"{place}: `{key}` is missing"
        case "value_error":
            return f"{place}: {key}: {error['msg'].removeprefix('Value error, ')}"
        case _:
            expected = error["msg"].removeprefix("Input should be ")
            return f"{place}: {key}: expected {expected}, found {shown(error['input'])}"


def _keys_beside(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """The keys of the group that a location is in, as far as its models can be followed."""
    for part in location[:-1]:
        inner = model.model_fields[part].annotation if isinstance(part, str) and part in model.model_fields else model
        models = [kind for kind in (inner, *get_args(inner)) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        model = models[0] if models else model
    return list(model.model_fields)
