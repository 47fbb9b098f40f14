"""Encoders and encoder-decoders compute the same on any layout as on one device; what cannot be had is refused by name."""

from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from families import OTHERS, SMALL, variant
from jax.sharding import PartitionSpec as P
from models import SEQ_LEN, make_config, place
from test_decoders import assert_same_tree

from qianyi.config.check import check
from qianyi.config.schema import LayoutConfig, ModelConfig, ObjectiveConfig
from qianyi.config.stages import layer_places
from qianyi.errors import ConfigError
from qianyi.generate.sample import make_extend
from qianyi.model.param import Tree, map_params
from qianyi.model.transformer import empty_cache, model_logits, model_params
from qianyi.parallel.mesh import make_mesh
from qianyi.train.state import init_state, reorder_layers
from qianyi.train.step import LossAndGradients, make_loss_and_gradients
from qianyi.verify.compare import host_batch

RTOL = 1e-5
SOURCE = 24
"""Tokens of a source; a target has others."""
CASES = [
    ("bert", LayoutConfig(data=8, zero=2), 1),
    ("bert", LayoutConfig(data=2, model=4), 2),
    ("bert", LayoutConfig(stage=2, data=2), 4),
    ("t5", LayoutConfig(data=8, gather="layer"), 2),
    ("t5", LayoutConfig(replica=2, data=2, model=2, zero=2), 1),
    ("vaswani", LayoutConfig(data=2, model=4), 1),
    ("vaswani", LayoutConfig(replica=2, data=2, model=2, zero=1), 2),
]


def objective(m: ModelConfig) -> ObjectiveConfig:
    if m.kind == "encoder":
        return ObjectiveConfig(kind="mlm", sentence="next")
    return ObjectiveConfig(kind="span_corruption", target_len=SEQ_LEN)


@cache
def gradients(name: str, layout: LayoutConfig, accumulation: int) -> LossAndGradients:
    """On the host, layers in the model's order."""
    config = make_config(OTHERS[name], layout, accumulation=accumulation, objective=objective(OTHERS[name]))
    check(config)
    batch = {key: rows[:, :SOURCE] if key.startswith("source") else rows for key, rows in host_batch(config, 0).items()}
    mesh = make_mesh(layout, jax.devices()[: layout.n_devices])
    with jax.set_mesh(mesh):
        params = init_state(config, mesh).params
        out = jax.device_get(jax.jit(make_loss_and_gradients(config))(params, place(batch, config, mesh)))
    blocks = reorder_layers(out.gradients["blocks"], layer_places(config), range(config.model.n_blocks))
    return out._replace(gradients={**out.gradients, "blocks": jax.device_get(blocks)})


@pytest.mark.parametrize(("name", "layout", "accumulation"), CASES, ids=str)
def test_layout_equals_one_device(name: str, layout: LayoutConfig, accumulation: int) -> None:
    reference = gradients(name, LayoutConfig(), 1)
    ours = gradients(name, layout, accumulation)
    assert (reference.sentence_loss > 0.1) == OTHERS[name].sentence_head
    for term in ("loss", "z_loss", "sentence_loss", "grad_norm"):
        np.testing.assert_allclose(getattr(ours, term), getattr(reference, term), rtol=RTOL)
    assert_same_tree(ours.gradients, reference.gradients, float(reference.grad_norm))


@pytest.mark.parametrize(
    ("name", "changes", "layout", "message"),
    [
        ("vaswani", {}, LayoutConfig(stage=2), "layout.stage > 1 splits one stack of layers; model.kind=encoder_decoder has two"),
        ("t5", {}, LayoutConfig(stage=2), "layout.stage > 1 does not go with model.position=relative"),
        ("bert", {}, LayoutConfig(context=2), "layout.context > 1 splits causal attention; model.kind=encoder looks both ways"),
        ("vaswani", {}, LayoutConfig(context=2), "layout.context > 1 splits causal attention; model.kind=encoder_decoder"),
        ("t5", {}, LayoutConfig(context=2), "layout.context > 1 does not go with model.position=relative"),
        ("t5", {"sentence_head": True}, LayoutConfig(), "model.sentence_head is for model.kind=encoder, not encoder_decoder"),
        ("t5", {"segments": 2}, LayoutConfig(), "model.segments is for model.kind=encoder, not encoder_decoder"),
        ("bert", {"mlm_head": False}, LayoutConfig(), "model.mlm_head=false leaves no logits to train"),
        ("vaswani", {"d_model": 40, "n_heads": 5}, LayoutConfig(model=2), "layout.model=2 does not divide model.n_heads=5"),
    ],
)
def test_refused_by_name(name: str, changes: dict[str, Any], layout: LayoutConfig, message: str) -> None:
    model = variant(OTHERS[name], n_kv_heads=None, **changes)
    with pytest.raises(ConfigError, match=message):
        check(make_config(model, layout, accumulation=layout.stage))


def test_documents_cannot_be_packed_where_tokens_look_both_ways() -> None:
    with pytest.raises(ConfigError, match=r"train\.document_mask is for packed sequences of a decoder"):
        check(make_config(OTHERS["bert"], document_mask=True))


def random_params(m: ModelConfig) -> Tree:
    random = np.random.default_rng(0)
    return map_params(lambda p: (p.mean + 0.2 * random.standard_normal(p.shape)).astype(np.float32), model_params(m))


def test_a_cache_knows_biases_by_distance() -> None:
    m = variant(SMALL, position="relative", n_layers=2)
    params, tokens, n = random_params(m), np.arange(SEQ_LEN, dtype=np.int32)[None], 20
    config = make_config(m)
    with jax.set_mesh(make_mesh(LayoutConfig(), jax.devices()[:1])):
        read = jax.shard_map(lambda p, t: model_logits(p, {"inputs": t}, config, lambda _, w: w), in_specs=P(), out_specs=P())
        expected = np.asarray(jax.jit(read)(params, tokens))
        extend, cache = make_extend(m), empty_cache(m, 1, SEQ_LEN)
        first, cache = extend(params, tokens[:, :n], np.int32(0), cache)
        second, _ = extend(params, tokens[:, n : n + 1], np.int32(n), cache)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), expected[:, : n + 1], atol=1e-4)
