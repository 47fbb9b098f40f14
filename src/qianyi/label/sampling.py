"""Which texts to ask people about: half of them where a classifier is least sure, half by lot from every source and guess."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
UNSURE_SHARE = 0.5


def uncertainty(log_probabilities: Floats) -> NDArray[np.float64]:
    """Entropy in nats of each row [texts, labels] (Lewis & Gale 1994 sample by uncertainty; Settles 2009, section 3.1, by entropy)."""
    p = np.exp(log_probabilities.astype(np.float64))
    return -(p * log_probabilities).sum(axis=1)


def stratified(strata: Sequence[str], n: int, seed: int) -> list[int]:
    """n indices in random order, as many of each stratum as of any other while it lasts."""
    random = np.random.default_rng(seed)
    members = {name: list[int]() for name in sorted(set(strata))}
    for i in map(int, random.permutation(len(strata))):
        members[strata[i]].append(i)
    chosen = list[int]()
    while len(chosen) < min(n, len(strata)):
        left = [name for name in members if members[name]]
        for k in map(int, random.permutation(len(left))):
            if len(chosen) < n:
                chosen.append(members[left[k]].pop())
    return chosen


def choose_texts(sources: Sequence[str], log_probabilities: Floats | None, n: int, seed: int = 0) -> list[int]:
    """Indices of n texts to be labelled, in the order to ask.

    Args:
        sources: of each text; with the guessed label they make its stratum.
        log_probabilities: of a classifier [texts, labels]; None: all are chosen by stratum.
    """
    if log_probabilities is None:
        return stratified(sources, n, seed)
    unsure = np.argsort(-uncertainty(log_probabilities), kind="stable")[: int(n * UNSURE_SHARE)].tolist()
    rest = sorted(set(range(len(sources))) - set(unsure))
    guesses = log_probabilities.argmax(axis=1)
    strata = [f"{sources[i]} {guesses[i]}" for i in rest]
    by_lot = [rest[k] for k in stratified(strata, n - len(unsure), seed)]
    # In turn, so that a review that ends early has both.
    mixed = [i for pair in zip(unsure, by_lot, strict=False) for i in pair]
    return [*mixed, *unsure[len(by_lot) :], *by_lot[len(unsure) :]]
