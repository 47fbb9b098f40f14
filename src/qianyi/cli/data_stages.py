"""The stages that a pipeline may name."""

from pathlib import Path
from typing import Any

from qianyi.config.part import Part
from qianyi.corpus.clean.stage import clean
from qianyi.corpus.collect.collect import CollectSettings, collect
from qianyi.corpus.decontaminate import DecontaminateSettings, decontaminate
from qianyi.corpus.dedup.settings import DedupSettings
from qianyi.corpus.dedup.stage import dedup
from qianyi.corpus.parts import Options
from qianyi.corpus.pipeline import Stage
from qianyi.data.stage import Json


class CleanStage(Part):
    """Settings of `clean`."""

    rules: str | None = None
    """Thresholds laid over the shipped ones: a YAML file."""


class DedupStage(DedupSettings):
    """Settings of `dedup`."""

    against: tuple[str, ...] = ()
    """Deduplicated corpora that are there already."""


class DecontaminateStage(DecontaminateSettings):
    """Settings of `decontaminate`."""

    against: tuple[str, ...]
    """Evaluation sets: JSONL, Parquet or text."""


class AnnotateStage(Part):
    """Settings of `annotate`."""

    name: str
    """Of the columns."""
    classifier: str
    """Directory of a classifier."""


def _collect(settings: CollectSettings, _: list[Path], out: Path, options: Options) -> Json:
    return collect(settings, out, options)


def _clean(settings: CleanStage, corpora: list[Path], out: Path, options: Options) -> Json:
    return clean(corpora, out, Path(settings.rules) if settings.rules else None, options)


def _dedup(settings: DedupStage, corpora: list[Path], out: Path, options: Options) -> Json:
    own = DedupSettings.model_validate(_without_against(settings))
    return dedup(corpora, out, own, [Path(path) for path in settings.against], options)


def _decontaminate(settings: DecontaminateStage, corpora: list[Path], out: Path, options: Options) -> Json:
    own = DecontaminateSettings.model_validate(_without_against(settings))
    return decontaminate(corpora, out, [Path(path) for path in settings.against], own, options)


def _annotate(settings: AnnotateStage, corpora: list[Path], out: Path, options: Options) -> Json:
    from qianyi.label.annotate import annotate  # noqa: PLC0415  (it brings JAX)

    return annotate(corpora[0], out, settings.name, Path(settings.classifier), options)


def _without_against(settings: Part) -> dict[str, Any]:
    return settings.model_dump(exclude={"against"})


STAGES = {
    "collect": Stage(CollectSettings, _collect, is_first=True),
    "clean": Stage(CleanStage, _clean),
    "dedup": Stage(DedupStage, _dedup),
    "decontaminate": Stage(DecontaminateStage, _decontaminate),
    "annotate": Stage(AnnotateStage, _annotate),
}
