"""What ships resolves, prints back to itself, and has the sizes and settings that its papers state."""

from pathlib import Path

import pytest

from qianyi.config import recipes
from qianyi.config.check import check
from qianyi.config.counts import parameter_count
from qianyi.config.load import dump, load
from qianyi.config.ramp import ramp_stages, tokens_before
from qianyi.config.schema import Config, ModelConfig


@pytest.mark.parametrize("name", recipes.names())
def test_shipped_recipes_resolve_and_round_trip(name: str, tmp_path: Path) -> None:
    resolved = load(name)
    check(resolved.config, resolved.config.layout.n_devices)
    assert resolved.config.description
    (tmp_path / "again.yaml").write_text(dump(resolved))
    assert load(str(tmp_path / "again.yaml")).config == resolved.config


# Of the released weights, to the parameter (BERT with both heads; DeepSeek-V3 without the layer that predicts a second token; Gemma 3
# without vision).
RELEASED = {
    "t5-small": 60_506_624,
    "bert-base": 110_106_428,
    "gpt2-124m": 124_439_808,
    "bert-large": 336_226_108,
    "gpt2-1.5b": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "qwen3-8b": 8_190_735_360,
    "t5-11b": 11_307_321_344,
    "gemma3-27b": 27_009_346_304,
    "gemma2-27b": 27_227_128_320,
    "mixtral-8x7b": 46_702_792_704,
    "llama2-70b": 68_976_648_192,
    "llama3-70b": 70_553_706_496,
    "bloom-176b": 176_247_271_424,
    "qwen3-235b-a22b": 235_093_634_560,
    "llama3-405b": 405_853_388_800,
    "deepseek-v3": 671_026_419_200,
}
# Rounded in the papers, with the relative error that is allowed: Brown et al. 2020, table 2.1 (of the published vocabulary); Narayanan et
# al. 2021, table 1; Zhang et al. 2022; Zeng et al. 2022; Chowdhery et al. 2022, table 1; Vaswani et al. 2017, table 3.
ROUNDED = {"gpt3-6.7b": (6.7e9, 0.01), "gpt3-175b": (175.0e9, 0.003)}
SIZES = {
    "megatron-1.7b": (1.7e9, 0.03), "megatron-3.6b": (3.6e9, 0.015), "megatron-7.5b": (7.5e9, 0.005), "megatron-18b": (18.4e9, 0.003),
    "megatron-39b": (39.1e9, 0.001), "megatron-76b": (76.1e9, 0.001), "megatron-145b": (145.6e9, 0.001), "megatron-310b": (310.1e9, 0.001),
    "megatron-530b": (529.6e9, 0.001), "megatron-1t": (1008.0e9, 0.001), "opt-175b": (175e9, 0.003), "glm-130b": (130e9, 0.011),
    "palm-540b": (540.35e9, 0.0001), "transformer-base": (65e6, 0.03), "transformer-big": (213e6, 0.01),
}  # fmt: skip


SMALL = ("quickstart", "bert-tiny", "t5-tiny")
"""Made for a laptop, not published."""


def test_every_recipe_has_a_published_size() -> None:
    assert {*RELEASED, *ROUNDED, *SIZES, *SMALL} == set(recipes.names())


@pytest.mark.parametrize("name", SIZES)
def test_rounded_sizes(name: str) -> None:
    published, tolerance = SIZES[name]
    assert abs(parameter_count(load(name).config.model) - published) <= tolerance * published


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes(name: str) -> None:
    assert parameter_count(load(name).config.model) == RELEASED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_sizes_with_the_published_vocabulary(name: str) -> None:
    model = load(name, ["model.vocab_size=50257"]).config.model
    published, tolerance = ROUNDED[name]
    assert abs(parameter_count(model) - published) <= tolerance * published


def test_only_gpt3_175b_pads_its_vocabulary() -> None:
    # Tensor parallelism over 8 divides 50304 = 8 * 6288, and not 50257: 47 rows that no token uses.
    model = load("gpt3-175b").config.model
    assert parameter_count(model) - parameter_count(model.model_copy(update={"vocab_size": 50257})) == 47 * 12288


@pytest.mark.parametrize(
    ("name", "batch_tokens", "total_tokens", "learning_rate"),
    [
        ("gpt3-6.7b", 2e6, 300e9, 1.2e-4),
        ("gpt3-175b", 3.2e6, 300e9, 0.6e-4),
        ("llama3-8b", 4e6, 15e12, 3e-4),
        ("llama3-405b", 16e6, 15.6e12, 8e-5),
        ("llama2-70b", 4e6, 2e12, 1.5e-4),
        ("opt-175b", 2e6, 300e9, 1.2e-4),
        ("bloom-176b", 4.2e6, 410e9, 6e-5),
        ("glm-130b", 8.65e6, 400e9, 8e-5),
        ("palm-540b", 4.2e6, 776e9, 1e-2),  # of 255,000 steps; the paper rounds to 780
        ("deepseek-v3", 62.9e6, 14.8e12, 2.2e-4),
    ],
)
def test_published_training(name: str, batch_tokens: float, total_tokens: float, learning_rate: float) -> None:
    config = load(name).config
    assert config.train.batch_size * config.train.seq_len == pytest.approx(batch_tokens, rel=0.05)
    assert tokens_before(config.train, config.train.steps) == pytest.approx(total_tokens, rel=1e-3)
    assert config.optimizer.learning_rate == learning_rate


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        # Tokens per step from so many tokens on. GPT-3: linear, reaching the whole batch after 12 billion.
        ("gpt3-175b", [(n / 8 * 3.15e6, (n - 1) / 7 * 12e9) for n in range(1, 9)]),
        ("llama3-405b", [(4e6, 0), (8e6, 252e6), (16e6, 2.87e12)]),
    ],
)
def test_published_batch_ramps(name: str, stages: list[tuple[float, float]]) -> None:
    train = load(name).config.train
    found = [(stage.batch_size * train.seq_len, stage.first_sequence * train.seq_len) for stage in ramp_stages(train)]
    for (tokens, begin), (expected_tokens, expected_begin) in zip(found, stages, strict=True):
        assert tokens == pytest.approx(expected_tokens, rel=0.05)
        assert begin == pytest.approx(expected_begin, rel=0.02)
    assert not load("gpt3-6.7b").config.train.batch_ramp


@pytest.mark.parametrize(
    "model",
    [
        *(load(name).config.model for name in recipes.names()),
        ModelConfig(bias=False, tied_embeddings=False, head_dim=48, n_kv_heads=4, d_ff=100),
        ModelConfig(norm="rmsnorm", mlp="swiglu", position="rope", max_seq_len=77),
    ],
)
def test_counts_equal_the_declarations(model: ModelConfig) -> None:
    from qianyi.model.param import count
    from qianyi.model.transformer import model_params

    assert parameter_count(model) == count(model_params(model))


def test_quickstart_fits_a_laptop() -> None:
    config: Config = load("quickstart").config
    assert 2e6 < parameter_count(config.model) < 4e6
    assert (config.run.platform, config.run.virtual_devices, config.layout.n_devices) == ("cpu", 8, 8)
    assert {source.path for source in config.data.sources} == {"builtin:shakespeare", "builtin:sanguo"}
