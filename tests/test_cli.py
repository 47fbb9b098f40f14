"""The command line in real processes: exit codes, messages without tracebacks, quick help."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from qianyi.config import recipes
from qianyi.config.load import load

FULL = Path("/dev/full")


def qianyi(*arguments: str, stdout: int | TextIO = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qianyi", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


def instead(statement: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`qianyi show quickstart`, in which `show` does this instead."""
    program = f"""
import os, signal, sys, time
import qianyi.cli.show
from qianyi.cli.main import main
def run(recipe, overrides, layout):
    {statement}
qianyi.cli.show.run = run
sys.argv = ["qianyi", "show", "quickstart", *sys.argv[1:]]
main()
"""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_several_mistakes_are_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: gpt2-124m\nmodel:\n  n_head: 4\n")
    done = qianyi("train", str(tmp_path / "mine.yaml"), "train.steps=many", "layout.dat=2")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: mine.yaml:3: unknown key `model.n_head`; did you mean `model.n_heads`?",
        "error: command line: unknown key `layout.dat`; did you mean `layout.data`?",
        "error: command line: train.steps: expected an integer, found `many`",
    ]


def test_a_layout_that_does_not_fit_is_refused_before_anything_runs() -> None:
    done = qianyi("train", "quickstart", "layout.model=4")
    assert done.returncode == 2
    assert "layout.model=4 does not divide model.n_heads=6; 2, 3, 6 would" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--debug", "show", "gpt3-157b"), ("show", "gpt3-157b", "--debug")])
def test_debug_shows_the_traceback_in_any_place(arguments: tuple[str, ...]) -> None:
    assert "Traceback" in qianyi(*arguments).stderr
    plain = qianyi(*(a for a in arguments if a != "--debug"))
    assert plain.returncode == 2
    assert plain.stderr.startswith("error: recipe `gpt3-157b`") and "did you mean `gpt3-175b`?" in plain.stderr
    assert "Traceback" not in plain.stderr


@pytest.mark.parametrize(
    "arguments", [("trian",), ("train",), ("generate", "quickstart", "--top-p", "2"), ("show", "quickstart", "--x")]
)
def test_usage_errors(arguments: tuple[str, ...]) -> None:
    done = qianyi(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ") and "Error: " in done.stderr


def test_a_missing_run_has_exit_code_1(tmp_path: Path) -> None:
    done = qianyi("report", str(tmp_path / "no-run"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/no-run")


def test_a_model_file_is_not_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    missing = qianyi("generate", str(file))
    assert (missing.returncode, missing.stderr) == (1, f"error: {file}: no such file\n")
    overridden = qianyi("generate", str(file), "train.steps=3")
    assert overridden.returncode == 2
    assert overridden.stderr == f"error: {file} is a model, not a recipe; train.steps=3 would change nothing\n"


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        ("raise OSError(28, 'No space left on device', 'a/b')", 1, "error: a/b: the disk is full; free some room and run again\n"),
        ("raise PermissionError(13, 'Permission denied', 'a/b')", 1, "error: a/b: Permission denied\n"),
        (
            "raise RuntimeError('one\\ntwo')", 70,
            "error: internal error: RuntimeError: one; run again with --debug and report what it prints\n",
        ),
        ("raise BrokenPipeError(32, 'Broken pipe')", 1, ""),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(10)", 130, ""),
    ],
)  # fmt: skip
def test_unexpected_ends(error: str, exit_code: int, message: str) -> None:
    done = instead(error)
    assert (done.returncode, done.stderr) == (exit_code, message)


def test_debug_shows_defects() -> None:
    assert "Traceback" in instead("raise RuntimeError('one')", "--debug").stderr


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output() -> None:
    with FULL.open("w") as full:
        done = qianyi("show", "quickstart", stdout=full)
    assert (done.returncode, done.stderr) == (1, "error: the disk is full; free some room and run again\n")


def test_a_reader_that_leaves_is_not_an_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        assert qianyi("show", "quickstart", stdout=write).stderr == ""
    finally:
        os.close(write)


def test_a_terminal_without_chinese() -> None:
    done = instead("print('千亿')", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u5343\\u4ebf\n", "")


def test_show_prints_a_recipe_that_loads_with_origins_and_totals(tmp_path: Path) -> None:
    done = qianyi("show", "llama3-8b", "train.steps=9000")
    (tmp_path / "again.yaml").write_text(done.stdout)
    assert load(str(tmp_path / "again.yaml")).config == load("llama3-8b", ["train.steps=9000"]).config
    header = "".join(line for line in done.stdout.splitlines() if line.startswith("#"))
    for words in ("8,030,261,248 parameters (8.03B)", "4.19M tokens per step, 37.75B in all", "cosine to 3e-06 at step 9,000"):
        assert words in header
    lines = {line.split(":")[0].strip(): line.partition(" # ")[2] for line in done.stdout.splitlines() if line[0] != "#"}
    assert (lines["steps"], lines["d_model"], lines["b1"]) == ("command line", "llama3-8b.yaml:9", "default")


def test_recipes_are_one_line_each_in_a_pipe() -> None:
    lines = qianyi("recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["recipe", "bert-tiny", "t5-tiny", "quickstart", "t5-small"], (
        "the smallest first"
    )
    assert lines[4].split()[:3] == ["t5-small", "60.51M", "8"] and "Raffel" in lines[4]
    assert len(lines) == 1 + len(recipes.names()) and not any("\x1b" in line for line in lines)


def test_version_and_help() -> None:
    assert qianyi("--version").stdout.startswith("qianyi ")
    text = qianyi("--help").stdout
    assert "key.sub=value" in text
    for verb in ("recipes", "show", "train", "eval", "generate", "export", "report", "quickstart", "data"):
        assert f"  {verb} " in text
        assert qianyi(verb, "--help").returncode == 0


def test_help_imports_nothing_heavy() -> None:
    loaded = "import sys, qianyi.cli.main; print([m for m in ('jax', 'numpy', 'pydantic', 'rich', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
