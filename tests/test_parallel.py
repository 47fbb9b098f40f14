"""Every layout computes what one device computes, and communicates what its table says."""

import collections
import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from models import GPT, LLAMA, host_batch, make_config, place

from qianyi.config.schema import Config, LayoutConfig, ModelConfig
from qianyi.model.param import Tree
from qianyi.model.transformer import model_logits
from qianyi.parallel.mesh import make_mesh
from qianyi.train.state import TrainState, init_state
from qianyi.train.step import Batch, LossAndGradients, make_eval_step, make_loss_and_gradients, make_train_step

LAYOUTS = {
    "one device": LayoutConfig(),
    "replica 8": LayoutConfig(replica=8),
    "data 8, zero 0": LayoutConfig(data=8, zero=0),
    "fsdp 8": LayoutConfig(data=8),
    "fsdp 8 gathered once": LayoutConfig(data=8, gather="step"),
    "fsdp 8 gathered per layer": LayoutConfig(data=8, gather="layer"),
    "tensor 8": LayoutConfig(model=8),
    "fsdp 4 x tensor 2": LayoutConfig(data=4, model=2),
    "fsdp 2 x tensor 4": LayoutConfig(data=2, model=4),
    "replica 2 x fsdp 2 x tensor 2": LayoutConfig(replica=2, data=2, model=2),
    "zero 1": LayoutConfig(data=8, zero=1),
    "zero 2": LayoutConfig(data=8, zero=2),
    "zero 2 x tensor 2": LayoutConfig(replica=2, data=2, model=2, zero=2),
    "context 4 ring x data 2": LayoutConfig(context=4, data=2),
    "context 4 gather x tensor 2": LayoutConfig(context=4, model=2, exchange="gather"),
    "context 2 x data 2 x tensor 2, zero 2": LayoutConfig(context=2, data=2, model=2, zero=2),
}
MODELS = {"gpt": GPT, "llama": LLAMA}
RTOL = 1e-5


@cache
def gradients(model: ModelConfig, layout: LayoutConfig, accumulation: int) -> LossAndGradients:
    """On the host, from the same parameters and batch."""
    config = make_config(model, layout, accumulation=accumulation)
    mesh = make_mesh(layout, jax.devices()[: layout.n_devices])
    with jax.set_mesh(mesh):
        params = init_state(config, mesh).params
        return jax.device_get(jax.jit(make_loss_and_gradients(config))(params, place(host_batch(), config, mesh)))


def assert_same_tree(ours: Any, reference: Any, scale: float) -> None:
    """Relative to each leaf's norm. A key bias shifts all scores of a query alike, so its exact gradient is zero: what is left of
    it is rounding, which is held to `scale` instead."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(reference), strict=True):
        name = jax.tree_util.keystr(path)
        error, size = np.linalg.norm(a - b), np.linalg.norm(b)
        assert error <= RTOL * (scale if "key_bias" in name else size), f"{name}: {error} of {size}"


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_layout_equals_one_device(model: ModelConfig, layout: LayoutConfig, accumulation: int) -> None:
    reference = gradients(model, LayoutConfig(), 1)
    ours = gradients(model, layout, accumulation)
    np.testing.assert_allclose(ours.loss, reference.loss, rtol=RTOL)
    np.testing.assert_allclose(ours.z_loss, reference.z_loss, rtol=RTOL)
    np.testing.assert_allclose(ours.grad_norm, reference.grad_norm, rtol=RTOL)
    assert_same_tree(ours.gradients, reference.gradients, scale=float(reference.grad_norm))


@pytest.mark.parametrize(
    ("layout", "accumulation"),
    [
        (LayoutConfig(data=8), 1),
        (LayoutConfig(data=4, model=2), 2),
        (LayoutConfig(data=2, zero=1), 2),
        (LayoutConfig(data=2, zero=2, context=2), 1),
        (LayoutConfig(stage=2, data=2, model=2), 2),
        (LayoutConfig(stage=2, data=2, gather="layer"), 4),
        (LayoutConfig(stage=2, chunks=2, context=2), 4),
    ],
    ids=str,
)
def test_validation_equals_one_device(layout: LayoutConfig, accumulation: int) -> None:
    model = GPT.model_copy(update={"n_layers": 5})

    def scored(layout: LayoutConfig) -> tuple[float, int]:
        config = make_config(model, layout, accumulation=accumulation)
        mesh = make_mesh(layout, jax.devices()[: layout.n_devices])
        with jax.set_mesh(mesh):
            total, _, tokens = make_eval_step(config)(init_state(config, mesh).params, place(host_batch(), config, mesh))
        return float(total), int(tokens)

    total, tokens = scored(layout)
    expected, expected_tokens = scored(LayoutConfig())
    assert tokens == expected_tokens
    assert total == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("layout", [LAYOUTS["fsdp 8"], LAYOUTS["fsdp 2 x tensor 4"]], ids=["fsdp", "tensor"])
@pytest.mark.parametrize(
    "remat", ["full", "none", {"attn_out": "keep", "mlp_hidden": "keep", "query": "offload"}], ids=["full", "none", "named"]
)
def test_recomputation_changes_nothing(remat: Any, layout: LayoutConfig) -> None:
    reference = gradients(LLAMA, LayoutConfig(), 1)
    ours = gradients.__wrapped__(LLAMA.model_copy(update={"remat": remat}), layout, 1)  # a table has no hash
    assert_same_tree(ours.gradients, reference.gradients, scale=float(reference.grad_norm))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_gradient_is_that_of_the_plain_loss(model: ModelConfig) -> None:
    """The loss computes its gradient by hand, chunk by chunk; JAX differentiates the textbook's formula on all logits."""
    config = make_config(model)
    mesh = make_mesh(config.layout, jax.devices()[:1])

    def plain_loss(params: Tree, batch: Batch) -> jax.Array:
        logits = model_logits(params, batch, config, lambda _, part: part)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        at_target = jnp.take_along_axis(logits, jnp.maximum(batch["targets"], 0)[..., None], axis=-1)[..., 0]
        terms = log_z - at_target + config.train.z_loss * log_z**2
        scored = batch["targets"] >= 0
        return jnp.sum(jnp.where(scored, terms, 0)) / jnp.sum(scored)

    with jax.set_mesh(mesh):
        params = init_state(config, mesh).params
        on_device = jax.value_and_grad(plain_loss)
        plain = jax.shard_map(on_device, in_specs=P(), out_specs=P())
        loss, reference = jax.device_get(jax.jit(plain)(params, place(host_batch(), config, mesh)))
    ours = gradients(model, LayoutConfig(), 1)
    np.testing.assert_allclose(ours.loss + ours.z_loss, loss, rtol=1e-6)
    assert_same_tree(ours.gradients, reference, scale=float(ours.grad_norm))


def run_steps(config: Config, n: int) -> TrainState:
    mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
    with jax.set_mesh(mesh):
        state, step = init_state(config, mesh), make_train_step(config)
        for seed in range(n):
            state, _ = step(state, place(host_batch(seed), config, mesh))
        return jax.device_get(state)


def test_training_equals_one_device() -> None:
    """Four updates with clipping, decay and schedule."""
    reference = run_steps(make_config(LLAMA), 4)
    for layout in (LAYOUTS["fsdp 4 x tensor 2"], LAYOUTS["replica 2 x fsdp 2 x tensor 2"]):
        ours = run_steps(make_config(LLAMA, layout, accumulation=2), 4)
        for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(reference.params), strict=True):
            # Adam divides small gradients by their size, which turns their rounding into a share of the step.
            assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)


def collectives(config: Config) -> dict[str, collections.Counter[str]]:
    """Collectives of the compiled loss and gradients, by whether they stand inside a loop (run per layer or microbatch) or not."""
    mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
    with jax.set_mesh(mesh):
        params = init_state(config, mesh).params
        compiled = jax.jit(make_loss_and_gradients(config)).lower(params, place(host_batch(), config, mesh)).compile()
    counts = {"once": collections.Counter[str](), "in loops": collections.Counter[str]()}
    inside = False
    for line in compiled.as_text().splitlines():
        if line and not line[0].isspace():
            inside = not line.startswith("ENTRY")
        found = re.search(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\(", line)
        # Scalars (loss, norm, token count) and the loss's [chunk] vectors are not what this table is about.
        if found and re.search(r"\w+\[\d+,\d+", line[: found.start()]):
            counts["in loops" if inside else "once"][found.group(1)] += 1
    return counts


def test_one_device_communicates_nothing() -> None:
    counts = collectives(make_config(LLAMA))
    assert not counts["once"] and not counts["in loops"]


def test_replicas_reduce_once_per_step() -> None:
    """However many microbatches and layers: no collective inside a loop, all gradients summed after it."""
    counts = collectives(make_config(LLAMA, LAYOUTS["replica 8"], accumulation=2))
    assert not counts["in loops"]
    assert set(counts["once"]) == {"all-reduce"}


def test_fsdp_with_accumulation_reduces_once_per_step() -> None:
    """Seven matrices per layer and two tables are gathered once and their gradients reduced once, outside the microbatch loop."""
    counts = collectives(make_config(LLAMA, LAYOUTS["fsdp 8"], accumulation=2))
    assert not counts["in loops"]
    assert counts["once"]["all-gather"] == 9
    assert counts["once"]["reduce-scatter"] == 9


def test_fsdp_per_layer_gathers_forward_and_backward() -> None:
    """Seven matrices gathered in the forward loop, again in the backward loop instead of being kept, and reduced there. The compiler
    lifts the two tables' gathers out of the microbatch loop; their gradients are reduced per microbatch."""
    counts = collectives(make_config(LLAMA, LAYOUTS["fsdp 8 gathered per layer"], accumulation=2))
    assert counts["in loops"]["all-gather"] == 7 + 7
    assert counts["once"]["all-gather"] == 2
    assert counts["in loops"]["reduce-scatter"] == 7 + 2
    assert not counts["once"]["reduce-scatter"]


def test_tensor_parallel_collectives_per_layer() -> None:
    """Sequence parallelism: per block two gathers and two scatters forward; backward each becomes the other, and the two gathers are
    repeated instead of stored. Embedding: one scatter (gather backward); final norm: one gather (scatter backward)."""
    counts = collectives(make_config(LLAMA, LAYOUTS["tensor 8"]))
    total = counts["once"] + counts["in loops"]
    assert total["all-gather"] == (2 + 2 + 2) + (1 + 1)
    assert total["reduce-scatter"] == (2 + 2) + (1 + 1)
    assert not total["all-to-all"] and not total["collective-permute"]
