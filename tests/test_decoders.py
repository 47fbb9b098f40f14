"""Every family of decoders computes the same on any layout as on one device; what cannot be had is refused by name."""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from families import DECODERS
from models import host_batch, make_config, place

from qianyi.config.check import check
from qianyi.config.schema import LayoutConfig
from qianyi.config.stages import layer_places
from qianyi.errors import ConfigError
from qianyi.parallel.mesh import make_mesh
from qianyi.train.state import init_state, reorder_layers
from qianyi.train.step import LossAndGradients, make_loss_and_gradients

RTOL = 1e-5
CASES = [
    ("bloom", LayoutConfig(context=2, model=2, data=2), 1),
    ("bloom", LayoutConfig(stage=2, model=2, data=2), 2),
    ("palm", LayoutConfig(data=2, model=4, zero=2), 1),
    ("palm", LayoutConfig(stage=3, model=2), 4),
    ("glm", LayoutConfig(data=2, model=4), 2),
    ("glm", LayoutConfig(stage=2, data=4, zero=1), 2),
    ("gemma2", LayoutConfig(stage=2, context=2, model=2), 2),
    ("gemma3", LayoutConfig(context=4, model=2), 1),
    ("gemma3", LayoutConfig(stage=2, data=2, model=2, gather="layer"), 4),
    ("mistral", LayoutConfig(context=4, data=2, exchange="gather"), 1),
    ("qwen3", LayoutConfig(data=2, model=4), 1),
    ("deepseek", LayoutConfig(stage=2, expert=2, data=2), 2),
    ("deepseek", LayoutConfig(data=2, expert=2, model=2, gather="layer"), 2),
    ("deepseek", LayoutConfig(context=4, expert=2, zero=1), 1),
]


@cache
def gradients(name: str, layout: LayoutConfig, accumulation: int) -> LossAndGradients:
    """On the host, layers in the model's order."""
    batch, config = host_batch(), make_config(DECODERS[name], layout, accumulation=accumulation)
    if name == "glm":
        batch["prefix"] = np.linspace(1, 20, len(batch["inputs"])).astype(np.int32)[:, None]
    check(config)
    mesh = make_mesh(layout, jax.devices()[: layout.n_devices])
    with jax.set_mesh(mesh):
        params = init_state(config, mesh).params
        out = jax.device_get(jax.jit(make_loss_and_gradients(config))(params, place(batch, config, mesh)))
    blocks = reorder_layers(out.gradients["blocks"], layer_places(config), range(config.model.n_blocks))
    return out._replace(gradients={**out.gradients, "blocks": jax.device_get(blocks)})


@pytest.mark.parametrize(("name", "layout", "accumulation"), CASES, ids=str)
def test_layout_equals_one_device(name: str, layout: LayoutConfig, accumulation: int) -> None:
    balanced_by_microbatch = DECODERS[name].mixture is not None
    reference = gradients(name, LayoutConfig(), accumulation if balanced_by_microbatch else 1)
    ours = gradients(name, layout, accumulation)
    for term in ("loss", "z_loss", "grad_norm"):
        np.testing.assert_allclose(getattr(ours, term), getattr(reference, term), rtol=RTOL)
    assert_same_tree(ours.gradients, reference.gradients, float(reference.grad_norm))


def assert_same_tree(ours: Any, reference: Any, scale: float) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(reference), strict=True):
        name = jax.tree_util.keystr(path)
        # The gradient of a key bias is zero but for rounding.
        size = scale if "key_bias" in name else np.linalg.norm(b)
        assert np.linalg.norm(a - b) <= RTOL * size, f"{name}: {np.linalg.norm(a - b)} of {size}"


@pytest.mark.parametrize(
    ("name", "changes", "layout", "message"),
    [
        ("gpt2", {"position": "relative"}, LayoutConfig(stage=2), "layout.stage > 1 does not go with model.position=relative"),
        (
            "gpt2",
            {"position": "relative"},
            LayoutConfig(context=2),
            "layout.context > 1 does not go with model.position=relative",
        ),
        ("deepseek", {}, LayoutConfig(data=16), "does not divide model.attention.latent.kv_rank=24"),
        ("gpt2", {"mlm_head": False}, LayoutConfig(), "model.mlm_head is for model.kind=encoder, not decoder"),
        ("gpt2", {"n_encoder_layers": 2}, LayoutConfig(), "is for model.kind=encoder_decoder, not decoder"),
        ("deepseek", {"bias": True}, LayoutConfig(), "model.attention.latent goes with position=rope, bias=false"),
    ],
)
def test_refused_by_name(name: str, changes: dict[str, Any], layout: LayoutConfig, message: str) -> None:
    model = DECODERS[name].model_copy(update=changes)
    with pytest.raises(ConfigError, match=message):
        check(make_config(model, layout, accumulation=layout.stage))
