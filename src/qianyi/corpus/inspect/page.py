"""One self-contained HTML page on a corpus or a pipeline, in English and Chinese."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, StrictUndefined

from qianyi import __version__
from qianyi.corpus.inspect.charts import Histogram, histogram
from qianyi.corpus.inspect.clusters import Clusters, duplicate_clusters, sampled_quality
from qianyi.corpus.inspect.stages import Inspected, Stage
from qianyi.corpus.inspect.survey import SAMPLES, Amount, Sample
from qianyi.corpus.inspect.topics import Topics, topics
from qianyi.corpus.inspect.words import bilingual
from qianyi.data.stage import Json, write_text
from qianyi.errors import ResourceError
from qianyi.monitor.words import count, duration

FIRST = ("characters", "stat_words", "stat_mean_word_length", "stat_lines", "stat_alpha_words", "stat_dup_lines", "stat_top_2gram",
         "stat_dup_5gram", "stat_stop_fraction_en", "stat_stop_fraction_zh", "stat_han", "label_language_score")  # fmt: skip
"""Columns whose histograms are shown at once, where they are there."""
MAX_ROWS = 60
MAX_VALUES = 10
MAX_SAMPLES = 24
PERSONAL = "pii_"
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """A source."""

    name: str
    licences: str
    came: Amount
    documents: tuple[int, ...]
    """After each stage."""


@dataclass(frozen=True)
class Values:
    """A column of words: (value, documents after, documents before), the most frequent first."""

    name: str
    values: tuple[tuple[str, int, int], ...]
    more: int


@dataclass(frozen=True)
class Rule:
    """What was dropped for one reason."""

    name: str
    documents: int
    alone: int | None
    """What it would drop if it were the only rule, where the stage counted that (as alone/KIND/RULE)."""
    sources: str
    samples: tuple[Sample, ...]


def write_page(found: Inspected, out: Path) -> None:
    """Write the page, whole or not at all; the same directory gives the same page.

    Raises:
        DataError: a part is missing or damaged.
        ResourceError: the page cannot be written.
    """
    page = render(found)
    try:
        write_text(out, page)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be written: {error.strerror or error}; say where with --out FILE") from None


def render(found: Inspected) -> str:
    """The page as text."""
    template = resources.files("qianyi.corpus.inspect").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Any] = environment.filters
    filters |= {"count": count, "size": size, "share": share, "duration": duration, "lang": language_of, "pretty": pretty}
    shown, hidden = _histograms(found)
    page = environment.from_string(template).render(
        t=bilingual,
        found=found,
        last=found.stages[-1],
        into=found.stages[0].documents_in,
        rows=_rows(found),
        rules={stage.name: _rules(stage) for stage in found.stages},
        histograms=shown,
        more_histograms=hidden,
        values=_values(found),
        duplicates=_duplicates(found),
        qualities={stage.name: quality for stage in found.stages if (quality := sampled_quality(stage.path))},
        topics=topics(found.topics) if found.topics else Topics(0, (), (), ()),
        personal=_personal(found.stages[-1]),
        samples=_samples(found.stages[-1]),
        max_rows=MAX_ROWS,
        version=__version__,
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def summary(found: Inspected) -> list[str]:
    """The stages, a line each."""
    return [
        f"{stage.name}: {stage.kept.total.documents:,} of {stage.documents_in:,} documents kept, {size(stage.kept.total.text_bytes)}"
        for stage in found.stages
    ]


def size(n_bytes: float) -> str:
    """Of text, in decimal units."""
    digits = count(n_bytes)
    units = {"k": "kB", "M": "MB", "B": "GB", "T": "TB"}
    return f"{digits[:-1]} {units[digits[-1]]}" if digits[-1] in units else f"{digits} B"


def share(part: float, whole: float) -> str:
    """In per cent; what is little is not nothing, and what is nearly all not all."""
    if not whole or not part:
        return "0%"
    percent = 100 * part / whole
    return "<0.1%" if percent < 0.1 else ">99.9%" if 99.9 < percent < 100 else f"{percent:.3g}%"


def pretty(settings: Json) -> str:
    """JSON as people read it."""
    return json.dumps(settings, indent=1, ensure_ascii=False)


def language_of(text: str) -> str:
    """For the font of a sample."""
    return "zh" if sum("\u3400" <= letter <= "\u9fff" for letter in text) > len(text) / 10 else "en"


def _rows(found: Inspected) -> list[Row]:
    """Sources, those with the most text first."""
    first = found.stages[0]
    came = dict(first.kept.sources)
    for (_, source), n in first.dropped.by_source.items():
        if source not in came:
            came[source] = Amount(licences=Counter({"": n}))
    return [
        Row(
            name,
            ", ".join(licence for licence, _ in amount.licences.most_common(3) if licence),
            Amount(amount.documents + first.dropped.of_source(name), amount.text_bytes, amount.characters, amount.research_only),
            tuple(stage.kept.sources[name].documents if name in stage.kept.sources else 0 for stage in found.stages),
        )
        for name, amount in sorted(came.items(), key=lambda item: (-item[1].text_bytes, item[0]))
    ]


def _rules(stage: Stage) -> list[Rule]:
    dropped = stage.dropped
    found: list[Rule] = []
    for reason, n in sorted(dropped.reasons.items(), key=lambda item: (-item[1], item[0])):
        sources = Counter({source: k for (name, source), k in dropped.by_source.items() if name == reason})
        words = ", ".join(f"{source} {k:,}" for source, k in sources.most_common(3))
        alone = [k for name, k in stage.manifest["counts"].items() if name.startswith("alone/") and name.endswith(f"/{reason}")]
        found.append(
            Rule(
                reason,
                n,
                sum(alone) if alone else None,
                words + (", …" if len(sources) > 3 else ""),
                tuple(dropped.samples.of(reason)),
            )
        )
    return found


def _before(columns: Iterable[Mapping[str, T]], name: str) -> T | None:
    """What the first stage that has a column says of it, unless that is the last."""
    having = [of_stage[name] for of_stage in columns if name in of_stage]
    return having[0] if len(having) > 1 else None


def _histograms(found: Inspected) -> tuple[list[Histogram], list[Histogram]]:
    """Those that are shown at once, and the others."""
    after = found.stages[-1].kept.numbers
    drawn: dict[str, Histogram] = {}
    names = [name for name in after if PERSONAL not in name]
    for name in sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)):
        before = _before([stage.kept.numbers for stage in found.stages], name)
        title = name.removeprefix("stat_").removeprefix("label_").replace("_", " ")
        if chart := histogram(title, after[name], before):
            drawn[name] = chart
    return [c for name, c in drawn.items() if name in FIRST], [c for name, c in drawn.items() if name not in FIRST]


def _values(found: Inspected) -> list[Values]:
    shown: list[Values] = []
    for name, after in found.stages[-1].kept.words.items():
        before = _before([stage.kept.words for stage in found.stages], name) or after
        order = sorted(before.items(), key=lambda item: (-item[1], item[0]))
        rows = tuple((value or "-", after[value], n) for value, n in order[:MAX_VALUES])
        shown.append(Values(name.removeprefix("label_").replace("_", " "), rows, max(len(order) - MAX_VALUES, 0)))
    return shown


def _duplicates(found: Inspected) -> dict[str, Clusters]:
    clusters = {stage.name: duplicate_clusters(stage.path) for stage in found.stages}
    return {name: some for name, some in clusters.items() if some}


def _personal(stage: Stage) -> dict[str, int]:
    """How often each kind of personal data was found: sums of columns."""
    columns = {name: sketch for name, sketch in stage.kept.numbers.items() if PERSONAL in name}
    return {name.rpartition(PERSONAL)[2].replace("_", " "): round(sketch.sum) for name, sketch in columns.items() if sketch.sum}


def _samples(stage: Stage) -> list[Sample]:
    """One of each source, then a second, until there are enough."""
    kept = stage.kept
    names = sorted(kept.sources, key=lambda name: -kept.sources[name].text_bytes)
    turns = [sample for k in range(SAMPLES) for name in names for sample in kept.samples.of(name)[k : k + 1]]
    return turns[:MAX_SAMPLES]
