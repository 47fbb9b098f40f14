"""How the time and the memory of `qianyi data` grow with the corpus, and what a second worker brings.

    python benchmarks/data_scaling.py --megabytes 10 50 150 430      # as much as there is: data_corpus.py has about 435 MB
    python benchmarks/data_scaling.py --megabytes 10 --workers 1 2 --copies 1 --out build/data_scaling.md

Collects, cleans, deduplicates, tokenizes and inspects samples of the English and Chinese corpus of `data_corpus.py`, of which a
smaller one is part of a larger one, with one worker. Then `data run` of collect, clean and dedup, start and all, on the last sample and
on that several times over, with each number of workers in turn, on as many cores. Results are Markdown.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median

from data_corpus import DEFAULT, take
from data_vs_datatrove import Stage, prepared, qianyi, split, train_tokenizer, warm
from machine import ROOT, measured_here
from measured import Usage, run, text_bytes

STAGES = ("collect", "clean", "dedup", "tokenize", "inspect")


def measure(cache: Path, megabytes: float, work: Path) -> dict[str, Stage]:
    """All stages on a sample, with one worker."""
    prepared(work)
    sample = take(cache, "all", megabytes)
    split(sample, work / "files")
    found = qianyi(work / "files", train_tokenizer(sample, work / "tokenizer.json"), work)
    usage = run([sys.executable, "-m", "qianyi", "data", "inspect", str(work / "dedup"), "--out", str(work / "inspect.html")])
    kept = json.loads((work / "dedup" / "manifest.json").read_text())
    page = Stage(usage.cpu_seconds, usage.wall_seconds, usage.peak_bytes, kept["bytes"], kept["documents"])
    return {**found, "inspect": page}


def table(runs: dict[float, dict[str, Stage]]) -> str:
    """A row for each size, wall seconds and peak megabytes of each stage."""
    lines = ["| MB | " + " | ".join(f"{name}, s / MB" for name in STAGES) + " | all, s | MB/s | CPU s | CPU s per 10 MB |"]
    lines.append("|---" * (len(STAGES) + 5) + "|")
    for megabytes, found in runs.items():
        cells = " | ".join(f"{found[name].wall_seconds:.1f} / {found[name].peak_bytes / 1e6:.0f}" for name in STAGES)
        wall, cpu = (sum(getattr(stage, name) for stage in found.values()) for name in ("wall_seconds", "cpu_seconds"))
        lines.append(
            f"| {megabytes:.1f} | {cells} | {wall:.1f} | {megabytes / wall:.2f} | {cpu:.1f} | {10 * cpu / megabytes:.2f} |"
        )
    return "\n".join(lines)


def pipeline(files: Path, copies: int, workers: int, work: Path) -> Usage:
    """`data run` over a directory of files and its copies, on as many cores as workers."""
    prepared(work)
    stages = [{"collect": {"sources": [{"name": f"copy{i}", "path": str(files)} for i in range(copies)]}}, "clean", "dedup"]
    (work / "pipeline.yaml").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:workers]))
    data = [sys.executable, "-m", "qianyi", "data", "run", str(work / "pipeline.yaml")]
    return run(["taskset", "-c", cores, *data, "--out", str(work / "text"), "--workers", str(workers)])


def workers_table(files: Path, copies: list[int], workers: list[int], rounds: int, work: Path) -> str:
    """A row for each size and number of workers: medians of rounds in which they take turns."""
    megabytes = text_bytes(files) / 1e6
    lines = ["| MB | workers, cores | wall, s | times as fast | CPU s | peak MB |", "|---|---|---|---|---|---|"]
    for k in copies:
        found = [[pipeline(files, k, n, work) for n in workers] for _ in range(rounds)]
        for i, n in enumerate(workers):
            wall, cpu, peak = (
                median(getattr(turn[i], name) for turn in found) for name in ("wall_seconds", "cpu_seconds", "peak_bytes")
            )
            ratios = sorted(turn[0].wall_seconds / turn[i].wall_seconds for turn in found)
            spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            lines.append(f"| {k * megabytes:.0f} | {n} | {wall:.1f} | {spread} | {cpu:.1f} | {peak / 1e6:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", nargs="+", type=float, default=[10, 50, 150, 430])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="the first is what others are compared with")
    parser.add_argument("--copies", nargs="+", type=int, default=[1, 3], help="of the last size, for the comparison of workers")
    parser.add_argument("--rounds", type=int, default=3, help="of that comparison")
    parser.add_argument("--cache", type=Path, default=DEFAULT)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "data_scaling", help="emptied first")
    parser.add_argument("--out", type=Path, help="a Markdown file")
    args = parser.parse_args()
    warm(args.cache, args.work)
    runs: dict[float, dict[str, Stage]] = {}
    for size in args.megabytes:
        found = measure(args.cache, size, args.work / "run")
        runs[text_bytes(args.work / "run" / "files") / 1e6] = found
    print(table(runs), flush=True)
    compared = workers_table(args.work / "run" / "files", args.copies, args.workers, args.rounds, args.work / "workers")
    print(f"\n{compared}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            f"`{json.dumps(measured_here('data_scaling.py'))}`\n\n{table(runs)}\n\n{compared}\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
