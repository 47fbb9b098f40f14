"""What a sequence is made of: a window of a stream of tokens, or a pair of texts in it."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qianyi.data.shards import BLOCK_TOKENS, TokenStream
from qianyi.errors import DataError

Tokens = NDArray[np.int32]
Row = dict[str, Tokens]
"""A row of each array of a batch, by name."""


class Chance:
    """What is drawn for one row: the same whenever it is made."""

    def __init__(self, seed: list[int], window_at: Callable[[int], Tokens], count: int):
        """
        Args:
            seed: of this row alone.
            window_at: window by number, of `count`.
            count: how many windows there are to draw from.
        """
        self._seed, self._window_at, self._count = seed, window_at, count

    @cached_property
    def random(self) -> np.random.Generator:
        return np.random.default_rng(self._seed)

    def another(self, window: Tokens) -> Tokens:
        """A window of another random place; it is drawn again where it is the same, ten times at most, since there may be none."""
        for _ in range(10):
            drawn = self._window_at(int(self.random.integers(self._count)))
            if not np.array_equal(drawn, window):
                return drawn
        return window


class Windows:
    """Window i of a stream: `length` tokens from i * stride on.

    Where the stride is one less than the length, every token but the first is once in a place that is not a window's first.
    """

    def __init__(self, stream: TokenStream, length: int, stride: int, partial: bool):
        """`partial`: the end of the stream is a window too, if it has two tokens or more."""
        self._stream, self._length, self._stride = stream, length, stride
        spare = length - stride
        self._count = -(-(len(stream) - 1) // stride) if partial else (len(stream) - spare) // stride

    def __len__(self) -> int:
        return max(self._count, 0)

    def __getitem__(self, index: Any) -> Tokens:
        start = int(index) * self._stride
        return self._stream.read(start, min(start + self._length, len(self._stream)))


class Pairs:
    """Pair i of a stream in which sources and targets take turns, each with its end token; pairs that are too long are left out."""

    def __init__(self, stream: TokenStream, end_token: int, source_tokens: int, target_tokens: int):
        """
        Raises:
            DataError: a source has no target.
        """
        ends = np.concatenate([np.empty(0, np.int64), *(part + start for start, part in _ends(stream, end_token))]) + 1
        if len(ends) % 2:
            raise DataError("the shards have a source without a target; delete them and run `qianyi data prepare RECIPE`")
        starts = np.concatenate([[0], ends[:-1]])
        fits = (ends - starts)[0::2] <= source_tokens
        fits &= (ends - starts)[1::2] <= target_tokens
        self._stream, self._starts, self._stops = stream, starts[0::2][fits], ends[1::2][fits]
        self.left_out = 1 - len(self._starts) / max(len(fits), 1)
        """Share of pairs that are too long."""

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Tokens:
        """The source with its end token, then the target with its own."""
        return self._stream.read(int(self._starts[int(index)]), int(self._stops[int(index)]))


def _ends(stream: TokenStream, end_token: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Places of the end token, block by block: (start of the block, places in it)."""
    blocks = range(0, len(stream), BLOCK_TOKENS)
    return [(b, np.flatnonzero(stream.read(b, min(b + BLOCK_TOKENS, len(stream))) == end_token)) for b in blocks]


def fill(tokens: Tokens, length: int, value: int) -> Tokens:
    """The tokens, and `value` up to `length`."""
    filled = np.full(length, value, np.int32)
    filled[: len(tokens)] = tokens
    return filled


def padding_of(tokens: Tokens, length: int) -> Tokens:
    """0 where `fill` has tokens, 1 where it pads: attention stays within equal numbers."""
    return (np.arange(length) >= len(tokens)).astype(np.int32)
