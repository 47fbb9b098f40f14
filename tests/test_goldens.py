"""Every family learns the quickstart's text as well as it did when its loss was recorded, and better than counting words would."""

from collections.abc import Callable, Iterator

import pytest
from families import FAMILIES
from golden import PLATFORM, TINY, Outcome, prepare_recipes, reach, recorded, tolerance, trainer

Train = Callable[[str], Outcome]
ACCURACY_MARGIN = 0.045
"""By which BERT's masked accuracy beats always saying the most frequent token; three seeds did by 0.093 or more."""
LOSS_MARGIN_NATS = 0.15
"""By which T5's loss beats unigrams that are told where sentinels stand; three seeds did by 0.298 or more."""


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    work = tmp_path_factory.mktemp("goldens")
    prepare_recipes(work)
    with trainer() as process:
        yield lambda family: process.submit(reach, work, family).result()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in TINY])
def test_a_family_reaches_its_recorded_loss(family: str, train: Train) -> None:
    compare_with_record(family, train(family))


def test_bert_beats_unigrams_at_masked_words_and_reaches_its_recorded_loss(train: Train) -> None:
    bert = train("bert")
    assert bert.accuracy > bert.baselines["unigram_accuracy"] + ACCURACY_MARGIN
    compare_with_record("bert", bert)


def test_t5_beats_unigrams_at_spans_and_reaches_its_recorded_loss(train: Train) -> None:
    t5 = train("t5")
    assert t5.validation_loss < t5.baselines["words_loss"] - LOSS_MARGIN_NATS
    compare_with_record("t5", t5)


def compare_with_record(family: str, outcome: Outcome) -> None:
    if PLATFORM not in recorded():
        pytest.skip(f"no losses are recorded for {PLATFORM}; `python tests/golden.py --record` does that")
    assert outcome.golden == pytest.approx(recorded()[PLATFORM][family], abs=tolerance(family), rel=0)
