"""`qianyi data inspect`."""

from pathlib import Path

from qianyi.corpus.inspect.page import summary, write_page
from qianyi.corpus.inspect.stages import inspect


def run(directory: Path, out: Path | None) -> None:
    """Write the page of a corpus or a pipeline and say where it is."""
    found = inspect(directory)
    path = out or directory / "inspect.html"
    write_page(found, path)
    print(*summary(found), f"page: {path}", sep="\n")
