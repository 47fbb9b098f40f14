"""Time of a search, on one core.

    python benchmarks/plan.py

Each question is asked in a process of its own, on one core where the system can hold it there, five times; the median counts.
`command` is the whole
of `qianyi plan`: start of Python, imports, search, campaign and printing.
"""

import os
import statistics
import subprocess
import sys
import time

from machine import measured_here

from qianyi.plan.cluster import cluster

QUESTIONS = (
    ("llama3-405b", "h100:2048x8"),
    ("llama3-405b", "tpu-v5p:16x16x16*4"),
    ("gpt3-175b", "h100:128x8"),
    ("deepseek-v3", "h100:256x8"),
    ("llama3-8b", "h100:1x8"),
)
TIMES = 5
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
SEARCH = """
import sys, time
from qianyi.plan.cluster import cluster
from qianyi.plan.search import search
start = time.perf_counter()
found = search(sys.argv[1], cluster(sys.argv[2]))
print(time.perf_counter() - start, found.considered, found.fitting)
"""


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    about = measured_here("plan.py")
    print(f"{about['date']}, {about['cpu']}, one core, commit {about['commit']}: `{about['command']}`\n")
    print("| recipe | cluster | chips | layouts considered | that fit | search, s | command, s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for recipe, on in QUESTIONS:
        runs = [_run([sys.executable, "-c", SEARCH, recipe, on]) for _ in range(TIMES)]
        seconds, considered, fitting = zip(*(run[0].split() for run in runs), strict=True)
        whole = statistics.median(
            _run([sys.executable, "-m", "qianyi", "plan", recipe, "--cluster", on])[1] for _ in range(TIMES)
        )
        chips = cluster(on).n_chips
        search = statistics.median(map(float, seconds))
        print(
            f"| {recipe} | {on} | {chips:,} | {int(considered[0]):,} | {int(fitting[0]):,} | {search:.2f} | {whole:.2f} |",
            flush=True,
        )


def _run(command: list[str]) -> tuple[str, float]:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | ONE_CORE)
    return done.stdout, time.perf_counter() - start


if __name__ == "__main__":
    main()
