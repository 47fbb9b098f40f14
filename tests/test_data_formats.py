"""Other trainers' formats: written as they write them, read as they read them."""

import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from corpora import corpus, files_of, silent, tokenizer_of, two_sources

from qianyi.config.schema import DataConfig, SourceConfig
from qianyi.data import units
from qianyi.data.example import read_example, write_example
from qianyi.data.export import export_shards
from qianyi.data.megatron import read_index, read_token_documents
from qianyi.data.prepare import prepare, tokenizer_path
from qianyi.data.shards import ShardWriter, TokenStream, token_dtype
from qianyi.errors import DataError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return two_sources(tmp_path_factory.mktemp("data"))


def documents_of(data: DataConfig, split: str, name: str) -> list[list[int]]:
    """Documents in the shards, each with its end token."""
    manifest = json.loads((Path(data.dir) / "shards" / "manifest.json").read_text())
    source = manifest["sources"][name][split]
    stream = TokenStream(
        Path(data.dir) / "shards" / split / name, token_dtype(manifest["vocab_size"]), source["shards"], source["index"]
    )
    borders = np.cumsum(np.concatenate([[0], *stream.document_tokens()]))
    assert borders[-1] == len(stream)
    return [stream.read(a, b).tolist() for a, b in pairwise(borders)]


def exported(data: DataConfig, out: Path, form: str) -> Path:
    export_shards(Path(data.dir), tokenizer_path(data), out, form, silent)
    return out


def megatron_files(documents: list[list[int]], code: int, kind: str) -> tuple[bytes, bytes]:
    """The two files as Megatron-LM's IndexedDatasetBuilder and its _IndexWriter write them, one number after the other."""
    tokens = b"".join(struct.pack(f"<{len(d)}{kind}", *d) for d in documents)
    size, starts = struct.calcsize(kind), [0]
    for d in documents:
        starts.append(starts[-1] + len(d) * size)
    n = len(documents)
    index = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", code) + struct.pack("<Q", n) + struct.pack("<Q", n + 1)
    index += struct.pack(f"<{n}i", *map(len, documents)) + struct.pack(f"<{n}q", *starts[:-1])
    return tokens, index + struct.pack(f"<{n + 1}q", *range(n + 1))


def test_megatron_files_are_those_of_its_builder(prepared: DataConfig, tmp_path: Path) -> None:
    exported(prepared, tmp_path / "m", "megatron")
    for split in ("train", "validation"):
        for name in ("a", "b"):
            tokens, index = megatron_files(documents_of(prepared, split, name), 8, "H")
            assert (tmp_path / "m" / split / f"{name}.bin").read_bytes() == tokens
            assert (tmp_path / "m" / split / f"{name}.idx").read_bytes() == index
    assert (tmp_path / "m" / "tokenizer.json").read_bytes() == tokenizer_path(prepared).read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_megatron_lm_itself_reads_and_writes_the_same(prepared: DataConfig, tmp_path: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    torch = pytest.importorskip("torch")
    ours = exported(prepared, tmp_path / "m", "megatron") / "train" / "a"
    documents = documents_of(prepared, "train", "a")
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for document in documents:
        builder.add_document(torch.IntTensor(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"theirs{suffix}").read_bytes() == ours.with_suffix(suffix).read_bytes()
    read = indexed.IndexedDataset(str(ours))
    assert [read[i].tolist() for i in range(len(read))] == documents


def test_large_vocabularies_have_four_bytes_in_megatron(tmp_path: Path) -> None:
    """From 65,500 on, though ours go up to 65,536 with two."""
    from qianyi.data.megatron import write_dataset

    documents = [[65_520, 1, 0], [7, 0]]
    writer = ShardWriter(tmp_path / "s", token_dtype(65_530), 1)
    for document in documents:
        writer.add(document)
    stream = TokenStream(tmp_path / "s", token_dtype(65_530), writer.close(), writer.index)
    write_dataset(tmp_path / "x", stream, 65_530)
    assert ((tmp_path / "x.bin").read_bytes(), (tmp_path / "x.idx").read_bytes()) == megatron_files(documents, 4, "i")


@pytest.mark.parametrize("form", ["megatron", "arrayrecord"])
def test_what_is_exported_comes_back(prepared: DataConfig, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as a source of a recipe: both splits together have the documents that the shards had, in units of a few."""
    monkeypatch.setattr(units, "UNIT_BYTES", 20_000)
    out = exported(prepared, tmp_path / "e", form)
    path = out / "train" / {"megatron": "a.idx", "arrayrecord": "a"}[form]
    sources = (SourceConfig(name="train", path=str(path)),)
    data = DataConfig(
        dir=str(tmp_path / "again"), sources=sources, tokenizer=str(tokenizer_path(prepared)), validation_fraction=0.3
    )
    manifest = prepare(data, 400, silent)
    if form == "megatron":
        assert len(manifest["sources"]["train"]["train"]["shards"]) > 1
    before = documents_of(prepared, "train", "a")
    after = documents_of(data, "train", "train") + documents_of(data, "validation", "train")
    assert sorted(after) == sorted(before) and len(documents_of(data, "validation", "train")) > 3
    original = json.loads((Path(prepared.dir) / "shards" / "manifest.json").read_text())["sources"]["a"]["train"]
    assert original["bytes"] == sum(manifest["sources"]["train"][split]["bytes"] for split in ("train", "validation"))


def test_array_records_hold_an_example_each(prepared: DataConfig, tmp_path: Path) -> None:
    out = exported(prepared, tmp_path / "r", "arrayrecord")
    reader = ArrayRecordReader(str(out / "train" / "a" / "00000.array_record"))
    records = [read_example(record) for record in reader.read_all()]
    reader.close()
    assert [list(r) for r in records] == [["tokens"]] * len(records)
    assert [np.asarray(r["tokens"]).tolist() for r in records] == documents_of(prepared, "train", "a")


def test_examples_are_those_of_protocol_buffers() -> None:
    """Bytes by hand: Features of one entry, its key `tokens`, its value an Int64List, packed."""
    record = write_example("tokens", np.array([0, 1, 127, 128, 300, 16_384, 2**31 - 1], np.int32))
    numbers = bytes([0, 1, 127, 0x80, 1, 0xAC, 2, 0x80, 0x80, 1, 0xFF, 0xFF, 0xFF, 0xFF, 7])
    feature = b"\x1a" + bytes([len(numbers) + 2]) + b"\x0a" + bytes([len(numbers)]) + numbers
    entry = b"\x0a\x06tokens\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    assert record == b"\x0a" + bytes([len(features)]) + features
    assert np.asarray(read_example(record)["tokens"]).tolist() == [0, 1, 127, 128, 300, 16_384, 2**31 - 1]
    text = b"\x0a\x10\x0a\x0e\x0a\x04text\x12\x06\x0a\x04\x0a\x02hi"
    assert read_example(text) == {"text": b"hi"}
    # A negative number has ten bytes; numbers may come one by one, not packed, and then a record may not be read as a packed one.
    assert np.asarray(read_example(write_example("x", np.array([5], np.int32)))["x"]).tolist() == [5]
    for broken in (b"\xff", record[:-3], b"\x0b\x01"):
        with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
            read_example(broken)


def test_texts_in_array_records(tmp_path: Path) -> None:
    texts = corpus(60, 3)
    writer = ArrayRecordWriter(str(tmp_path / "t.array_record"), "group_size:1")
    for text in texts:
        content = text.encode()
        values = b"\x0a" + varint(len(content)) + content
        feature = b"\x0a" + varint(len(values)) + values
        entry = b"\x0a\x04text\x12" + varint(len(feature)) + feature
        features = b"\x0a" + varint(len(entry)) + entry
        writer.write(b"\x0a" + varint(len(features)) + features)
    writer.close()
    source = SourceConfig(name="t", path=str(tmp_path / "t.array_record"))
    data = DataConfig(dir=str(tmp_path / "out"), sources=(source,), validation_fraction=0.1)
    prepare(data, 400, silent)
    decode = tokenizer_of(data).decode
    found = [decode(d[:-1]) for split in ("train", "validation") for d in documents_of(data, split, "t")]
    assert sorted(found) == sorted(texts)


def varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


# Refused


def test_damaged_indices_are_named(prepared: DataConfig, tmp_path: Path) -> None:
    out = exported(prepared, tmp_path / "m", "megatron") / "train"
    index, tokens = (out / "a.idx").read_bytes(), (out / "a.bin").read_bytes()

    def message(content: bytes, of_tokens: bytes | None = tokens) -> str:
        (tmp_path / "x.idx").write_bytes(content)
        (tmp_path / "x.bin").unlink(missing_ok=True)
        if of_tokens is not None:
            (tmp_path / "x.bin").write_bytes(of_tokens)
        with pytest.raises(DataError) as caught:
            list(read_token_documents(tmp_path / "x.idx", 0, None))
        return str(caught.value)

    assert "not an index of Megatron-LM (its first bytes are b'hello" in message(b"hello" * 20)
    assert "version 2 with tokens of type 8" in message(index[:9] + struct.pack("<Q", 2) + index[17:])
    assert "cut short: it says that it has" in message(index[:-1])
    assert "its tokens, x.bin, is missing" in message(index, None)
    assert f"x.bin, has {len(tokens) - 1} bytes" in message(index, tokens[:-1])
    assert "its documents are not its sequences" in message(index[:-8] + struct.pack("<q", 1))
    assert len(read_index(out / "a.idx").lengths) == len(documents_of(prepared, "train", "a"))


def test_tokens_need_their_tokenizer(prepared: DataConfig, tmp_path: Path) -> None:
    out = exported(prepared, tmp_path / "m", "megatron")
    data = DataConfig(dir=str(tmp_path / "o"), sources=(SourceConfig(name="a", path=str(out / "train" / "a.idx")),))
    with pytest.raises(DataError, match=r"a\.idx document 0: has tokens already; data\.tokenizer must name the tokenizer"):
        prepare(data, 400, silent)
    small = two_sources_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"a\.idx document \d+: tokens are \d+ to 3\d\d, the tokenizer's 0 to 299"):
        prepare(data.model_copy(update={"tokenizer": small, "validation_fraction": 0.3}), 400, silent)
    with pytest.raises(DataError, match=r"a\.idx: has no pairs; data\.target_key=y"):
        prepare(data.model_copy(update={"tokenizer": str(tokenizer_path(prepared)), "target_key": "y"}), 400, silent)
    (tmp_path / "r.array_record").write_bytes(b"x" * 70_000)
    broken = SourceConfig(name="r", path=str(tmp_path / "r.array_record"))
    with pytest.raises(DataError, match=r"r\.array_record: not a readable ArrayRecord file"):
        prepare(data.model_copy(update={"sources": (broken,)}), 400, silent)


def two_sources_tokenizer(root: Path) -> str:
    from qianyi.data.tokenizer import train_tokenizer

    train_tokenizer(corpus(50, 1), 300).save(str(root / "small.json"))
    return str(root / "small.json")


def test_exports_are_refused_where_something_is(prepared: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine").write_text("x")
    with pytest.raises(DataError, match=r"/o: is there and is no earlier export"):
        exported(prepared, tmp_path / "o", "megatron")
    with pytest.raises(DataError, match=r"--format tfrecord: known are megatron, arrayrecord"):
        exported(prepared, tmp_path / "p", "tfrecord")
    with pytest.raises(DataError, match=r"shards/manifest\.json: missing"):
        export_shards(tmp_path, tokenizer_path(prepared), tmp_path / "q", "megatron", silent)
    first = files_of(exported(prepared, tmp_path / "again", "megatron"))
    assert files_of(exported(prepared, tmp_path / "again", "megatron")) == first
