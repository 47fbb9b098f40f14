"""What cannot be read has a reason in the record of what was dropped, and never stops the rest."""

import gzip
import io
import lzma
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from collecting import collected, texts
from test_corpus_collect import tar_of, warc_of, zip_of

from qianyi.corpus.collect.decode import decode
from qianyi.corpus.collect.formats import read_stream
from qianyi.corpus.collect.found import REASONS, Found, Reading, Refusal, Refused
from qianyi.corpus.collect.match import match_of
from qianyi.corpus.collect.source import parse_source, sources_of
from qianyi.corpus.collect.walk import walk
from qianyi.corpus.parts import Options
from qianyi.errors import DataError

GOOD = "The rest is read all the same.\n其余照常读入。\n"
CHINESE = "却说曹操引军追赶，见前面尘头大起，心中疑惑，便令三军扎住。众将皆曰：“敌军已退，何故不追？”"
TRADITIONAL = "卻說曹操引軍追趕，見前面塵頭大起，心中疑惑，便令三軍紮住。眾將皆曰：「敵軍已退，何故不追？」"
FRENCH = "Les élèves étaient déjà arrivés à l'école, où le maître les attendait près de la fenêtre."


def encrypted_zip() -> bytes:
    """A zip whose entry says that it is encrypted (bit 0 of its flags, APPNOTE 4.4.4)."""
    data = bytearray(zip_of({"x.txt": GOOD.encode()}))
    data[6] |= 1
    central = data.index(b"PK\x01\x02")
    data[central + 8] |= 1
    return bytes(data)


def noise(n: int) -> bytes:
    return random.Random(0).randbytes(n)


FILES = {
    "locked.zip": (encrypted_zip(), "encrypted"),
    "locked.pdf": (b"%PDF-1.7\n1 0 obj\n<< /Encrypt 2 0 R >>\n", "unknown_kind"),
    "renamed.txt": (b"%PDF-1.7\n1 0 obj\n<< /Encrypt 2 0 R >>\n", "encrypted"),
    "paper.txt": (b"%PDF-1.7\n1 0 obj\n", "binary"),
    "cut.jsonl.gz": (gzip.compress(noise(500).hex().encode())[:-20], "truncated"),
    "cut.txt.xz": (lzma.compress(noise(500))[:-20], "truncated"),
    "cut.txt.zst": (zstandard.compress(noise(500).hex().encode())[:-30], "truncated"),
    "broken.txt.gz": (b"no gzip at all", "damaged"),
    "broken.txt.bz2": (b"no bzip at all", "damaged"),
    "broken.txt.xz": (b"no xz at all", "damaged"),
    "broken.txt.zst": (b"no zstd at all", "damaged"),
    "broken.zip": (b"PK\3\4 no", "damaged"),
    "broken.tar": (b"no tar" * 200, "damaged"),
    "cut.tar": (tar_of({"a.txt": GOOD.encode(), "b.txt": noise(9000)}, "w")[:3000], "truncated"),
    "broken.deb": (b"no ar", "damaged"),
    "broken.warc": (b"no warc\r\n\r\n", "damaged"),
    "cut.warc.gz": (warc_of({"http://x/": noise(3000).hex()})[:-900], "truncated"),
    "broken.parquet": (b"PAR1 no", "damaged"),
    "broken.json": (b'{"text": ', "malformed"),
    "empty.txt": (b"", "empty"),
    "empty.json": (b"", "empty"),
    "blank.html": (b"<html><body><script>x</script></body></html>", "empty"),
    "binary.txt": (noise(3000), "binary"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary"),
    "program.exe": (b"MZ\0\0", "unknown_kind"),
    "cut.txt": ("四海之内".encode()[:-1], "truncated"),
    "mixed.txt": (CHINESE.encode() * 20 + b"\xff\xfe\x80" + CHINESE.encode(), "encoding"),
    "noise.txt": (bytes(b | 0x80 for b in noise(300)), "encoding"),
    "utf16.txt": (CHINESE.encode("utf-16")[:-1], "truncated"),
    "deep.zip": (zip_of({"a.zip": zip_of({"b.zip": zip_of({"c.txt": GOOD.encode()})})}), "nested_too_deep"),
    "large.txt": (b"x" * 300_000, "too_large"),
    "bomb.zip": (zip_of({"x.txt": bytes(10_000_000)}), "too_large"),
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:  # type: ignore[type-arg]
    root = tmp_path_factory.mktemp("bad")
    (root / "in" / "sub").mkdir(parents=True)
    for name, (data, _) in FILES.items():
        (root / "in" / name).write_bytes(data)
    for name in ("0.txt", "m.txt", "zz.txt"):
        (root / "in" / name).write_text(GOOD, encoding="utf-8")
    (root / "in" / "sub" / "loop").symlink_to(root / "in")
    (root / "in" / "twice").symlink_to(root / "in" / "sub")
    (root / "in" / "itself.txt").symlink_to(root / "in" / "itself.txt")
    (root / "in" / "nowhere.txt").symlink_to(root / "nothing.txt")
    os.mkfifo(root / "in" / "pipe.txt")
    return collected(root / "out", str(root / "in"), max_document_bytes=200_000)


@pytest.mark.parametrize("name", FILES)
def test_each_bad_file_has_a_reason(outcome: tuple[dict, dict], name: str) -> None:  # type: ignore[type-arg]
    _, dropped = outcome
    rows = [row for origin, row in dropped.items() if origin.split("!")[0].split("#")[0] == name]
    assert {row["reason"] for row in rows} == {FILES[name][1]}
    assert rows[0]["detail"]
    assert rows[0]["reason"] in REASONS


def test_the_rest_is_read(outcome: tuple[dict, dict]) -> None:  # type: ignore[type-arg]
    kept, dropped = outcome
    assert {"0.txt", "m.txt", "zz.txt"} <= kept.keys()
    assert kept.keys() <= {"0.txt", "m.txt", "zz.txt", "cut.tar!a.txt"}
    assert dropped["sub/loop/"]["reason"] == "symlink_loop"
    assert dropped["twice/"]["reason"] == "repeated"
    assert dropped["itself.txt"]["reason"] == "symlink_loop"
    assert dropped["nowhere.txt"]["reason"] == "unreadable"
    assert dropped["pipe.txt"]["reason"] == "unreadable"


def test_with_strict_the_first_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(GOOD, encoding="utf-8")
    (tmp_path / "in" / "b.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.txt: empty: the file has no bytes"):
        collected(tmp_path / "out", str(tmp_path / "in"), options=Options(strict=True))


def bad_lines(p: Path) -> Path:
    lines = [
        b'{"text": "a"}',
        b'{"text": ',
        b"3",
        b'{"body": "x"}',
        b'{"text": 3}',
        b'{"text": " "}',
        b'{"text": "\\ud800"}',
        b'{"text": "z"}',
    ]
    (p / "x.jsonl").write_bytes(b"\n".join(lines))
    return p / "x.jsonl"


def bad_rows(p: Path) -> Path:
    (p / "x.csv").write_text("text,label\na,1\nb\n\nc,2,3\nz,4\n")
    return p / "x.csv"


def bad_cells(p: Path) -> Path:
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffz")]
    )
    pq.write_table(pa.table({"text": broken}), p / "x.parquet")
    return p / "x.parquet"


@pytest.mark.parametrize(
    ("make", "reasons"),
    [
        (bad_lines, {":2": "malformed", ":3": "malformed", ":4": "no_text", ":5": "no_text", ":6": "empty", ":7": "encoding"}),
        (bad_rows, {":3": "malformed", ":5": "malformed"}),
        (bad_cells, {"#2": "encoding"}),
    ],
)
def test_records_after_a_broken_one_are_read(tmp_path: Path, make: Callable[[Path], Path], reasons: dict[str, str]) -> None:
    file = make(tmp_path)
    kept, dropped = collected(tmp_path / "out", str(file))
    assert texts(kept)[0] == "a"
    assert texts(kept)[-1] == "z"
    assert {origin.removeprefix(file.name): row["reason"] for origin, row in dropped.items()} == reasons


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "x.parquet")
    _, dropped = collected(tmp_path / "out", str(tmp_path / "x.parquet"), options=Options(allow=("no_text",)))
    assert "no column `text`; there are body" in dropped["x.parquet"]["detail"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CHINESE, "gb18030"),
        (CHINESE[:20], "gb18030"),
        (TRADITIONAL, "big5"),
        (TRADITIONAL[:20], "big5"),
        (FRENCH, "latin-1"),
        (FRENCH + " “Déjà…” €", "cp1252"),
        (CHINESE, "utf-16"),
        (FRENCH, "utf-8-sig"),
    ],
)
def test_other_encodings_are_told_and_converted(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding))[0] == text


def test_a_wrong_declaration_is_not_believed() -> None:
    assert decode(CHINESE.encode("gb18030"), "big5")[0] == CHINESE
    assert decode(TRADITIONAL.encode("big5"), "gb2312")[0] == TRADITIONAL
    assert decode(FRENCH.encode(), "latin-1")[0] == FRENCH


def test_lines_in_another_encoding_are_read(tmp_path: Path) -> None:
    lines = ["{" + f'"text": "{t}"' + "}" for t in (CHINESE, "ok", "曹操", CHINESE)]
    (tmp_path / "x.jsonl").write_bytes("\n".join(lines).encode("gb18030"))
    assert texts(collected(tmp_path / "out", str(tmp_path / "x.jsonl"))[0]) == [CHINESE, "ok", "曹操", CHINESE]


def test_the_encoding_is_in_the_metadata(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(CHINESE.encode("gb18030"))
    kept, _ = collected(tmp_path / "out", str(tmp_path / "x.txt"))
    assert kept["x.txt"]["meta"] == '{"encoding": "gb18030"}'


def test_binary_is_never_decoded() -> None:
    for data in (noise(100), b"\0abc", bytes(range(256))):
        with pytest.raises(Refusal):
            decode(data)


LINE = """
import resource, sys
from pathlib import Path
sys.path.insert(0, "tests")
from qianyi.corpus.collect.collect import read_unit
from qianyi.corpus.collect.plan import plan_sources
from qianyi.corpus.collect.source import parse_source, sources_of
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
units = plan_sources(sources_of([parse_source(sys.argv[1])]), Path(".")).units
results = [r for unit in units for r in read_unit(unit)]
print(len(units), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, *(getattr(r, "reason", "kept") for r in results))
"""


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.csv", "x.json", "x.html", "x.jsonl.gz"])
def test_a_line_of_a_gigabyte_is_refused_without_being_held(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".gz"):
        chunk = gzip.compress(b"x" * (1 << 25), 1)  # members one after the other are one stream (RFC 1952)
        path.write_bytes(gzip.compress(b'{"text": "') + chunk * 8 + gzip.compress(b'"}\n{"text": "z"}\n'))
    else:
        with path.open("wb") as file:
            file.write(b'{"text": "')
            file.seek(1 << (30 if name == "x.jsonl" else 27))  # the hole in between reads as NUL and takes no room
            file.write(b'"}\n' + (b'{"text": "z"}\n' if name == "x.jsonl" else b""))
    done = subprocess.run([sys.executable, "-c", LINE, str(path)], capture_output=True, text=True, check=True)
    n_units, grown_mb, *reasons = done.stdout.split()
    assert int(n_units) >= 1
    assert int(grown_mb) < 100
    assert reasons[0] == "too_large"
    assert reasons[1:] in ([], ["empty"], ["kept"])


@contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of the administrator, who may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_unreadable(tmp_path: Path) -> None:
    for place in (tmp_path, *tmp_path.parents[:3]):
        place.chmod(0o755)
    (tmp_path / "in" / "closed").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text(GOOD)
    (tmp_path / "in" / "secret.txt").write_text(GOOD)
    (tmp_path / "in" / "secret.txt").chmod(0)
    (tmp_path / "in" / "closed").chmod(0)
    with nobody():
        found = list(walk(tmp_path / "in", match_of(None)))
        sources = sources_of([parse_source(str(tmp_path / "in" / "secret.txt"))])
        from qianyi.corpus.collect.plan import plan_sources

        with pytest.raises(DataError, match=r"secret\.txt: cannot be read: Permission denied"):
            plan_sources(sources, tmp_path)
    (tmp_path / "in" / "closed").chmod(0o755)
    assert [getattr(entry, "reason", None) or entry[0] for entry in found] == ["a.txt", "unreadable", "unreadable"]
    assert [entry.origin for entry in found if not isinstance(entry, tuple)] == ["closed/", "secret.txt"]


SEEDS = {
    "text": GOOD.encode(),
    "lines": GOOD.encode(),
    "html": f"<html><head><title>x</title></head><body><p>{GOOD}</p><a href='/'>x</a></body></html>".encode(),
    "man": (
        b".TH X 1\n.SH NAME\nx \\- y\n.TS\nl l.\na\tb\n.TE\n.ie n .B x\n.el \\{ y\n.\\}\n"
        b'.Op Fl n Ar x\n.Xr a 1\n.Fn f "a b"\n\\[u4E00]\\(co\n'
    ),
    "rst": b"Title\n=====\n\n.. note:: x\n   y\n\n:ref:`x <y>` **z**\n",
    "mail": b"Subject: =?utf-8?b?5L2g?=\nContent-Type: multipart/mixed; boundary=x\n\n--x\n"
    b"Content-Type: text/html; charset=x\n\n<p>a</p>\n--x--\n",
    "jsonl": b'{"text": "a", "title": 3}\n{"text": "b"}\n',
    "json": b'[{"text": "a"}, {"text": ["b"]}]',
    "csv": b'text,label\n"a ""b""",1\n',
    "orange": b"Category\tText\nd\tstring\nclass\t\nx\ty\n",
    "fortunes": b"a\n%\nb\n",
    "dictionary": b"A\n   b\n\nC\n   d\n",
    "tagged": "世纪/n  的/u\n".encode(),
    "tagged_file": b"The/at jury/nn ./.\n",
    "poems": b'[{"title": "a", "paragraphs": ["b"], "c": {"d": [1, {"e": null}]}}]',
    "scenes": b"# x\n## y\n*z* _[a]_\n",
    "chapters": b'["a\\nb", "c"]',
    "warc": warc_of({"http://x/": GOOD}),
    "parquet": b"",
}


@pytest.mark.parametrize("name", SEEDS)
def test_no_reader_breaks_on_what_it_did_not_expect(tmp_path: Path, name: str) -> None:
    """Bytes changed, cut, doubled and put elsewhere: documents or refusals come out, never anything else."""
    seed = SEEDS[name]
    if name == "parquet":
        pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "x.parquet")
        seed = (tmp_path / "x.parquet").read_bytes()
    source = random.Random(name)
    for _ in range(150):
        data = bytearray(seed)
        for _ in range(source.randrange(1, 6)):
            at = source.randrange(len(data) + 1)
            piece = bytes(data[at : at + source.randrange(20)])
            data[at : at + source.choice([0, 1, len(piece)])] = source.choice(
                [b"", piece + piece, source.randbytes(3), b"\n.", b'"', b"\\", b"["]
            )
        for result in read_stream(f"x.{name}", io.BytesIO(bytes(data)), "x", Reading(format=name)):
            assert isinstance(result, Found) or result.reason in REASONS


def test_deep_nesting_is_refused() -> None:
    for name in ("json", "jsonl", "poems", "chapters"):
        data = b"[" * 100_000 + b"]" * 100_000
        (result,) = read_stream("x", io.BytesIO(data), "x", Reading(format=name))
        assert isinstance(result, Refused)
