"""Each operation against ten lines of NumPy in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from qianyi.config.model import RopeScalingConfig
from qianyi.config.schema import LayoutConfig, ScheduleConfig
from qianyi.data.tokenizer import train_tokenizer
from qianyi.generate.sample import generate_tokens, make_extend, sample, stream_text
from qianyi.model.transformer import model_logits
from qianyi.ops.attention import Context, Pattern, attention, reference_attention
from qianyi.ops.norm import layer_norm, rms_norm
from qianyi.ops.rope import frequencies, rotate
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.rules import make_rules
from qianyi.train.schedule import learning_rate, make_schedule
from qianyi.train.state import init_state

from models import GPT, LLAMA, make_config  # isort: skip

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(("T", "H", "G"), [(40, 4, 4), (300, 4, 2), (256, 6, 1)])
def test_attention(T: int, H: int, G: int) -> None:
    """Also where the last block of queries is short."""
    B, K = 2, 8
    q, k, v = (RANDOM.standard_normal((B, T, n, K)) for n in (H, G, G))
    kk, vv = (np.repeat(a, H // G, axis=2) for a in (k, v))
    scores = np.einsum("bthk,bshk->bhts", q, kk) / np.sqrt(K)
    scores[..., np.triu(np.ones((T, T), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhts,bshk->bthk", weights / weights.sum(-1, keepdims=True), vv)
    ours = attention(*(jnp.asarray(a, jnp.float32) for a in (q / np.sqrt(K), k, v)), Pattern(), Context())
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_norms() -> None:
    x, scale, bias = RANDOM.standard_normal((3, 5, 16)) * 4 + 1, RANDOM.standard_normal(16), RANDOM.standard_normal(16)
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias
    np.testing.assert_allclose(layer_norm(jnp.float32(x), jnp.float32(scale), jnp.float32(bias), 1e-5), expected, atol=1e-5)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale
    np.testing.assert_allclose(rms_norm(jnp.float32(x), jnp.float32(scale), 1e-5), expected, atol=1e-5)


def test_rotation_is_by_the_position_difference() -> None:
    """Complex numbers: pair (i, i + K/2) times exp(i * position * frequency); scores depend on the distance alone."""
    x, positions = RANDOM.standard_normal((1, 7, 2, 8)), np.arange(3, 10)
    pairs = x[..., :4] + 1j * x[..., 4:]
    turned = pairs * np.exp(1j * positions[:, None, None] * 100.0 ** (-np.arange(4) / 4))
    ours = np.asarray(rotate(jnp.float32(x), jnp.asarray(positions), jnp.asarray(frequencies(8, 100.0, RopeScalingConfig()))))
    np.testing.assert_allclose(ours, np.concatenate([turned.real, turned.imag], -1), atol=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "linear", "constant", "rsqrt"])
def test_schedules(kind: str) -> None:
    rate = make_schedule(ScheduleConfig(kind=kind, warmup_steps=10, decay_fraction=0.25, final_ratio=0.1), 2.0, 100)
    values = np.array([float(rate(jnp.int32(n))) for n in range(100)])
    np.testing.assert_allclose(values[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    done = np.arange(11, 101)
    expected = {
        "cosine": 0.1 + 0.9 * (1 + np.cos(np.pi * (done - 10) / 90)) / 2,
        "wsd": 1 - 0.9 * np.clip((done - 75) / 25, 0, 1),
        "linear": 1 - 0.9 * (done - 10) / 90,
        "constant": np.ones(90),
        "rsqrt": np.sqrt(10 / done),
    }[kind]
    np.testing.assert_allclose(values[10:], 2.0 * expected, rtol=1e-5)


def test_rsqrt_holds_the_peak() -> None:
    """PaLM, section 5: 1e-2 for the first 10,000 steps, then one over the square root of the step."""
    rate = make_schedule(ScheduleConfig(kind="rsqrt", hold_steps=10_000), 1e-2, 255_000)
    for step in (1, 500, 10_000, 40_000, 250_000):
        assert float(rate(jnp.int32(step - 1))) == pytest.approx(1e-2 if step <= 10_000 else step**-0.5, rel=1e-6)


@pytest.mark.parametrize(("rule", "times"), [("none", 1), ("linear", 8), ("sqrt", 8**0.5)])
def test_peak_follows_the_batch_size(rule: Any, times: float) -> None:
    config = make_config(LLAMA, batch_size=256)
    schedule = ScheduleConfig(kind="constant", scale_rule=rule, base_batch_size=None if rule == "none" else 32, warmup_steps=5)
    scaled = learning_rate(config.model_copy(update={"schedule": schedule}))
    np.testing.assert_allclose([scaled(n) for n in range(6)], 1e-2 * times * np.array([0.2, 0.4, 0.6, 0.8, 1, 1]), rtol=1e-6)


def test_table_of_parallelism_refuses_collisions() -> None:
    rules = make_rules(LayoutConfig(data=2, model=4))
    assert rules.spec(("layers", "embed", "ffn")) == P(None, "data", "model")
    assert make_rules(LayoutConfig(data=2, zero=0)).spec(("embed", "ffn")) == P(None, None)
    with pytest.raises(ValueError, match="collide"):
        rules.spec(("heads", "ffn"))


def test_initial_values_do_not_depend_on_the_mesh() -> None:
    drawn = []
    for layout in (LayoutConfig(), LayoutConfig(data=4, model=2)):
        config = make_config(LLAMA, layout)
        mesh = make_mesh(layout, jax.devices()[: layout.n_devices])
        with jax.set_mesh(mesh):
            drawn.append(jax.device_get(init_state(config, mesh)))
    for a, b in zip(*map(jax.tree.leaves, drawn), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
def test_cached_generation_equals_reading_everything_again(model) -> None:
    config = make_config(model)
    mesh = make_mesh(config.layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = init_state(config, mesh).params
        options = {"max_tokens": 14, "temperature": 0.0, "top_p": 1.0, "seed": 0}
        generated = list(generate_tokens(make_extend(model), params, model, [5, 6, 7], **options))
        read = jax.jit(
            jax.shard_map(lambda p, t: model_logits(p, {"inputs": t}, config, lambda _, w: w), in_specs=P(), out_specs=P())
        )
        tokens = [5, 6, 7]
        for token in generated:
            logits = np.asarray(read(params, np.array([tokens + [0] * (model.max_seq_len - len(tokens))], np.int32)))
            assert token == logits[0, len(tokens) - 1].argmax()
            tokens.append(token)
    assert len(generated) == 14


def test_the_cache_is_as_long_as_the_text_needs() -> None:
    model = GPT.model_copy(update={"max_seq_len": 8192})
    lengths: set[int] = set()

    def extend(_, tokens, start, cache):
        lengths.add(cache.keys.shape[2])
        return jnp.zeros((1, tokens.shape[1], model.vocab_size)), cache

    for prompt, n, expected in ((5, 8, 16), (20, 40, 64), (100, 10_000, 8192)):
        lengths.clear()
        first = generate_tokens(extend, {}, model, [1] * prompt, max_tokens=n, temperature=0.0, top_p=1.0, seed=0)
        assert next(first) == 0 and lengths == {expected}


def test_sampling_follows_the_distribution() -> None:
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.vmap(sample, in_axes=(None, 0, None, None))
    counts = np.bincount(draw(logits, keys, 1.0, 1.0), minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    nucleus = np.bincount(draw(logits, keys, 1.0, 0.7), minlength=4) / 4000
    np.testing.assert_allclose(nucleus, [0.625, 0.375, 0, 0], atol=0.03)
    assert set(np.asarray(draw(logits, keys[:50], 0.0, 1.0)).tolist()) == {0}


def test_streamed_text_never_shows_half_a_character() -> None:
    tokenizer = train_tokenizer(["plain words only"] * 20, 270)
    text = "千亿 🌙 is bright"
    ids = tokenizer.encode(text).ids
    pieces = list(stream_text(tokenizer, [0], iter([*ids, 0, 99]), frozenset({0})))
    assert "".join(pieces) == text and len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(("B", "T", "H", "G"), [(2, 300, 4, 2), (1, 256, 12, 6)])
def test_attention_gradient(B: int, T: int, H: int, G: int) -> None:
    """By hand over several blocks and groups of heads (the last one not full), against JAX's derivative of the textbook's formula."""
    q, k, v, weight = (jnp.asarray(RANDOM.standard_normal((B, T, n, 8)), jnp.float32) for n in (H, G, G, H))
    mask = jnp.tril(jnp.ones((T, T), bool))
    ours = jax.jit(jax.grad(lambda *a: jnp.sum(weight * attention(*a, Pattern(), Context())), (0, 1, 2)))(q, k, v)
    plain = jax.jit(jax.grad(lambda *a: jnp.sum(weight * reference_attention(*a, mask)), (0, 1, 2)))(q, k, v)
    for a, b in zip(ours, plain, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
