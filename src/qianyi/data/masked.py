"""Masked tokens and a question about two segments: BERT (Devlin et al. 2019, section 3.1 and appendix A.1)."""

import numpy as np

from qianyi.config.schema import TrainConfig
from qianyi.data.shards import TokenStream
from qianyi.data.special import SpecialTokens
from qianyi.data.windows import Chance, Row, Tokens, Windows, fill, padding_of

MASKED, REPLACED = 0.8, 0.1
"""Of the chosen tokens these shares become the mask, and a random token; the rest stays as it is."""
AS_WRITTEN, CHANGED, NOT_SCORED = 0, 1, -1
"""Answers: the second segment is what follows the first in the text; it is from elsewhere, or both were swapped; there are not two."""


class MaskedTokens:
    """`[CLS] A [SEP] B [SEP]`, or `[CLS] A [SEP]` where no question is asked.

    Rows: `inputs`; `targets`, the token at places that were chosen, else -1; `segments`, 0 up to the first separator, then 1;
    `sentence`, one answer; `documents`, 0, and 1 for padding.

    A is the beginning of a window and ends within a text, which B continues; B is the rest or, in half of the rows, as much of another
    window ("next", Devlin et al. 2019), or both are swapped ("order": Lan et al. 2020, section 3.1).
    """

    def __init__(self, train: TrainConfig, special: SpecialTokens, end_token: int, vocab_size: int):
        self._seq_len, self._objective, self._end_token = train.seq_len, train.objective, end_token
        self._mask, self._class, self._separator, self._padding = (
            special.roles[role] for role in ("mask", "class", "separator", "padding")
        )
        added = [end_token, *special.roles.values(), *special.sentinels]
        self._ordinary = np.setdiff1d(np.arange(vocab_size), added)
        self._length = train.seq_len - (2 if train.objective.sentence == "none" else 3)
        self.needs = f"sequence of {self._length}"

    def windows(self, stream: TokenStream, partial: bool) -> Windows:
        return Windows(stream, self._length, self._length, partial)

    def row(self, window: Tokens, chance: Chance) -> Row:
        segments, answer = self._segments(window, chance)
        parts = [np.array([self._class]), *(part for segment in segments for part in (segment, [self._separator]))]
        tokens = np.concatenate(parts).astype(np.int32)
        is_second = (np.arange(len(tokens)) >= 2 + len(segments[0])).astype(np.int32)
        inputs, targets = self._mask_some(tokens, chance.random)
        return {
            "inputs": fill(inputs, self._seq_len, self._padding),
            "targets": fill(targets, self._seq_len, -1),
            "segments": fill(is_second, self._seq_len, 0),
            "sentence": np.array([answer], np.int32),
            "documents": padding_of(tokens, self._seq_len),
        }

    def _segments(self, window: Tokens, chance: Chance) -> tuple[list[Tokens], int]:
        if self._objective.sentence == "none":
            return [window], NOT_SCORED
        inside = window != self._end_token
        places = np.flatnonzero(inside[1:] & inside[:-1]) + 1  # both neighbours are of one text
        if not len(places):
            return [window, window[:0]], NOT_SCORED
        place = chance.random.choice(places)
        first, second = window[:place], window[place:]
        if chance.random.random() < 0.5:
            return [first, second], AS_WRITTEN
        if self._objective.sentence == "order":
            return [second, first], CHANGED
        return [first, chance.another(window)[: len(second)]], CHANGED

    def _mask_some(self, tokens: Tokens, random: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Inputs and targets. Special tokens and ends of texts are not chosen."""
        candidates = np.flatnonzero(~np.isin(tokens, [self._class, self._separator, self._end_token]))
        count = min(max(round(self._objective.mask_fraction * len(candidates)), 1), len(candidates))
        chosen, fate = random.choice(candidates, count, replace=False), random.random(count)
        inputs, targets = tokens.copy(), np.full_like(tokens, -1)
        targets[chosen] = tokens[chosen]
        inputs[chosen[fate < MASKED]] = self._mask
        replaced = chosen[(fate >= MASKED) & (fate < MASKED + REPLACED)]
        inputs[replaced] = random.choice(self._ordinary, len(replaced))
        return inputs, targets
