"""Words and phrases that say what a page is: English function words, boilerplate, filler."""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qianyi.corpus.kernels.unicode import classes
from qianyi.corpus.kernels.words import Hashes, split_words

REQUIRED_EN = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Of Rae et al. (2021, table A1): a text has two of them."""
STOPS_EN = (
    *REQUIRED_EN, "a", "in", "is", "it", "for", "not", "on", "he", "as", "you", "do", "at", "this", "but", "his", "by", "from", "they",
    "we", "her", "she", "or", "an", "will", "my", "are", "was", "if", "can", "which", "i", "so", "no", "were", "has", "had",
)  # fmt: skip
LOREM = ("lorem ipsum",)
BOILERPLATE = (
    "javascript", "privacy policy", "terms of use", "cookie policy", "uses cookies", "use of cookies", "use cookies",
    "terms of service", "all rights reserved", "sign up", "sign in", "read more", "click here", "add to cart",
    "版权所有", "版權所有", "友情链接", "联系我们", "聯絡我們", "返回首页", "设为首页", "加入收藏", "点击查看", "免费注册",
    "用户登录", "网站地图", "阅读全文", "查看更多", "上一篇", "下一篇",
)  # fmt: skip
"""First those of lines that C4 removes (Raffel et al. 2020, section 2.2), then those of menus and footers."""

MAX_WORDS = 4
_STOP, _REQUIRED, _OPENS = 1, 2, 4


class Lexicon(NamedTuple):
    """The tables of `count_phrases`."""

    keys: Hashes
    """Open table of word hashes, [size]."""
    bits: NDArray[np.int64]
    """What the word of an entry is, [size]; 0: none. Bits from 8 on: which of the required words."""
    phrases: Hashes
    """[phrases, MAX_WORDS], zeros after the last word; the first `n_lorem` are filler, the others boilerplate."""
    n_lorem: int


def hashes_of(text: str) -> Hashes:
    """The words of a text as `split_words` hashes them."""
    data = np.frombuffer(text.encode(), np.uint8)
    room = len(data) + 1
    words, chars, flags = np.empty(room, np.uint64), np.empty(room, np.int32), np.empty(room, np.uint8)
    return words[: split_words(data, 0, len(data), classes(), words, chars, flags)]


@cache
def lexicon() -> Lexicon:
    """The lexicon of both languages."""
    phrases = np.zeros((len(LOREM) + len(BOILERPLATE), MAX_WORDS), np.uint64)
    for row, phrase in zip(phrases, (*LOREM, *BOILERPLATE), strict=True):
        hashes = hashes_of(phrase)
        row[: len(hashes)] = hashes
    bits: dict[int, int] = {}
    for first in phrases[:, 0]:
        bits[int(first)] = _OPENS
    for number, word in enumerate(STOPS_EN):
        key = int(hashes_of(word)[0])
        bits[key] = bits.get(key, 0) | _STOP | (_REQUIRED | 256 << number if number < len(REQUIRED_EN) else 0)
    size = 512
    keys, values = np.zeros(size, np.uint64), np.zeros(size, np.int64)
    for key, value in bits.items():
        slot = key & (size - 1)
        while values[slot]:
            slot = (slot + 1) & (size - 1)
        keys[slot], values[slot] = key, value
    return Lexicon(keys, values, phrases, len(LOREM))


@njit(cache=True, nogil=True)
def count_phrases(words: Hashes, n_words: int, lexicon: Lexicon) -> tuple[int, int, int, int]:
    """Occurrences of function words, distinct required words, filler and boilerplate phrases among n words."""
    keys, bits, phrases, n_lorem = lexicon
    size = len(keys)
    stops, seen, lorem, boilerplate = 0, 0, 0, 0
    for k in range(n_words):
        slot = np.int64(words[k] & np.uint64(size - 1))
        while bits[slot] and keys[slot] != words[k]:
            slot = (slot + 1) & (size - 1)
        found = bits[slot]
        if found:
            stops += found & _STOP
            seen |= found >> 8
            if found & _OPENS:
                phrase = _phrase_at(words, k, n_words, phrases)
                lorem += 0 <= phrase < n_lorem
                boilerplate += phrase >= n_lorem
    distinct = 0
    while seen:
        distinct += seen & 1
        seen >>= 1
    return stops, distinct, lorem, boilerplate


@njit(cache=True, nogil=True)
def _phrase_at(words: Hashes, k: int, n_words: int, phrases: Hashes) -> int:
    """The number of the phrase that begins at word k, -1 if none does."""
    for number in range(len(phrases)):
        matched = 0
        while (
            matched < MAX_WORDS
            and phrases[number, matched]
            and k + matched < n_words
            and phrases[number, matched] == words[k + matched]
        ):
            matched += 1
        if matched == MAX_WORDS or not phrases[number, matched]:
            return number
    return -1
