"""tiktoken gives the ids of `tokenizers`, or is not used."""

import inspect
import json
import random
from pathlib import Path

import numpy as np
import pytest
from corpora import corpus, one_source, silent
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qianyi.cli.data import show_sources
from qianyi.data.encode import FastEncoder, InexpressibleError, SlowEncoder, encoder_of, fast_encoder
from qianyi.data.prepare import prepare
from qianyi.data.read import read_documents
from qianyi.data.tokenizer import train_tokenizer


def texts_of_all_kinds() -> list[str]:
    """English, Chinese, code, emoji, and characters of every part of Unicode."""
    source = random.Random(7)
    plays, book = (
        [d.text for d in read_documents(f"builtin:{name}", "text")][:count]
        for name, count in (("shakespeare", 60), ("sanguo", 200))
    )
    code = [inspect.getsource(module) for module in (json.decoder, random, inspect)]
    emoji = ["".join(source.choices("👩\u200d🧑🏽🇨🇳 🌙e\u0301。\n", k=50)) for _ in range(50)]
    planes = [chr(c) for c in (*range(0xD800), *range(0xE000, 0x110000))]
    wild = ["".join(source.choices(planes, k=30)) + "a1 " + "".join(source.choices(planes[:0x3000], k=30)) for _ in range(200)]
    blanks = ["".join(source.choices(" \t\n\r\u3000\u00a0x1!", k=60)) for _ in range(300)]
    return [*plays, *book, *code, *emoji, *wild, *blanks, *corpus(100, 3)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return texts_of_all_kinds()


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = train_tokenizer(texts[::2], 2000, ["<pad>"])
    tokenizer.encode_special_tokens = True
    return tokenizer


def assert_same(tokenizer: Tokenizer, texts: list[str]) -> None:
    for text, fast, slow in zip(texts, FastEncoder(tokenizer)(texts), SlowEncoder(tokenizer)(texts), strict=True):
        np.testing.assert_array_equal(fast, slow, err_msg=repr(text[:80]))


def test_ids_are_those_of_tokenizers(tokenizer: Tokenizer, texts: list[str]) -> None:
    encoder, reason = fast_encoder(tokenizer, texts[:50])
    assert (encoder.name, reason) == ("tiktoken", None)
    assert_same(tokenizer, [*texts, "a<|endoftext|>b<pad>", "千" * 5000, "x" + " " * 20_000, "!" * 3000])


def gpt2_style(texts: list[str]) -> Tokenizer:
    """ByteLevel splits by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts[::10], trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def test_other_byte_level_tokenizers(texts: list[str]) -> None:
    """GPT-2's split; ids in an order that is not that of merges; NFC; added tokens that are cut out of texts."""
    texts = texts[::4]
    tokenizer = gpt2_style(texts)
    assert_same(tokenizer, texts)
    spec = json.loads(tokenizer.to_str())
    n = len(spec["model"]["vocab"])
    spec["model"]["vocab"] = {token: n - 1 - i for token, i in spec["model"]["vocab"].items()}
    spec["added_tokens"][0]["id"] = n - 1
    turned = Tokenizer.from_str(json.dumps(spec))
    turned.encode_special_tokens = True
    assert_same(turned, texts)
    tokenizer.normalizer = normalizers.NFC()
    assert_same(tokenizer, [*texts, "e\u0301 cafe\u0301 \u1100\u1161"])
    assert FastEncoder(tokenizer)(["e\u0301"])[0].tolist() == FastEncoder(tokenizer)(["\u00e9"])[0].tolist()
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("   ", normalized=False)])
    assert_same(tokenizer, [*texts, "a<think>b   c<think>", "<thin"])
    assert n + 1 in FastEncoder(tokenizer)(["   "])[0]


def refused(tokenizer: Tokenizer) -> str:
    with pytest.raises(InexpressibleError) as caught:
        FastEncoder(tokenizer)
    encoder, reason = fast_encoder(tokenizer, ["some text"])
    assert encoder.name == "tokenizers" and reason == str(caught.value)
    return reason


def test_what_tiktoken_cannot_do_is_done_by_tokenizers(texts: list[str]) -> None:
    def changed(**parts: object) -> Tokenizer:
        tokenizer = gpt2_style(texts[-100:])
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        return tokenizer

    split = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert "several steps" in refused(changed(pre_tokenizer=pre_tokenizers.Sequence([split, split, plain])))
    removed = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\d"), "removed"), plain])
    assert "not one regular expression" in refused(changed(pre_tokenizer=removed))
    assert "does not end in plain bytes" in refused(changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)))
    assert "does not end in plain bytes" in refused(changed(pre_tokenizer=None))
    assert "its normalizer is not Unicode's" in refused(changed(normalizer=normalizers.Lowercase()))
    assert "its model is WordLevel" in refused(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    assert "byte_fallback" in refused(Tokenizer(models.BPE({"a": 0}, [], byte_fallback=True)))
    missing = gpt2_style(texts[-100:])
    spec = json.loads(missing.to_str())
    spec["model"]["merges"].pop()
    assert "come of no merge" in refused(Tokenizer.from_str(json.dumps(spec)))


def test_a_difference_on_the_sample_is_noticed() -> None:
    """Token abc is there but merges do not reach it from its own bytes: tiktoken takes it whole."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {token: i for i, token in enumerate([*sorted(alphabet), "bc", "ab", "abc"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("b", "c"), ("a", "b"), ("ab", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    assert fast_encoder(tokenizer, ["nothing of it"])[1] is None
    encoder, reason = fast_encoder(tokenizer, ["xyz", "abc"])
    assert encoder.name == "tokenizers" and reason == "tiktoken's ids differ on a sample, in 'abc'"
    assert encoder_of(tokenizer, "tokenizers")(["abc"])[0].tolist() == [vocab["a"], vocab["bc"]]


def test_the_slow_way_is_said_and_gives_the_same_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tokenizer.json that tiktoken cannot do by its looks alone: two splits, of which the second changes nothing."""
    (tmp_path / "fast").mkdir()
    (tmp_path / "slow").mkdir()
    fast = prepare(one_source(tmp_path / "fast", corpus(80, 4)), 400, silent)
    spec = json.loads((tmp_path / "fast" / "out" / "tokenizer" / "tokenizer.json").read_text())
    steps = spec["pre_tokenizer"]["pretokenizers"]
    spec["pre_tokenizer"]["pretokenizers"] = [steps[0], *steps]
    (tmp_path / "t.json").write_text(json.dumps(spec))
    data = one_source(tmp_path / "slow", corpus(80, 4), tokenizer=str(tmp_path / "t.json"))
    slow = prepare(data, 400, silent)
    assert (fast["encoder"], slow["encoder"]["library"]) == ({"library": "tiktoken", "reason": None}, "tokenizers")
    assert fast["sources"] == slow["sources"]
    show_sources(slow, data)
    assert "note: encoded with tokenizers, several times slower than with tiktoken: its pre-tok" in capsys.readouterr().out
