"""`qianyi quickstart`: everything once, on eight simulated devices, by the commands that a user would type."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from qianyi.errors import QianyiError
from qianyi.monitor.report import write_report

KILL_STEP, STOP_STEP = 33, 48
"""Checkpoints fall on multiples of 20: the kill loses 13 steps, and the continued run passes the place where it was killed."""
TEXT = Path("data/quickstart-text")
"""Where the pipeline goes."""
PROMPTS = ("ROMEO:\n", "却说曹操")


def run(steps: int, run_dir: Path) -> None:
    began_seconds = time.perf_counter()
    tokens = TEXT / "4-tokens"
    settings = [
        f"train.steps={steps}",
        f"run.dir={run_dir}",
        "checkpoint.every_steps=20",
        f"data.dir={tokens}",
        "data.sources=[]",
    ]
    again = run_dir.with_name(f"{run_dir.name}-killed")
    for directory in (run_dir, again):
        _clear(directory)

    _say(
        1,
        "Data: the plays of Shakespeare and 三国演义 collected, cleaned, without duplicates; a tokenizer trained on both; token shards",
    )
    _qianyi("data", "run", "quickstart", "--out", str(TEXT), "--workers", "1")
    _qianyi("data", "tokenize", f"books={TEXT / '3-dedup'}", "--out", str(tokens), "--vocab", "4096", "--validation", "0.03")
    _qianyi("data", "inspect", str(TEXT))

    _say(2, f"Training {steps} steps on eight simulated devices: FSDP over 4 x tensor parallelism over 2")
    _qianyi("train", "quickstart", *settings)

    _say(3, "A crash: the same run again, killed with SIGKILL on its way, then continued by the same command")
    _show_resume(run_dir, again, settings)

    _say(4, "Held-out text: bits per byte against what needs no model")
    scores = json.loads(_qianyi("eval", "quickstart", *settings, "--json", quiet=True).splitlines()[-1])
    (run_dir / "summary.json").write_text(json.dumps({"baselines": scores["baselines"]}), encoding="utf-8")
    for name, value in {"this model": scores["bits_per_byte"], **scores["baselines"]}.items():
        print(f"  {name:<12}{value:.4f}")

    _say(5, "Samples")
    prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    _qianyi("generate", "quickstart", *settings, *prompts, "--max-tokens", "80")

    report = write_report(run_dir)
    losses = _losses(run_dir)
    print(
        f"\nDone in {(time.perf_counter() - began_seconds) / 60:.1f} minutes. {steps} steps took the loss from {losses[0]:.2f} to "
        f"{losses[-1]:.2f} nats per token and held-out text to\n{scores['bits_per_byte']:.3f} bits per byte (uniform "
        f"{scores['baselines']['uniform']:.3f}, unigram {scores['baselines']['unigram']:.3f}); a killed run went on exactly.\n"
        f"  The report:                  {report}\n"
        f"  What became of the text:     {TEXT / 'inspect.html'}\n"
        f"  Train longer:                qianyi train quickstart train.steps={10 * steps} run.dir=runs/longer\n"
        f"  Another layout, same result: qianyi train quickstart layout.data=2 layout.model=2 layout.replica=2 run.dir=runs/other\n"
        f"  Your own text:               qianyi train quickstart data.dir=data/mine run.dir=runs/mine "
        "data.sources='[{name: mine, path: DIRECTORY}]'\n"
        f"  What a 175B run looks like:  qianyi show gpt3-175b"
    )


def _clear(directory: Path) -> None:
    """Remove what an earlier quickstart left.

    Raises:
        QianyiError: the directory holds something else, which is not ours to remove.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / "config.yaml").exists():
        raise QianyiError(f"{directory}: holds something that is not a run; name another directory with --dir")
    shutil.rmtree(directory, ignore_errors=True)


def _show_resume(run_dir: Path, again: Path, settings: list[str]) -> None:
    """Kill a copy of the run, continue it for a while, and compare its losses with those of the run that was not killed.

    Raises:
        QianyiError: they differ.
    """
    arguments = ["train", "quickstart", *settings, f"run.dir={again}"]
    print(f"  $ {shlex.join(['qianyi', *arguments])}", flush=True)
    killed_after = _train_until(arguments, again / "events.jsonl", KILL_STEP, signal.SIGKILL)
    print(
        f"  killed after step {killed_after}; the same command again, stopped by SIGTERM after step {STOP_STEP}",
        flush=True,
    )
    _train_until(arguments, again / "events.jsonl", STOP_STEP, signal.SIGTERM)
    starts = json.loads((again / "environment.json").read_text(encoding="utf-8"))
    whole, continued = _losses(run_dir), _losses(again)
    for step, (a, b) in enumerate(zip(whole, continued, strict=False), 1):
        if a != b:
            raise QianyiError(
                f"{again}/events.jsonl: step {step} has loss {b!r}, the run that was not killed {a!r}; please report this"
            )
    print(
        f"  it continued after step {starts[-1]['start_step']}; all {len(continued)} losses are bitwise those of the run "
        "that was not killed"
    )


def _train_until(arguments: list[str], events: Path, step: int, how: signal.Signals) -> int:
    """Start training, send a signal when it has done `step` steps, and return the steps it had done then.

    Raises:
        QianyiError: it ended before that.
    """
    process = subprocess.Popen([sys.executable, "-m", "qianyi", *arguments], stdout=subprocess.DEVNULL)
    before = _lines(events)
    # A continued run first drops the steps after its checkpoint, so wait until it has grown again.
    shrunk = before == 0
    while process.poll() is None and not (shrunk and _lines(events) >= step):
        shrunk = shrunk or _lines(events) < before
        time.sleep(0.02)
    done = _lines(events)
    if done < step:
        raise QianyiError(f"training ended with exit code {process.returncode} after step {done}; its message is above")
    process.send_signal(how)
    process.wait()
    return done


def _qianyi(*arguments: str, quiet: bool = False) -> str:
    """Run a command of ours as a user would; what it prints is shown, or returned when `quiet`."""
    command = [sys.executable, "-m", "qianyi", *arguments]
    if not quiet or arguments[0] == "eval":
        print(f"  $ {shlex.join(['qianyi', *arguments])}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE if quiet else None, text=True, check=False)
    if done.returncode:
        raise QianyiError(f"`{shlex.join(['qianyi', *arguments])}` failed with exit code {done.returncode}; its message is above")
    return done.stdout or ""


def _losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _say(number: int, text: str) -> None:
    print(f"\n{number}. {text}", flush=True)
