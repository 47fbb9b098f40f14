"""Kernels of deduplication beside slow plain ones, on real text in both languages."""

import random
import unicodedata
from collections import defaultdict
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from dedup_corpora import noisy, real_texts

from qianyi.corpus.dedup.keys import Spans, codes_of, sign, sketch
from qianyi.corpus.dedup.keys import band_table as make_band_table
from qianyi.corpus.dedup.settings import Sketching
from qianyi.corpus.kernels.minhash import candidate_probability, coefficients, packed_similarity
from qianyi.corpus.kernels.ngrams import ALONE, fold_table, grams, text_buffers, walk
from qianyi.corpus.kernels.overlap import CHARACTER, WORD, matches, prefix_table, weighted_grams, weights
from qianyi.corpus.kernels.substring import SPREAD, all_windows, to_characters

MASK = 2**64 - 1


def spans(texts: list[str]) -> Spans:
    data, offsets = text_buffers(pa.array(texts, pa.string()))
    return Spans(data, offsets[:-1], offsets[1:])


def walked(text: str) -> tuple[list[str], np.ndarray]:
    """Tokens as they stand in the text, and their hashes."""
    data = np.frombuffer(text.encode(), np.uint8)
    size = len(data)
    hashes, begins, ends = np.empty(size, np.uint64), np.empty(size, np.int64), np.empty(size, np.int64)
    n = walk(data, 0, size, fold_table(), hashes, begins, ends)
    return [bytes(data[a:b]).decode() for a, b in zip(begins[:n], ends[:n], strict=True)], hashes[:n]


@cache
def character_class(character: str) -> tuple[bool, bool]:
    """Whether it is part of a token, and whether it is one by itself."""
    inside = unicodedata.category(character)[0] in "LNM"
    unspaced = any(script in unicodedata.name(character, "") for script in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI"))
    return inside, inside and unspaced


def plain_tokens(text: str) -> list[str]:
    """Words of letters, digits and marks; ideographs alone."""
    tokens: list[str] = []
    word = ""
    for character in text:
        inside, alone = character_class(character)
        if inside and not alone:
            word += character
            continue
        tokens += [word] if word else []
        word = ""
        tokens += [character] if alone else []
    return tokens + ([word] if word else [])


@cache
def folded(token: str) -> str:
    return unicodedata.normalize("NFKC", token).casefold()


def test_tokens_are_words_and_ideographs() -> None:
    texts = [
        *real_texts(),
        "Ünïcode naïve ČESKÝ и Русский 3.14 x_y 第1章 ｆｕｌｌ　ＷＩＤＴＨ ｱｲ ภาษา 한국어 𠀀𠀁 🌙 e\u0301",
        "",
        " ",
        "a",
    ]
    for text in texts:
        found, hashes = walked(text)
        assert found == plain_tokens(text)
        by_word = dict(zip(map(folded, found), hashes.tolist(), strict=True))
        assert [by_word[folded(t)] for t in found] == hashes.tolist()  # equal words, equal hashes
        assert len(set(by_word.values())) == len(by_word)
    assert fold_table()[ord("中")] & ALONE
    assert not fold_table()[ord("z")] & ALONE


def test_hashes_ignore_case_width_and_punctuation() -> None:
    same = ["Hello, World! 千亿。", "hello world 千 亿", "ＨＥＬＬＯ\tworld\n「千亿」"]
    assert len({tuple(walked(text)[1].tolist()) for text in same}) == 1
    assert walked("hello worlds")[1].tolist() != walked("hello world s")[1].tolist()


def shingle_sets(texts: list[str], n: int = 5) -> list[set[tuple[str, ...]]]:
    tokens = [[folded(t) for t in plain_tokens(text)] for text in texts]
    return [{tuple(t[i : i + n]) for i in range(max(1, len(t) - n + 1))} for t in tokens]


def test_rolling_grams_are_plain_grams() -> None:
    _, tokens = walked(real_texts()[0])
    for n in (1, 5, 13):
        for length in (0, 1, n - 1, n, n + 1, 200):
            out = np.empty(max(1, length), np.uint64)
            count = grams(tokens, length, n, out)
            plain = [tuple(tokens[i : i + n].tolist()) for i in range(length - n + 1)] if length >= n else [()] * min(1, length)
            assert count == len(plain)
            assert len(set(out[:count].tolist())) == len(set(plain))


def test_signatures_are_the_plain_minimum() -> None:
    how = Sketching(bands=2, rows=3, ngram=5)
    texts = [real_texts()[1][:3000], real_texts()[-1], "two words", ""]
    signed, n_grams = sign(spans(texts), how)
    multipliers, addends = coefficients(how.hashes + 1, how.seed)
    for row, text in enumerate(texts):
        _, tokens = walked(text)
        shingles = np.empty(max(1, len(tokens)), np.uint64)
        count = grams(tokens, len(tokens), 5, shingles)
        values = [int(s) >> 32 for s in shingles[:count]]
        plain = [
            min(((int(a) * v + int(b)) & 0xFFFFFFFF for v in values), default=0xFFFFFFFF)
            for a, b in zip(multipliers, addends, strict=True)
        ]
        assert signed[row].tolist() == plain
        assert n_grams[row] == count


def test_estimates_agree_with_exact_similarity() -> None:
    source = random.Random(3)
    pairs = [(t, noisy(t, rate, source)) for t in real_texts() for rate in (0.003, 0.01, 0.03, 0.08)]
    texts = [text for pair in pairs for text in pair]
    sets = shingle_sets(texts)
    exact = np.array([len(a & b) / len(a | b) for a, b in zip(sets[::2], sets[1::2], strict=True)])
    signed, _ = sign(spans(texts), Sketching())
    full = (signed[::2] == signed[1::2]).mean(axis=1)
    codes = codes_of(make_band_table(sketch(spans(texts), Sketching()), np.arange(len(texts), dtype=np.uint64)))[::14]
    packed = np.empty(len(pairs), np.float32)
    packed_similarity(codes, np.arange(0, len(texts), 2), np.arange(1, len(texts), 2), 112, packed)
    theory = np.sqrt((exact * (1 - exact)).mean() / 112)
    for estimate, error in ((full, theory), (packed, np.sqrt(((0.25 + 0.75 * exact) * 0.75 * (1 - exact)).mean() / 112) * 4 / 3)):
        assert abs((estimate - exact).mean()) < 4 * error / np.sqrt(len(pairs))
        assert np.sqrt(((estimate - exact) ** 2).mean()) < 1.3 * error
    assert candidate_probability(0.8, 14, 8) == pytest.approx(0.9235, abs=1e-3)


def windows_of(texts: list[str], n: int) -> list[tuple[int, int, int]]:
    found = spans(texts)
    room = len(found.data)
    hashes, places, rows = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64)
    count = all_windows(found.data, found.starts, found.ends, n, hashes, places, rows)
    return list(zip(rows[:count].tolist(), places[:count].tolist(), hashes[:count].tolist(), strict=True))


def test_windows_with_equal_hashes_are_equal_and_none_is_skipped() -> None:
    n = 96
    source = random.Random(5)
    texts = [text[:4000] for text in real_texts()[::4]]
    copied = texts[0][100 : 100 + n + SPREAD]
    texts += [f"{source.randbytes(20).hex()}{copied}{source.randbytes(40).hex()}" for _ in range(20)]
    texts += ["=" * 400, "ab" * 300]
    encoded = [text.encode() for text in texts]
    contents: dict[int, set[bytes]] = defaultdict(set)
    for row, place, value in windows_of(texts, n):
        contents[value].add(encoded[row][place : place + n])
        assert 0 <= place <= len(encoded[row]) - n
    assert all(len(c) == 1 for c in contents.values())
    assert len({next(iter(c)) for c in contents.values()}) == len(contents)
    shared = {value for row, _, value in windows_of(texts, n) if row == 0}
    for row in range(len(texts) - 22, len(texts) - 2):
        assert shared & {value for r, _, value in windows_of(texts, n) if r == row}


def test_places_of_windows_are_dense_and_chosen_by_the_text() -> None:
    text = real_texts()[2][:5000]
    places = [place for _, place, _ in windows_of([text], 100)]
    assert max(np.diff(places)) <= SPREAD
    moved = [place - 1000 for _, place, _ in windows_of(["x" * 1000 + text], 100) if place >= 1000 + SPREAD]
    assert set(moved) == {place for place in places if place >= SPREAD}


def test_cuts_fall_between_characters() -> None:
    data = np.frombuffer("a中b".encode(), np.uint8)
    assert [to_characters(data, *span) for span in ((0, 2), (1, 4), (2, 5), (2, 3))] == [(0, 1), (1, 4), (4, 5), (3, 3)]


def test_weighted_grams_take_thirteen_words_or_twenty_characters() -> None:
    for text, size in (("word " * 40, 13), ("字" * 60, 20), ("字 word " * 40, 16)):
        data = np.frombuffer(text.encode(), np.uint8)
        tokens, begins, ends = np.empty(len(data), np.uint64), np.empty(len(data), np.int64), np.empty(len(data), np.int64)
        n = walk(data, 0, len(data), fold_table(), tokens, begins, ends)
        heavy, hashes, sizes = np.empty(n, np.int64), np.empty(n, np.uint64), np.empty(n, np.int64)
        weights(data, begins, n, fold_table(), heavy)
        count = weighted_grams(tokens, heavy, n, 13, hashes, sizes)
        assert sizes[0] == size
        assert heavy[: sizes[0]].sum() >= 13 * WORD > heavy[: sizes[0] - 1].sum()
        assert count == n - sizes[count - 1] + 1
    assert (WORD, CHARACTER) == (3, 2)


def test_matches_are_those_of_a_plain_set() -> None:
    texts = real_texts()
    wanted: set[tuple[str, ...]] = set()
    hashes: list[int] = []
    for text in texts[::5]:
        _, tokens = walked(text)
        heavy = np.where([len(t) == 1 and t > "\u3000" for t in plain_tokens(text)], CHARACTER, WORD).astype(np.int64)
        out, sizes = np.empty(len(tokens), np.uint64), np.empty(len(tokens), np.int64)
        count = weighted_grams(tokens, heavy, len(tokens), 8, out, sizes)
        words = [folded(t) for t in plain_tokens(text)]
        wanted |= {tuple(words[i : i + sizes[i]]) for i in range(0, count, 7)}
        hashes += out[:count:7].tolist()
    index = np.unique(np.array(hashes, np.uint64))
    assert len(index) == len(wanted)
    for pieces in ([text[50:] for text in texts], ["nothing of it", ""]):
        found = spans(pieces)
        rows, _, begins, ends = matches(
            found.data, found.starts, found.ends, fold_table(), np.array([8]), index, *prefix_table(index)
        )
        plain: list[tuple[int, tuple[str, ...]]] = []
        for row, text in enumerate(pieces):
            words = [folded(t) for t in plain_tokens(text)]
            runs = [tuple(words[i : i + k]) for i in range(len(words)) for k in range(8, min(13, len(words) - i + 1))]
            plain += [(row, run) for run in runs if run in wanted]
        seen = [
            (int(row), tuple(folded(t) for t in plain_tokens(bytes(found.data[a:b]).decode())))
            for row, a, b in zip(rows, begins, ends, strict=True)
        ]
        assert seen == plain
