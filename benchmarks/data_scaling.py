"""How the time and the memory of `qianyi data` grow with the corpus, and what a second worker brings.

    python benchmarks/data_scaling.py --megabytes 10 50 150 430      # as much as there is: data_corpus.py has about 435 MB
    python benchmarks/data_scaling.py --megabytes 10 --workers 1 2 --out build/data_scaling.md

Collects, cleans, deduplicates, tokenizes and inspects samples of the English and Chinese corpus of `data_corpus.py`, of which a
smaller one is part of a larger one; all sizes with one worker, the last with each number of workers. Results are Markdown.
"""

import argparse
import json
import sys
from pathlib import Path

from data_corpus import DEFAULT, take
from data_vs_datatrove import Stage, prepared, qianyi, split, train_tokenizer, warm
from machine import ROOT, measured_here
from measured import run, text_bytes

STAGES = ("collect", "clean", "dedup", "tokenize", "inspect")


def measure(cache: Path, megabytes: float, workers: int, work: Path) -> dict[str, Stage]:
    """All stages on a sample."""
    prepared(work)
    sample = take(cache, "all", megabytes)
    split(sample, work / "files")
    found = qianyi(work / "files", train_tokenizer(sample, work / "tokenizer.json"), work, workers)
    usage = run([sys.executable, "-m", "qianyi", "data", "inspect", str(work / "dedup"), "--out", str(work / "inspect.html")])
    kept = json.loads((work / "dedup" / "manifest.json").read_text())
    page = Stage(usage.cpu_seconds, usage.wall_seconds, usage.peak_bytes, kept["bytes"], kept["documents"])
    return {**found, "inspect": page}


def table(runs: dict[tuple[float, int], dict[str, Stage]]) -> str:
    """A row for each run, wall seconds and peak megabytes of each stage."""
    lines = [
        "| MB | workers | " + " | ".join(f"{name}, s / MB" for name in STAGES) + " | all, s | MB/s | CPU s | CPU s per 10 MB |"
    ]
    lines.append("|---" * (len(STAGES) + 6) + "|")
    for (megabytes, workers), found in runs.items():
        cells = " | ".join(f"{found[name].wall_seconds:.1f} / {found[name].peak_bytes / 1e6:.0f}" for name in STAGES)
        wall, cpu = (sum(getattr(stage, name) for stage in found.values()) for name in ("wall_seconds", "cpu_seconds"))
        lines.append(
            f"| {megabytes:.1f} | {workers} | {cells} | {wall:.1f} | {megabytes / wall:.2f} | {cpu:.1f} | {10 * cpu / megabytes:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", nargs="+", type=float, default=[10, 50, 150, 430])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--cache", type=Path, default=DEFAULT)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "data_scaling", help="emptied first")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    warm(args.cache, args.work)
    plan = [(size, 1) for size in args.megabytes] + [(args.megabytes[-1], n) for n in args.workers if n != 1]
    runs: dict[tuple[float, int], dict[str, Stage]] = {}
    for size, workers in plan:
        found = measure(args.cache, size, workers, args.work / "run")
        runs[text_bytes(args.work / "run" / "files") / 1e6, workers] = found
        print(table(runs), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(f"`{json.dumps(measured_here('data_scaling.py'))}`\n\n{table(runs)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
