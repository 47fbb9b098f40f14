"""`qianyi report`."""

from pathlib import Path

from qianyi.monitor.record import read_run
from qianyi.monitor.report import summary, write_page


def run(run_dir: Path) -> None:
    record = read_run(run_dir)
    path = write_page(record)
    print(*summary(record), f"report: {path}", sep="\n")
