"""Units, n-grams, vocabularies and joined words are those that plain Python finds in real text."""

import re
import unicodedata
from collections import Counter
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest

from qianyi.data import builtin
from qianyi.label.phrases import learn_joiner
from qianyi.label.sequences import FIRST, PADDING, UNKNOWN, batches, sequences_of, symbols_of
from qianyi.label.units import grams, spanned_units, unit_hash, units_of
from qianyi.label.vocabulary import count_units
from qianyi.label.word2vec import word_strings

MIXED = [
    "",
    "明月 in MOONLIGHT! don't 'x' naïve Café, １２。",
    "你好，world—it's 3.5%…\u3000ok",
    "한국어 テスト 🌙🌙",
    "''a'' b'",
    "ΑΒγ Привет x²",
]
ALONE = re.compile("[⺀-\ua4cf\uac00-\ud7af\uf900-\ufaff\U0001f000-\U0010ffff]")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    real = [text for name in ("builtin:shakespeare", "builtin:sanguo") for _, text in islice(builtin.documents(name), 60)]
    return [*real, *MIXED]


def plain_units(text: str) -> list[str]:
    """By Unicode's categories, where the kernel has ranges."""
    found, word = list[str](), ""
    text = text.lower()
    for i, c in enumerate(text):
        between = c == "'" and word and "a" <= text[i - 1] <= "z" and "a" <= text[i + 1 : i + 2] <= "z"
        if between or (unicodedata.category(c)[0] in "LNM" and not ALONE.match(c)):
            word += c
            continue
        found += [word] if word else []
        word = ""
        if not c.isspace():
            found.append(c)
    return [*found, word] if word else found


def strings(texts: list[str]) -> list[list[str]]:
    units, spans, data = spanned_units(pa.array(texts, pa.string()))
    words = [data[a:b].tobytes().decode() for a, b in zip(spans.starts, spans.stops, strict=True)]
    assert [unit_hash(w) for w in words] == units.hashes.tolist()
    return [words[a:b] for a, b in zip(units.offsets, units.offsets[1:], strict=False)]


def test_units_are_those_of_plain_python(texts: list[str]) -> None:
    found = strings(texts)
    assert found == [plain_units(text) for text in texts]
    assert found[-5] == ["明", "月", "in", "moonlight", "!", "don't", "'", "x", "'", "naïve", "café", ",", "１２", "。"]


def test_slices_and_missing_texts_are_read_where_they_lie(texts: list[str]) -> None:
    array = pa.array([*texts, None], pa.string())
    whole, part = units_of(array), units_of(array.slice(7, 20))
    assert part.hashes.tolist() == whole.hashes[whole.offsets[7] : whole.offsets[27]].tolist()
    assert len(whole.text(len(texts))) == 0
    assert units_of(pa.array([], pa.string())).offsets.tolist() == [0]


def test_a_pair_has_one_hash_wherever_it_stands_and_none_crosses_texts() -> None:
    a, b, c = (set(grams(units_of(pa.array([t])), 2).hashes.tolist()) for t in ("x y z", "y z", "z y"))
    assert len(a) == 5
    assert b < a
    assert len(b & c) == 2  # the units; the pair is another
    both = grams(units_of(pa.array(["x y", "z"])), 2)
    assert both.offsets.tolist() == [0, 3, 4]


def test_a_vocabulary_counts_as_a_counter_does(texts: list[str]) -> None:
    units, spans, data = spanned_units(pa.array(texts))
    vocabulary = count_units(units.hashes, min_count=3, limit=500)
    counted = Counter(word for words in strings(texts) for word in words)
    words = word_strings(units, vocabulary, spans.starts, spans.stops, data)
    assert len(words) == 500
    assert vocabulary.counts.tolist() == [n for _, n in counted.most_common(500)]
    assert [counted[word] for word in words] == vocabulary.counts.tolist()
    rows, offsets = vocabulary.known(units)
    index = {word: i for i, word in enumerate(words)}
    assert rows.tolist() == [index[w] for ws in strings(texts) for w in ws if w in index]
    assert np.diff(offsets).tolist() == [sum(w in index for w in ws) for ws in strings(texts)]


def test_names_of_the_three_kingdoms_become_words() -> None:
    sanguo = pa.array([text for _, text in builtin.documents("builtin:sanguo")])
    units, spans, data = learn_joiner(sanguo).words(sanguo)
    words = Counter(data[a:b].tobytes().decode() for a, b in zip(spans.starts, spans.stops, strict=True))
    assert all(words[name] > 300 for name in ("曹操", "孔明", "关公"))
    assert words["玄德曰"] + words["玄德"] > 1000
    assert max(len(word) for word in words if "一" <= word[0] <= "龥") == 4
    assert sum(words.values()) == len(units.hashes)
    # Joining loses no letter: words side by side are the text without spaces.
    assert "".join(data[a:b].tobytes().decode() for a, b in zip(spans.starts, spans.stops, strict=True)) == re.sub(
        r"\s", "", "".join(sanguo.to_pylist()).lower()
    )


@pytest.mark.parametrize("characters", [False, True])
def test_batches_hold_every_text_once_with_its_head_and_tail(texts: list[str], characters: bool) -> None:
    symbols = symbols_of(pa.array(texts), characters)
    assert not characters or symbols.text(5).tolist() == [ord(c) for c in texts[5].lower()]
    sequences = sequences_of(symbols, count_units(symbols.hashes, 2))
    assert sequences.ids.min() == UNKNOWN < FIRST
    for random in (None, np.random.default_rng(0)):
        seen = Counter[int]()
        for some, ids in batches(sequences, (16, 64, 100), 512, random):
            assert ids.size <= 512
            for text, row in zip(some.tolist(), ids.tolist(), strict=True):
                own = sequences.ids[sequences.offsets[text] : sequences.offsets[text + 1]].tolist()
                half = (len(row) + 1) // 2
                wanted = own if len(own) <= len(row) else [*own[:half], *own[len(own) - len(row) + half :]]
                assert row == wanted + [PADDING] * (len(row) - len(wanted))
                seen[text] += 1
        assert seen == Counter(range(len(texts)))
