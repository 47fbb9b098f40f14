"""Chromium without a screen and without a network, for tests of pages and pictures."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def chromium() -> Iterator["sync_api.Browser"]:
    """The system's browser, for which this machine is the only one there is. Skips where there is no browser."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    alone = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--proxy-server=direct://"]
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=alone)
        yield browser
        browser.close()


OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll("svg text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  const found = [];
  boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([two, b]) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left), high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > 4) found.push(`${one} | ${two}`);
  }));
  return found;
}"""
"""Pairs of words of a picture that lie on each other; boxes of text are some pixels higher than what is written."""
