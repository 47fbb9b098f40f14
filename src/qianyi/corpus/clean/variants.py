"""Traditional and simplified Chinese: which script a text is written in.

`han_variants.txt` holds two lines, the characters that only simplified and only traditional Chinese writes, made of the character
dictionaries of OpenCC 1.4.2 (STCharacters, TSCharacters; Apache-2.0): those of one that do not occur in the other and do not stand for
themselves. 后, 里 and 面, which both write, are in neither.
"""

from functools import cache
from importlib.resources import files

import numpy as np
import pyarrow as pa

MIN_CHARS = 2
"""Fewer telling characters tell nothing."""
MIXED_SHARE = 0.1
"""From this share on the rarer script is no accident (names, quotations)."""


@cache
def variants() -> tuple[str, str]:
    """The characters of simplified Chinese alone, and of traditional alone."""
    simplified, traditional = files("qianyi.corpus.clean").joinpath("han_variants.txt").read_text(encoding="utf-8").splitlines()
    return simplified, traditional


def script_variant(measured: pa.RecordBatch) -> pa.Array:
    """`hans`, `hant`, `mixed`, or empty where no Chinese characters tell, by the statistics of a batch."""
    simplified = measured["stat_simplified_chars"].to_numpy()
    traditional = measured["stat_traditional_chars"].to_numpy()
    telling = simplified + traditional
    share = traditional / np.maximum(telling, 1)
    names = np.select(
        [telling < MIN_CHARS, share <= MIXED_SHARE, share >= 1 - MIXED_SHARE], ["", "hans", "hant"], default="mixed"
    )
    return pa.array(names.tolist(), pa.string())
