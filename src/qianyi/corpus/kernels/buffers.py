"""The NumPy buffers behind an Arrow array of strings."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]
Strings: TypeAlias = "pa.Array | pa.ChunkedArray"


def utf8(texts: Strings) -> tuple[Bytes, Offsets]:
    """UTF-8 bytes of all texts, and where each begins and the last ends: [n + 1]. Nothing but the offsets is copied.

    Raises:
        TypeError: these are no strings, or some are null.
    """
    array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)) or array.null_count:
        raise TypeError(f"expected strings without nulls, got {array.type} with {array.null_count} nulls")
    if len(array) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    wide = pa.types.is_large_string(array.type)
    _, places, content = array.buffers()
    width = np.int64 if wide else np.int32
    offsets = np.frombuffer(places, width)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    data = np.frombuffer(content, np.uint8) if content is not None and content.size else np.empty(0, np.uint8)
    return data, offsets


def replaced(texts: pa.Array, new: Mapping[int, str]) -> pa.Array:
    """The texts with those of some rows, in rising order, replaced; the same array where there are none."""
    if not new:
        return texts
    mask = np.zeros(len(texts), bool)
    mask[list(new)] = True
    return pc.call_function("replace_with_mask", [texts, pa.array(mask), pa.array(list(new.values()), texts.type)])
