"""Bytes to text: UTF-8 where it is that, else what was declared, else what it must be; or a refusal that says why.

A guess must decode every byte and read like text. Chinese is told by characters that are frequent in any prose: GB18030 and Big5 share most
byte pairs, but the wrong one gives rare characters.
"""

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5  # pyright: ignore[reportMissingModuleSource]

from qianyi.corpus.collect.found import HEAD_CHARACTERS, Refusal

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_FREQUENT = frozenset(
    "的一是不了在人有我他这這个個们們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于於着著下自之年过過发發后後作里裡用道行所然家种種"
    "事成方多经經么麼去法学學如都同现現当當没沒动動面起看定天分还還进進好小部其些主样樣理心她本前开開但因只从從想实實日军軍者意无無力它与與长長把机機十民第"
    "公此已工使情明性知全三又关關点點正业業外将將两兩高间間由问問很最重并並物手应應战戰向头頭文体體政美相见見被利什二等产產或新己制身果加西斯月话話合回"
    "特代内內信表化老给給世位次度门門任常先海通教儿兒原东東声聲提立及比员員解水名真论論处處走义義各入几幾口认認条條平系气氣题題活尔爾更别別打女变變四神总總何"
    "电電数數安少报報才结結反受目太量再感建务務做接必场場件计計管期市直德资資命山金指克许許统統区區保至队隊形社便空决決治展马馬科司五基眼书書非则則听聽白却卻"
    "，。、；：？！「」『』（）《》“”‘’…—　·"
)
_CONTROL = bytes(set(range(32)) - {9, 10, 12, 13, 27})
_LEAST_FREQUENT_SHARE = 0.25
"""Of the characters beyond ASCII in Chinese prose or verse; the wrong one of GB18030 and Big5 gives less than 0.1."""
_SAMPLE_BYTES = 1 << 16


def decode(data: bytes, declared: str | None = None, before: str | None = None) -> tuple[str, str]:
    """The text of `data` and the name of its encoding.

    Args:
        data: a whole document, or a line.
        declared: what a header or a tag says, which may be wrong.
        before: how the lines before were encoded, which is right unless it cannot be.

    Raises:
        Refusal: it is binary, or no encoding fits.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _strictly(data[len(bom) :], encoding), encoding
    sample = data[:_SAMPLE_BYTES]
    if is_binary(sample):
        raise Refusal("binary", "the bytes are no text; convert it to text first")
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError as error:
        broken = error.with_traceback(None)  # which would hold the frames of all callers, and what they hold, in a cycle
    if before and before != "utf-8" and (text := _try(data, before)) is not None:
        return text, before
    if _nearly_utf8(data) or (broken.reason == "unexpected end of data" and broken.start > 2):
        raise _broken_utf8(data, broken)
    for encoding in _candidates(sample, declared):
        text = _try(data, encoding)
        if text is not None and _plausible(text, encoding):
            return text, encoding
    raise Refusal(
        "encoding",
        f"not UTF-8 at byte {broken.start} (0x{data[broken.start]:02x}), nor any other encoding that reads like text; convert it to UTF-8",
        data[:HEAD_CHARACTERS].decode("latin-1"),
    )


def is_binary(sample: bytes) -> bool:
    """Whether bytes are no text in any encoding of bytes: they hold NUL or many other control characters."""
    return b"\0" in sample or len(sample) - len(sample.translate(None, _CONTROL)) > max(4, len(sample) // 100)


def _strictly(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        cut = error.end >= len(data)
        raise Refusal(
            "truncated" if cut else "encoding", f"the byte order mark says {encoding}, which breaks at byte {error.start}"
        ) from None


def _candidates(sample: bytes, declared: str | None) -> list[str]:
    """Encodings in the order in which they are tried."""
    detected = detect_encoding(sample, html5_compatible=False)
    names = [map_encoding_to_html5(declared) if declared else None, "gb18030", "big5hkscs", detected, "cp1252"]
    known = {"gbk": "gb18030", "gb2312": "gb18030", "big5": "big5hkscs", "big5-hkscs": "big5hkscs", "iso-8859-1": "cp1252"}
    names = [known.get(name.lower(), name.lower()) for name in names if name]
    return [name for name in dict.fromkeys(names) if name not in {"utf-8", "ascii", "us-ascii"}]


def _try(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None


def _plausible(text: str, encoding: str) -> bool:
    """Whether the characters beyond ASCII are what one reads."""
    beyond = [c for c in text[:_SAMPLE_BYTES] if c > "\x7f"]
    if encoding in {"gb18030", "big5hkscs"}:
        return bool(beyond) and sum(c in _FREQUENT for c in beyond) / len(beyond) >= _LEAST_FREQUENT_SHARE
    if (
        encoding == "cp1252"
    ):  # nearly every byte is a character of it: in words, such letters stand alone, and there are few signs
        letters = sum(c.isalpha() or c in "«»“”‘’–—…°§©®€£·¡¿\u00a0" for c in beyond)
        return (letters == len(beyond) or len(beyond) < len(text) / 50) and not re.search(
            r"[^\W\d_a-zA-Z]{3}", text[:_SAMPLE_BYTES]
        )
    letters = sum(c.isalpha() or c in "«»“”‘’–—…°§©®€£·¡¿\u00a0" for c in beyond)
    return letters >= 0.9 * len(beyond)


def _nearly_utf8(data: bytes) -> bool:
    """Whether it was UTF-8 before something broke it: nearly all of its bytes beyond ASCII are parts of whole characters."""
    beyond = len(data) - len(data.decode("ascii", "ignore"))
    kept = data.decode("utf-8", "ignore")
    return len(kept.encode()) - len(kept.encode("ascii", "ignore")) > 0.9 * beyond


def _broken_utf8(data: bytes, error: UnicodeDecodeError) -> Refusal:
    head = data[:HEAD_CHARACTERS].decode("utf-8", "ignore")
    if error.end >= len(data):
        return Refusal("truncated", f"it ends in the middle of a character, at byte {error.start}; fetch it again", head)
    return Refusal(
        "encoding",
        f"broken UTF-8 at byte {error.start} (0x{data[error.start]:02x}), though the rest is UTF-8; convert or repair it",
        head,
    )
