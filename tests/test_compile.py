"""`qianyi compile`: targets, options, refusals, reports, and the check that what runs is what was compiled."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from compilers import need, write_recipe
from corpora import corpus, one_source, silent
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding
from models import LLAMA, make_config
from test_cli import qianyi
from test_objective_data import BATCH, GLM, MLM, PAIRS, SEQ_LEN, T5, VOCAB, pair_source, pairs
from test_train import SMALL

from qianyi.cli import compile as compile_cli
from qianyi.compile import compilers, search
from qianyi.compile.costs import pricing
from qianyi.compile.fingerprint import FILE, check_fingerprint, fingerprint, versions
from qianyi.compile.outcome import Outcome, TooLarge, too_large, with_layout
from qianyi.compile.target import target
from qianyi.config.load import load
from qianyi.config.objective import MODEL_KINDS
from qianyi.config.schema import Config, DataConfig, LayoutConfig, ModelConfig, TrainConfig
from qianyi.data.load import TrainingData
from qianyi.data.prepare import prepare
from qianyi.errors import ConfigError, ResourceError
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.options import compiler_options, table_of
from qianyi.parallel.rules import batch_spec
from qianyi.program.hlo import parse
from qianyi.train.batch import abstract_batch

# Targets.


@pytest.mark.parametrize(
    ("text", "platform", "topology", "slices", "devices", "gigabytes"),
    [
        ("tpu-v5p:2x2x2", "tpu", "v5p:2x2x2", 1, 8, 95),
        ("tpu-v7:2x2x1", "tpu", "tpu7x:2x2x1", 1, 8, 103),  # a chip is two devices, which share its memory
        ("tpu-v4:2x2x4", "tpu", "v4:2x2x4", 1, 16, 32),  # a chip's two cores are one device
        ("tpu-v6e:4x4*2", "tpu", "v6e:4x4", 2, 32, 32),
        ("h100:4x8", "cuda", "1x4x8", 1, 32, 80),
        ("b200:1x8", "cuda", "1x1x8", 1, 8, 192),
    ],
)
def test_targets(text: str, platform: str, topology: str, slices: int, devices: int, gigabytes: int) -> None:
    found = target(text)
    assert (found.platform, found.topology, found.slices, found.n_devices) == (platform, topology, slices, devices)
    assert found.hbm_bytes_per_device / 1e9 == pytest.approx(gigabytes, rel=0.1)


def test_compilers_see_as_many_devices() -> None:
    need("tpu")
    texts = ["tpu-v7:2x2x1", "tpu-v4:2x2x4", "tpu-v6e:4x4*2"]
    program = f"""
from dataclasses import asdict
from qianyi.compile.job import absent_devices
from qianyi.compile.target import target
for text in {texts}:
    devices = absent_devices(asdict(target(text)), None)
    print(len(devices), len({{getattr(d, "slice_index", 0) for d in devices}}), sep=",")
"""
    env = os.environ | compilers.ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([os.environ.get(compilers.WHERE, ""), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{target(text).n_devices},{target(text).slices}" for text in texts]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h10:1x8", "unknown chip `h10`; did you mean `h100`"),
        ("mi300x:1x8", r"there is no compiler for mi300x \(there is for .*h100"),
        ("tpu-v5p:2x2", "a torus of 3 dimensions"),
        ("v5p", "expected CHIP:SHAPE"),
    ],
)
def test_what_is_no_target(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        target(text)


def test_a_compiler_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(compilers.WHERE, str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for on, package in (("tpu-v5p:2x2x2", "libtpu"), ("h100:1x8", "jax_plugins/xla_cuda12, nvidia/cuda_nvcc")):
        with pytest.raises(ResourceError, match=rf"\({package} not found\): pip install 'qianyi\[compile\]'"):
            compilers.compile_step("quickstart", [], target(on))
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert "compile" in project["optional-dependencies"]


# Layouts and options.


def test_layouts_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="layout data 4 x model 2 is of 8 devices, h100:1x4 has 4; change either"):
        with_layout("quickstart", ["layout.data=4"], target("h100:1x4"))
    with pytest.raises(ConfigError, match=r"tpu-v7:2x2x1 has 8 \(two for each chip\)"):
        with_layout("quickstart", ["layout.data=2"], target("tpu-v7:2x2x1"))


def test_layouts_are_kept_if_they_fit_and_planned_if_nothing_is_said() -> None:
    assert with_layout("quickstart", ["train.steps=3"], target("h100:1x8")) == ("train.steps=3",)
    planned = with_layout("quickstart", [], target("h100:1x4"))
    assert load("quickstart", list(planned)).config.layout.n_devices == 4


def test_options_are_those_of_the_chip_and_ones_own() -> None:
    schedule, unroll = "xla_gpu_enable_latency_hiding_scheduler", "xla_gpu_enable_while_loop_double_buffering"
    assert table_of("NVIDIA H100 80GB HBM3") == {schedule: True, unroll: True}
    assert not table_of("cpu")
    assert not any(name.startswith("xla_gpu") for name in table_of("TPU v5p"))
    h100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((8,), ("data",), abstract_device=h100)):
        assert compiler_options() == {schedule: True, unroll: True}
        assert compiler_options({unroll: None, schedule: False, "x": 3}) == {schedule: False, "x": 3}
    own = load("quickstart", ["run.compiler_options={xla_x: 1}", "run.compiler_options.xla_y=null"]).config.run.compiler_options
    assert own == {"xla_x": 1, "xla_y": None}
    # Training on a CPU gets none but its own.
    with jax.set_mesh(make_mesh(LayoutConfig(data=8))):
        assert compiler_options() == {}
        assert compiler_options({"x": True}) == {"x": True}


# Batches.


def model_for(train: TrainConfig) -> ModelConfig:
    kind = MODEL_KINDS[train.objective.kind]
    return ModelConfig.model_validate(
        {"kind": kind, "vocab_size": VOCAB, "n_layers": 1, "d_model": 16, "n_heads": 2, "max_seq_len": 40}
    )


@pytest.mark.parametrize(
    "train",
    [
        TrainConfig(seq_len=SEQ_LEN, batch_size=BATCH),
        TrainConfig(seq_len=SEQ_LEN, batch_size=BATCH, document_mask=True),
        MLM,
        T5,
        GLM,
        PAIRS,
    ],
    ids=lambda train: train.objective.kind + ("-documents" if train.document_mask else ""),
)
def test_abstract_batches_are_as_real_ones(train: TrainConfig, tmp_path: Path) -> None:
    data: DataConfig = pair_source(tmp_path, pairs(60)) if train is PAIRS else one_source(tmp_path, corpus(60, 1))
    prepare(data, VOCAB, silent, train)
    config = Config(model=model_for(train), train=train, layout=LayoutConfig(data=4), data=data)
    mesh = make_mesh(config.layout, jax.devices()[:4])
    real = next(TrainingData(data, train).batches(NamedSharding(mesh, batch_spec(config.layout)), 0, 1))
    said = abstract_batch(config, mesh)
    assert {name: (a.shape, a.dtype, a.sharding) for name, a in said.items()} == {
        name: (a.shape, np.dtype(a.dtype), a.sharding) for name, a in real.items()
    }


# Costs.

ASYNC = """HloModule test

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (p: f32[1048576]) -> f32[1048576] {
  %p = f32[1048576] parameter(0)
  %q = f32[1048576] all-reduce(%p), replica_groups={}, to_apply=%add
  %r = f32[1048576] all-reduce-start(%q), replica_groups={}, to_apply=%add
  %s = f32[1048576] all-reduce-done(%r)
  ROOT %x = f32[1048576] exponential(%s)
}
"""


@pytest.mark.parametrize("on", ["h100:1x8", "tpu-v5p:2x2x2"])
def test_a_sum_takes_its_link_whether_it_is_awaited_or_not(on: str) -> None:
    priced = pricing(parse(ASYNC), target(on), {"data": 8}, "bf16")
    table = priced.module.tables["main"]
    at_once, begun = priced.cost(table["q"], table), priced.cost(table["r"], table)
    assert at_once is not None and at_once == begun
    assert (at_once.resource, at_once.term) == ("links", "all-reduce over data")
    assert at_once.seconds > 2 * 7 / 8 * 2**22 / target(on).cluster.chip.links / target(on).cluster.chip.link_bytes_per_second


def test_elementwise_operations_of_gpus_take_the_time_of_their_bytes() -> None:
    priced = pricing(parse(ASYNC), target("h100:1x8"), {"data": 8}, "bf16")
    table = priced.module.tables["main"]
    work = priced.cost(table["x"], table)
    assert work is not None and (work.resource, work.term) == ("core", "elementwise")
    assert 2 * 2**22 / 3.352e12 <= work.seconds < 2 * 2 * 2**22 / 3.352e12


# What does not fit.

TOO_LARGE = """
model: {vocab_size: 262144, n_layers: 1, d_model: 4096, n_heads: 32, n_kv_heads: 8, d_ff: 4096, max_seq_len: 128, norm: rmsnorm,
  mlp: swiglu, position: rope, bias: false, tied_embeddings: false}
layout: {data: 8, zero: 0}
train: {batch_size: 8, seq_len: 128}
"""


def test_a_program_that_does_not_fit(tmp_path: Path) -> None:
    """A vocabulary of which every device is to hold all."""
    need("tpu")
    (tmp_path / "large.yaml").write_text(TOO_LARGE)
    numbers, report = tmp_path / "numbers.json", tmp_path / "report"
    done = qianyi(
        "compile", str(tmp_path / "large.yaml"), "--target", "tpu-v5e:2x4", "--json", str(numbers), "--dir", str(report)
    )
    assert done.returncode == 1
    assert "does not fit" in done.stderr
    assert "Planned to fit: " in done.stderr and " layout.model=" in done.stderr
    found = json.loads(numbers.read_text())
    state = 12 * (2 * 262144 * 4096 + 4096 * (2 * 4096 + 2 * 1024 + 3 * 4096))
    assert found["argument_bytes"] == pytest.approx(state, rel=0.01)
    assert found["peak_bytes"] > found["argument_bytes"] > found["hbm_bytes"] == pytest.approx(16.9e9, rel=0.01)
    assert found["fits"] is False and found["step_seconds"] is None
    assert "does not fit" in (report / "compile.html").read_text()
    assert not (report / FILE).exists()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded",
            TooLarge(3, int(20.5 * 2**30), int(15.75 * 2**30)),
        ),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (35.00G) exceeds available HBM (512.0M).",
            TooLarge(3, 35 * 2**30 + 3, 2**29),
        ),
        ("INTERNAL: Mosaic failed to compile", None),
    ],
    ids=["all", "temporaries", "another reason"],
)
def test_what_the_compiler_says_of_memory(message: str, expected: TooLarge | None) -> None:
    assert too_large(message, 3) == expected


# One that fits.

TINY = LLAMA.model_copy(
    update={"d_model": 256, "n_heads": 4, "n_kv_heads": 2, "d_ff": 512, "vocab_size": 1024, "dtype": "bfloat16"}
)
KEYS = (
    *("argument_bytes", "temp_bytes", "peak_bytes", "hbm_bytes", "fits", "step_seconds", "mfu", "compile_seconds"),
    *("collectives", "findings"),
)


def test_command_reads_a_step(tmp_path: Path) -> None:
    need("cuda")
    config = make_config(TINY.model_copy(update={"max_seq_len": 128}), LayoutConfig(data=4, model=2), seq_len=128)
    numbers, report = tmp_path / "numbers.json", tmp_path / "report"
    own = "run.compiler_options={xla_gpu_enable_while_loop_double_buffering: null}"
    recipe = write_recipe(config, tmp_path)
    done = qianyi("compile", recipe, own, "--target", "h100:1x8", "--json", str(numbers), "--dir", str(report))
    assert done.returncode == 0, done.stderr
    found = json.loads(numbers.read_text())
    assert set(KEYS) <= found.keys()
    assert found["fits"] is True
    assert found["argument_bytes"] < found["peak_bytes"] < found["hbm_bytes"]
    assert found["read_seconds"] > found["floor_seconds"] > 0
    assert sum(found["terms"].values()) == pytest.approx(found["read_seconds"])
    low, high = found["step_seconds_range"]
    assert 0 < low < found["step_seconds"] < high
    assert 0 < found["mfu"] < 1
    assert found["options"] == {"xla_gpu_enable_latency_hiding_scheduler": True}
    sent = {(c["kind"], c["axes"]): c for c in found["collectives"]}
    assert {("all-gather", "data"), ("reduce-scatter", "data"), ("all-gather", "model")} <= sent.keys()
    assert all(c["link"] == "chip links" and 0 <= c["hidden_share"] <= 1 and c["count"] for c in sent.values())
    # Chips have one network, on which transfers follow each other.
    assert found["read_seconds"] >= 0.99 * sum(c["seconds"] for c in sent.values())
    page = (report / "compile.html").read_text()
    assert "fits: " in page and "reduce-scatter" in page and all(f["kind"] in page for f in found["findings"])
    assert "MFU" in done.stdout and str(report / "compile.html") in done.stdout
    assert parse((report / "program.txt").read_text()).entry
    proven = json.loads((report / FILE).read_text())
    assert proven["target"] == {"device_kind": "NVIDIA H100 80GB HBM3", "n_devices": 8, "layout": "data 4 x model 2"}
    assert proven["options"] == found["options"]
    check_fingerprint(report, proven)


def test_search_compiles_the_best_plans(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need("cuda")
    monkeypatch.setattr(compile_cli, "KEEP", 2)
    config = make_config(TINY.model_copy(update={"n_layers": 1}), LayoutConfig())
    compile_cli.run_search(
        write_recipe(config, tmp_path), [], "h100:1x4", "stage=1,model=1", tmp_path / "found.json", tmp_path / "report"
    )
    found = json.loads((tmp_path / "found.json").read_text())
    said = capsys.readouterr().out
    seconds = [
        float(line.partition(" s by the program")[0].split()[-1]) for line in said.splitlines() if "s by the program, " in line
    ]
    assert len(seconds) == 2
    assert found["fits"] and found["n_devices"] == 4
    assert found["step_seconds"] == pytest.approx(min(seconds), rel=0.01)


def stubbed(monkeypatch: pytest.MonkeyPatch, peaks: dict[str, float], seconds: dict[str, float]) -> list[str]:
    """In place of compiling: layouts with these peaks, in shares of an H100, and times. The list fills with layouts compiled."""
    done: list[str] = []
    hbm = target("h100:1x8").hbm_bytes_per_device

    def compile_recipe(recipe: str, overrides: list[str], on: Any) -> Any:
        config = load(recipe, overrides).config
        layout = "model" if config.layout.model > 1 else "data"
        done.append(layout)
        reading = object.__new__(search.Reading)
        reading.__dict__.update(fits=peaks[layout] <= 1, peak_bytes=peaks[layout] * hbm, step_seconds=seconds[layout])
        return Outcome(recipe, tuple(overrides), config, on, None, None, reading)  # pyright: ignore[reportArgumentType]

    def plans(*_: Any, usable: float, **__: Any) -> Any:
        names = ["data=8", "model=8"] if usable < 0.9 else ["data=8"]
        plan = SimpleNamespace(memory_bytes=0.8 * hbm, memory={"runtime": 0.0})
        return SimpleNamespace(choices=[SimpleNamespace(**vars(plan), overrides=(f"layout.{n}",)) for n in names])

    monkeypatch.setattr(search, "compile_recipe", compile_recipe)
    monkeypatch.setattr(search, "search", plans)
    return done


def best(tmp_path: Path) -> search.Searched:
    recipe = write_recipe(make_config(TINY.model_copy(update={"n_heads": 8, "n_kv_heads": 8}), LayoutConfig()), tmp_path)
    return search.compile_best(recipe, [], target("h100:1x8"), {}, 2, lambda _: None)


def test_search_takes_the_fastest_that_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is fastest of all does not fit; then the planner is allowed less memory."""
    monkeypatch.setattr(search, "USABLE", 0.95)
    done = stubbed(monkeypatch, {"data": 1.5, "model": 0.5}, {"data": 1.0, "model": 2.0})
    found = best(tmp_path)
    assert done == ["data", "model"]
    assert found.best.config.layout.model == 8
    assert found.usable == pytest.approx(0.95 / 1.5)
    assert found.memory_error == pytest.approx(0.8 / 1.5 - 1)
    monkeypatch.setattr(search, "USABLE", 0.85)
    stubbed(monkeypatch, {"data": 0.9, "model": 0.5}, {"data": 1.0, "model": 2.0})
    assert best(tmp_path).best.config.layout.data == 8
    stubbed(monkeypatch, {"data": 3.0, "model": 2.0}, {"data": 1.0, "model": 2.0})
    with pytest.raises(
        ConfigError, match=r"none of 2 layouts fits; the smallest, model 8, needs 160\.0 GB of 80: take more chips"
    ):
        best(tmp_path)


# What runs is what was compiled.


def proven(overrides: list[str], directory: Path, **changes: Any) -> dict[str, Any]:
    """A compile report of a recipe for virtual devices: as much of it as training reads."""
    config = load("quickstart", overrides).config
    found = fingerprint(config, "cpu", config.layout.n_devices, {}, versions()) | changes
    directory.mkdir(exist_ok=True)
    (directory / FILE).write_text(json.dumps(found))
    return found


def test_training_stops_if_it_is_not_what_was_compiled(tmp_path: Path) -> None:
    source = one_source(tmp_path, corpus(40, 1)).sources[0]
    shaping = [*SMALL, "schedule.warmup_steps=0", "layout.data=1", "layout.model=1", "model.n_layers=1"]
    idle = [
        "train.steps=1",
        f"data.sources=[{{name: x, path: {source.path}}}]",
        f"data.dir={tmp_path / 'data'}",
        f"run.dir={tmp_path / 'run'}",
        "run.virtual_devices=1",
        f"run.compiled={tmp_path / 'report'}",
    ]
    proven(shaping, tmp_path / "report")
    done = qianyi("train", "quickstart", *shaping, *idle, "model.d_ff=128")
    assert done.returncode == 2
    assert "this is not the program that was compiled:" in done.stderr
    assert "  model.d_ff: 128, compiled with 96" in done.stderr
    assert not (tmp_path / "data").exists()
    done = qianyi("train", "quickstart", *shaping, *idle)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "events.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packages": {"jax": "0.0.1"}}, r"\n  jax: [\d.]+, compiled with 0\.0\.1\n"),
        ({"packages": {"libtpu": "0.0.1"}}, None),  # compiled elsewhere
        ({"options": {"x": 1}}, r"\n  run\.compiler_options x: None, compiled with 1\n"),
        (
            {"target": {"device_kind": "TPU v5p", "n_devices": 16, "layout": "data 4 x model 2"}},
            r"\n  device_kind: cpu, compiled with TPU v5p\n  n_devices: 8, compiled with 16\n",
        ),
    ],
    ids=["package", "package that is not here", "option", "target"],
)
def test_every_difference_is_named(changes: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    now = proven([], tmp_path)
    proven([], tmp_path, **changes)
    if message is None:
        check_fingerprint(tmp_path, now)
        return
    with pytest.raises(ConfigError, match=message):
        check_fingerprint(tmp_path, now)


def test_what_does_not_shape_the_program_may_change(tmp_path: Path) -> None:
    proven([], tmp_path)

    def now(*overrides: str) -> dict[str, Any]:
        return fingerprint(load("quickstart", list(overrides)).config, "cpu", 8, {}, versions())

    check_fingerprint(tmp_path, now("train.steps=7", "train.eval_every=3", "data.dir=elsewhere", "run.dir=elsewhere"))
    for key in ("train.seq_len=64", "optimizer.weight_decay=0.2", "layout.zero=1", "schedule.warmup_steps=30"):
        with pytest.raises(ConfigError, match=rf"\n  {key.partition('=')[0]}: "):
            check_fingerprint(tmp_path, now(key))
    with pytest.raises(ConfigError, match="no compile report there"):
        check_fingerprint(tmp_path / "none", now())
