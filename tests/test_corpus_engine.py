"""The engine does every unit once, wherever it runs; what goes wrong in a worker is said as if it had gone wrong here."""

import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import corpus_works
import psutil
import pytest
from corpus_works import content, misbehave, who
from dedup_corpora import DOCUMENTS, make_corpus, real_texts

from qianyi.corpus.dedup.stage import dedup
from qianyi.corpus.engine import WORTH_BYTES, engine_of, map_units, worker_count
from qianyi.corpus.parts import Options, run_parts
from qianyi.corpus.worker import WorkerError
from qianyi.errors import ConfigError, DataError, ResourceError

WORKS = Path(__file__).parent / "corpus_works.py"


def units(n: int, **at_two: object) -> list[dict[str, object]]:
    return [{"number": i, **(at_two if i == 2 else {})} for i in range(n)]


def started(out: Path, workers: int, work: list[dict[str, object]], **environment: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, str(WORKS), str(out), str(workers), json.dumps(work)]
    return subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}, start_new_session=True
    )


def finished_units(out: Path) -> int:
    return len(list((out / "done").glob("[0-9]*.json"))) if (out / "done").is_dir() else 0


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        ("refuse", DataError, r"^x\.jsonl:3: broken JSON$"),
        ("fail", WorkerError, r"Traceback[^~]*no such thing"),
        ("die", ResourceError, r"a worker was ended by the system, as happens when memory runs out; use fewer workers"),
    ],
)
def test_what_goes_wrong_in_a_worker(tmp_path: Path, do: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_parts(tmp_path / "out", "s", {}, units(6, do=do), misbehave, [], Options(workers=2))
    run_parts(tmp_path / "out", "s", {}, units(6), misbehave, [])
    run_parts(tmp_path / "alone", "s", {}, units(6), misbehave, [])
    assert content(tmp_path / "out") == content(tmp_path / "alone")


def test_a_worker_that_grows_is_stopped(tmp_path: Path) -> None:
    limited = [
        "prlimit",
        f"--data={2 << 30}",
        sys.executable,
        str(WORKS),
        str(tmp_path / "out"),
        "2",
        json.dumps(units(3, do="grow")),
    ]
    run = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert run.returncode == ResourceError.exit_code
    assert re.search(r"out: a worker ran out of memory .*; use fewer workers; the same command goes on", run.stderr), run.stderr


def test_processes_stay_until_something_goes_wrong() -> None:
    def used(n_units: int, workers: int = 3) -> set[int]:
        return {answer["pid"] for answer in map_units(who, units(n_units, seconds=0.2), workers, "native")}

    two = used(2)
    assert len(two) == 2 and os.getpid() not in two
    three = used(9)  # more units, more processes
    assert len(three) == 3 and not three & two
    assert used(9) == three and used(2) < three
    assert not used(9, workers=2) & three
    for failing in (units(8, do="fail"), [{"do": "fail"}] * 8):  # some processes are still starting when all fail
        with pytest.raises(WorkerError):
            list(map_units(who, failing, 3, "native"))
    assert not used(9) & three


def test_a_worker_that_ends_while_it_starts_is_no_wait_without_end() -> None:
    def kill_one() -> None:
        while True:
            for process in set(psutil.Process().children()) - others:
                with suppress(psutil.Error):
                    if "daft.execution.udf_worker" in process.cmdline():
                        return process.kill()
            time.sleep(0.02)

    others = set(psutil.Process().children())
    killer = Thread(target=kill_one)
    killer.start()
    with pytest.raises(ResourceError, match="a worker was ended by the system"):
        list(map_units(who, units(6, seconds=0.1), 4, "native"))
    killer.join()
    assert len(list(map_units(who, units(6), 4, "native"))) == 6


def test_ctrl_c_and_kill_lose_no_finished_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, work = tmp_path / "out", [{"number": i, "seconds": 0.5} for i in range(8)]
    for sign, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        before = finished_units(out)
        run = started(out, 2, work)
        while finished_units(out) == before and run.poll() is None:
            time.sleep(0.02)
        os.killpg(run.pid, sign) if sign == signal.SIGINT else run.kill()
        message = run.communicate()[1]
        assert run.returncode == code, message
        if sign == signal.SIGINT:
            assert "pieces are finished: the same command goes on" in message and "Traceback" not in message
        assert before < finished_units(out) < 8
    monkeypatch.setattr(corpus_works, "time", SimpleNamespace(sleep=lambda _: None))  # here nothing has to be slow
    run_parts(out, "misbehave", {}, work, misbehave, [])  # waits for workers that the killed run left
    run_parts(tmp_path / "alone", "misbehave", {}, work, misbehave, [])
    assert content(out) == content(tmp_path / "alone")


def test_choice_of_workers_and_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_count(0, 1000) == len(os.sched_getaffinity(0))
    assert (worker_count(0, 1000, WORTH_BYTES - 1), worker_count(2, 1000, 1), worker_count(2, 1000, WORTH_BYTES)) == (1, 2, 2)
    assert (worker_count(8, 3), worker_count(2, 3), worker_count(4, 0)) == (3, 2, 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert engine_of("auto") == "native"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert (engine_of("auto"), engine_of("native")) == ("ray", "native")
    with pytest.raises(ConfigError, match="engine `dask`: expected auto, native, ray"):
        engine_of("dask")


@contextmanager
def ray_cluster(directory: Path) -> Generator[dict[str, str]]:
    """Two workers on this machine; the environment in which runs find them."""
    port = 20000 + os.getpid() % 10000
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(24),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    options = ["--head", "--block", f"--port={port}", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--temp-dir={directory}"]
    log = directory.with_suffix(".log")
    with log.open("w") as output:
        head = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", *options, "--include-dashboard=false", "--disable-usage-stats"],
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
        )
        try:
            while "Ray runtime started" not in log.read_text():
                assert head.poll() is None, log.read_text()
                time.sleep(0.2)
            yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        finally:
            head.terminate()
            head.wait()
            shutil.rmtree(directory, ignore_errors=True)
            log.unlink()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'qianyi[ray]'")
def test_ray_makes_the_same_bytes(tmp_path: Path) -> None:
    texts = [*real_texts()[:6], *(text.lower() for text in real_texts()[3:6]), *(text + " x" for text in real_texts()[:2])]
    corpus = make_corpus(tmp_path / "in", texts, 6)
    with ray_cluster(Path("/tmp") / f"qianyi-ray-{os.getpid()}") as environment:  # its sockets need a short path
        arguments = [sys.executable, str(WORKS.with_name("corpus_ray.py")), str(tmp_path)]
        run = subprocess.run(arguments, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert run.returncode == 0, run.stderr
    assert run.stdout == "x.jsonl:3: broken JSON\n"
    assert json.loads((tmp_path / "ray" / "run.json").read_text())["engine"] == "ray"
    run_parts(tmp_path / "alone", "misbehave", {}, units(9), misbehave, [])
    assert content(tmp_path / "ray") == content(tmp_path / "alone")
    (tmp_path / "dedup").rename(tmp_path / "dedup-ray")  # plans name the directory that is made
    assert dedup([corpus], tmp_path / "dedup", DOCUMENTS)["reasons"] == {"exact_duplicate": 3, "near_duplicate": 2}
    assert content(tmp_path / "dedup-ray") == content(tmp_path / "dedup")
