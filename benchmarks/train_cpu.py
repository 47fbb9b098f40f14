"""Training throughput on CPU, Qianyi beside its peers: same model, batch, precision and threads, taking turns in one run.

    python benchmarks/train_cpu.py --size 10m --dtype float32 --rounds 3

Every contender runs in a process and an environment of its own. They take turns, round after round, so that a machine that is
slower for a minute is slower for all; the ratio to a peer is taken inside each round.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    name: str
    script: str
    environment: str
    """Directory of the virtual environment, under the root of the repository."""
    needs: tuple[str, ...]
    """Packages that it imports."""
    install: str
    """What to do where they are missing."""
    flags: tuple[str, ...] = ()


US = "Qianyi"
TORCH = "make benchmark-peers (pip install torch transformers, in .venv-torch)"
CONTENDERS = (
    Contender(US, "qianyi_gpt.py", ".venv", ("qianyi", "jax"), "make setup"),
    Contender("PyTorch", "torch_gpt.py", ".venv-torch", ("torch",), TORCH),
    Contender("PyTorch, torch.compile", "torch_gpt.py", ".venv-torch", ("torch",), TORCH, ("--compile",)),
    Contender("transformers GPT2LMHeadModel", "hf_gpt2.py", ".venv-torch", ("torch", "transformers"), TORCH),
    Contender(
        "MaxText", "maxtext_gpt.py", ".venv-maxtext", ("maxtext", "jax"), "make benchmark-peers (maxtext, in .venv-maxtext)"
    ),
)


@dataclass
class Runs:
    """What a contender did, a result per round; `problem` says why it has none."""

    command: list[str]
    results: list[dict[str, Any]] = field(default_factory=list)
    problem: str | None = None

    def round_medians(self) -> list[float]:
        return [statistics.median(result["tokens_per_second"]) for result in self.results]


def main() -> None:
    options = _arguments()
    runs = {c.name: _prepare(c, options) for c in CONTENDERS if c.name == US or not options.only or c.name in options.only}
    for turn in range(options.rounds):
        for name, run in runs.items():
            if run.problem is None:
                _take_turn(run, options.timeout)
                outcome = run.problem or f"{run.round_medians()[-1]:,.0f} tokens/s"
                print(f"round {turn + 1}/{options.rounds}  {name}: {outcome}", file=sys.stderr, flush=True)
    about = _about(options)
    out = ROOT / "build" / "benchmarks" / f"train_cpu-{options.size}-{options.dtype}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "contenders": {name: asdict(run) for name, run in runs.items()}}, indent=1) + "\n")
    print(_markdown(runs, about))
    print(f"\nAll steps of all rounds: {out.relative_to(ROOT)}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["10m", "124m"], default="10m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps per round")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them, the first of which compiles")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that one contender may take for a round")
    parser.add_argument("--only", action="append", help=f"run just this peer beside {US}; may be repeated")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PYTHON", help="the interpreter of a contender, for each to be set"
    )
    options = parser.parse_args()
    options.interpreters = dict(
        entry.split("=", 1) if "=" in entry else parser.error(f"--peer {entry}: NAME=PYTHON") for entry in options.peer
    )
    names = [c.name for c in CONTENDERS]
    for name in [*options.interpreters, *(options.only or [])]:
        if name not in names:
            parser.error(f"no contender {name!r}; there are: {', '.join(names)}")
    return options


def _prepare(contender: Contender, options: argparse.Namespace) -> Runs:
    """The command of a contender, or why it cannot run: it is never left out silently."""
    default = ROOT / contender.environment / "bin" / "python"
    python = options.interpreters.get(contender.name, str(default))
    settings = {name: getattr(options, name) for name in ("size", "dtype", "steps", "warmup", "threads")}
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    run = Runs([python, str(PEERS / contender.script), *flags, *contender.flags])
    test = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {contender.needs!r})))"
    try:
        found = subprocess.run([python, "-c", test], capture_output=True, check=False).returncode == 0
    except OSError:
        found = False
    if not found:
        run.problem = f"not installed: {contender.install}"
    return run


def _take_turn(run: Runs, timeout_seconds: float) -> None:
    threads = run.command[run.command.index("--threads") + 1]
    env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "result.json"
        try:
            done = subprocess.run(
                [*run.command, "--json", str(out)], env=env, capture_output=True, text=True, timeout=timeout_seconds, check=False
            )
        except subprocess.TimeoutExpired:
            run.problem = f"not finished after {timeout_seconds:.0f} s"
            return
        if done.returncode or not out.exists():
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            run.problem = f"failed: {lines[-1]}"
            return
        run.results.append(json.loads(out.read_text()))


def _about(options: argparse.Namespace) -> dict[str, Any]:
    """Where and how it was measured."""
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    )
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "command": shlex.join(["python", "benchmarks/train_cpu.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "commit": head.stdout.strip(),
        "size": options.size,
        "dtype": options.dtype,
        "threads": options.threads,
        "rounds": options.rounds,
    }


def _markdown(runs: dict[str, Runs], about: dict[str, Any]) -> str:
    """The table, and what one must know to read it."""
    ours = runs[US]
    lines = [
        f"{about['date']}, {about['cpu']}, {about['threads']} threads, commit {about['commit']}: `{about['command']}`",
        "",
        "| | median tokens/s | min - max | Qianyi / it | loss, first -> last step | versions |",
        "|---|---:|---:|---:|---:|---|",
    ]
    ratios: dict[str, float] = {}
    for name, run in runs.items():
        if run.problem is not None:
            lines.append(f"| {name} | {run.problem} | | | | |")
            continue
        speeds = [speed for result in run.results for speed in result["tokens_per_second"]]
        if ours.problem is None:
            ratios[name] = statistics.median(a / b for a, b in zip(ours.round_medians(), run.round_medians(), strict=True))
        losses = run.results[-1]["losses"]
        versions = ", ".join(f"{package} {version}" for package, version in run.results[-1]["versions"].items())
        ratio = f"{ratios[name]:.2f}" if name in ratios and name != US else ""
        lines.append(
            f"| {name} | {statistics.median(speeds):,.0f} | {min(speeds):,.0f} - {max(speeds):,.0f} | {ratio} | "
            f"{losses[0]:.2f} -> {losses[-1]:.2f} | {versions} |"
        )
    peers = {name: ratio for name, ratio in ratios.items() if name != US}
    if peers:
        fastest = min(peers, key=lambda name: peers[name])
        lines += ["", f"Qianyi / the fastest peer ({fastest}): **{peers[fastest]:.2f}**"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
