"""Text as it was meant: line ends, invisible characters, composed forms, full-width Latin, wrong decodings undone.

A kernel says which texts need anything (`kernels/damage.py`); the others are not touched.
"""

import re
import unicodedata

import ftfy
import numpy as np
import pyarrow as pa
import regex
from numpy.typing import NDArray

from qianyi.corpus.kernels import damage as dm
from qianyi.corpus.kernels.buffers import replaced
from qianyi.corpus.kernels.damage import damage, narrow

_LINE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# The zero-width joiners belong to Arabic, Indic scripts and emoji; between Latin letters, digits and ideographs they are litter.
_INVISIBLE = regex.compile(
    r"(?!\t|\n)[\p{Cc}\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]"
    r"|(?<![\p{Arabic}\p{M}\p{So}\p{Sk}\ufe0f])[\u200c\u200d]|[\u200c\u200d](?![\p{L}\p{So}\p{Sm}])"
)
_ONE_BYTE = re.compile("[\x00-\x09\x0b-\xff€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]+")
_HIGH = re.compile("[\x80-\xff]")
_LINE = re.compile("[^\n]+")
_HAN = re.compile("[\u4e00-\u9fff]{2}")
MIN_COMMON = 0.7
"""Bytes are Chinese if so many of their characters are among the common ones of the encoding."""


def repair(texts: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Repair a batch.

    Returns:
        The texts (the same array where nothing changed), and which changed, [n] of bool.
    """
    found = damage(texts)
    new: dict[int, str] = {}
    for row in np.flatnonzero(found & ~np.uint8(dm.CJK)):
        before = texts[row].as_py()
        after = repair_text(before, int(found[row]))
        if after != before:
            new[int(row)] = after
    changed = np.zeros(len(texts), bool)
    changed[list(new)] = True
    return replaced(texts, new), changed


def repair_text(text: str, found: int) -> str:
    """One text, of whose damage the bits say what it may be; the order matters: a decoding undone may bring other damage to light."""
    if found & dm.WRONG_DECODING:
        again = _decode_again(text)
        if again != text:
            text, found = again, int(damage(pa.array([again]))[0])
    if found & dm.LINE_ENDS:
        text = _LINE_ENDS.sub("\n", text)
    if found & dm.INVISIBLE:
        text = _INVISIBLE.sub("", text)
    if found & dm.COMPOSITION:
        text = unicodedata.normalize("NFC", text)
    if found & dm.FULL_WIDTH:
        text = narrow(text, signs=not found & dm.CJK)
    return text


def _decode_again(text: str) -> str:
    """Undo UTF-8, GB18030 or Big5 read as Latin-1 or Windows-1252, and UTF-8 read as GBK, line by line."""
    text = _ONE_BYTE.sub(lambda match: _from_one_byte(match[0]), text)
    return _LINE.sub(lambda match: _from_gbk(match[0]), text)


def _from_one_byte(line: str) -> str:
    if not _HIGH.search(line):
        return line
    raw = _encode(line)
    if raw is None:
        return ftfy.fix_encoding(line)
    decoded = _decode(raw, "utf-8")
    if decoded is not None:
        return decoded
    readings = [(_common_share(reading, codec), reading) for codec in ("gb18030", "big5") if (reading := _decode(raw, codec))]
    share, reading = max(readings, default=(0.0, ""))
    return reading if share >= MIN_COMMON and _is_dense(line) else ftfy.fix_encoding(line)


def _encode(line: str) -> bytes | None:
    for codec in ("latin-1", "sloppy-windows-1252"):  # the second is ftfy's and takes every byte
        try:
            return line.encode(codec)
        except UnicodeEncodeError:
            continue
    return None


def _decode(raw: bytes, codec: str) -> str | None:
    try:
        return raw.decode(codec)
    except UnicodeDecodeError:
        return None


def _is_dense(line: str) -> bool:
    """So many characters are beyond ASCII as where every other one or more is, and not as accented letters are."""
    high = sum(c > "\x7f" for c in line)
    return high >= 4 and (high >= 0.4 * len(line) or max(map(len, re.findall("[^\x00-\x7f]+", line))) >= 4)


def _common_share(text: str, codec: str) -> float:
    """Of the characters beyond ASCII, those of the encoding's first level (frequent Han) or its punctuation."""
    pairs = [c.encode(codec, "replace") for c in text if c > "\x7f"]
    first, last, second = (0xB0, 0xD7, 0xA1) if codec == "gb18030" else (0xA4, 0xC6, 0x40)
    common = sum(len(p) == 2 and (first <= p[0] <= last or p[0] in {0xA1, 0xA3}) and p[1] >= second for p in pairs)
    return common / max(1, len(pairs))


def _from_gbk(line: str) -> str:
    """UTF-8 that was read as GBK; where a byte was lost on the way, its character stays U+FFFD."""
    if not _HAN.search(line):
        return line
    reading = line.replace("\ufffd", "?").encode("gb18030", "replace").decode("utf-8", "replace")
    return reading if _common_share(reading, "gb18030") >= MIN_COMMON else line
