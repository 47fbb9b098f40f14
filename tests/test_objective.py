"""What objectives make of a window: nothing is lost, shares are exact, and choices are as likely as the published algorithms have them."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from qianyi.config.objective import blank_spans, corruption_spans, needed_target_length, spans_of
from qianyi.config.schema import ObjectiveConfig, TrainConfig
from qianyi.data.masked import MaskedTokens
from qianyi.data.spans import Prefix, SpanCorruption, random_spans
from qianyi.data.special import NAMES, SpecialTokens
from qianyi.data.windows import Chance

END, VOCAB = 0, 1000
ROLES = {role: 1 + i for i, role in enumerate(NAMES)}
SPECIAL = SpecialTokens(ROLES, tuple(range(10, 110)))
FIRST_WORD = 200


def settings(kind: str, seq_len: int = 64, **objective: Any) -> TrainConfig:
    return TrainConfig(seq_len=seq_len, objective=ObjectiveConfig.model_validate({"kind": kind, **objective}))


def window(seed: int, length: int) -> np.ndarray:
    """Words, of which no two are equal; about one in forty places ends a text."""
    random = np.random.default_rng(seed)
    tokens = random.choice(np.arange(FIRST_WORD, VOCAB), length, replace=False).astype(np.int32)
    tokens[random.random(length) < 0.025] = END
    return tokens


def chance(seed: list[int], other: np.ndarray) -> Chance:
    """In which the other window is this one."""
    return Chance(seed, lambda _: other, 1)


def near(share: float, expected: float, draws: int) -> bool:
    """Within four standard deviations of a binomial share."""
    return abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)


# Masked tokens


def masked_rows(n: int, **objective: Any) -> list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """(window, another window, row)."""
    train = settings("mlm", 128, **objective)
    made = MaskedTokens(train, SPECIAL, END, VOCAB)
    length = 126 if train.objective.sentence == "none" else 125
    return [
        (w, o, made.row(w, chance([1, i], o)))
        for i, (w, o) in enumerate((window(2 * i, length), window(2 * i + 1, length)) for i in range(n))
    ]


@pytest.mark.parametrize("fraction", [0.15, 0.4])
def test_an_exact_share_of_words_is_masked_80_10_10(fraction: float) -> None:
    fates: Counter[str] = Counter()
    for w, _, row in masked_rows(600, mask_fraction=fraction):
        whole = np.concatenate([[ROLES["class"]], w, [ROLES["separator"]]])
        scored = row["targets"] >= 0
        assert scored.sum() == round(fraction * (w != END).sum())
        assert (whole[scored] >= FIRST_WORD).all()
        np.testing.assert_array_equal(row["targets"][scored], whole[scored])
        np.testing.assert_array_equal(row["inputs"][~scored], whole[~scored])
        became = row["inputs"][scored]
        fates["mask"] += int((became == ROLES["mask"]).sum())
        fates["same"] += int((became == whole[scored]).sum())
        other = became[(became != ROLES["mask"]) & (became != whole[scored])]
        assert not np.isin(other, [END, *ROLES.values(), *SPECIAL.sentinels]).any()
        fates["other"] += len(other)
        assert not row["segments"].any() and not row["documents"].any() and row["sentence"].tolist() == [-1]
    total = fates.total()
    assert all(near(fates[fate] / total, share, total) for fate, share in (("mask", 0.8), ("same", 0.1), ("other", 0.1))), fates


def test_rates_are_those_of_a_peer() -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    names = {"[PAD]": 1, "[MASK]": 2, "[CLS]": 3, "[SEP]": 4}
    words = names | {f"w{i}": i for i in (0, *range(5, VOCAB))}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        **{f"{role}_token": name for role, name in zip(("pad", "mask", "cls", "sep"), names, strict=True)},
    )
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, seed=5, return_tensors="np")
    rows = masked_rows(600)
    whole = np.stack([np.concatenate([[ROLES["class"]], w, [ROLES["separator"]]]) for w, _, _ in rows])
    theirs = collate([{"input_ids": tokens.tolist()} for tokens in whole])

    def rates(inputs: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
        """Of words, the chosen; of these, the masked and the unchanged."""
        chosen = (targets >= 0) & (whole >= FIRST_WORD)
        masked, same = (inputs == ROLES["mask"])[chosen], (inputs == whole)[chosen]
        return chosen.sum() / (whole >= FIRST_WORD).sum(), masked.mean(), same.mean()

    found = rates(*(np.stack([row[name] for _, _, row in rows]) for name in ("inputs", "targets")))
    for ours, peer, draws in zip(found, rates(theirs["input_ids"], theirs["labels"]), (70_000, 10_000, 10_000), strict=True):
        assert near(ours, peer, draws)


@pytest.mark.parametrize("sentence", ["next", "order"])
def test_two_segments_and_their_answer(sentence: str) -> None:
    answers: list[int] = []
    for w, other, row in masked_rows(400, sentence=sentence):
        whole = np.where(row["targets"] >= 0, row["targets"], row["inputs"])
        first_border, second_border = np.flatnonzero(whole == ROLES["separator"])
        a, b = whole[1:first_border], whole[first_border + 1 : second_border]
        assert whole[0] == ROLES["class"] and len(a) and len(b) and second_border == len(whole) - 1
        np.testing.assert_array_equal(row["segments"], np.arange(len(whole)) > first_border)
        (answer,) = row["sentence"]
        if answer == 0:
            np.testing.assert_array_equal(np.concatenate([a, b]), w)
            assert a[-1] != END and b[0] != END, "B continues the text that A ends in"
        elif sentence == "order":
            np.testing.assert_array_equal(np.concatenate([b, a]), w)
        else:
            np.testing.assert_array_equal(a, w[: len(a)])
            np.testing.assert_array_equal(b, other[: len(b)])
            assert len(a) + len(b) == len(w)
        answers.append(answer)
    assert set(answers) == {0, 1} and near(float(np.mean(answers)), 0.5, 400)


def test_short_windows_are_padded_and_padding_is_told_apart() -> None:
    made = MaskedTokens(settings("mlm", 32, sentence="next"), SPECIAL, END, VOCAB)
    row = made.row(window(0, 9), chance([0], window(1, 29)))
    assert row["documents"].tolist() == [0] * 12 + [1] * 20
    assert (row["inputs"][12:] == ROLES["padding"]).all() and (row["targets"][12:] == -1).all()
    assert all(a.dtype == np.int32 for a in row.values())
    one_word_a_text = np.array([END, 500, END, 501, END], np.int32)
    assert made.row(one_word_a_text, chance([0], window(1, 29)))["sentence"].tolist() == [-1]


# Span corruption


def corrupted(w: np.ndarray, train: TrainConfig, seed: int) -> dict[str, np.ndarray]:
    return SpanCorruption(train, SPECIAL, END).row(w, chance([2, seed], w))


def put_together(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The window, from what T5 reads and says."""
    places = {int(token): i for i, token in enumerate(target)}
    whole: list[int] = []
    for token in source:
        if token in SPECIAL.sentinels:
            start = places[int(token)] + 1
            stop = next(i for i in range(start, len(target)) if target[i] in SPECIAL.sentinels or i == len(target) - 1)
            whole += target[start:stop].tolist()
        else:
            whole.append(int(token))
    return np.array(whole)


@pytest.mark.parametrize(
    ("seq_len", "fraction", "mean_span"), [(64, 0.15, 3.0), (128, 0.5, 3.0), (96, 0.15, 8.0), (33, 0.3, 1.0)]
)
def test_source_and_target_make_the_window(seq_len: int, fraction: float, mean_span: float) -> None:
    train = settings("span_corruption", seq_len, mask_fraction=fraction, mean_span=mean_span)
    spans = corruption_spans(train)
    assert spans.masked == round(fraction * spans.window) and spans.runs == round(spans.masked / mean_span)
    for seed in range(50):
        w = window(seed, spans.window)
        row = corrupted(w, train, seed)
        source, target = row["sources"], row["targets"]
        assert not row["source_documents"].any() and len(source) == seq_len, "the source fills its length"
        assert (target >= 0).all() and len(target) == needed_target_length(train)
        assert source[-1] == target[-1] == END
        used = [t for t in source if t in SPECIAL.sentinels]
        assert used == [t for t in target if t in SPECIAL.sentinels] == list(SPECIAL.sentinels[: spans.runs])
        np.testing.assert_array_equal(put_together(source[:-1], target), w)
        np.testing.assert_array_equal(row["inputs"], [ROLES["padding"], *target[:-1]])


def test_lengths_are_those_of_t5() -> None:
    """Raffel et al. 2020: 512 tokens of source are made of 568, and leave 114 of target."""
    train = settings("span_corruption", 512)
    assert (corruption_spans(train).window, needed_target_length(train)) == (568, 114)
    for seq_len in range(8, 300):
        spans = corruption_spans(settings("span_corruption", seq_len))
        assert spans.window - spans.masked + spans.runs + 1 == seq_len


def test_longer_targets_are_padded() -> None:
    train = settings("span_corruption", 64, target_len=24)
    row = corrupted(window(0, corruption_spans(train).window), train, 0)
    n = needed_target_length(train)
    assert (row["targets"][n:] == -1).all() and (row["inputs"][n:] != END).all() and row["targets"].shape == (24,)
    short = corrupted(window(0, 11), train, 0)
    np.testing.assert_array_equal(short["source_documents"], short["sources"] == ROLES["padding"])
    assert (short["targets"] >= 0).sum() == 2 + 1 + 1, "two masked tokens in one span, and the end"


def t5_noise_mask(length: int, density: float, mean_span: float, random: np.random.Generator) -> np.ndarray:
    """T5's algorithm: shuffled indicators of where segments begin, noise and other segments in turns."""
    n_noise = min(max(round(length * density), 1), length - 1)
    n_spans = max(round(n_noise / mean_span), 1)

    def segment_lengths(n_items: int) -> np.ndarray:
        begins = np.concatenate([[False], random.permutation(np.arange(n_items - 1) < n_spans - 1)])
        return np.bincount(np.cumsum(begins))

    lengths = np.stack([segment_lengths(length - n_noise), segment_lengths(n_noise)], axis=1).ravel()
    begins = np.zeros(length, int)
    begins[np.cumsum(lengths)[:-1]] = 1
    return np.cumsum(begins) % 2 == 1


def test_masks_are_as_likely_as_those_of_t5() -> None:
    """Ten tokens of which four are masked in two spans: 5 x 3 masks, all as likely."""
    objective, draws = ObjectiveConfig(kind="span_corruption", mask_fraction=0.4, mean_span=2.0), 6_000
    ours, theirs = np.random.default_rng(0), np.random.default_rng(1)
    found = Counter(random_spans(spans_of(10, objective), ours).tobytes() for _ in range(draws))
    published = Counter(t5_noise_mask(10, 0.4, 2.0, theirs).tobytes() for _ in range(draws))
    assert set(found) == set(published) and len(found) == 15
    assert all(near(n / draws, 1 / 15, draws) for n in (*found.values(), *published.values()))


def test_long_masks_have_the_spans_of_t5() -> None:
    """Spans by length, and masked tokens by eighths of the window: means over masks agree to four standard errors."""
    spans, n = corruption_spans(settings("span_corruption", 512)), 400
    ours, theirs = np.random.default_rng(0), np.random.default_rng(1)

    def described(mask: np.ndarray) -> np.ndarray:
        borders = np.flatnonzero(np.diff(np.pad(mask, 1).astype(int)))
        lengths = np.bincount(borders[1::2] - borders[::2], minlength=spans.masked + 1)
        return np.concatenate([lengths[1:9], [mask.sum()], mask.reshape(8, -1).sum(axis=1)])

    found = np.stack([described(random_spans(spans, ours)) for _ in range(n)])
    published = np.stack([described(t5_noise_mask(spans.window, 0.15, 3.0, theirs)) for _ in range(n)])
    assert set(found[:, 8]) == set(published[:, 8]) == {spans.masked}
    errors = np.sqrt((found.var(axis=0) + published.var(axis=0)) / n)
    assert (abs(found.mean(axis=0) - published.mean(axis=0)) <= 4 * errors).all()


# Prefixes and blanks


def test_a_prefix_and_what_follows() -> None:
    train = settings("prefix", 64, blank_fraction=0.0)
    made, seen = Prefix(train, SPECIAL, END), []
    for seed in range(1000):
        w = window(seed, 63)
        row = made.row(w, chance([3, seed], w))
        (n,) = row["prefix"]
        assert row["inputs"][n - 1] == ROLES["prefix mask"] and row["inputs"][n] == ROLES["start"]
        assert (row["targets"][:n] == -1).all() and (row["targets"][n:] >= 0).all()
        np.testing.assert_array_equal(np.concatenate([row["inputs"][: n - 1], row["targets"][n:]]), w)
        np.testing.assert_array_equal(row["inputs"][n + 1 :], row["targets"][n:-1])
        seen.append(n - 1)
    counts = np.bincount(seen, minlength=63).reshape(9, 7).sum(axis=1)
    assert set(seen) == set(range(63)) and all(near(c / 1000, 1 / 9, 1000) for c in counts), "any length is as likely"


def test_blanks_are_filled_after_the_text() -> None:
    train = settings("prefix", 128, blank_fraction=1.0)
    made, spans, lengths = Prefix(train, SPECIAL, END), blank_spans(train), []
    assert spans.masked == round(0.15 * spans.window) and 126 <= spans.window + 2 * spans.runs <= 128
    for seed in range(400):
        w = window(seed, 127)
        row = made.row(w, chance([4, seed], w))
        (n,), scored = row["prefix"], row["targets"] >= 0
        assert not scored[:n].any() and scored[n:].sum() == spans.masked + spans.runs
        said, read = row["targets"][scored], row["inputs"][scored]
        stops = np.flatnonzero(said == ROLES["stop"])
        fillings = [part[part != ROLES["stop"]] for part in np.split(said, stops[:-1] + 1)]
        np.testing.assert_array_equal(np.flatnonzero(read == ROLES["start"]), [0, *stops[:-1] + 1])
        follows = read[1:] != ROLES["start"]
        np.testing.assert_array_equal(read[1:][follows], said[:-1][follows])
        rest, whole = iter(fillings), list[int]()
        for token in row["inputs"][:n]:
            whole += next(rest).tolist() if token == ROLES["mask"] else [token]
        assert next(rest, None) is None
        np.testing.assert_array_equal(whole, w[: spans.window])
        lengths += map(len, fillings)
    # One token and a share of the rest: given their sum, the others of a span are Poisson, nearly of mean and variance 2.
    mean = spans.masked / spans.runs
    assert np.mean(lengths) == pytest.approx(mean)
    assert np.var(lengths) == pytest.approx((mean - 1) * (1 - 1 / spans.runs), rel=0.1)


def test_the_mixture_of_blanks_and_prefixes() -> None:
    made = Prefix(settings("prefix", 128), SPECIAL, END)
    rows = [made.row(window(i, 127), chance([5, i], window(0, 127))) for i in range(1000)]
    with_blanks = [ROLES["mask"] in row["inputs"] for row in rows]
    assert near(float(np.mean(with_blanks)), 0.3, 1000)
    assert all((ROLES["prefix mask"] in row["inputs"]) != blanks for row, blanks in zip(rows, with_blanks, strict=True))
    short = made.row(window(0, 2), chance([1], window(0, 127)))
    assert (short["targets"] >= 0).sum() > 0 and short["inputs"].shape == (128,)
