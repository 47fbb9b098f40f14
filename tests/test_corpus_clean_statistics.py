"""Every statistic equals what plain Python counts, on real text of both languages and on text made to be awkward."""

import random
import re
import unicodedata
from collections import Counter
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from real_text import real_text

from qianyi.corpus.clean.variants import script_variant, variants
from qianyi.corpus.kernels import phrases
from qianyi.corpus.kernels.characters import STOPS_ZH_GROUPS, utf8_as_gbk
from qianyi.corpus.kernels.statistics import COUNTS, NAMES, statistics

MARKS_END, WIDE_END, CLOSERS = ".!?…؟۔।", "。！？；｡", "\"'”’»)]）」』】"
TERMINAL = ".!?\"'”’»…。！？；」』】）)：:｡"
BULLETS = "-*•‣◦●○▪■□◆◇★☆►▶·–—※➢✓"
AWKWARD = [
    "",
    "   \n\n  \t\n",
    "。。。！？",
    "a",
    "…",
    "# title\n\n- one\n- two\n\n- one\n- two\n",
    "x" * 100 + " {} {{ http://a.b/c ftp://d ... .... …… # ##",
    "Visit https://x.org. He said: “Stop!” And left... Then? Yes!No.\nLorem ipsum, lorem IPSUM; all rights reserved",
    "the The THE, of-the “and” --- that | have",
    "他说：“好！”——然后走了……真的？是的；好。\n版权所有 联系我们\nABC123汉字def-ghi 漢字、かな カナ 한국어 кириллица עברית ไทย ελληνικά",
    "1,234 5.6% ½ x² e\u0301 नमस्ते 𠀀𠀁 😀😀 😀",
    "一 二 三 一 二 三 一 二 三 一 二 三 一 二 三 一 二 三 一 二 三",
    "spam spam spam spam spam spam spam spam spam spam spam spam",
    "ÖÐ¹úÈËÃñ Ã© â€œ naïve � 鎴戜滑鐨勬椂闂",
    "line one\r\nline two\x85line three\u2028four\u3000five",
    "\x00\x01\x07\u200b\ufeffhidden\u00adhyphen",
]


@cache
def kind(c: str) -> str:
    """The class of a character, by Python's database."""
    category, point = unicodedata.category(c), ord(c)
    if c in "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85" or category[0] == "Z":
        return "space"
    if c in "々〇〆" or 0x20000 <= point < 0x40000:
        return "han"
    if point >= 0x10000:
        return "punctuation" if 0x1F000 <= point < 0x1FB00 else "other"
    if category[0] == "L":
        return script(c, category)
    if category[0] in "MNC":
        return {"M": "mark", "N": "digit", "C": "control"}[category[0]]
    return "wide" if re.match("[\u3000-\u303f\ufe30-\ufe4f\uff00-\uffef]", c) else "punctuation"


def script(c: str, category: str) -> str:
    name = re.sub("^(FULL|HALF)WIDTH ", "", unicodedata.name(c, ""))
    beginnings = {"CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana", "HANGUL": "hangul", "CYRILLIC ": "cyrillic"}
    if name.startswith("LATIN "):
        return "upper" if category == "Lu" else "latin"
    return next((script for beginning, script in beginnings.items() if name.startswith(beginning)), "other")


IDEOGRAPHS, LETTERS = {"han", "kana", "hangul"}, {"han", "kana", "hangul", "latin", "upper", "cyrillic", "other"}


def words_of(line: str) -> list[str]:
    """Ideographs, and runs between them and spaces; runs of signs alone only in chunks without ideographs and their punctuation."""
    found: list[str] = []
    for chunk in "".join(" " if kind(c) == "space" else c for c in line).split():
        if any(kind(c) in IDEOGRAPHS or kind(c) == "wide" for c in chunk):
            runs = "".join(f" {c} " if kind(c) in IDEOGRAPHS else " " if kind(c) == "wide" else c for c in chunk).split()
            found += [run for run in runs if any(is_alnum(c) for c in run)]
        else:
            found.append(chunk)
    return found


def is_alnum(c: str) -> bool:
    return kind(c) not in {"punctuation", "wide", "control", "space"}


def key_of(word: str) -> str:
    """What makes two words the same."""
    lower = "".join(map(folded, word))
    return "".join(c for c in lower if is_alnum(c)) or lower


def folded(c: str) -> str:
    return c.lower() if "A" <= c <= "Z" else c


def repeated(keys: list[str], lengths: list[int]) -> dict[str, float]:
    """N-gram statistics by counting all of them."""
    total, out = max(1, sum(lengths)), {}
    for n in range(2, 11):
        grams = [tuple(keys[i : i + n]) for i in range(len(keys) - n + 1)]
        counts = Counter(grams)
        if n <= 4:
            chars = dict.fromkeys(counts, 0)
            for i, g in enumerate(grams):
                chars[g] = max(chars[g], sum(lengths[i : i + n]))
            top = max(((c, chars[g]) for g, c in counts.items() if c > 1), default=(0, 0))
            out[f"top_{n}gram"] = min(1.0, top[0] * top[1] / total)
        else:
            seen: set[tuple[str, ...]] = set()
            covered: set[int] = set()
            for i, g in enumerate(grams):
                if g in seen:
                    covered |= set(range(i, i + n))
                seen.add(g)
            out[f"dup_{n}gram"] = sum(lengths[i] for i in covered) / total
    return out


def duplicates(units: list[tuple[object, int]]) -> tuple[int, int]:
    seen: set[object] = set()
    number = characters = 0
    for unit, length in units:
        number, characters = (number + 1, characters + length) if unit in seen else (number, characters)
        seen.add(unit)
    return number, characters


def line_key(line: str) -> str:
    return "".join(folded(c) for c in line if kind(c) != "space")


def sentences_of(text: str) -> int:
    clusters = re.finditer(f"[{re.escape(MARKS_END + WIDE_END)}][{re.escape(MARKS_END + WIDE_END + CLOSERS)}]*", text)
    ended = 0
    for cluster in clusters:
        after = text[cluster.end() : cluster.end() + 1]
        ended += any(c in WIDE_END for c in cluster[0]) or after == "" or kind(after) == "space"
    return ended


def mojibake(text: str) -> int:
    left = set(utf8_as_gbk())
    count, run, before = 0, 0, ""
    for c in text:
        run = run + 1 if 0x80 <= ord(c) < 0x100 else 0
        if run >= 4:
            count += 4 if run == 4 else 1
        elif run and c < "\xc0" and "\xc2" <= before < "\xf5":
            count += 2
        count += c == "\ufffd" or (kind(c) == "han" and c in left)
        before = c
    return count


def reference(text: str) -> dict[str, float]:
    """All statistics, slowly."""
    kinds = Counter(map(kind, text))
    chars = len(text) - kinds["space"]
    whole = max(1, chars)
    lines = [line for line in text.split("\n") if any(kind(c) != "space" for c in line)]
    trimmed = ["".join(c for c in line if kind(c) != "space") for line in lines]
    words = [words_of(line) for line in lines]
    flat = [w for ws in words for w in ws]
    keys, lengths = [key_of(w) for w in flat], [len(w) for w in flat]
    runs = [w for w in flat if not (len(w) == 1 and kind(w) in IDEOGRAPHS)]
    paragraphs = paragraphs_of(text)
    out = dict.fromkeys(NAMES, 0.0)
    simplified, traditional = variants()
    han = max(1, kinds["han"])
    groups = {c: i for i, group in enumerate(STOPS_ZH_GROUPS) for c in group}
    stops = [groups[c] for c in text if c in groups]
    latin = kinds["latin"] + kinds["upper"]
    out |= {
        "chars": chars, "words": len(flat), "lines": len(lines), "sentences": sentences_of(text), "stop_words_zh": len(set(stops)),
        "braces": text.count("{") + text.count("}"), "urls": text.count("://"), "stop_fraction_zh": len(stops) / han,
        "simplified_chars": sum(c in simplified for c in text), "traditional_chars": sum(c in traditional for c in text),
        "han": kinds["han"] / whole, "kana": kinds["kana"] / whole, "hangul": kinds["hangul"] / whole, "latin": latin / whole,
        "cyrillic": kinds["cyrillic"] / whole, "other_letters": kinds["other"] / whole, "upper": kinds["upper"] / max(1, latin),
        "digits": kinds["digit"] / whole, "punctuation": (kinds["punctuation"] + kinds["wide"]) / whole,
        "control": kinds["control"] / whole, "mojibake": mojibake(text) / whole,
    }  # fmt: skip
    if not flat:
        return out
    n, dots = len(flat), len(re.findall(r"\.\.\.", text)) + text.count("…")
    dup_lines, dup_line_chars = duplicates([(line_key(line), len(t)) for line, t in zip(lines, trimmed, strict=True)])
    dup_paragraphs, dup_paragraph_chars = duplicates(
        [(tuple(map(line_key, p)), sum(kind(c) != "space" for line in p for c in line)) for p in paragraphs]
    )
    out |= {
        "paragraphs": len(paragraphs), "stop_words_en": len(set(keys) & set(phrases.REQUIRED_EN)),
        "lorem_ipsum": phrase_count(keys, phrases.LOREM), "boilerplate": phrase_count(keys, phrases.BOILERPLATE),
        "mean_word_length": sum(map(len, runs)) / max(1, len(runs)), "mean_line_words": n / len(lines),
        "alpha_words": sum(any(kind(c) in LETTERS for c in w) for w in flat) / n,
        "long_word_chars": sum(length for length in lengths if length > 40) / max(1, sum(lengths)),
        "stop_fraction_en": sum(k in phrases.STOPS_EN for k in keys) / max(1, len(runs)),
        "hash_per_word": text.count("#") / n, "ellipsis_per_word": dots / n, "lines_per_word": len(lines) / n,
        "bullet_lines": sum(t[0] in BULLETS for t in trimmed) / len(lines),
        "ellipsis_lines": sum(t[-1] == "…" or t.endswith("..") for t in trimmed) / len(lines),
        "terminal_lines": sum(t[-1] in TERMINAL for t in trimmed) / len(lines),
        "short_lines": sum(columns(line) < 30 for line in lines) / len(lines),
        "dup_lines": dup_lines / len(lines), "dup_line_chars": dup_line_chars / whole,
        "dup_paragraphs": dup_paragraphs / len(paragraphs), "dup_paragraph_chars": dup_paragraph_chars / whole,
        **repeated(keys, lengths),
    }  # fmt: skip
    return out


def phrase_count(keys: list[str], known: tuple[str, ...]) -> int:
    """Places where one of the phrases begins; a Han character is a word."""
    wanted = [p.split() if p.isascii() else list(p) for p in known]
    return sum(any(keys[i : i + len(p)] == p for p in wanted) for i in range(len(keys)))


def paragraphs_of(text: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if any(kind(c) != "space" for c in line):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [p for p in found if p]


def columns(line: str) -> int:
    return sum(2 if kind(c) in IDEOGRAPHS or kind(c) == "wide" else 1 for c in line)


def check(texts: list[str]) -> None:
    measured = statistics(pa.array(texts, pa.string()), *variants())
    for row, text in enumerate(texts):
        for name, expected in reference(text).items():
            found = measured.column(f"stat_{name}")[row].as_py()
            assert found == pytest.approx(expected, abs=1e-12), (name, text[:200])


def test_awkward_texts() -> None:
    check(AWKWARD)


def test_random_texts() -> None:
    source = random.Random(0)
    alphabet = [
        "a",
        "the",
        " ",
        " ",
        " ",
        "\n",
        "\n\n",
        ".",
        "。",
        "，",
        "中",
        "文",
        "…",
        "-",
        "#",
        "1",
        "Ab",
        "(",
        "”",
        "é",
        "\u3000",
        "か",
        "{",
    ]
    check(["".join(source.choices(alphabet, k=source.randrange(1, 400))) for _ in range(150)])


@pytest.mark.parametrize("name", ["sanguo", "shakespeare"])
def test_real_texts(name: str) -> None:
    check([text[:3000] for text in random.Random(0).sample(real_text(name), 6)])


@pytest.mark.parametrize("name", ["peoples-daily", "manpages-zh", "poetry", "python-doc"])
def test_fetched_texts(name: str) -> None:
    check([text[:3000] for text in random.Random(0).sample(real_text(name), 6)])


def test_slices_chunks_and_large_offsets_measure_alike() -> None:
    texts = real_text("sanguo")[:20]
    whole = statistics(pa.array(texts), *variants())
    for strings in (
        pa.array(["x", *texts, "y"]).slice(1, 20),
        pa.array(texts, pa.large_string()),
        pa.chunked_array([texts[:7], texts[7:]]),
    ):
        assert statistics(strings, *variants()).equals(whole)
    with pytest.raises(TypeError, match="without nulls"):
        statistics(pa.array(["a", None]), *variants())


def test_counts_are_whole_numbers_and_shares_lie_in_zero_to_one() -> None:
    measured = statistics(pa.array(AWKWARD + real_text("shakespeare")[:50]), *variants())
    assert all(pa.types.is_integer(measured.column(f"stat_{name}").type) for name in COUNTS)
    for name in NAMES[NAMES.index("alpha_words") :]:
        if not name.endswith("_per_word"):
            values = measured.column(f"stat_{name}").to_numpy()
            assert np.all((values >= 0) & (values <= (1 if name != "mojibake" else 2))), name


def test_script_variant() -> None:
    texts = ["我们来学习汉语", "我們來學習漢語", "我们来学習漢語", "水火木金土", "hello", "后里面干"]
    measured = statistics(pa.array(texts), *variants())
    assert script_variant(measured).to_pylist() == ["hans", "hant", "mixed", "", "", ""]
