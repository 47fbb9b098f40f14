"""The crawler against a real server: what it asks for, how often and how fast, and what comes out."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from collecting import collected

from qianyi.corpus.collect.crawl import CrawlSettings, crawl, pages_of, refused_pages
from qianyi.errors import DataError

CHINESE = "却说曹操引军追赶，见前面尘头大起，心中疑惑，便令三军扎住。众将皆曰：敌军已退，何故不追？"


def linked(text: str, *links: str) -> bytes:
    anchors = "".join(f'<a href="{link}">more</a> ' for link in links)
    return f"<html><head><title>{text[:5]}</title></head><body><article><p>{text}</p></article>{anchors}</body></html>".encode()


class Site:
    """Pages by path, and a record of who asked for what."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.busy: dict[str, int] = {}
        self.robots: tuple[int, str] = (200, "User-agent: *\nDisallow: /private/\n")
        self.pages: dict[str, tuple[str, bytes]] = {
            "/": (
                "text/html",
                linked("The first page of all.", "/a", "b.html#part", "/private/x", "http://elsewhere.invalid/", "/old"),
            ),
            "/a": ("text/html", linked("Page A, in its own words.", "/", "/a/deep", "mailto:x@y", "/picture.png")),
            "/b.html": ("text/html; charset=gb18030", linked(CHINESE).decode().encode("gb18030")),
            "/a/deep": ("text/html", linked("A page two links away.", "/a/deeper")),
            "/a/deeper": ("text/html", linked("A page three links away.", "/a/deepest")),
            "/new": ("text/plain", "Moved here, 到此.".encode()),
            "/picture.png": ("image/png", b"\x89PNG"),
        }

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append((request.path, request.headers["User-Agent"]))
        if request.path == "/robots.txt":
            status, body = self.robots
            self._send(request, status, "text/plain", body.encode())
        elif self.busy.get(request.path, 0) > 0:
            self.busy[request.path] -= 1
            self._send(request, 503, "text/plain", b"busy", ("Retry-After", "7"))
        elif request.path == "/old":
            self._send(request, 301, "text/plain", b"", ("Location", "/new"))
        elif request.path in self.pages:
            self._send(request, 200, *self.pages[request.path])
        else:
            self._send(request, 404, "text/html", b"nothing")

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, kind: str, body: bytes, *headers: tuple[str, str]) -> None:
        request.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *headers):
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@pytest.fixture
def site() -> Iterator[tuple[Site, str]]:
    pages = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield pages, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_crawl_becomes_documents(tmp_path: Path, site: tuple[Site, str]) -> None:
    pages, url = site
    kept, dropped = collected(tmp_path / "out", f"crawl:{url}/", cache=tmp_path, delay_seconds=0.0)
    assert {origin.removeprefix(url) for origin in kept} == {"/", "/a", "/b.html", "/new", "/a/deep", "/a/deeper"}
    assert CHINESE in kept[f"{url}/b.html"]["text"]
    assert kept[f"{url}/new"]["text"] == "Moved here, 到此."
    assert {o.removeprefix(url): row["reason"] for o, row in dropped.items()} == {
        "/private/x": "failed",
        "/picture.png": "unknown_kind",
        "/a/deepest": "failed",
    }
    assert "robots.txt" in dropped[f"{url}/private/x"]["detail"]
    assert "/private/x" not in pages.paths
    assert len(set(pages.paths)) == len(pages.paths)
    assert all(agent.startswith("qianyi/") for _, agent in pages.asked)
    asked = len(pages.asked)
    collected(tmp_path / "again", f"crawl:{url}/", cache=tmp_path, delay_seconds=0.0)
    assert len(pages.asked) == asked


def test_limits_of_depth_and_pages(tmp_path: Path, site: tuple[Site, str]) -> None:
    pages, url = site
    crawl(CrawlSettings(f"{url}/", max_depth=1, delay_seconds=0), tmp_path)
    assert "/a" in pages.paths
    assert "/a/deep" not in pages.paths
    pages.asked.clear()
    crawl(CrawlSettings(f"{url}/", max_pages=2, delay_seconds=0), tmp_path)
    assert pages.paths == ["/robots.txt", "/", "/a"]


def test_it_waits_as_long_as_it_is_told(tmp_path: Path, site: tuple[Site, str]) -> None:
    pages, url = site
    pages.robots = (200, "User-agent: *\nCrawl-delay: 4\n")
    pages.busy = {"/a": 1}
    waited: list[float] = []
    crawl(CrawlSettings(f"{url}/", max_pages=3, delay_seconds=0.5), tmp_path, waited.append)
    assert waited.count(7.0) == 1
    assert [w for w in waited if w != 7.0] == pytest.approx([4.0] * (len(waited) - 1), abs=0.5)


def test_errors_are_tried_again_and_then_recorded(tmp_path: Path, site: tuple[Site, str]) -> None:
    pages, url = site
    pages.busy = {"/a": 2, "/b.html": 99}
    place = crawl(CrawlSettings(f"{url}/", delay_seconds=0), tmp_path, lambda seconds: None)
    assert pages.paths.count("/a") == 3
    assert pages.paths.count("/b.html") == 4
    assert {"url": f"{url}/b.html", "reason": "failed", "detail": "the server answers 503"}.items() <= next(
        entry for entry in refused_pages(place) if entry["url"].endswith("/b.html")
    ).items()


@pytest.mark.parametrize(("robots", "allowed"), [((404, ""), True), ((200, "User-agent: qianyi\nDisallow: /"), False)])
def test_robots_that_say_no_or_nothing(tmp_path: Path, site: tuple[Site, str], robots: tuple[int, str], allowed: bool) -> None:
    pages, url = site
    pages.robots = robots
    crawl(CrawlSettings(f"{url}/", max_pages=1, delay_seconds=0), tmp_path, lambda seconds: None)
    assert ("/" in pages.paths) == allowed


def test_a_crawl_that_was_killed_goes_on(tmp_path: Path, site: tuple[Site, str]) -> None:
    pages, url = site
    settings = CrawlSettings(f"{url}/", delay_seconds=0.0)

    def killed_at(n: int) -> Callable[[float], None]:
        calls = iter(range(100))

        def sleep(seconds: float) -> None:
            if next(calls) == n:
                raise KeyboardInterrupt

        return sleep

    whole, _ = collected(tmp_path / "whole", f"crawl:{url}/", cache=tmp_path / "whole-cache", delay_seconds=0.0)
    for n in range(1, 9):
        pages.asked.clear()
        with pytest.raises(KeyboardInterrupt):
            crawl(settings, tmp_path / str(n), killed_at(n))
        crawled = next((tmp_path / str(n) / "crawl").iterdir())
        with pages_of(crawled).open("ab") as file, (crawled / "journal.jsonl").open("ab") as journal:
            file.write(b"\x1f\x8b half a page")
            journal.write(b'{"url": "half a li')
        kept, _ = collected(tmp_path / f"out-{n}", f"crawl:{url}/", cache=tmp_path / str(n), delay_seconds=0.0)
        assert kept == whole
        assert all(pages.paths.count(path) == 1 for path in pages.pages)


def test_a_host_that_cannot_say_what_is_allowed(tmp_path: Path, site: tuple[Site, str]) -> None:
    pages, url = site
    pages.robots = (500, "")
    settings = CrawlSettings(f"{url}/", delay_seconds=0)
    with pytest.raises(DataError, match=r"answers 500 to /robots\.txt"):
        crawl(settings, tmp_path, lambda seconds: None)
    assert set(pages.paths) == {"/robots.txt"}
    pages.robots = (200, "")
    crawl(settings, tmp_path, lambda seconds: None)
    assert "/a" in pages.paths


def test_addresses_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="out of reach"):
        crawl(CrawlSettings("http://127.0.0.1:9/", delay_seconds=0, retries=0), tmp_path)
    with pytest.raises(DataError, match="expected crawl:http"):
        crawl(CrawlSettings("/etc/passwd"), tmp_path)
