"""Best-fit packing (Ding et al. 2024, section 3): documents put into sequences so that none is cut that fits one.

A document that is longer than a sequence is cut into pieces of a sequence's length and a rest. The pieces, the longest first, go each to
the sequence with the least room that is enough (best-fit decreasing), found in O(log length). Packed is what one worker tokenized, unit by
unit, so memory and time are bounded for each; a unit's last sequences stay emptier, which few are.

A piece is an interval of the stream of tokens, all of which are said: its inputs are the tokens one place before. The token before a
document is the end of the one before it, so that a document begins with an end of text, as a sample does.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from qianyi.data.shards import TokenStream
from qianyi.data.windows import Tokens

Ints = NDArray[np.int64]


class Packing(NamedTuple):
    """Sequences and what is in them."""

    pieces: Ints
    """[pieces, 2]: first token and the one after the last, sequence by sequence."""
    rows: Ints
    """[sequences + 1]: where the pieces of each begin."""


class PackingShares(NamedTuple):
    """How well documents fit."""

    padding: float
    """Share of places that stay empty."""
    cut_documents: float
    """Share of documents that are in more than one sequence."""


class Packed:
    """Row i of a stream that is packed into sequences of `length`: int32 [3, length], inputs, targets (-1 where nothing is to be said) and
    the number, in its row, of the document that a place belongs to."""

    def __init__(self, stream: TokenStream, length: int, end_token: int):
        self._stream, self._length, self._end_token = stream, length, end_token
        self._packing, self.shares = pack(stream.document_tokens(), length)

    def __len__(self) -> int:
        return len(self._packing.rows) - 1

    def __getitem__(self, index: Any) -> Tokens:
        first, last = self._packing.rows[int(index) : int(index) + 2]
        row = np.stack([np.full(self._length, fill, np.int32) for fill in (self._end_token, -1, last - first)])
        place = 0
        for document, (start, stop) in enumerate(self._packing.pieces[first:last].tolist()):
            here = slice(place, place + stop - start)
            # The token before the first of all is not there.
            tokens = self._stream.read(max(start - 1, 0), stop)
            row[0, here] = tokens[:-1] if start else np.append(np.int32(self._end_token), tokens[:-1])
            row[1, here] = tokens[start > 0 :]
            row[2, here] = document
            place = here.stop
        return row


def pack(lengths: list[NDArray[np.uint32]], capacity: int) -> tuple[Packing, PackingShares]:
    """Pack the documents of a stream, those of each array apart.

    Args:
        lengths: [documents] tokens of each document, in the order of the stream.
        capacity: tokens of a sequence.
    """
    parts: list[Packing] = []
    start = n_pieces = 0
    for unit in lengths:
        part = pack_unit(unit.astype(np.int64), capacity)
        parts.append(Packing(part.pieces + start, part.rows + n_pieces))
        start, n_pieces = start + int(unit.sum(dtype=np.int64)), n_pieces + len(part.pieces)
    pieces = np.concatenate([np.empty((0, 2), np.int64), *(part.pieces for part in parts)])
    rows = np.concatenate([*(part.rows[:-1] for part in parts), [n_pieces]])
    documents, cut = sum(map(len, lengths)), sum(int((unit > capacity).sum()) for unit in lengths)
    places = max((len(rows) - 1) * capacity, 1)
    return Packing(pieces, rows), PackingShares(1 - start / places, cut / max(documents, 1))


def pack_unit(lengths: Ints, capacity: int) -> Packing:
    """Pack documents that lie one after another, by best-fit decreasing.

    Of pieces of one length the first in the stream is placed first; of sequences with the same room, the one that came to it last is taken.
    """
    starts, stops = _pieces(lengths, capacity)
    order = np.argsort(starts - stops, kind="stable")
    sequence, count = _best_fit((stops - starts)[order], capacity)
    by_sequence = np.argsort(sequence, kind="stable")
    chosen = order[by_sequence]
    rows = np.concatenate([[0], np.cumsum(np.bincount(sequence, minlength=count))])
    return Packing(np.stack([starts[chosen], stops[chosen]], axis=1), rows)


def concatenated_shares(lengths: list[NDArray[np.uint32]], capacity: int) -> PackingShares:
    """What plain concatenation does to the same documents: nothing is empty, and documents are cut where sequences end."""
    stops = np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]), dtype=np.int64)
    starts = np.concatenate([[0], stops[:-1]])
    cut = int((starts // capacity != (stops - 1) // capacity).sum())
    return PackingShares(0.0, cut / max(len(stops), 1))


def _pieces(lengths: Ints, capacity: int) -> tuple[Ints, Ints]:
    """Starts and stops of pieces that are no longer than a sequence, in the order of the stream."""
    document_stops = np.cumsum(lengths)
    counts = -(-lengths // capacity)
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = (document_stops - lengths)[document] + number * capacity
    return starts, np.minimum(starts + capacity, document_stops[document])


@numba.njit(cache=True, nogil=True)  # pyright: ignore[reportUntypedFunctionDecorator]
def _best_fit(lengths: Ints, capacity: int) -> tuple[Ints, int]:
    """[pieces] the sequence of each piece, and how many sequences there are.

    Sequences with the same room are a linked list. A binary tree says which rooms have any: node i has those of nodes 2i and 2i + 1, the
    leaf of room r is `leaves` + r.
    """
    leaves = 1
    while leaves <= capacity:
        leaves *= 2
    tree = np.zeros(2 * leaves, np.bool_)
    head = np.full(capacity + 1, -1, np.int64)
    following = np.full(len(lengths), -1, np.int64)
    sequence = np.empty(len(lengths), np.int64)
    count = 0
    for piece in range(len(lengths)):
        node = leaves + lengths[piece]
        if not tree[node]:
            while node > 1 and (node % 2 == 1 or not tree[node + 1]):
                node //= 2
            if node > 1:
                node += 1
                while node < leaves:
                    node = 2 * node if tree[2 * node] else 2 * node + 1
        if node > 1:
            room = node - leaves
            chosen = head[room]
            head[room] = following[chosen]
            if head[room] < 0:
                tree[node] = False
                node //= 2
                while node >= 1 and not tree[2 * node] and not tree[2 * node + 1]:
                    tree[node] = False
                    node //= 2
        else:
            room, chosen = capacity, count
            count += 1
        sequence[piece] = chosen
        room -= lengths[piece]
        following[chosen] = head[room]
        head[room] = chosen
        node = leaves + room
        while node >= 1 and not tree[node]:
            tree[node] = True
            node //= 2
    return sequence, count
