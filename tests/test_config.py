"""Recipes resolve, every value knows where it came from, every mistake is one line with its place."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from qianyi.config.check import ACTIVATIONS, MATMUL_ACTIVATIONS, check
from qianyi.config.load import dump, leaf_keys, load
from qianyi.config.schema import Config
from qianyi.errors import ConfigError, QianyiError, ResourceError

T5 = ("model.kind=encoder_decoder", "train.objective.kind=span_corruption", "train.seq_len=512")
PAIRS = ("model.kind=encoder_decoder", "train.objective.kind=seq2seq", "data.target_key=target")


def mistake(tmp_path: Path, text: str, *overrides: str) -> str:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        check(load(str(file), overrides).config)
    return str(error.value)


def test_few_keys() -> None:
    assert len(leaf_keys(Config)) < 160


def test_every_key_is_documented() -> None:
    def walk(part: type[BaseModel]) -> None:
        for name, field in part.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                walk(field.annotation)
            else:
                assert field.description, name

    walk(Config)


def test_origins_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: gpt2-124m\ntrain:\n  steps: 7\n  batch_size: 32\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\noptimizer: {learning_rate: 1e-4}\ntrain:\n  batch_size: 64\n")
    resolved = load(
        str(tmp_path / "mine.yaml"), ["train.seq_len=128", "model.remat={attn_out: keep}", "optimizer.clip_norm=null"]
    )
    config, origins = resolved.config, resolved.origins
    assert (config.train.steps, config.train.batch_size, config.train.seq_len) == (7, 64, 128)
    assert config.optimizer.learning_rate == 1e-4 and config.optimizer.clip_norm is None
    assert config.model.remat == {"attn_out": "keep"}
    assert origins["train.steps"] == "base.yaml:3"
    assert origins["train.batch_size"] == "mine.yaml:4"
    assert origins["train.seq_len"] == "command line"
    assert origins["model.d_model"] == "gpt2-124m.yaml:7"
    assert origins["optimizer.b1"] == "default"
    assert set(origins) == set(leaf_keys(Config))
    assert config.description == ""  # what a base is for says nothing of its heirs


def test_lists_are_replaced_and_later_overrides_win(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("data:\n  sources:\n    - {name: a, path: x}\n    - {name: b, path: y}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\ndata: {sources: [{name: c, path: z}], seed: 3}\n")
    config = load(str(tmp_path / "mine.yaml"), ["train={steps: 5, seed: 1}", "train.steps=6"]).config
    assert [source.name for source in config.data.sources] == ["c"] and config.data.seed == 3
    assert (config.train.steps, config.train.seed) == (6, 1)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "model:\n", "\ufeffdescription: with a byte order mark\n"])
def test_files_that_say_little(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert load(str(tmp_path / "mine.yaml")).config.model == Config().model


@pytest.mark.parametrize("text", ["1e-4", "1E5", "0.0001", "1.5e-4", ".5e-3", "2", "1_0.0"])
def test_numbers_as_people_write_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"optimizer:\n  learning_rate: {text}\n")
    expected = float(text.replace("_", ""))
    assert load(str(tmp_path / "mine.yaml")).config.optimizer.learning_rate == expected
    assert load("gpt2-124m", [f"optimizer.learning_rate={text}"]).config.optimizer.learning_rate == expected


@pytest.mark.parametrize("text", ["1e-4", "null", "千亿", "a # b: c", "two\nlines", "'", "yes", "12:30", "", "x" * 300, "\u2028"])
def test_dump_brings_any_text_back(tmp_path: Path, text: str) -> None:
    resolved = load("quickstart")
    run = resolved.config.run.model_copy(update={"dir": text})
    resolved = type(resolved)(resolved.config.model_copy(update={"run": run}), resolved.origins)
    (tmp_path / "again.yaml").write_text(dump(resolved), encoding="utf-8")
    assert load(str(tmp_path / "again.yaml")).config == resolved.config


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        # Unknown keys
        ("model:\n  n_head: 4\n", [], "mine.yaml:2: unknown key `model.n_head`; did you mean `model.n_heads`?"),
        ("n_heads: 4\n", [], "mine.yaml:1: unknown key `n_heads`; did you mean `model.n_heads`?"),
        ("train: {steps: {a: 1}}\n", [], "mine.yaml:1: unknown key `train.steps.a`; did you mean `train.steps`?"),
        ("data:\n  sources:\n  - name: a\n    paht: x\n    path: y\n", [],
         "mine.yaml:4: unknown key `data.sources.0.paht`; did you mean `path`?"),
        ("", ["train.step=3"], "command line: unknown key `train.step`; did you mean `train.steps`?"),
        ("", ["zzz=3"], "command line: unknown key `zzz`"),
        # Types
        ("train: {steps: many}\n", [], "mine.yaml:1: train.steps: expected an integer, found `many`"),
        ("train:\n  seed: 1\n  steps: 1.5\n", [], "mine.yaml:3: train.steps: expected an integer, found `1.5`"),
        ("train: {steps: null}\n", [], "mine.yaml:1: train.steps: expected an integer, found `null`"),
        ("train: {steps: true}\n", [], "mine.yaml:1: train.steps: expected an integer, found `true`"),
        ("optimizer: {b1: high}\n", [], "mine.yaml:1: optimizer.b1: expected a number, found `high`"),
        ("optimizer: {b1: '0.9'}\n", [], "mine.yaml:1: optimizer.b1: expected a number, found `'0.9'`"),
        ("model: {bias: 1}\n", [], "mine.yaml:1: model.bias: expected true or false, found `1`"),
        ("", ["run.dir=1e-4"], "command line: run.dir: expected text, found `0.0001`; quote it to make it text"),
        ("", ["train.steps="], "command line: train.steps: expected an integer, found `null`"),
        ("data: {sources: a.txt}\n", [], "mine.yaml:1: data.sources: expected a list, found `a.txt`"),
        ("data:\n  sources:\n  - a.txt\n", [], "mine.yaml:3: data.sources.0: expected a group of keys, found `a.txt`"),
        ("data:\n  sources:\n  - name: a\n", [], "mine.yaml:3: `data.sources.0.path` is missing"),
        ("model: 3\n", [], "mine.yaml:1: `model` is a group of keys, such as `model.kind`; found `3`"),
        ("", ["train=null"], "command line: `train` is a group of keys, such as `train.steps`; found `null`"),
        # Ranges and choices
        ("train: {steps: 0}\n", [], "mine.yaml:1: train.steps: expected a value greater than or equal to 1, found `0`"),
        ("", ["data.validation_fraction=1.0"],
         "command line: data.validation_fraction: expected a value less than 1, found `1.0`"),
        ("data:\n  sources:\n  - name: a\n    path: x\n    weight: -1\n", [],
         "mine.yaml:5: data.sources.0.weight: expected a value greater than 0, found `-1`"),
        ("data: {sources: [{name: a b, path: x}]}\n", [],
         "mine.yaml:1: data.sources.0.name: expected text that matches ^[A-Za-z0-9_.-]+$, found `a b`"),
        ("", ["layout.zero=4"], "command line: layout.zero: expected 0, 1, 2 or 3, found `4`"),
        ("model: {norm: rmsnrm}\n", [],
         "mine.yaml:1: model.norm: expected 'layernorm' or 'rmsnorm', found `rmsnrm`; did you mean `rmsnorm`?"),
        ("model: {remat: ful}\n", [],
         "mine.yaml:1: model.remat: expected 'matmuls', 'full' or 'none' or a table, found `ful`; did you mean `full`?"),
        ("model:\n  remat: {query: keeps}\n", [],
         "mine.yaml:2: model.remat.query: expected 'keep', 'recompute' or 'offload', found `keeps`; did you mean `keep`?"),
        ("", ["model.remat.query.x=keep"], "command line: unknown key `model.remat.query.x`; did you mean `model.remat`?"),
        # Rules of one part: the place is that of the keys which the message names
        ("model:\n  norm: rmsnorm\n  n_heads: 5\n", [],
         "mine.yaml:3: model: d_model 768 is not a multiple of n_heads 5; set head_dim"),
        ("model: {n_heads: 8}\n", ["model.n_kv_heads=3"],
         "mine.yaml:1, command line: model: n_heads 8 is not a multiple of n_kv_heads 3"),
        ("", ["model.mup_base_head_dim=8"],
         "command line: model: mup_base_head_dim 8 changes nothing without mup_base_width"),
        ("model: {scale_logits: true}\n", ["model.mup_base_width=256"],
         "mine.yaml:1, command line: model: mup_base_width 256 does not go with scale_logits: no rule says how that grows with the "
         "width"),
        # Overrides
        ("", ["train.steps"], "command line: `train.steps`: expected key.sub=value, such as train.steps=100"),
        ("", ["=3"], "command line: `=3`: expected key.sub=value, such as train.steps=100"),
    ],
)  # fmt: skip
def test_mistakes_word_for_word(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    assert mistake(tmp_path, text, *overrides) == message


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("model:\n  - a: [1\n", ["mine.yaml:3: not valid YAML: "]),
        ("model:\n\tn_heads: 3\n", ["mine.yaml:2: not valid YAML: ", "'\\t'"]),
        ("a: 1\n---\nb: 2\n", ["mine.yaml:2: not valid YAML: ", "another document"]),
        ("\nrun: {dir: 'a\x01b'}\n", ["mine.yaml:2: not valid YAML: character '\\x01' is not allowed"]),
        ("model: !!python/object:os.system {}\ntrain: {steps: !x 3}\n", ["mine.yaml:2: not valid YAML: ", "tag '!x'"]),
        ("run: {dir: 2001-99-99}\n", ["mine.yaml:1: not valid YAML: month must be in 1..12"]),
        ("[" * 1000, ["mine.yaml:1: nested too deeply"]),
        ("data: {sources: &a [*a]}\n", ["mine.yaml:1: an alias refers to the value that it is part of"]),
        ("- 1\n", ["mine.yaml:1: expected `key: value` lines, found a list"]),
        ("hello\n", ["mine.yaml:1: expected `key: value` lines, found `hello`"]),
        ("? [a]\n: 3\n", ["mine.yaml:1: expected a word as key, found a list"]),
        ("train: {steps: 1}\ntrain: {steps: 2}\n", ["mine.yaml:2: `train` is set twice (first in line 1)"]),
        ("data: {sources: [{name: a, path: x, name: b}]}\n", ["mine.yaml:1: `name` is set twice"]),
        ("\nextends: gpt2-125m\n", ["mine.yaml:2: extends: recipe `gpt2-125m`", "did you mean `gpt2-124m`", "does not exist"]),
        ("extends: 3\n", ["mine.yaml:1: extends: expected the name of a recipe or a path, found `3`"]),
        ("extends: mine.yaml\n", ["mine.yaml:1: extends: ", "circle: mine.yaml -> mine.yaml"]),
        ("extends: .\n", ["mine.yaml:1: extends: ", "is not a file"]),
    ],
)
def test_files_that_are_not_recipes(tmp_path: Path, text: str, fragments: list[str]) -> None:
    message = mistake(tmp_path, text)
    assert all(fragment in message for fragment in fragments), message
    assert "\n" not in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"run: {dir: \xe9}\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not UTF-8 at byte 11"):
        load(str(tmp_path / "latin.yaml"))
    with pytest.raises(ConfigError, match=r"recipe `quickstrt`: .*did you mean `quickstart`\?.*`qianyi recipes` lists"):
        load("quickstrt")
    with pytest.raises(ConfigError, match="is not a file"):
        load(str(tmp_path))


def test_a_mistake_in_a_base_names_the_chain(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("\n\na: [\n")
    assert mistake(tmp_path, "extends: base.yaml\n").startswith(f"mine.yaml:1: extends: {tmp_path}/base.yaml:")


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    message = mistake(tmp_path, "model:\n  n_head: 4\n", "train.steps=x", "layout.zero=4", "nothing", "a=[", "model.remat=3")
    assert len(message.splitlines()) == 6
    message = mistake(tmp_path, "", "layout.model=5", "schedule.warmup_steps=1000", "model.remat={x: keep}")
    assert len(message.splitlines()) == 7  # 5 divides neither heads, key/value heads, d_ff, vocabulary nor sequence


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["layout.model=16", "model.vocab_size=50304"], "layout.model=16 does not divide model.n_heads=12; 4, 6, 12 would"),
        (["layout.model=4", "model.n_kv_heads=2"], "layout.model=4 does not divide model.n_kv_heads=2; 1, 2 would"),
        (["layout.model=4", "model.d_ff=1002"], "layout.model=4 does not divide model.d_ff=1002; 2, 3, 6 would"),
        (["layout.model=2"], "layout.model=2 does not divide model.vocab_size=50257; pad it to 50258"),
        (["layout.model=3", "train.seq_len=1000"],
         "layout.model=3 does not divide train.seq_len=1000 (sequence parallelism); use 999 or 1002"),
        (["layout.data=5", "train.batch_size=5"],
         "layout.data=5 does not divide model.d_model=768, along which layout.zero=3 shards parameters; 3, 4, 6 would, or use "
         "layout.zero=0"),
        (["layout.replica=2", "layout.data=2", "train.accumulation=3", "train.batch_size=32"],
         "train.batch_size=32 does not split into layout.replica 2 x layout.data 2 x train.accumulation 3 = 12 equal parts; "
         "use 24 or 36"),
        (["train.accumulation=16"], "= 16 equal parts; use 16"),
        (["layout.stage=8", "train.accumulation=4"], "train.accumulation=4 microbatches do not fill layout.stage=8 stages; use "),
        (["layout.stage=16", "train.accumulation=16"], "is more than model.n_layers=12: some would have no layer; layout.stage=12 would"),
        (["train.batch_ramp=[{batch_size: 8, sequences: 9}]"],
         "train.batch_ramp.0.batch_size=8 is not less than train.batch_size=8, which follows it; train.batch_ramp=[] has no ramp"),
        (["train.batch_ramp=[{batch_size: 4, sequences: 9}, {batch_size: 2, sequences: 9}]"],
         "train.batch_ramp.0.batch_size=4 is not less than train.batch_ramp.1.batch_size=2, which follows it"),
        (["train.batch_size=64", "train.accumulation=4", "train.batch_ramp=[{batch_size: 24, sequences: 9}]"],
         "train.batch_ramp.0.batch_size=24 is no whole number of microbatches of train.batch_size 64 / train.accumulation 4 = "
         "16 sequences; use 16 or 32"),
        (["layout.stage=4", "train.batch_size=64", "train.accumulation=8", "train.batch_ramp=[{batch_size: 24, sequences: 9}]"],
         "train.batch_ramp.0.batch_size=24 is 3 microbatches of 8 sequences, which do not fill layout.stage=4 stages; use 32 or more"),
        (["model.mup_base_width=256", "optimizer.kind=sgd"],
         "model.mup_base_width has rules for optimizer.kind=adamw, lion, muon, not for sgd; use one of them or leave it out"),
        (["train.noise_scale=true"], "train.accumulation=1 has but one; use train.accumulation=2 or more"),
        (["train.noise_scale=true", "train.accumulation=2", "layout.stage=2"],
         "train.noise_scale: with layout.stage=2 no gradient of a single microbatch exists; use layout.stage=1 or leave it out"),
        (["train.noise_scale=true", "train.accumulation=2", "train.batch_ramp=[{batch_size: 4, sequences: 9}]"],
         "train.noise_scale needs two microbatches, and train.batch_ramp.0.batch_size=4 is one; use train.accumulation=4"),
        (["layout.context=3"], "which do not divide train.seq_len=1024; use 1020 or 1026"),
        (["layout.expert=4"], "but model.moe.n_experts=0: there are no experts; use layout.data=4"),
        (["layout.expert=4", "model.moe.n_experts=2"], "layout.expert=4 does not divide model.moe.n_experts=2; 1, 2 would"),
        (["train.objective.kind=mlm"], "train.objective.kind=mlm trains a model.kind=encoder, not decoder; set that, or "
         "train.objective.kind=causal or prefix"),
        (["model.kind=encoder_decoder"], "train.objective.kind=span_corruption or seq2seq"),
        (["train.objective.kind=prefix", "train.document_mask=true"], "goes with neither train.document_mask nor layout.context > 1"),
        (["model.kind=encoder", "train.objective.kind=mlm", "train.objective.sentence=next"],
         "train.objective.sentence=next asks a question that model.sentence_head answers; set model.sentence_head=true"),
        ([*PAIRS, "data.target_key=null", "train.objective.target_len=64"], "data.target_key names the field of their targets"),
        (["data.target_key=target"], "data.target_key=target makes pairs, which train.objective.kind=causal does not know"),
        ([*PAIRS], "train.objective.kind=seq2seq needs train.objective.target_len, such as 1024"),
        (["train.objective.mask_fraction=0.3"], "train.objective.mask_fraction=0.3 changes nothing with train.objective.kind=causal"),
        (["train.objective.kind=prefix", "train.objective.blank_fraction=0", "train.objective.mean_span=4"],
         "train.objective.mean_span=4.0 changes nothing with train.objective.kind=prefix"),
        ([*PAIRS, "train.objective.target_len=9", "train.objective.sentence=next"], "train.objective.sentence=next changes nothing"),
        ([*T5, "train.objective.target_len=100"], "train.objective.target_len=100 is too small: what is masked for train.seq_len=512 "
         "(mask_fraction 0.15, mean_span 3.0) takes 114 tokens; use 114 or more"),
        ([*T5, "layout.model=4", "model.vocab_size=32128"], "layout.model=4 does not divide train.objective.target_len=114 "
         "(sequence parallelism); use 116"),
        ([*PAIRS, "train.objective.target_len=2048"], "train.objective.target_len=2048 is longer than model.max_seq_len=1024"),
        ([*T5, "train.seq_len=3"], "train.seq_len=3 is too short for train.objective.kind=span_corruption; use 4 or more"),
        (["layout.zero=1"], "layout.zero=1 changes nothing with layout.data=1 and layout.context=1"),
        (["layout.schedule=gpipe"], "layout.schedule=gpipe changes nothing with layout.stage=1"),
        (["layout.exchange=ring"], "layout.exchange=ring changes nothing with layout.context=1"),
        (["layout.data=2", "layout.zero=2", "layout.gather=step"], "layout.gather=step with whole gradients is layout.zero=1"),
        (["layout.stage=2", "train.accumulation=2", "layout.context=2", "layout.exchange=ring"], "use layout.exchange=gather"),
        (["train.seq_len=2048"], "train.seq_len=2048 is longer than model.max_seq_len=1024"),
        (["data.tokenizer_vocab_size=60000"], "data.tokenizer_vocab_size=60000 is larger than model.vocab_size=50257"),
        (["schedule.warmup_steps=1000"], "schedule.warmup_steps=1000 leaves nothing of train.steps=1000; use 100 or so"),
        (["schedule.kind=wsd", "schedule.warmup_steps=900"],
         "schedule.warmup_steps=900 and the decay over the last 200 steps (schedule.decay_fraction=0.2) overlap in "
         "train.steps=1000; warm up over 800 at most"),
        (["schedule.kind=linear", "schedule.decay_fraction=0.3"],
         "schedule.decay_fraction=0.3 changes nothing with schedule.kind=linear; leave it out (wsd)"),
        (["schedule.kind=rsqrt", "schedule.hold_steps=10", "schedule.warmup_steps=20"],
         "schedule.hold_steps=10 changes nothing with schedule.warmup_steps=20"),
        (["schedule.kind=rsqrt", "schedule.hold_steps=1000"], "schedule.hold_steps=1000 leaves nothing of train.steps=1000"),
        (["schedule.scale_rule=sqrt"], "schedule.scale_rule=sqrt needs schedule.base_batch_size"),
        (["schedule.base_batch_size=32"], "schedule.base_batch_size=32 changes nothing with schedule.scale_rule=none"),
        (["optimizer.momentum=0.8"], "optimizer.momentum=0.8 changes nothing with optimizer.kind=adamw; leave it out (lars, adafactor, "),
        (["optimizer.kind=sgd", "optimizer.b1=0.8"], "optimizer.b1=0.8 changes nothing with optimizer.kind=sgd; leave it out"),
        (["optimizer.kind=sgd", "optimizer.momentum=0.0", "optimizer.nesterov=true"], "optimizer.nesterov=True changes nothing with "),
        (["optimizer.weight_decay=0.0", "optimizer.decay_power=2"], "optimizer.decay_power=2 changes nothing with optimizer.weight_"),
        (["model.remat.nothing=offload"], "model.remat names `nothing`; the activations are block_in, attn_norm, query"),
        (["run.virtual_devices=8", "run.platform=gpu"], "run.virtual_devices simulates devices on a CPU; run.platform is gpu"),
        (["data.sources=[{name: a, path: x}, {name: a, path: y}]"], "data.sources has two sources named `a`"),
        (["data.sources=[{name: a, path: x, weight: 1}, {name: b, path: y}]"], "data.sources: b has no weight"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_together(tmp_path: Path, overrides: list[str], message: str) -> None:
    assert message in mistake(tmp_path, "", *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["layout.zero=0", "layout.data=5", "train.batch_size=5"],
        ["layout.stage=4", "layout.chunks=3", "train.accumulation=8", "layout.context=2"],
        ["schedule.kind=wsd", "schedule.warmup_steps=800"],
        ["layout.stage=2", "train.batch_size=64", "train.accumulation=4", "train.batch_ramp=[{batch_size: 32, sequences: 9}]"],
        ["run.virtual_devices=8"],
        ["model.kind=encoder", "train.objective.kind=mlm", "train.objective.sentence=order", "model.sentence_head=true"],
        ["train.objective.kind=prefix", "train.objective.mean_span=4"],
        [*T5, "layout.model=2", "model.vocab_size=32128"],
        [*PAIRS, "train.objective.target_len=64"],
        [
            "schedule.kind=rsqrt",
            "schedule.hold_steps=100",
            "optimizer.kind=adafactor",
            "optimizer.momentum=0.9",
            "optimizer.eps=1e-15",
        ],
        ["schedule.scale_rule=linear", "schedule.base_batch_size=8", "optimizer.kind=lars", "optimizer.nesterov=true"],
        ["data.sources=[{name: a, path: x, weight: 1}, {name: b, path: y, weight: 2}]"],
        [f"model.remat={{{', '.join(f'{name}: keep' for name in ACTIVATIONS)}}}"],
    ],
)
def test_parts_that_fit_together(tmp_path: Path, overrides: list[str]) -> None:
    (tmp_path / "mine.yaml").write_text("")
    check(load(str(tmp_path / "mine.yaml"), overrides).config)


def test_a_word_and_a_mapping_replace_each_other(tmp_path: Path) -> None:
    """Mappings merge key by key, as everywhere."""
    (tmp_path / "base.yaml").write_text("model:\n  remat: {query: keep}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nmodel:\n  remat: {attn_out: offload}\n")
    mine = str(tmp_path / "mine.yaml")
    resolved = load(mine, ["model.remat.query=recompute"])
    assert resolved.config.model.remat == {"query": "recompute", "attn_out": "offload"}
    assert resolved.origins["model.remat"] == "command line, mine.yaml:3"
    assert load(mine, ["model.remat=none"]).config.model.remat == "none"
    assert load("gpt3-6.7b", ["model.remat.attn_out=keep"]).config.model.remat == {"attn_out": "keep"}
    (tmp_path / "again.yaml").write_text(dump(resolved))
    assert load(str(tmp_path / "again.yaml")).config == resolved.config


def test_too_few_devices() -> None:
    config = load("quickstart").config
    check(config, 8)
    with pytest.raises(ResourceError) as error:
        check(config, 3)
    assert str(error.value) == (
        "layout.data 4 x layout.model 2 = 8 devices, but 3 are here; set layout.data=3 layout.model=1 to use all 3, "
        "or simulate 8 on a CPU with run.platform=cpu run.virtual_devices=8"
    )
    with pytest.raises(ResourceError, match=r"but 1 is here; set layout\.data=1 layout\.model=1 to use it"):
        check(config, 1)


def test_too_many_devices() -> None:
    with pytest.raises(ConfigError, match=r"= 8 devices, but 12 are here; set layout\.data=6 to use all 12, or simulate 8"):
        check(load("quickstart").config, 12)
    gpu = load("quickstart", ["run.platform=gpu", "run.virtual_devices=null", "layout.replica=2"]).config
    with pytest.raises(ConfigError, match=r"= 16 devices, but 18 are here; set layout\.replica=1 layout\.data=9 to use all 18$"):
        check(gpu, 18)


def test_the_suggested_layouts_use_all_devices() -> None:
    for found in range(1, 40):
        overrides = ["layout.replica=2", "layout.data=3", "layout.model=4"]
        config = load("llama3-8b", [*overrides, "layout.zero=0", "train.batch_size=48"]).config
        if found == config.layout.n_devices:
            continue
        with pytest.raises(QianyiError) as error:
            check(config, found)
        sizes = {"replica": 2, "data": 3, "model": 4} | {
            k: int(v) for k, v in re.findall(r"layout\.(\w+)=(\d+)", str(error.value))
        }
        assert sizes["replica"] * sizes["data"] * sizes["model"] == found


def test_matmul_activations_are_activations() -> None:
    assert set(MATMUL_ACTIVATIONS) < set(ACTIVATIONS)


def test_errors_have_their_exit_codes() -> None:
    assert issubclass(ConfigError, QianyiError) and ConfigError.exit_code == 2 and ResourceError.exit_code == 1
