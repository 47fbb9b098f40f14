"""Recipes resolve, every mistake is one message with its place, and what ships has its published size."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qianyi.config import recipes
from qianyi.config.check import check
from qianyi.config.counts import parameter_count
from qianyi.config.load import dump, leaf_keys, load
from qianyi.config.schema import Config
from qianyi.errors import ConfigError, QianyiError, ResourceError


def mistake(tmp_path: Path, text: str, *overrides: str) -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        check(load(str(file), overrides).config)
    return str(error.value)


def test_few_keys() -> None:
    assert len(leaf_keys(Config)) < 120


def test_every_key_is_documented() -> None:
    def walk(part: type) -> None:
        for name, field in part.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                walk(field.annotation)
            else:
                assert field.description, name

    walk(Config)


@pytest.mark.parametrize("name", recipes.names())
def test_shipped_recipes_resolve_and_round_trip(name: str, tmp_path: Path) -> None:
    resolved = load(name)
    check(resolved.config)
    assert resolved.config.description
    (tmp_path / "again.yaml").write_text(dump(resolved))
    assert load(str(tmp_path / "again.yaml")).config == resolved.config


PUBLISHED = {
    "gpt2-124m": (124_439_808, 0),
    # Brown et al. 2020, table 2.1, rounds: "6.7B" and "175.0B".
    "gpt3-6.7b": (6.7e9, 0.01),
    "gpt3-175b": (175.0e9, 0.003),
    # Counts of the released weights.
    "llama3-8b": (8_030_261_248, 0),
    "llama3-405b": (405_853_388_800, 0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    from qianyi.model import flops

    model = load(name).config.model
    published, tolerance = PUBLISHED[name]
    assert abs(parameter_count(model) - published) <= tolerance * published
    assert parameter_count(model) == flops.parameter_count(model)


def test_origins_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: gpt2-124m\ntrain:\n  steps: 7\n  batch_size: 32\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\noptimizer: {learning_rate: 1e-4}\ntrain:\n  batch_size: 64\n")
    resolved = load(str(tmp_path / "mine.yaml"), ["train.seq_len=128", "model.remat=[attn_out]", "optimizer.clip_norm=null"])
    config, origins = resolved.config, resolved.origins
    assert (config.train.steps, config.train.batch_size, config.train.seq_len) == (7, 64, 128)
    assert config.optimizer.learning_rate == 1e-4 and config.optimizer.clip_norm is None
    assert config.model.remat == ("attn_out",)
    assert origins["train.steps"] == "base.yaml:3"
    assert origins["train.batch_size"] == "mine.yaml:4"
    assert origins["train.seq_len"] == "command line"
    assert origins["model.d_model"] == "gpt2-124m.yaml:7"
    assert origins["optimizer.b1"] == "default"
    assert config.data.validation_fraction == Config().data.validation_fraction


@pytest.mark.parametrize(
    ("text", "overrides", "fragments"),
    [
        ("model:\n  n_head: 4\n", [], ["mine.yaml:2", "model.n_head", "did you mean `model.n_heads`"]),
        ("train: {steps: many}\n", [], ["mine.yaml:1", "train.steps", "expected integer", "'many'"]),
        ("train: {steps: 0}\n", [], ["mine.yaml:1", "train.steps", "greater than or equal to 1", "0"]),
        ("model: {norm: rmsnrm}\n", [], ["model.norm", "'layernorm' or 'rmsnorm'", "did you mean `rmsnorm`"]),
        ("model: {bias: 1}\n", [], ["model.bias", "boolean"]),
        ("model: {n_heads: 5}\n", [], ["mine.yaml:1", "d_model 768 is not a multiple of n_heads 5"]),
        ("model: 3\n", [], ["mine.yaml:1", "`model` is a group of keys"]),
        ("a: [1\n", [], ["mine.yaml:2", "not valid YAML"]),
        ("- 1\n", [], ["mine.yaml:1", "expected `key: value` lines"]),
        ("train: {steps: 1}\ntrain: {steps: 2}\n", [], ["mine.yaml:2", "set twice"]),
        ("extends: gpt2-125m\n", [], ["gpt2-125m", "did you mean `gpt2-124m`"]),
        ("extends: mine.yaml\n", [], ["circle"]),
        ("data: {sources: [{name: a, paht: x}]}\n", [], ["mine.yaml:1", "data.sources", "paht"]),
        ("", ["train.steps"], ["command line", "`train.steps`", "key.sub=value"]),
        ("", ["train.step=3"], ["command line", "did you mean `train.steps`"]),
        ("", ["layout.model=5"], ["layout.model=5", "model.n_heads=12", "4, 6"]),
        ("", ["layout.model=2"], ["model.vocab_size=50257", "pad it to 50258"]),
        ("", ["layout.data=5", "train.batch_size=5"], ["layout.data=5", "model.d_model=768"]),
        ("", ["layout.data=8", "train.batch_size=12"], ["train.batch_size=12", "8", "use 16"]),
        ("", ["train.seq_len=2048"], ["train.seq_len=2048", "model.max_seq_len=1024"]),
        ("", ["schedule.warmup_steps=1000"], ["schedule.warmup_steps=1000", "train.steps=1000"]),
        ("", ["model.remat=[nothing]"], ["`nothing`", "attn_out"]),
        ("", ["run.virtual_devices=8", "run.platform=gpu"], ["run.virtual_devices", "gpu"]),
        ("data: {sources: [{name: a, path: x}, {name: a, path: y}]}\n", [], ["two sources named `a`"]),
        ("data: {sources: [{name: a, path: x, weight: 1}, {name: b, path: y}]}\n", [], ["b has no weight"]),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, text: str, overrides: list[str], fragments: list[str]) -> None:
    message = mistake(tmp_path, text, *overrides)
    assert all(fragment in message for fragment in fragments), message


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    message = mistake(tmp_path, "model:\n  n_head: 4\n", "train.steps=x", "layout.zero=2")
    assert len(message.splitlines()) == 3


def test_devices() -> None:
    config = load("quickstart").config
    check(config, 8)
    with pytest.raises(ResourceError, match=r"8 devices, but 4 are here.*run\.virtual_devices=8"):
        check(config, 4)
    with pytest.raises(ConfigError, match="16 are here"):
        check(config, 16)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "qianyi", *arguments], capture_output=True, text=True, check=False)


def test_exit_codes_and_messages() -> None:
    unknown = command("show", "gpt3-157b")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: ") and "did you mean `gpt3-175b`" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    assert command("trian").returncode == 2
    assert "Traceback" in command("show", "gpt3-157b", "--debug").stderr
    assert command("report", "/nowhere").returncode == 1
    assert command("--version").stdout.startswith("qianyi ")


def test_show_prints_a_recipe_that_loads() -> None:
    out = command("show", "llama3-8b", "train.steps=9000").stdout
    assert yaml.safe_load(out)["train"]["steps"] == 9000
    assert "8,030,261,248 parameters" in out and "# command line" in out


def test_help_imports_nothing_heavy() -> None:
    loaded = "import sys, qianyi.cli.main; print([m for m in ('jax', 'numpy', 'pydantic', 'rich', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_errors_have_their_exit_codes() -> None:
    assert issubclass(ConfigError, QianyiError) and ConfigError.exit_code == 2 and ResourceError.exit_code == 1
