"""Training throughput on a CPU: Qianyi beside plain PyTorch, Hugging Face `transformers` and MaxText, in one run.

    python benchmarks/train_cpu.py --size 10m

Same model, batch, precision, optimizer and threads for all. Contenders take turns, each in a process of its own, for several rounds,
so that a machine whose speed drifts treats them alike; the ratios are of medians over all rounds. Compilation is left out (and
reported).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
CONTENDERS = {
    "Qianyi": ["qianyi_gpt.py"],
    "PyTorch": ["torch_gpt.py"],
    "PyTorch compiled": ["torch_gpt.py", "--compile"],
    "transformers": ["hf_gpt2.py"],
    "MaxText": ["maxtext_gpt.py"],
}
NEEDS = {
    "Qianyi": "qianyi",
    "PyTorch": "torch",
    "PyTorch compiled": "torch",
    "transformers": "transformers",
    "MaxText": "maxtext",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["10m", "124m"], default="10m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a contender in a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a contender")
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="contenders to run; all by default")
    options = parser.parse_args()
    pythons = dict(item.partition("=")[::2] for item in options.python)
    for name, python in pythons.items():
        if name not in CONTENDERS or shutil.which(python) is None:
            parser.error(f"--python {name}={python}: expected CONTENDER=INTERPRETER, CONTENDER one of {', '.join(CONTENDERS)}")
    results: dict[str, list[dict]] = {}
    absent: dict[str, str] = {}
    for _ in range(options.rounds):
        for name in options.only or CONTENDERS:
            if name in absent:
                continue
            found, message = run(pythons.get(name, interpreter(name)), name, options)
            if found is None:
                absent[name] = message
            else:
                results.setdefault(name, []).append(found)
                print(f"{name}: {statistics.median(found['tokens_per_second']):,.0f} tokens/s", file=sys.stderr)
    if not results:
        sys.exit("no contender ran: " + "; ".join(f"{name} {message}" for name, message in absent.items()))
    print(table(results, absent, options))
    out = Path("build/benchmarks") / f"train_cpu-{options.size}-{options.dtype}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"date": time.strftime("%Y-%m-%d"), "cpu": cpu(), "options": vars(options)}
    out.write_text(json.dumps({**about, "results": results, "absent": absent}, indent=1))
    print(f"\nraw figures: {out}", file=sys.stderr)


def interpreter(name: str) -> str:
    """The contender's own environment where `make benchmark-peers` has built one, else the environment that runs this."""
    own = HERE.parent / f".venv-{NEEDS[name]}" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def run(python: str, name: str, options: argparse.Namespace) -> tuple[dict | None, str]:
    """The result of one contender in one round, or why there is none."""
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({NEEDS[name]!r}) is None)"
    if subprocess.run([python, "-c", look], check=False).returncode:
        return None, f"not installed: make benchmark-peers, or {python} -m pip install {NEEDS[name]}"
    script, *flags = CONTENDERS[name]
    settings = {"size": options.size, "dtype": options.dtype, "steps": options.steps, "threads": options.threads}
    command = [python, str(HERE / "peers" / script), *flags, *(str(p) for k, v in settings.items() for p in (f"--{k}", v))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, "failed: " + (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"command": command}, ""


def table(results: dict[str, list[dict]], absent: dict[str, str], options: argparse.Namespace) -> str:
    """Markdown: medians, extremes, and Qianyi's ratio to each."""
    rates = {name: [rate for r in runs for rate in r["tokens_per_second"]] for name, runs in results.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ours = medians.get("Qianyi")
    parameters = next(iter(results.values()))[0]["parameters"]
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {cpu()}, {options.threads} threads, {options.size} ({parameters:,} parameters), {options.dtype}, "
        f"{options.rounds} rounds of {options.steps} steps:",
        "",
        "| | tokens/s, median | least to most | Qianyi / it | first step, s | loss, first to last | versions |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, values in sorted(rates.items(), key=lambda item: -medians[item[0]]):
        ratio = f"{ours / medians[name]:.2f}" if ours else "-"
        first = statistics.median(r["first_step_seconds"] for r in results[name])
        versions = ", ".join(f"{k} {v}" for k, v in results[name][0]["versions"].items())
        losses = results[name][0]["losses"]
        loss = f"{losses[0]:.2f} to {losses[-1]:.2f}"
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        lines.append(f"| {name} | {medians[name]:,.0f} | {spread} | {ratio} | {first:.1f} | {loss} | {versions} |")
    lines += [f"| {name} | not run | | | | | {message} |" for name, message in absent.items()]
    peers = [name for name in medians if name != "Qianyi"]
    if ours and peers:
        fastest = max(peers, key=lambda name: medians[name])
        lines += ["", f"Qianyi / the fastest peer ({fastest}): {ours / medians[fastest]:.2f}"]
    return "\n".join(lines)


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
