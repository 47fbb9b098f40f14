"""Every kind of file gives the same documents, in one order, whoever reads it."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from collecting import collected, texts
from corpora import corpus, files_of, jsonl
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from qianyi.corpus.collect import plan
from qianyi.corpus.collect.registry import corpora, corpus_names
from qianyi.corpus.collect.source import parse_source, sources_of
from qianyi.corpus.document import document_id
from qianyi.errors import DataError

TEXTS = corpus(40, 3)


def csv_of(rows: list[str], delimiter: str) -> bytes:
    quoted = ('"' + row.replace('"', '""') + '"' for row in rows)
    return ("title" + delimiter + "text\n" + "\n".join(f"t{delimiter}{q}" for q in quoted)).encode()


def tar_of(members: dict[str, bytes], mode: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def warc_of(pages: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    writer = WARCWriter(stream, gzip=True)
    for url, text in pages.items():
        http = StatusAndHeaders("200 OK", [("Content-Type", "text/plain; charset=utf-8")], protocol="HTTP/1.1")
        body = text.encode()
        record = writer.create_warc_record(url, "response", payload=io.BytesIO(body), length=len(body), http_headers=http)
        writer.write_record(record)
    return stream.getvalue()


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    plain = jsonl(tmp_path / "x.jsonl", TEXTS).read_bytes()
    files = {f"{i:03d}.txt": text.encode() for i, text in enumerate(TEXTS)}
    made = {
        "x.jsonl.gz": gzip.compress(plain),
        "x.jsonl.zst": zstandard.compress(plain),
        "x.jsonl.xz": lzma.compress(plain),
        "x.jsonl.bz2": bz2.compress(plain),
        "x.json": json.dumps([{"text": t} for t in TEXTS]).encode(),
        "x.csv": csv_of(TEXTS, ","),
        "x.tsv.gz": gzip.compress(csv_of(TEXTS, "\t")),
        "x.zip": zip_of(files),
        "nested.zip": zip_of({"inner.tar.gz": tar_of(files, "w:gz")}),
        "x.tar": tar_of(files, "w"),
        "x.tar.gz": tar_of(files, "w:gz"),
        "x.tar.xz": tar_of(files, "w:xz"),
        "x.tgz": tar_of({"inner.zip": zip_of(files)}, "w:gz"),
        "x.warc.gz": warc_of({f"http://x/{i}": t for i, t in enumerate(TEXTS)}),
        "x.warc": gzip.decompress(warc_of({f"http://x/{i}": t for i, t in enumerate(TEXTS)})),
    }
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "x.parquet", row_group_size=7)
    (tmp_path / "dir").mkdir()
    for name, data in files.items():
        (tmp_path / "dir" / name).write_bytes(data)
    for name in ("x.jsonl", "x.parquet", "dir", *made):
        kept, dropped = collected(tmp_path / "out" / name, str(tmp_path / name))
        assert [t.strip() for t in texts(kept)] == [t.strip() for t in TEXTS], name
        assert not dropped
        assert all(row["source"] == name for row in kept.values())


def test_ranges_of_large_files_are_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = corpus(300, 1)
    jsonl(tmp_path / "x.jsonl", lines)
    (tmp_path / "x.jsonl").write_bytes((tmp_path / "x.jsonl").read_bytes() + b"\n\n")
    pq.write_table(pa.table({"text": lines}), tmp_path / "x.parquet", row_group_size=20)
    (tmp_path / "x.zip").write_bytes(zip_of({f"{i:05d}.txt": t.encode() for i, t in enumerate(lines[:60])}))
    whole = {name: collected(tmp_path / "whole" / name, str(tmp_path / name))[0] for name in ("x.jsonl", "x.parquet", "x.zip")}
    for cut_bytes in (4099, 12_011):
        monkeypatch.setattr(plan, "CUT_BYTES", cut_bytes)
        monkeypatch.setattr(plan, "UNIT_BYTES", cut_bytes)
        monkeypatch.setattr(plan, "_COUNT_BYTES", 1009)
        for name, expected in whole.items():
            units = plan.plan_sources(sources_of([parse_source(str(tmp_path / name))]), tmp_path).units
            assert len(units) > 1, name
            kept, _ = collected(tmp_path / "cut" / f"{name}-{cut_bytes}", str(tmp_path / name))
            assert kept == expected, name


TWO_WORKERS = """
import sys
from pathlib import Path
from qianyi.corpus.collect import plan
from qianyi.corpus.collect.collect import CollectSettings, collect
from qianyi.corpus.collect.source import parse_source
from qianyi.corpus.parts import Options

plan.UNIT_BYTES = 5000
collect(CollectSettings(sources=[parse_source(sys.argv[1])]), Path(sys.argv[2]), Options(workers=2))
"""
"""A run of its own, as Daft leaves pipes and threads behind."""


def test_the_corpus_does_not_depend_on_workers_or_where_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "UNIT_BYTES", 5000)
    for place in ("here", "there"):
        (tmp_path / place / "books" / "deep").mkdir(parents=True)
        for i in reversed(range(30)):
            (tmp_path / place / "books" / ("deep" if i % 2 else ".") / f"{i}.txt").write_text(TEXTS[i], encoding="utf-8")
        (tmp_path / place / "books" / "x.bin").write_bytes(b"\0\1\2")
    one = collected(tmp_path / "one", str(tmp_path / "here" / "books"))
    assert collected(tmp_path / "elsewhere", str(tmp_path / "there" / "books")) == one
    command = [sys.executable, "-c", TWO_WORKERS, str(tmp_path / "here" / "books"), str(tmp_path / "two")]
    subprocess.run(command, check=True, capture_output=True)
    first, second = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert {n: d for n, d in first.items() if n != "run.json"} == {n: d for n, d in second.items() if n != "run.json"}


def test_a_debian_package_is_read_as_dpkg_unpacks_it(tmp_path: Path) -> None:
    if not shutil.which("dpkg-deb"):
        pytest.skip("needs dpkg-deb")
    root = tmp_path / "package"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text("Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n")
    (root / "usr" / "share").mkdir(parents=True)
    for i, text in enumerate(TEXTS):
        (root / "usr" / "share" / f"{i:03d}.txt").write_text(text, encoding="utf-8")
    for compression in ("xz", "gzip", "zstd", "none"):
        out = tmp_path / f"{compression}.deb"
        made = subprocess.run(["dpkg-deb", f"-Z{compression}", "-b", str(root), str(out)], capture_output=True, check=False)
        if made.returncode:  # an older dpkg knows no zstd
            continue
        kept, dropped = collected(tmp_path / "out" / compression, str(out), files=["usr/share/*.txt"])
        assert texts(kept) == TEXTS
        assert not dropped
        assert f"{out.name}!usr/share/000.txt" in kept


def test_records_keep_what_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "正文", "title": "题", "score": 3, "other": 1}\n')
    kept, _ = collected(
        tmp_path / "out", f"news={tmp_path / 'x.jsonl'}", text_key="body", meta_keys=["title", "score"], licence="CC0-1.0"
    )
    row = kept["x.jsonl:1"]
    assert (row["source"], row["text"], row["licence"], row["research_only"]) == ("news", "正文", "CC0-1.0", False)
    assert json.loads(row["meta"]) == {"title": "题", "score": 3}


def test_records_say_what_they_are_of(tmp_path: Path) -> None:
    """A directory whose files mix sources; what is no name, such as prose under `source`, is not taken for one."""
    records = [
        {"text": "one", "source": "wiki", "license": "CC-BY-SA-4.0"},
        {"text": "two", "source": "书", "licence": "CC0-1.0", "license": "other", "research_only": True},
        {"text": "three", "source": {"id": 3}, "licence": None, "research_only": "yes"},
        {"text": "four", "source": "a long text " * 20, "research_only": False},
    ]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    (tmp_path / "d" / "y.csv").write_text("text,source,research_only\nfive,news,true\n")
    pq.write_table(pa.table({"text": ["six"], "licence": ["MIT"], "other": [1]}), tmp_path / "d" / "z.parquet")
    kept, _ = collected(tmp_path / "out", f"mine={tmp_path / 'd'}", licence="ours")
    assert {row["text"]: (row["source"], row["licence"], row["research_only"]) for row in kept.values()} == {
        "one": ("wiki", "CC-BY-SA-4.0", False),
        "two": ("书", "CC0-1.0", True),
        "three": ("mine", "ours", False),
        "four": ("mine", "ours", False),
        "five": ("news", "ours", True),
        "six": ("mine", "MIT", False),
    }
    assert all(row["id"] == document_id(row["source"], row["origin"]) for row in kept.values())
    strict, _ = collected(tmp_path / "strict", f"mine={tmp_path / 'd'}", research_only=True)
    assert all(row["research_only"] for row in strict.values())
    (tmp_path / "all.jsonl").write_text('{"text": "one", "source": "wiki"}\n')
    every, _ = collected(tmp_path / "all", str(tmp_path / "all.jsonl"))
    assert [row["source"] for row in every.values()] == ["wiki"]


def test_globs_labels_and_formats_of_a_directory(tmp_path: Path) -> None:
    for label in ("pos", "neg"):
        (tmp_path / "d" / label).mkdir(parents=True)
        (tmp_path / "d" / label / "x.dat").write_text(f"one {label}\n两行\n", encoding="utf-8")
    (tmp_path / "d" / "README").write_text("not wanted")
    kept, dropped = collected(
        tmp_path / "out", str(tmp_path / "d"), files=["{pos,neg}/*.dat"], format="lines", label_pattern="^(pos|neg)/"
    )
    assert not dropped
    assert [(o, row["text"], json.loads(row["meta"])["label"]) for o, row in kept.items()] == [
        ("neg/x.dat:1", "one neg", "neg"),
        ("neg/x.dat:2", "两行", "neg"),
        ("pos/x.dat:1", "one pos", "pos"),
        ("pos/x.dat:2", "两行", "pos"),
    ]


def test_running_again_does_nothing_and_new_text_is_seen(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "x.jsonl", TEXTS)
    collected(tmp_path / "out", str(source))
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    collected(tmp_path / "out", str(source))
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    jsonl(source, TEXTS[:5])
    assert texts(collected(tmp_path / "out", str(source))[0]) == TEXTS[:5]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere", "no such file or directory"),
        ("corpus:manpage-zh", "did you mean corpus:manpages-zh"),
        ("debian:Not_A_Name", r"debian:PKG\[=VERSION\]"),
        ("npm:../x", r"npm:PKG\[@VERSION\]"),
        ("crawl:ftp://x/", "crawl:http://HOST"),
        ("hf:a b", "OWNER/NAME"),
        ("nostore://x/y", "nostore"),
    ],
)
def test_sources_that_cannot_be(tmp_path: Path, source: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        collected(tmp_path / "out", source, cache=tmp_path)


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    source = str(jsonl(tmp_path / "x.jsonl", TEXTS))
    with pytest.raises(DataError, match="no format `excel`; there are text"):
        collected(tmp_path / "out", source, format="excel")
    with pytest.raises(DataError, match="no regular expression"):
        collected(tmp_path / "out", source, label_pattern="(")
    with pytest.raises(DataError, match=r"two sources are called x\.jsonl"):
        collected(tmp_path / "out", source, source)


def test_the_table_of_corpora_can_be_read() -> None:
    sources = sources_of(
        [parse_source("corpus:all"), *(parse_source(f"corpus:{n}") for n, e in corpora().items() if e.get("research_only"))]
    )
    assert {source.name for source in sources} == set(corpora())
    assert all(source.settings.licence and source.packages for source in sources)
    assert not {n for n in corpus_names("all") if corpora()[n].get("research_only")}
    assert {corpora()[n]["language"] for n in corpus_names("zh")} == {"zh"}
