"""The platforms' fused attention equals the textbook's, forward and backward, and models are given it where it can do what they need.

The kernels of TPUs run here as ordinary operations (Pallas interprets them), and are compiled for a TPU. Those of cuDNN are compiled for a
GPU, and what they are asked to compute is computed here by JAX's other implementation of the same call.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilers import compile_apart
from families import FAMILIES, variant
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from models import LLAMA, make_config

from qianyi.compile.compilers import Compiled
from qianyi.config.check import check
from qianyi.config.model import AttentionConfig
from qianyi.config.schema import LayoutConfig, ModelConfig
from qianyi.errors import ConfigError
from qianyi.model.param import init
from qianyi.model.transformer import model_logits, model_params
from qianyi.ops import cudnn, fused, splash
from qianyi.ops.attention import Context, Pattern, attention, reference_attention
from qianyi.ops.fused import fused_attention, why_not
from qianyi.parallel.mesh import make_mesh

RANDOM = np.random.default_rng(0)
B, T, H, G = 2, 384, 4, 2  # three blocks of queries and of keys
POSITIONS = jnp.arange(T, dtype=jnp.int32)
DOCUMENTS = jnp.asarray(np.cumsum(RANDOM.random((B, T)) < 0.02, axis=1), jnp.int32)
SAME = np.asarray(DOCUMENTS)[:, :, None] == np.asarray(DOCUMENTS)[:, None, :]
DISTANCE = np.arange(T)[:, None] - np.arange(T)[None, :]
BEFORE = DISTANCE >= 0
PADDING = jnp.asarray(np.arange(256)[None] >= np.asarray([[200], [256]]), jnp.int32)


def arrays(n_keys: int = T, key_width: int = 16, value_width: int = 16) -> tuple[Array, ...]:
    shapes = ((B, T, H, key_width), (B, n_keys, G, key_width), (B, n_keys, G, value_width), (B, T, H, value_width))
    q, k, v, d_out = (jnp.asarray(RANDOM.standard_normal(shape), jnp.float32) for shape in shapes)
    return q / key_width**0.5, k, v, d_out


def assert_equals_textbook(ours: Any, inputs: tuple[Array, ...], mask: np.ndarray, cap: float | None = None) -> None:
    """Output and gradients, to 1e-5 of the largest number."""
    *qkv, d_out = inputs
    out, pull = jax.vjp(jax.jit(ours), *qkv)
    expected, pull_expected = jax.vjp(lambda *qkv: reference_attention(*qkv, jnp.asarray(mask), None, cap), *qkv)
    for a, b in zip((out, *pull(d_out)), (expected, *pull_expected(d_out)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


SPLASH_CASES: dict[str, tuple[Pattern, Context, np.ndarray, dict[str, int]]] = {
    "causal, latent": (Pattern(), Context(), BEFORE, {"key_width": 24}),
    "window": (Pattern(window=100), Context(positions=POSITIONS), BEFORE & (DISTANCE < 100), {}),
    "cap and documents": (Pattern(cap=1.5), Context(documents=DOCUMENTS), BEFORE & SAME, {}),
    "other keys": (
        Pattern(causal=False),
        Context(documents=jnp.zeros((B, T), jnp.int32), key_documents=PADDING),
        np.broadcast_to(np.asarray(PADDING)[:, None] == 0, (B, T, 256)),
        {"n_keys": 256},
    ),
}


@pytest.mark.parametrize("name", SPLASH_CASES)
def test_splash_is_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splash, "LARGEST_BLOCK", 128)
    pattern, context, mask, shape = SPLASH_CASES[name]
    inputs = arrays(**shape)
    assert why_not("tpu", *inputs[:3], pattern, context) is None
    ours = partial(splash.attend, pattern=pattern, context=context, interpret=True)
    assert_equals_textbook(ours, inputs, mask, pattern.cap)


CUDNN_CASES = {
    "causal": (Pattern(), BEFORE, ("CAUSAL", 0)),
    "window": (Pattern(window=100), BEFORE & (DISTANCE < 100), ("CAUSAL", 100)),
    "both ways": (Pattern(causal=False), np.ones((T, T), bool), ("NO_MASK", 0)),
}


@pytest.mark.parametrize(("pattern", "mask", "asked"), CUDNN_CASES.values(), ids=CUDNN_CASES.keys())
def test_cudnn_is_asked_for_attention(pattern: Pattern, mask: np.ndarray, asked: tuple[str, int]) -> None:
    inputs, context = arrays(), Context(positions=POSITIONS)
    assert_equals_textbook(partial(cudnn.attend, pattern=pattern, context=context, implementation="xla"), inputs, mask)

    half = [a.astype(jnp.bfloat16) for a in inputs]
    assert why_not("gpu", *half[:3], pattern, context) is None

    def gradients(q: Array, k: Array, v: Array, d_out: Array) -> Any:
        return jax.vjp(partial(cudnn.attend, pattern=pattern, context=context), q, k, v)[1](d_out)

    text = jax.jit(gradients).trace(*half).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r'@__cudnn\$(\w+)\(.*?backend_config = "(.*?)"[,}]', text)
    assert [name for name, _ in calls] == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    for _, config in calls:
        settings = json.loads(config.replace(r"\22", '"'))["cudnn_fmha_backend_config"]
        assert (settings["mask_type"], settings["sliding_window_length"]) == asked
        assert settings["fmha_scale"] == 1.0 and settings["dropout_rate"] == 0


def test_every_device_has_its_own() -> None:
    """In a manual region, with gradients of what the devices share, and of what they do not."""
    mesh, split = make_mesh(LayoutConfig(data=2, model=2), jax.devices()[:4]), P("data", None, "model")
    w, x = jnp.ones(8), jnp.asarray(RANDOM.standard_normal((2, 128, 4, 8)), jnp.float32)

    def gradients(attend: Any) -> tuple[Array, Array]:
        def loss(w: Array, x: Array) -> Array:
            return jax.lax.psum((attend(x * w, x, x, Pattern(), Context()) ** 2).sum(), ("data", "model"))

        on_device = jax.shard_map(jax.grad(loss, (0, 1)), in_specs=(P(), split), out_specs=(P(), split))
        with jax.set_mesh(mesh):
            return jax.jit(on_device)(*(jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in ((w, P()), (x, split))))

    ours, expected = gradients(partial(splash.attend, interpret=True)), gradients(attention)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


FORWARD = {splash: "name=splash_mha_fwd", cudnn: "dot_product_attention_fwd_wrapper["}
"""In a program, by kernel."""


@pytest.mark.parametrize("module", FORWARD)
def test_what_is_kept_is_not_computed_again(module: Any) -> None:
    x = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)

    def forward_kernels(*kept: str) -> int:
        def layer(x: Array) -> Array:
            return jnp.sin(module.attend(x, x, x, Pattern(), Context()))

        layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(*kept))
        return str(jax.make_jaxpr(jax.grad(lambda x: layer(x).astype(jnp.float32).sum()))(x)).count(FORWARD[module])

    assert (forward_kernels(), forward_kernels("attn_out")) == (2, 1)


LENGTH = 128
PICKED = {
    "tpu": {"llama": True, "gemma2": True, "gemma3": True, "mistral": True, "deepseek": True, "bloom": False, "bert": True},
    "gpu": {"llama": True, "gemma2": False, "gemma3": True, "mistral": True, "deepseek": False, "bloom": False, "bert": True},
}


def in_bfloat16(_: str, weights: Any) -> Any:
    return jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)


def picks_fused(model: ModelConfig, platform: str, monkeypatch: pytest.MonkeyPatch, **rows: jax.ShapeDtypeStruct) -> bool:
    """Whether attention of a model's layers goes by the platform's kernel."""
    monkeypatch.setattr(fused, "target_platform", lambda: platform)
    config = make_config(variant(model, max_seq_len=LENGTH, dtype="bfloat16"), seq_len=LENGTH)
    tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    with jax.set_mesh(make_mesh(config.layout, jax.devices()[:1])):
        on_device = jax.shard_map(lambda p, rows: model_logits(p, rows, config, in_bfloat16), in_specs=P(), out_specs=P())
        params = jax.eval_shape(lambda: init(model_params(config.model), jax.random.key(0)))
        program = jax.make_jaxpr(on_device)(params, {"inputs": tokens, "segments": tokens, **rows})
    return bool(re.search(r"splash_mha_fwd|dot_product_attention_fwd", str(program)))


@pytest.mark.parametrize("platform", PICKED)
def test_families_get_the_kernels_that_can(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, picked in PICKED[platform].items():
        assert picks_fused(FAMILIES[name], platform, monkeypatch) == picked, name


def test_no_kernel_for_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not picks_fused(LLAMA, "tpu", monkeypatch, prefix=jax.ShapeDtypeStruct((1, 1), jnp.int32))


def test_where_there_is_no_kernel_fused_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"kernel=fused, but there is no fused attention for cpu; use model.attention.kernel=auto"
    ):
        fused_attention(*arrays()[:3], Pattern(), Context(), "fused")
    asked = AttentionConfig(kernel="fused")
    for config, reason in (
        (make_config(variant(LLAMA, attention=asked), LayoutConfig(context=2)), "layout.context=2, which merges parts"),
        (make_config(variant(FAMILIES["bloom"], attention=asked)), "model.position=alibi, which adds to scores"),
    ):
        with pytest.raises(ConfigError, match=f"kernel=fused does not go with {reason}"):
            check(config)


KERNELS = {
    "tpu": ["splash_mha_dkv_no_residuals", "splash_mha_dq_no_residuals", "splash_mha_fwd_residuals"],
    "cuda": ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"],
}


@pytest.mark.parametrize("platform", KERNELS)
def test_the_step_runs_each_kernel_once(platform: str, tmp_path: Path) -> None:
    """Of layers that keep what matmuls and attention made; and long sequences take no more memory than by blocks."""
    fused, blockwise = (compile_with(kernel, platform, tmp_path) for kernel in ("fused", "blockwise"))
    called = [
        "".join(names) for names in re.findall(r'%(splash_[a-z_]+)[.\d]* = |custom_call_target="(__cudnn\$\w+)"', fused.text)
    ]
    # XLA unrolls loops for GPUs.
    assert KERNELS[platform] == (sorted(called) if platform == "tpu" else sorted(set(called)))
    assert not re.search(r"splash_|__cudnn", blockwise.text)
    assert fused.memory["temp"] <= blockwise.memory["temp"]


def compile_with(kernel: str, platform: str, directory: Path) -> Compiled:
    length = 1024
    model = variant(
        LLAMA, dtype="bfloat16", d_model=256, n_heads=4, n_kv_heads=2, head_dim=128, d_ff=512, max_seq_len=length,
        attention=AttentionConfig.model_validate({"kernel": kernel}),
    )  # fmt: skip
    config = make_config(model, LayoutConfig(data=4, model=2), batch_size=4, seq_len=length)
    return compile_apart(config, {"tpu": "tpu-v5p:2x2x2", "cuda": "h100:1x8"}[platform], directory)
