"""Records of ArrayRecord files as TensorFlow's tooling has them: a serialized `tf.train.Example`, a map from names to lists.

The messages (tensorflow/core/example/{example,feature}.proto) in the wire format of Protocol Buffers: Example has field 1, Features; that
has field 1 again and again, an entry of key (field 1) and value (field 2), a Feature; and that one of field 1, a list of bytes, field 2, of
floats, field 3, of int64; each list has its values in field 1, numbers packed.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Value = bytes | NDArray[np.int64] | None
"""The first of a list of bytes; a list of integers; None for other kinds."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def write_example(name: str, tokens: NDArray[np.int32]) -> bytes:
    """An Example with one feature, a list of integers."""
    feature = _field(3, _field(1, _varints(tokens)))
    return _field(1, _field(1, _field(1, name.encode()) + _field(2, feature)))


def read_example(record: bytes) -> dict[str, Value]:
    """The features of an Example.

    Raises:
        ValueError: it is none.
    """
    try:
        entries = [entry for features in _fields(record, 1) for entry in _fields(features, 1)]
        return {next(_fields(e, 1)).decode(): _value(next(_fields(e, 2))) for e in entries}
    except (IndexError, StopIteration, UnicodeDecodeError):
        raise ValueError("not a tf.train.Example") from None


def _value(feature: bytes) -> Value:
    for texts in _fields(feature, 1):
        return next(_fields(texts, 1))
    for numbers in _fields(feature, 3):
        packed = b"".join(_fields(numbers, 1))
        return _integers(packed)
    return None


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varints(values: NDArray[np.int32]) -> bytes:
    """Non-negative int32, five bytes at most each."""
    groups = values.astype(np.int64)[:, None] >> np.array([0, 7, 14, 21, 28])
    is_used = groups > 0
    is_used[:, 0] = True
    follows = np.concatenate([is_used[:, 1:], np.zeros((len(values), 1), bool)], axis=1)
    return ((groups & 0x7F) | (follows << 7)).astype(np.uint8)[is_used].tobytes()


def _integers(packed: bytes) -> NDArray[np.int64]:
    data = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if len(data) and (not len(ends) or ends[-1] != len(data) - 1):
        raise IndexError
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    place = np.arange(len(data)) - np.repeat(starts, ends - starts + 1)
    if (place > 9).any():
        raise IndexError
    parts = (data & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(parts, starts).astype(np.int64) if len(starts) else np.empty(0, np.int64)


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """Contents of a message's fields of that number; the message is walked through as a whole."""
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        if key & 7 == _BYTES:
            size, place = _read_varint(message, place)
            if place + size > len(message):
                raise IndexError
            if key >> 3 == wanted:
                yield message[place : place + size]
            place += size
        elif key & 7 == _VARINT:
            _, place = _read_varint(message, place)
        elif key & 7 in {_FIXED64, _FIXED32}:
            place += 8 if key & 7 == _FIXED64 else 4
        else:
            raise IndexError


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place
