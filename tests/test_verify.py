"""The certificate: layouts that are right pass, and every known kind of fault is caught."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from models import make_config
from test_cli import qianyi

from qianyi.cli import verify
from qianyi.config.check import check
from qianyi.config.load import load
from qianyi.config.model import MoEConfig
from qianyi.config.schema import Config, LayoutConfig, ModelConfig, ObjectiveConfig
from qianyi.model import moe
from qianyi.ops import context
from qianyi.parallel import collectives
from qianyi.parallel.mesh import BATCH_AXES
from qianyi.train import stages, step, weights
from qianyi.verify.certificate import certify
from qianyi.verify.shrink import shrink

DENSE = ModelConfig(n_layers=3, n_heads=8, d_model=64, dtype="float32")  # uneven over stages, tied, with biases
SPARSE = DENSE.model_copy(update={"mlp": "swiglu", "norm": "rmsnorm", "bias": False, "position": "rope", "n_kv_heads": 4})


def recipe(model: ModelConfig, **moe_settings: Any) -> Config:
    if moe_settings:
        model = model.model_copy(update={"moe": MoEConfig(n_experts=8, **moe_settings)})
    return make_config(model, document_mask=True)


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (recipe(DENSE), LayoutConfig(stage=2, data=2, model=2, chunks=2)),
        (recipe(SPARSE, n_shared=1), LayoutConfig(stage=2, context=2, expert=2)),
        (recipe(SPARSE, capacity_factor=0.75), LayoutConfig(context=2, expert=2, model=2)),
        (recipe(SPARSE, balance="bias"), LayoutConfig(data=2, expert=2, stage=2, zero=1)),
        (recipe(SPARSE.model_copy(update={"dtype": "bfloat16"})), LayoutConfig(data=2, context=2, model=2, zero=2)),
    ],
    ids=["pipeline", "stage context expert", "capacity", "bias", "bfloat16"],
)
def test_layouts_are_certified(config: Config, layout: LayoutConfig) -> None:
    certificate = certify(config, layout)
    assert certificate.passed, [c for c in certificate.checks if not c.passed]


@pytest.mark.parametrize("layout", [LayoutConfig(data=8, zero=1), LayoutConfig(data=2, model=2), LayoutConfig(model=8)])
def test_small_recipes_keep_their_objective(layout: LayoutConfig) -> None:
    for kind, objective in (("encoder", "mlm"), ("encoder_decoder", "span_corruption"), ("decoder", "prefix")):
        model = DENSE.model_copy(update={"kind": kind})
        config = make_config(model, objective=ObjectiveConfig.model_validate({"kind": objective}))
        small = shrink(config, layout)
        check(small)
        assert small.train.objective.kind == objective


@pytest.mark.parametrize("layout", [LayoutConfig(data=8), LayoutConfig(data=4, model=2)])
def test_small_recipes_keep_how_many_heads_share_keys(layout: LayoutConfig) -> None:
    for name, shared in (("llama3-8b", 4), ("llama3-405b", 16), ("llama2-7b", 1), ("qwen3-235b-a22b", 16)):
        small = shrink(load(name).config, layout).model
        assert small.n_heads // small.kv_heads == shared
        assert (small.kv_heads == 1) == (layout.model == 1 and shared > 1)


def caught(config: Config, layout: LayoutConfig) -> list[str]:
    """Names of the checks that a fault fails."""
    return [c.name for c in certify(config, layout).checks if not c.passed]


def test_mean_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device divides by its own number of scored tokens."""

    def own_count(x: jax.Array, axes: Any) -> jax.Array:
        if axes is BATCH_AXES:
            return x * lax.axis_size(BATCH_AXES)
        return collectives.sum_over(x, axes)

    monkeypatch.setattr(step, "sum_over", own_count)
    assert "losses and gradient norm" in caught(recipe(DENSE), LayoutConfig(data=2))


def wrong_reduction(change: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """`reduce_gradient` in which gradients of vectors (biases, norms) are changed: (own, summed) -> result."""

    def reduce(gradient: jax.Array, spec: Any, own: Any = (), dtype: Any = jnp.float32) -> jax.Array:
        right = collectives.reduce_gradient(gradient, spec, own, dtype)
        return change(gradient, right) if not collectives.axes_of(spec) and gradient.ndim <= 2 else right

    return reduce


def test_missing_all_reduce_on_biases_and_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device keeps the gradient of device 0: nothing was added."""

    def of_device_0(own: jax.Array, _: jax.Array) -> jax.Array:
        first = sum(lax.axis_index(axis) for axis in ("data", "model")) == 0
        return collectives.sum_over(jnp.where(first, own, 0), collectives.AXES)

    monkeypatch.setattr(weights, "reduce_gradient", wrong_reduction(of_device_0))
    assert "gradients" in caught(recipe(DENSE), LayoutConfig(data=2, model=2, gather="step"))


def test_doubled_gradient_of_a_replicated_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(_: jax.Array, right: jax.Array) -> jax.Array:
        return right * lax.axis_size("model")

    monkeypatch.setattr(weights, "reduce_gradient", wrong_reduction(double))
    assert "gradients" in caught(recipe(DENSE), LayoutConfig(model=2, gather="step"))


def test_wrong_causal_mask_across_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions as if parts lay in order; the attention goes by the zig-zag."""

    def in_order(length: int) -> jax.Array:
        n = lax.axis_size("context")
        return jnp.arange(length // n) + (lax.axis_index("context") * (length // n) if n > 1 else 0)

    monkeypatch.setattr("qianyi.model.transformer.sequence_positions", in_order)
    assert "losses and gradient norm" in caught(recipe(DENSE), LayoutConfig(context=2))


def test_keys_of_the_wrong_half_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = context._keys
    monkeypatch.setattr(context, "_keys", lambda earlier, a, axis=-2: keys(~earlier, a, axis))
    assert "losses and gradient norm" in caught(recipe(DENSE), LayoutConfig(context=2))


@pytest.mark.parametrize("settings", [{}, {"capacity_factor": 4.0}], ids=["dropless", "capacity"])
def test_tokens_dropped_on_their_way_to_experts(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    """The last token that arrives from the other devices is lost."""

    def lossy_all_to_all(x: jax.Array, axis: str, **dims: int) -> jax.Array:
        out = collectives.all_to_all(x, axis, **dims)
        return out.at[:, 0].set(0) if lax.axis_size(axis) > 1 else out

    def lossy_reduce(x: jax.Array, axes: str, dim: int) -> jax.Array:
        return collectives.reduce_scatter(x.at[-1].set(0) if lax.axis_size(axes) > 1 else x, axes, dim)

    monkeypatch.setattr(moe, "all_to_all", lossy_all_to_all)
    monkeypatch.setattr(moe, "reduce_scatter", lossy_reduce)
    assert "gradients" in caught(recipe(SPARSE, experts_per_token=2, **settings), LayoutConfig(expert=2))


def test_chunks_swapped_between_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage runs its chunks in the wrong order."""

    def swapped(weights: Any, config: Config) -> Any:
        model = stages_in_chunks(weights, config)
        return type(model)(model.outer, jax.tree.map(lambda a: a[::-1], model.blocks))

    stages_in_chunks = stages.in_chunks
    monkeypatch.setattr(step, "in_chunks", swapped)
    model = DENSE.model_copy(update={"n_layers": 4})
    assert "losses and gradient norm" in caught(recipe(model), LayoutConfig(stage=2, chunks=2))


def test_tied_embedding_updated_by_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stage's gradient of the tied table is not added to the last's."""

    def of_last_stage(gradient: jax.Array, spec: Any, own: Any = (), dtype: Any = jnp.float32) -> jax.Array:
        last = lax.axis_index("stage") == lax.axis_size("stage") - 1
        shared = "stage" not in collectives.axes_of(spec) and lax.axis_size("stage") > 1
        return collectives.reduce_gradient(jnp.where(last, gradient, 0) if shared else gradient, spec, own, dtype)

    monkeypatch.setattr(weights, "reduce_gradient", of_last_stage)
    assert "gradients" in caught(recipe(DENSE), LayoutConfig(stage=2))


def test_command_writes_a_certificate(tmp_path: Path) -> None:
    done = qianyi("verify", "gpt2-124m", "model.dtype=float32", "--layout", "stage=2,data=2", "--dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "certificate.json").read_text())
    assert found["verdict"] == "equal"
    assert found["layout"]["stage"] == 2
    assert {"kind": "collective-permute", "axes": "stage"}.items() <= next(
        c for c in found["collectives"] if c["axes"] == "stage" and c["kind"] == "collective-permute"
    ).items()
    assert found["worst_leaf"]["name"] in (tmp_path / "certificate.html").read_text()
    assert "equal: this layout computes what one device computes" in done.stdout


def test_command_refuses_what_it_cannot_read() -> None:
    done = qianyi("verify", "gpt2-124m", "--layout", "stages=2")
    assert done.returncode == 2
    assert "did you mean `layout.stage`?" in done.stderr
    assert qianyi("verify").returncode == 2


def test_recipes_that_are_the_same_when_small_run_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str | None] = []

    def counted(config: Config, layout: LayoutConfig) -> Any:
        ran.append(config.description)
        return certify(config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32"})}), layout)

    monkeypatch.setattr(verify, "_start_devices", lambda n: None)  # pyright: ignore[reportUnknownArgumentType,reportUnknownLambdaType]
    monkeypatch.setattr(verify, "DENSE_SPREAD", ("data=2",))
    monkeypatch.setattr(verify, "certify", counted)
    monkeypatch.setattr(verify, "recipes", SimpleNamespace(names=lambda: ["gpt2-124m", "gpt3-175b", "megatron-1t"]))
    verify.run_all(tmp_path)
    assert len(ran) == 2
    assert "3 certificates from 2 small recipes" in capsys.readouterr().out
    found = {
        name: json.loads((tmp_path / name / "data=2" / "certificate.json").read_text()) for name in ("gpt3-175b", "megatron-1t")
    }
    assert "GPT-3" in found["gpt3-175b"]["recipe"]["description"]
    assert "Megatron" in found["megatron-1t"]["recipe"]["description"]
    assert found["gpt3-175b"]["gradients"] == found["megatron-1t"]["gradients"]
