"""The gradient noise scale is that of the gradients of microbatches, under every layout."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from models import GPT, LLAMA, host_batch, make_config, place

from qianyi.config.model import MoEConfig
from qianyi.config.schema import LayoutConfig, ModelConfig
from qianyi.model.param import Tree
from qianyi.model.transformer import model_logits
from qianyi.parallel.mesh import make_mesh
from qianyi.train.noise import NoiseScale
from qianyi.train.state import init_state
from qianyi.train.step import Batch, LossAndGradients, make_loss_and_gradients
from qianyi.verify.compare import compare_trees

ACCUMULATION = 4
EXPERTS = LLAMA.model_copy(update={"moe": MoEConfig(n_experts=4, capacity_factor=None)})
LAYOUTS = [
    LayoutConfig(data=4),
    LayoutConfig(data=4, gather="layer"),
    LayoutConfig(data=4, zero=1),
    LayoutConfig(replica=2, data=2, zero=2),
    LayoutConfig(replica=2, model=4, zero=3),
    LayoutConfig(context=2, data=2, model=2),
]


@cache
def measured(model: ModelConfig, layout: LayoutConfig, noise_scale: bool = True) -> LossAndGradients:
    config = make_config(model, layout, accumulation=ACCUMULATION, noise_scale=noise_scale)
    mesh = make_mesh(layout, jax.devices()[: layout.n_devices])
    with jax.set_mesh(mesh):
        params = init_state(config, mesh).params
        return jax.device_get(jax.jit(make_loss_and_gradients(config))(params, place(host_batch(), config, mesh)))


def test_norm_is_that_of_the_gradients_of_microbatches() -> None:
    """Of the textbook's loss over the rows of each microbatch, which are every fourth."""
    config = make_config(GPT)
    batch = host_batch()
    per_microbatch = (batch["targets"] >= 0).sum() / ACCUMULATION

    def loss(params: Tree, rows: Batch) -> jax.Array:
        logits = model_logits(params, rows, config, lambda _, part: part)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        at_target = jnp.take_along_axis(logits, jnp.maximum(rows["targets"], 0)[..., None], axis=-1)[..., 0]
        terms = log_z - at_target + config.train.z_loss * log_z**2
        return jnp.sum(jnp.where(rows["targets"] >= 0, terms, 0)) / per_microbatch

    mesh = make_mesh(config.layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = init_state(config, mesh).params
        gradient = jax.jit(jax.shard_map(jax.grad(loss), in_specs=P(), out_specs=P()))
        squares = [
            sum(
                float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient(params, {k: a[m::ACCUMULATION] for k, a in batch.items()}))
            )
            for m in range(ACCUMULATION)
        ]
    ours = measured(GPT, LayoutConfig())
    assert ours.microbatch_grad_norm == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)
    assert ours.microbatch_grad_norm > 1.2 * ours.grad_norm


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_equal_one_device(layout: LayoutConfig) -> None:
    reference, ours = measured(LLAMA, LayoutConfig()), measured(LLAMA, layout)
    assert ours.microbatch_grad_norm == pytest.approx(reference.microbatch_grad_norm, rel=1e-5)
    assert ours.grad_norm == pytest.approx(reference.grad_norm, rel=1e-5)
    assert compare_trees(ours.gradients, reference.gradients, 1e-2)[0].error < 1e-5


def test_experts_equal_one_device() -> None:
    reference, ours = measured(EXPERTS, LayoutConfig()), measured(EXPERTS, LayoutConfig(expert=2, data=2))
    assert ours.microbatch_grad_norm == pytest.approx(reference.microbatch_grad_norm, rel=1e-5)


def test_measuring_changes_no_gradient() -> None:
    plain, ours = (measured(LLAMA, LayoutConfig(), on) for on in (False, True))
    assert plain.microbatch_grad_norm is None
    assert compare_trees(ours.gradients, plain.gradients, 1e-2)[0].error < 1e-6


def test_noise_scale_of_gradients_with_known_noise() -> None:
    """Gradients of sequences with covariance of trace 500 around one of squared norm 4; half of the way, the batch doubles."""
    random = np.random.default_rng(0)
    mean = np.full(100, 0.2)
    scale, found = NoiseScale(), None
    for step in range(600):
        batch_size = 64 if step < 300 else 128
        sequences = mean + random.normal(size=(batch_size, 100)) * np.sqrt(5)
        microbatches = sequences.reshape(-1, 16, 100).mean(axis=1)
        norms = np.linalg.norm(sequences.mean(axis=0)), np.sqrt(np.mean(np.sum(microbatches**2, axis=1)))
        found = scale.add(*norms, batch_size, 16)
    assert found == pytest.approx(125, rel=0.1)


def test_noise_scale_from_exact_expectations() -> None:
    norm = {size: np.sqrt(4 + 500 / size) for size in (16, 64)}
    assert NoiseScale().add(norm[64], norm[16], 64, 16) == pytest.approx(125)
    assert NoiseScale().add(norm[16], norm[64], 64, 16) is None
