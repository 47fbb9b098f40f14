"""Damage done to real text on purpose is undone; text without damage is not touched."""

import random
import time
import unicodedata
from difflib import SequenceMatcher

import ftfy.bad_codecs  # noqa: F401
import pyarrow as pa
import pytest
from real_text import real_text

from qianyi.corpus.clean.repair import repair
from qianyi.corpus.kernels import damage as dm
from qianyi.corpus.kernels.damage import damage, narrow


def repaired(texts: list[str]) -> list[str]:
    return repair(pa.array(texts, pa.string()))[0].to_pylist()


def pieces(name: str, size: int = 300) -> list[str]:
    texts = random.Random(0).sample(real_text(name), 60)
    return [unicodedata.normalize("NFC", text[:size]).strip() for text in texts]


@pytest.mark.parametrize("codec", ["latin-1", "sloppy-windows-1252"])
@pytest.mark.parametrize("written", ["utf-8", "gb18030"])
def test_chinese_read_as_one_byte_characters_comes_back(written: str, codec: str) -> None:
    texts = pieces("sanguo")
    broken = [text.encode(written).decode(codec) for text in texts]
    assert broken != texts
    assert repaired(broken) == texts


def test_big5_read_as_latin_1_comes_back() -> None:
    texts = ["國家主席發表新年講話，祝全國人民新年快樂。", "明朝末年，天下大亂，英雄四起。\n這是第二行文字。"]
    assert repaired([text.encode("big5").decode("latin-1") for text in texts]) == texts


def test_utf8_read_as_gbk_comes_back_but_for_what_was_lost() -> None:
    texts = [text.replace("\n", "") for text in pieces("sanguo")]
    broken = [text.encode().decode("gbk", "replace") for text in texts]
    alike = [SequenceMatcher(None, out, text, autojunk=False).ratio() for out, text in zip(repaired(broken), texts, strict=True)]
    assert min(alike) > 0.7
    assert all("鐨" not in text for text in repaired(broken))


def test_western_mojibake_comes_back() -> None:
    texts = ["L’été, le garçon naïf — déjà là — mangeait des crêpes.", "Über die Brücke: „Größe“", "Ça coûte 5 €…"]
    assert repaired([text.encode().decode("sloppy-windows-1252") for text in texts]) == texts


def test_lines_of_one_document_are_undone_each_by_itself() -> None:
    good, bad = "这一行本来就是好的。", "这一行被读错了编码。"
    mixed = "\n".join([good, bad.encode("gb18030").decode("latin-1"), "plain English", bad.encode().decode("latin-1")])
    assert repaired([mixed]) == ["\n".join([good, bad, "plain English", bad])]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("x\u200by\ufeffz\u00ad!\x00\x07\u202e", "xyz!"),
        ("e\u0301 \u1112\u1161\u11ab \uf900", "é 한 豈"),
        ("ＡＢＣ１２３，（中文）！", "ABC123，（中文）！"),
        ("Ｈｅｌｌｏ，　ｗｏｒｌｄ！", "Hello,\u3000world!"),
        ("人\u200d民\u200c", "人民"),
    ],
)
def test_unicode_is_put_right(before: str, after: str) -> None:
    assert repaired([before]) == [after]


@pytest.mark.parametrize(
    "text",
    ["می\u200cخواهم", "क्\u200dष", "👨\u200d👩\u200d👧 ❤\ufe0f", "voilà » très élevé", "Å Ä Ö åäö ÀÉÈ", "面積 ㎡ ½ ①", "　　段首"],
)
def test_what_is_meant_stays(text: str) -> None:
    assert repaired([text]) == [text]


@pytest.mark.parametrize("name", ["sanguo", "shakespeare", "poetry", "sotu"])
def test_real_text_is_not_touched_but_for_form(name: str) -> None:
    texts = real_text(name)[:200]
    out, changed = repair(pa.array(texts, pa.large_string()))
    assert changed.mean() < 0.02
    untouched = [text for text, c in zip(texts, changed, strict=True) if not c]
    assert [text for text, c in zip(out.to_pylist(), changed, strict=True) if not c] == untouched


def test_the_kernel_overlooks_nothing() -> None:
    """A text without a bit would not change under the whole of repair: checked on one text for every code point."""
    points = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]
    texts = ["a" + chr(p) for p in points]
    found = damage(pa.array(texts))
    wrong = [
        p
        for p, text, bits in zip(points, texts, found.tolist(), strict=True)
        if not bits & dm.COMPOSITION and unicodedata.normalize("NFC", text) != text
    ]
    assert wrong == []
    full_width = {p for p, bits in zip(points, found.tolist(), strict=True) if bits & dm.FULL_WIDTH}
    assert full_width == set(range(0xFF01, 0xFF5F))


def test_narrow_equals_translate() -> None:
    text = "".join(map(chr, [*range(0xFEFE, 0xFF70), *range(0x20, 0x300), 0x4E2D, 0x1F600]))
    letters = {p: p - 0xFEE0 for p in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
    assert narrow(text, signs=False) == text.translate(letters)
    assert narrow(text, signs=True) == text.translate({p: p - 0xFEE0 for p in range(0xFF01, 0xFF5F)})


def test_a_long_line_takes_no_longer_than_its_length() -> None:
    long = "word " * 400_000
    began = time.process_time()
    assert repaired([f"{long}\nd\u00c3\u00a9j\u00c3\u00a0 vu\n鐨 {long}"]) == [f"{long}\nd\u00e9j\u00e0 vu\n鐨 {long}"]
    assert time.process_time() - began < 10
