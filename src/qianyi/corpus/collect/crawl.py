"""A polite crawler of one host: into a WARC file that is then read as any other, so that a crawl can be kept, shown and read again.

It obeys robots.txt (RFC 9309, with its Crawl-delay), says who it is, makes one request at a time with a pause between, waits longer
after errors and as long as Retry-After says, and stays within a host, a depth and a number of pages. Its state is a journal: a killed
crawl goes on.
"""

import hashlib
import io
import json
import re
import time
import urllib.parse
import urllib.robotparser
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests
from resiliparse.parse.html import HTMLTree
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from qianyi import __version__
from qianyi.corpus.collect.decode import decode
from qianyi.corpus.collect.found import Refusal
from qianyi.data.stage import Json
from qianyi.errors import DataError

AGENT = "qianyi"
_HEADERS = {
    "User-Agent": f"{AGENT}/{__version__} (+text collector; obeys robots.txt)",
    "Accept": "text/html,text/plain;q=0.9,*/*;q=0.1",
}
_REDIRECTS = {301, 302, 303, 307, 308}
_AGAIN = {429, 500, 502, 503, 504}


@dataclass(frozen=True)
class CrawlSettings:
    """How far and how fast."""

    url: str
    max_pages: int = 1000
    """Requests that bring a page."""
    max_depth: int = 5
    """Links from the first page."""
    delay_seconds: float = 1.0
    """Between requests, unless robots.txt asks for more."""
    timeout_seconds: float = 30.0
    retries: int = 3
    max_page_bytes: int = 16 << 20


def crawl(settings: CrawlSettings, cache: Path, sleep: Callable[[float], None] = time.sleep) -> Path:
    """The directory of a finished crawl: pages.warc.gz and journal.jsonl; one that was begun goes on.

    Raises:
        DataError: the address is no page, the host does not say what may be fetched, or nothing can be written.
    """
    host = urllib.parse.urlsplit(settings.url)
    if host.scheme not in {"http", "https"} or not host.hostname:
        raise DataError(f"crawl:{settings.url}: expected crawl:http://HOST/... or crawl:https://HOST/...")
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:12]
    place = cache / "crawl" / f"{re.sub(r'[^a-z0-9.-]', '_', host.netloc.lower())}-{digest}"
    if (place / "finished").exists():
        return place
    try:
        place.mkdir(parents=True, exist_ok=True)
        _Crawl(settings, place, sleep).run()
        (place / "finished").touch()
    except OSError as error:
        raise DataError(f"{place}: {error.strerror or error}") from None
    return place


def refused_pages(place: Path) -> list[Json]:
    """`url`, `reason` and `detail` of the pages that a crawl could or may not fetch, in its order."""
    return [entry for entry in _journal(place) if "reason" in entry]


class _Crawl:
    def __init__(self, settings: CrawlSettings, place: Path, sleep: Callable[[float], None]):
        self._settings, self._place, self._sleep = settings, place, sleep
        self._session = requests.Session()
        self._session.headers.update(_HEADERS)
        self._last_request: float | None = None
        self._delay = settings.delay_seconds
        start = _normal(settings.url) or settings.url
        self._host = urllib.parse.urlsplit(start)[:2]
        self._frontier = deque([(start, 0)])
        self._seen = {start}
        self._pages = 0

    def run(self) -> None:
        stored_bytes = 0
        for entry in _journal(self._place):
            self._replay(entry)
            stored_bytes = entry["stored_bytes"]
        robots = self._robots()
        with (self._place / "journal.jsonl").open("a", encoding="utf-8") as journal, pages_of(self._place).open("ab") as pages:
            pages.truncate(stored_bytes)  # a page that a kill cut short is fetched again
            warc = WARCWriter(pages, gzip=True)
            while self._frontier and self._pages < self._settings.max_pages:
                entry = self._visit(*self._frontier[0], robots, warc)
                pages.flush()  # before its line in the journal
                entry["stored_bytes"] = pages.tell()
                journal.write(json.dumps(entry, ensure_ascii=False) + "\n")
                journal.flush()
                self._replay(entry)

    def _replay(self, entry: Json) -> None:
        """What a visit changes: the first of the frontier is done, its links follow."""
        url, depth = self._frontier.popleft()
        if url != entry["url"]:
            raise DataError(f"{self._place}: its journal is not of this crawl; delete the directory")
        self._pages += "reason" not in entry and not entry.get("moved")
        for link in entry.get("links", []):
            if link not in self._seen:
                self._seen.add(link)
                self._frontier.append((link, depth + (not entry.get("moved"))))

    def _visit(self, url: str, depth: int, robots: urllib.robotparser.RobotFileParser, warc: Any) -> Json:
        if not robots.can_fetch(AGENT, url):
            return {"url": url, "reason": "failed", "detail": "robots.txt does not allow it"}
        try:
            answer = self._get(url)
        except (requests.RequestException, Refusal) as error:
            detail = error.detail if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
            return {"url": url, "reason": error.reason if isinstance(error, Refusal) else "failed", "detail": detail[:300]}
        status, headers, body = answer
        if status in _REDIRECTS:
            return {"url": url, "moved": True, "links": self._links([headers.get("Location", "")], url)}
        if status != 200:
            return {"url": url, "reason": "failed", "detail": f"the server answers {status}"}
        kind = headers.get("Content-Type", "").lower()
        if "html" not in kind and not kind.startswith("text/plain"):
            return {"url": url, "reason": "unknown_kind", "detail": f"the server says {kind or 'no type'}"}
        _store(warc, url, status, headers, body)
        links = self._links(_hrefs(body, kind), url) if "html" in kind and depth < self._settings.max_depth else []
        return {"url": url, "links": links}

    def _links(self, hrefs: list[str], base: str) -> list[str]:
        """Those on the host, once each, in their order."""
        found = [_normal(urllib.parse.urljoin(base, href)) for href in hrefs if href]
        return [url for url in dict.fromkeys(found) if url and urllib.parse.urlsplit(url)[:2] == self._host]

    def _robots(self) -> urllib.robotparser.RobotFileParser:
        """The host's rules: none if it has no robots.txt; a host that cannot say must not be crawled (RFC 9309, 2.3.1).

        Raises:
            DataError: it cannot say, now.
        """
        robots = urllib.robotparser.RobotFileParser()
        try:
            status, _, body = self._get(urllib.parse.urlunsplit((*self._host, "/robots.txt", "", "")))
        except (requests.RequestException, Refusal) as error:
            raise DataError(
                f"crawl:{self._settings.url}: the host's robots.txt is out of reach ({type(error).__name__}); run again later"
            ) from None
        if status == 200:
            robots.parse(body.decode("utf-8", "replace").splitlines())
        elif 400 <= status < 500:
            robots.parse([])
        else:
            raise DataError(
                f"crawl:{self._settings.url}: the host answers {status} to /robots.txt, so nothing may be fetched; run again later"
            )
        asked = robots.crawl_delay(AGENT)
        self._delay = max(self._delay, float(asked or 0))
        return robots

    def _get(self, url: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body, after as many tries as it takes.

        Raises:
            Refusal: it is too large, or the server still has no time.
            requests.RequestException: it cannot be reached.
        """
        for attempt in range(self._settings.retries + 1):
            self._wait()
            last = attempt == self._settings.retries
            try:
                with self._session.get(url, stream=True, allow_redirects=False, timeout=self._settings.timeout_seconds) as answer:
                    if answer.status_code not in _AGAIN or last:
                        return answer.status_code, dict(answer.headers), self._body(answer)
                    pause = self._pause(attempt, answer.headers.get("Retry-After"))
            except (requests.ConnectionError, requests.Timeout):
                if last:
                    raise
                pause = self._pause(attempt)
            self._sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, attempt: int, retry_after: str | None = None) -> float:
        """Seconds before the next try: two delays, four, eight, or what the server says."""
        if retry_after and retry_after.isdigit():
            return min(float(retry_after), 3600.0)
        return 2.0 ** (attempt + 1) * self._delay

    def _wait(self) -> None:
        if self._last_request is not None:
            self._sleep(max(0.0, self._last_request + self._delay - time.monotonic()))
        self._last_request = time.monotonic()

    def _body(self, answer: requests.Response) -> bytes:
        began, limit = time.monotonic(), self._settings.max_page_bytes
        body = bytearray()
        for chunk in answer.iter_content(1 << 16):
            body += chunk
            if len(body) > limit:
                raise Refusal("too_large", f"more than {limit:,} bytes")
            if time.monotonic() - began > 10 * self._settings.timeout_seconds:
                raise Refusal("failed", f"not complete after {10 * self._settings.timeout_seconds:.0f} seconds")
        return bytes(body)


def _store(warc: Any, url: str, status: int, headers: dict[str, str], body: bytes) -> None:
    coded = {"content-encoding", "transfer-encoding", "content-length"}  # the body is stored as it is after them
    kept = [(name, value) for name, value in headers.items() if name.lower() not in coded]
    http = StatusAndHeaders(f"{status} OK", [*kept, ("Content-Length", str(len(body)))], protocol="HTTP/1.1")
    warc.write_record(warc.create_warc_record(url, "response", payload=io.BytesIO(body), length=len(body), http_headers=http))


def _hrefs(body: bytes, kind: str) -> list[str]:
    charset = re.search(r"charset=([\w-]+)", kind)
    try:
        tree = HTMLTree.parse(decode(body, charset[1] if charset else None)[0])
    except Refusal:
        return []
    anchors = tree.document.query_selector_all("a[href]") if tree.document else []
    return [a.getattr("href") or "" for a in anchors if "nofollow" not in (a.getattr("rel") or "")]


def _normal(url: str) -> str | None:
    """An address without its fragment, as it is compared; None for what is no page of the web."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
    except ValueError:
        return None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return None
    path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.lower(), path, parts.query, ""))


def _journal(place: Path) -> list[Json]:
    path = place / "journal.jsonl"
    if not path.exists():
        return []
    entries: list[Json] = []
    whole = path.read_bytes()
    if not whole.endswith(b"\n"):  # a line that a kill cut short was never finished
        whole = whole[: whole.rfind(b"\n") + 1]
        path.write_bytes(whole)
    for line in whole.splitlines():
        entries.append(json.loads(line))
    return entries


def pages_of(place: Path) -> Path:
    """The WARC file of a crawl."""
    return place / "pages.warc.gz"
