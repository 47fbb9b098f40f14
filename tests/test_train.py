"""The loop and its checkpoints, through the real command: killed runs go on exactly, other layouts too, and so do two processes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

STEPS = 24
SMALL = [
    "model.n_layers=2",
    "model.d_model=64",
    "model.n_heads=4",
    "model.d_ff=96",
    "model.vocab_size=512",
    "train.batch_size=8",
    "train.seq_len=32",
    f"train.steps={STEPS}",
    "train.eval_every=0",
    "train.eval_batches=2",
    "schedule.warmup_steps=4",
    "checkpoint.every_steps=5",
    "checkpoint.keep_last=2",
    "run.tensorboard=false",
    "data.sources=[{name: poem, path: poem.jsonl}]",
    "data.validation_fraction=0.2",
    "data.dir=data",
]


def qianyi(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qianyi", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


def train(cwd: Path, run: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    return qianyi("train", "quickstart", *SMALL, f"run.dir={run}", *overrides, cwd=cwd)


def losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events] == list(range(1, len(events) + 1))  # each step exactly once
    return [e["loss"] for e in events]


def final_params(run: Path) -> list[np.ndarray]:
    state = ocp.StandardCheckpointer().restore(run / "checkpoints" / f"{STEPS:08d}" / "state")
    return [np.asarray(leaf) for leaf in _leaves(state["params"])]


def _leaves(tree):
    return [leaf for _, node in sorted(tree.items()) for leaf in (_leaves(node) if isinstance(node, dict) else [node])]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a corpus, and a run that nothing interrupted in `whole`."""
    cwd = tmp_path_factory.mktemp("work")
    words = [
        "the",
        "moon",
        "is",
        "bright",
        "before",
        "my",
        "bed",
        "床前明月光",
        "疑是地上霜",
        "I",
        "lift",
        "my",
        "head",
        "and",
        "look",
    ]
    source = random.Random(0)
    lines = [json.dumps({"text": " ".join(source.choices(words, k=80))}) for _ in range(300)]
    (cwd / "poem.jsonl").write_text("\n".join(lines))
    done = train(cwd, "whole")
    assert done.returncode == 0, done.stderr
    return cwd


def start_and_signal(cwd: Path, run: str, at_step: int, how: signal.Signals) -> int:
    """Train in the background until `at_step` steps are recorded and a checkpoint is committed, send a signal, and return the exit code."""
    command = [sys.executable, "-m", "qianyi", "train", "quickstart", *SMALL, f"run.dir={run}"]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    events = cwd / run / "events.jsonl"
    checkpoints = cwd / run / "checkpoints"
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        # A save is asynchronous: a committed one has its final name, eight digits.
        committed = any(checkpoints.glob("[0-9]" * 8))
        if committed and events.read_bytes().count(b"\n") >= at_step:
            break
        time.sleep(0.005)
    process.send_signal(how)
    return process.wait(60)


def test_killed_and_resumed_is_bitwise_the_same(work: Path) -> None:
    at = random.randrange(6, STEPS - 2)
    code = start_and_signal(work, "killed", at, signal.SIGKILL)
    assert code == -signal.SIGKILL, f"finished before it was killed at step {at}"
    resumed = train(work, "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing after step" in resumed.stdout
    assert losses(work / "killed") == losses(work / "whole")
    for a, b in zip(final_params(work / "killed"), final_params(work / "whole"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signal_saves_and_the_same_command_continues(work: Path, how: signal.Signals, code: int) -> None:
    run = f"stopped-{how.name}"
    assert start_and_signal(work, run, 7, how) == code
    recorded = len(losses(work / run))
    saved = max(int(p.name) for p in (work / run / "checkpoints").iterdir())
    assert saved == recorded  # nothing was lost
    assert train(work, run).returncode == 0
    assert losses(work / run) == losses(work / "whole")


@pytest.mark.parametrize(
    "layout",
    [["layout.data=2", "layout.model=1"], ["layout.stage=2", "layout.data=1", "layout.model=1", "train.accumulation=2"]],
    ids=["fsdp", "pipeline"],
)
def test_resumed_on_another_layout(work: Path, layout: list[str]) -> None:
    run = f"moved-{len(layout)}"
    start_and_signal(work, run, 8, signal.SIGTERM)
    before = len(losses(work / run))
    done = train(work, run, *layout, "run.virtual_devices=2")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(losses(work / run)[:before], losses(work / "whole")[:before])
    np.testing.assert_allclose(losses(work / run), losses(work / "whole"), rtol=1e-5)


def test_two_processes_equal_one(work: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "qianyi", "train", "quickstart", *SMALL, "run.dir=two", "run.virtual_devices=4"]
    processes = [
        subprocess.Popen(
            command,
            cwd=work,
            env=os.environ | {"QIANYI_NUM_PROCESSES": "2", "QIANYI_PROCESS_ID": str(i), "QIANYI_COORDINATOR": address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [p.communicate(timeout=300) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    np.testing.assert_allclose(losses(work / "two"), losses(work / "whole"), rtol=1e-5)


def test_checkpoints_are_kept_by_count(work: Path) -> None:
    assert sorted(int(p.name) for p in (work / "whole" / "checkpoints").iterdir()) == [STEPS - STEPS % 5, STEPS]


def test_finished_run_is_left_alone(work: Path) -> None:
    before = (work / "whole" / "events.jsonl").read_bytes()
    again = train(work, "whole")
    assert again.returncode == 0, again.stderr
    assert (work / "whole" / "events.jsonl").read_bytes() == before


def test_other_model_or_data_is_refused(work: Path) -> None:
    other = train(work, "whole", "model.d_ff=128")
    assert other.returncode == 1
    assert "model.d_ff: checkpoint 96, recipe 128" in other.stderr and "Traceback" not in other.stderr
    seed = train(work, "whole", "data.seed=1")
    assert seed.returncode == 1
    assert "data.seed: checkpoint 0, recipe 1" in seed.stderr


def test_too_few_devices(work: Path) -> None:
    done = train(work, "few", "run.virtual_devices=4")
    assert done.returncode == 1
    assert "8 devices, but 4 are here" in done.stderr and "Traceback" not in done.stderr
    assert not (work / "few").exists()


def test_damaged_checkpoint_names_what_to_delete(work: Path) -> None:
    assert train(work, "damaged", "train.steps=10").returncode == 0
    newest = work / "damaged" / "checkpoints" / f"{10:08d}"
    for file in newest.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])
    done = train(work, "damaged", "train.steps=10")
    assert done.returncode == 1
    assert str(newest) in done.stderr and "delete that directory" in done.stderr and "Traceback" not in done.stderr


def test_loss_that_is_not_finite_stops_before_saving(work: Path) -> None:
    done = train(work, "nan", "optimizer.learning_rate=1e30", "optimizer.clip_norm=null", "schedule.warmup_steps=0")
    assert done.returncode == 1
    assert "stopped without saving" in done.stderr
    assert not list((work / "nan" / "checkpoints").glob("0*"))


def test_eval_and_generate(work: Path) -> None:
    run = [*SMALL, "run.dir=whole"]
    scores = json.loads(qianyi("eval", "quickstart", *run, "--json", cwd=work).stdout)
    assert scores["step"] == STEPS
    assert scores["bits_per_byte"] < scores["baselines"]["uniform"]
    last = json.loads((work / "whole" / "evals.jsonl").read_text().splitlines()[-1])
    assert scores["loss"] == last["loss"]
    arguments = ["generate", "quickstart", *run, "--prompt", "床前", "--max-tokens", "12", "--seed", "3"]
    first, second = (qianyi(*arguments, *how, cwd=work) for how in (["--stream"], ["--no-stream"]))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout and first.stdout.startswith("床前")


def test_an_export_continues_texts_as_the_run_does(work: Path) -> None:
    run, how = [*SMALL, "run.dir=whole"], ["--prompt", "床前", "--max-tokens", "12", "--seed", "3"]
    done = qianyi("export", "quickstart", *run, "--to", "exported", cwd=work)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == f"exported: Llama, step {STEPS}\n"
    of_run, of_export = qianyi("generate", "quickstart", *run, *how, cwd=work), qianyi("generate", "exported", *how, cwd=work)
    assert of_export.returncode == 0, of_export.stderr
    assert of_export.stdout == of_run.stdout and of_run.stdout.startswith("床前")
