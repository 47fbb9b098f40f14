"""Text with gaps, and what belongs there: T5's span corruption, GLM-130B's blanks and prefixes, and pairs of a source and a target."""

import numpy as np
from numpy.typing import NDArray

from qianyi.config.objective import Spans, blank_spans, corruption_spans, needed_target_length, spans_of
from qianyi.config.schema import TrainConfig
from qianyi.data.shards import TokenStream
from qianyi.data.special import SpecialTokens
from qianyi.data.windows import Chance, Pairs, Row, Tokens, Windows, fill, padding_of

Mask = NDArray[np.bool_]


class SpanCorruption:
    """T5 (Raffel et al. 2020, section 3.1.4): the source is the window with a sentinel for each masked span, and the end token; the target
    is each span after its sentinel, and the end token. The decoder starts with the padding token, as T5's does.

    Rows: `sources`, `source_documents` (0, and 1 for padding), `inputs` and `targets` (-1 for padding) of the decoder.
    """

    def __init__(self, train: TrainConfig, special: SpecialTokens, end_token: int):
        self._objective, self._seq_len, self._end_token = train.objective, train.seq_len, end_token
        self._padding, self._sentinels = special.roles["padding"], np.array(special.sentinels, np.int32)
        self._length = corruption_spans(train).window
        self._target_len = train.objective.target_len or needed_target_length(train)
        self.needs = f"sequence of {self._length}"

    def windows(self, stream: TokenStream, partial: bool) -> Windows:
        return Windows(stream, self._length, self._length, partial)

    def row(self, window: Tokens, chance: Chance) -> Row:
        mask = random_spans(spans_of(len(window), self._objective), chance.random)
        end = np.array([self._end_token], np.int32)
        source = np.concatenate([self._with_sentinels(window, mask), end])
        target = np.concatenate([self._with_sentinels(window, ~mask), end])
        return source_row(source, self._seq_len, self._padding) | target_row(target, self._target_len, self._padding)

    def _with_sentinels(self, window: Tokens, gaps: Mask) -> Tokens:
        """The window with a sentinel for each gap; kept and masked runs take turns, so gap i of either kind has sentinel i."""
        first = starts_of(gaps)
        return np.where(first, self._sentinels[np.maximum(np.cumsum(first) - 1, 0)], window)[~gaps | first]


class Prefix:
    """GLM-130B (Zeng et al. 2022, section 2.2): after a prefix whose tokens see each other in both directions, left to right.

    Either the window up to a random place is seen, then [gMASK], and after a start token the rest of the window is said; or, in
    blank_fraction of the rows, a [MASK] stands for each of some short spans, and each is said between a start and a stop token. Such a
    row holds fewer tokens of the text: the end of the window is cut off.

    The spans of a row come in the order of the text, since positions simply count on and do not tell which span is said. All rows mask the
    same share in as many spans; a span is one token and its part of what is left, spread at random: Poisson lengths with a given sum.

    Rows: `inputs`; `targets`, -1 within the prefix; `prefix`, its length.
    """

    def __init__(self, train: TrainConfig, special: SpecialTokens, end_token: int):
        self._objective, self._seq_len, self._end_token, self._roles = train.objective, train.seq_len, end_token, special.roles
        self._longest = blank_spans(train).window
        self.needs = f"sequence of {train.seq_len - 1}"

    def windows(self, stream: TokenStream, partial: bool) -> Windows:
        return Windows(stream, self._seq_len - 1, self._seq_len - 1, partial)

    def row(self, window: Tokens, chance: Chance) -> Row:
        random = chance.random
        with_blanks = random.random() < self._objective.blank_fraction
        seen, said = self._blanks(window[: self._longest], random) if with_blanks else self._rest(window, random)
        inputs = np.concatenate([seen, *(np.concatenate([[self._roles["start"]], s[:-1]]) for s in said)])
        targets = np.concatenate([np.full(len(seen), -1), *said])
        return {
            "inputs": fill(inputs, self._seq_len, self._end_token),
            "targets": fill(targets, self._seq_len, -1),
            "prefix": np.array([len(seen)], np.int32),
        }

    def _rest(self, window: Tokens, random: np.random.Generator) -> tuple[Tokens, list[Tokens]]:
        """The prefix, and what follows it: any number of the window's tokens, but one at least."""
        place = random.integers(len(window))
        return np.append(window[:place], self._roles["prefix mask"]), [window[place:]]

    def _blanks(self, window: Tokens, random: np.random.Generator) -> tuple[Tokens, list[Tokens]]:
        spans = spans_of(len(window), self._objective)
        rest = random.multinomial(spans.masked - spans.runs, np.full(spans.runs, 1 / spans.runs))
        mask = _in_turns(_segments(spans.window - spans.masked, spans.runs, random), 1 + rest)
        first = starts_of(mask)
        borders = np.flatnonzero(first[mask])[1:]
        said = [np.append(span, self._roles["stop"]) for span in np.split(window[mask], borders)]
        return np.where(first, self._roles["mask"], window)[~mask | first], said


class SequenceToSequence:
    """A target from its source (Vaswani et al. 2017): rows as those of `SpanCorruption`. Pairs that do not fit are left out."""

    def __init__(self, train: TrainConfig, special: SpecialTokens, end_token: int):
        target_len = train.objective.target_len
        assert target_len is not None, "the config is checked"
        self._seq_len, self._target_len, self._end_token = train.seq_len, target_len, end_token
        self._padding = special.roles["padding"]
        self.needs = f"pair of at most train.seq_len={self._seq_len} and train.objective.target_len={self._target_len}"

    def windows(self, stream: TokenStream, partial: bool) -> Pairs:
        return Pairs(stream, self._end_token, self._seq_len, self._target_len)

    def row(self, window: Tokens, chance: Chance) -> Row:
        border = int(np.argmax(window == self._end_token)) + 1
        source, target = window[:border], window[border:]
        return source_row(source, self._seq_len, self._padding) | target_row(target, self._target_len, self._padding)


def source_row(tokens: Tokens, length: int, padding: int) -> Row:
    return {"sources": fill(tokens, length, padding), "source_documents": padding_of(tokens, length)}


def target_row(tokens: Tokens, length: int, start: int) -> Row:
    """The decoder reads its targets, one place later, after a start token, which is also the padding."""
    inputs = np.concatenate([np.array([start], np.int32), tokens[:-1]])
    return {"inputs": fill(inputs, length, start), "targets": fill(tokens, length, -1)}


def random_spans(spans: Spans, random: np.random.Generator) -> Mask:
    """[window] bool: kept and masked runs take turns, the first is kept; every choice of their lengths is as likely as any other
    (Raffel et al. 2020, section 3.1.4)."""
    kept = _segments(spans.window - spans.masked, spans.runs, random)
    return _in_turns(kept, _segments(spans.masked, spans.runs, random))


def starts_of(runs: Mask) -> Mask:
    """Where a run of true begins."""
    return runs & ~np.concatenate([[False], runs[:-1]])


def _segments(items: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """[count]: the lengths, none zero, of segments that items are cut into at random."""
    cuts = np.sort(random.choice(np.arange(1, items), count - 1, replace=False))
    return np.diff(np.concatenate([[0], cuts, [items]]))


def _in_turns(kept: NDArray[np.int64], masked: NDArray[np.int64]) -> Mask:
    lengths = np.stack([kept, masked], axis=1).ravel()
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
