"""Mixtures of sources: which stage of weights an element of the training sequence is in, without JAX and without data."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from qianyi.config.ramp import sequences_before
from qianyi.config.schema import Config, DataConfig, MixtureStage, TrainConfig

MOST_EPOCHS = 4
"""Up to so many epochs repeated text is worth about as much as new text (Muennighoff et al. 2023, section 5)."""


class Stretch(NamedTuple):
    """Elements of the training sequence from `first` on, up to the next stretch, mixed by these weights."""

    first: int
    weights: dict[str, float]
    """Share of each source; 0 for those that are not drawn from. They add up to 1."""


def stretches(data: DataConfig, train: TrainConfig, tokens: Mapping[str, int]) -> list[Stretch]:
    """The mixture of a recipe; `tokens` are those of each source, in proportion to which they are drawn where nothing is said."""
    if not data.stages:
        given = {source.name: source.weight for source in data.sources}
        return [Stretch(0, _shares({name: given.get(name) or count for name, count in tokens.items()}))]
    firsts = [0, *(_end_sequence(stage, train) for stage in data.stages[:-1])]
    weights = ({name: stage.weights.get(name, 0.0) for name in tokens} for stage in data.stages)
    return [Stretch(first, _shares(w)) for first, w in zip(firsts, weights, strict=True)]


def sequences_drawn(parts: list[Stretch], sequences: int) -> dict[str, float]:
    """How many of the first sequences come from each source: what the weights say, which is less than one off what is drawn."""
    drawn = dict.fromkeys(parts[0].weights, 0.0)
    ends = [*(part.first for part in parts[1:]), sequences]
    for part, end in zip(parts, ends, strict=True):
        for name, weight in part.weights.items():
            drawn[name] += weight * max(min(end, sequences) - part.first, 0)
    return drawn


def epochs(data: DataConfig, train: TrainConfig, tokens: Mapping[str, int]) -> dict[str, float]:
    """How often the run reads each source, from its tokens alone: exact for plain sequences, about so for other objectives."""
    drawn = sequences_drawn(stretches(data, train, tokens), sequences_before(train, train.steps))
    return {name: n * train.seq_len / max(tokens[name], 1) for name, n in drawn.items()}


def mixture(config: Config) -> Iterator[str]:
    """Rule: stages follow one another, weigh sources that there are, and packing has what it needs."""
    data, train = config.data, config.train
    names = {source.name for source in data.sources}
    for n, stage in enumerate(data.stages):
        key, is_last = f"data.stages.{n}", n == len(data.stages) - 1
        ends = [end for end in (stage.until_step, stage.until_fraction) if end is not None]
        if is_last and ends:
            yield f"{key}: the last stage goes on to the end of the run; leave until_step and until_fraction out"
        if not is_last and len(ends) != 1:
            yield f"{key}: say where the stage ends, with until_step or until_fraction"
        if unknown := sorted(stage.weights.keys() - names) if names else []:
            yield f"{key}.weights names {', '.join(unknown)}; the sources are {', '.join(sorted(names))}"
        if not any(stage.weights.values()):
            yield f"{key}.weights: no source has a weight above 0"
    if data.stages and any(source.weight is not None for source in data.sources):
        yield "data.sources have weights and data.stages too; leave those of the sources out"
    if all((stage.until_step is None) != (stage.until_fraction is None) for stage in data.stages[:-1]):
        firsts = [0, *(_end_sequence(stage, train) for stage in data.stages[:-1])]
        for n, (first, following) in enumerate(pairwise(firsts)):
            if first >= following:
                yield f"data.stages.{n} ends at sequence {following:,}, not after {first:,}, where it begins; raise its end"
    if data.packing == "best_fit" and train.objective.kind != "causal":
        yield f"data.packing=best_fit is for train.objective.kind=causal, not {train.objective.kind}; leave it out"
    elif data.packing == "best_fit" and not train.document_mask:
        yield "data.packing=best_fit puts documents side by side that do not belong together; set train.document_mask=true"


def _end_sequence(stage: MixtureStage, train: TrainConfig) -> int:
    if stage.until_step is not None:
        return sequences_before(train, stage.until_step)
    assert stage.until_fraction is not None, "the config is checked"
    return round(stage.until_fraction * sequences_before(train, train.steps))


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
