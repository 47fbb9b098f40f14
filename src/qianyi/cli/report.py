"""`qianyi report`."""

from pathlib import Path

from qianyi.monitor.report import headline, write_report


def run(run_dir: Path) -> None:
    path = write_report(run_dir)
    print(headline(run_dir))
    print(f"report: {path}")
