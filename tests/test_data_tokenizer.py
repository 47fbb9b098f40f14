"""Every text has tokens, comes back from them exactly, and its bytes are counted."""

import random
from pathlib import Path

import pytest
from corpora import corpus, tokenizer_of, two_sources
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from qianyi.config.schema import DataConfig
from qianyi.data.read import read_documents
from qianyi.data.tokenizer import end_token, load_tokenizer, shared_tokenizer, token_bytes, train_tokenizer
from qianyi.errors import DataError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return two_sources(tmp_path_factory.mktemp("data"))


def test_any_text_comes_back(prepared: DataConfig) -> None:
    tokenizer = tokenizer_of(prepared)
    sizes = token_bytes(tokenizer)
    source = random.Random(4)
    alphabet = "ab Z09\n\t'。，千亿é\u0301🌙👩\u200d👩\u200d👧\x00<|endoftext|>"
    for _ in range(500):
        text = "".join(source.choices(alphabet, k=source.randrange(1, 60)))
        text += "".join(chr(source.choice([source.randrange(0xD800), source.randrange(0xE000, 0x110000)])) for _ in range(5))
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
        assert sizes[ids].sum() == len(text.encode())


def test_end_of_text_inside_a_document_is_text(prepared: DataConfig) -> None:
    tokenizer = tokenizer_of(prepared)
    assert 0 not in tokenizer.encode("a<|endoftext|>b", add_special_tokens=False).ids


def test_training_is_deterministic() -> None:
    texts = corpus(100, 5)
    assert train_tokenizer(texts, 400).to_str() == train_tokenizer(texts, 400).to_str()


def test_both_languages_are_compressed() -> None:
    """With 2000 tokens; a Chinese character has three bytes."""
    for name, least in (("shakespeare", 2.5), ("sanguo", 3.0)):
        texts = [d.text for d in read_documents(f"builtin:{name}", "text")][:40]
        tokenizer = train_tokenizer(texts, 2000)
        n_tokens = sum(len(e.ids) for e in tokenizer.encode_batch(texts))
        n_bytes = sum(len(t.encode()) for t in texts)
        assert n_bytes / n_tokens > least, name
        assert sum(token_bytes(tokenizer)[e.ids].sum() for e in tokenizer.encode_batch(texts)) == n_bytes


def test_all_bytes_and_the_end_are_in_the_smallest_vocabulary() -> None:
    tokenizer = train_tokenizer(["a"], 257)
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    assert sorted(token_bytes(tokenizer)) == [0] + [1] * 256
    with pytest.raises(DataError, match="at least 257 entries, not 256"):
        train_tokenizer(["a"], 256)


def test_a_given_tokenizer_neither_cuts_nor_pads(prepared: DataConfig, tmp_path: Path) -> None:
    given = tokenizer_of(prepared)
    given.enable_truncation(5)
    given.enable_padding(length=5)
    given.add_tokens([AddedToken("   ", normalized=False)])
    given.save(str(tmp_path / "t.json"))
    tokenizer = load_tokenizer(tmp_path / "t.json")
    text = "moon   river 明月" * 20
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_to_id("   ") in ids
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_bytes_of_a_vocabulary_with_blanks_as_marks(tmp_path: Path) -> None:
    """Llama 2's style: ▁ for a blank, <0xE4> for a byte, </s> at the end."""
    spelled = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "月"]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(spelled)}, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(tmp_path / "t.json"))
    loaded = load_tokenizer(tmp_path / "t.json")
    text = "a b a 月明 🌙"
    ids = loaded.encode(text, add_special_tokens=False).ids
    assert loaded.decode(ids) == text
    assert token_bytes(loaded)[ids].sum() == len(text.encode())
    assert end_token(loaded, tmp_path / "t.json") == 2


def test_a_shared_tokenizer_is_that_of_the_file_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    train_tokenizer(["a b"], 257).save(str(file))
    first = shared_tokenizer(file)
    assert shared_tokenizer(file) is first and load_tokenizer(file) is not first
    train_tokenizer(["a b a b"], 260).save(str(file))
    assert shared_tokenizer(file).to_str() == load_tokenizer(file).to_str() != first.to_str()


def test_unusable_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no tokenizer there"):
        load_tokenizer(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"none\.json: no tokenizer there"):
        shared_tokenizer(tmp_path / "none.json")
    with pytest.raises(DataError, match=r": is a directory; name the tokenizer\.json in it"):
        shared_tokenizer(tmp_path)
    for content in ("{}", "", "[", "\x00"):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(DataError, match=r"t\.json: not a tokenizer\.json"):
            load_tokenizer(tmp_path / "t.json")
    with pytest.raises(DataError, match=r"t\.json: the tokenizer has no end-of-text token; one of <\|endoftext\|>"):
        end_token(Tokenizer(models.BPE()), tmp_path / "t.json")
