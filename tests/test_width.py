"""muP: the rules of table 8, nothing at the base width, and activations that move equally far at every width."""

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import GPT, LLAMA, host_batch, make_config, place

from qianyi.cli.coord_check import _parse, write
from qianyi.config.load import load
from qianyi.config.model import AttentionConfig, MoEConfig
from qianyi.config.optimizer import OptimizerConfig
from qianyi.config.schema import LayoutConfig, ModelConfig
from qianyi.errors import CheckpointError, ConfigError
from qianyi.export.families import family_of
from qianyi.model.param import Tree
from qianyi.model.transformer import model_logits, model_params
from qianyi.model.width import rate_multipliers
from qianyi.parallel.mesh import make_mesh
from qianyi.train.optimizer import make_optimizer
from qianyi.train.state import init_state
from qianyi.train.step import make_train_step
from qianyi.verify.compare import Runner, compare_trees
from qianyi.verify.coordinates import Coordinates, check_coordinates

EXPERTS = LLAMA.model_copy(update={"moe": MoEConfig(n_experts=4)})
HIDDEN = {"query", "key", "value", "out", "up", "down", "gate", "experts_up", "experts_down", "experts_gate"}


def with_base(model: ModelConfig, width: int | None, head_dim: int | None = None) -> ModelConfig:
    return model.model_copy(update={"mup_base_width": width, "mup_base_head_dim": head_dim})


def by_name(tree: Tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "std"))
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


@pytest.mark.parametrize("model", [GPT, EXPERTS], ids=["gpt", "experts"])
def test_table_8(model: ModelConfig) -> None:
    """At four times the base width."""
    plain, wide = by_name(model_params(model)), by_name(model_params(with_base(model, 16)))
    rates = by_name(rate_multipliers(model_params(model), with_base(model, 16)))
    for name, p in plain.items():
        last = name.rpartition("/")[2]
        deviation, rate = (0.5, 0.25) if last in HIDDEN else (0.25, 0.25) if last == "router" else (1, 1)
        assert wide[name].std == pytest.approx(deviation * p.std), name
        assert rates[name] == rate, name
    assert {name.rpartition("/")[2] for name, rate in rates.items() if rate == 1} >= {"tokens", "scale"}


@pytest.mark.parametrize("model", [GPT, EXPERTS], ids=["gpt", "experts"])
def test_nothing_changes_at_the_base_width(model: ModelConfig) -> None:
    """The program for the step and that for the initialization are the same, letter for letter."""

    def programs(model: ModelConfig) -> tuple[str, str]:
        config = make_config(model)
        mesh = make_mesh(config.layout, jax.devices()[:1])
        with jax.set_mesh(mesh):
            draw = jax.jit(lambda: init_state(config, mesh))
            step = make_train_step(config).lower(draw.eval_shape(), place(host_batch(), config, mesh))
            return draw.lower().as_text(), step.as_text()

    assert programs(with_base(model, model.d_model, model.d_head)) == programs(model)
    assert programs(with_base(model, model.d_model // 2)) != programs(model)


def logits(model: ModelConfig, params: Tree) -> np.ndarray:
    config = make_config(model)
    gather = lambda _, part: part  # noqa: E731
    on_device = jax.shard_map(lambda w, rows: model_logits(w, rows, config, gather), in_specs=P, out_specs=P)
    with jax.set_mesh(make_mesh(config.layout, jax.devices()[:1])):
        return np.asarray(jax.jit(on_device)(params, {"inputs": jnp.asarray(host_batch()["inputs"])}))


P = jax.sharding.PartitionSpec()


def test_logits_and_scores_are_scaled() -> None:
    config = make_config(LLAMA)
    mesh = make_mesh(config.layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        # Large enough for attention to matter.
        params = jax.tree.map(lambda a: 5 * a, init_state(config, mesh).params)
    plain = logits(LLAMA, params)
    np.testing.assert_allclose(logits(with_base(LLAMA, 16), params), plain / 4, rtol=1e-5, atol=1e-6)
    head_dim = LLAMA.d_head
    narrow = logits(with_base(LLAMA, LLAMA.d_model, 4 * head_dim), params)
    scaled = LLAMA.model_copy(update={"attention": AttentionConfig(scale=math.sqrt(4 * head_dim) / head_dim)})
    np.testing.assert_allclose(narrow, logits(scaled, params), rtol=1e-5, atol=1e-6)
    assert not np.allclose(narrow, plain, rtol=1e-2)


def test_adam_steps_by_the_multiplied_rate_and_decays_by_the_plain_one() -> None:
    config = make_config(with_base(GPT, 16))
    params = {name: np.full(p.shape, 0.5, np.float32) for name, p in by_name(model_params(GPT)).items()}
    random = np.random.default_rng(0)
    gradients = {name: random.normal(size=a.shape).astype(np.float32) for name, a in params.items()}
    declared = model_params(config.model)
    unflatten = jax.tree.structure(declared, is_leaf=lambda x: hasattr(x, "std")).unflatten
    optimizer = make_optimizer(config)
    tree = unflatten(params.values())
    updates, _ = optimizer.update(unflatten(gradients.values()), optimizer.init(tree), tree)
    o = config.optimizer
    rate = o.learning_rate / config.schedule.warmup_steps
    adam = optax.scale_by_adam(o.b1, o.b2, o.eps)
    direction, _ = adam.update(gradients, adam.init(params), params)
    for name, update in by_name(updates).items():
        last = name.rpartition("/")[2]
        decay = o.weight_decay * 0.5 if last in HIDDEN | {"tokens", "positions"} else 0
        expected = -rate * (direction[name] * (0.25 if last in HIDDEN else 1) + decay)
        np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(("kind", "expected"), [("lion", 0.25), ("muon", 0.5)])
def test_rates_of_other_optimizers(kind: str, expected: float) -> None:
    config = make_config(GPT)
    config = config.model_copy(update={"optimizer": OptimizerConfig(kind=kind, learning_rate=1e-2, weight_decay=0.0)})  # pyright: ignore[reportArgumentType]
    mesh = make_mesh(config.layout, jax.devices()[:1])

    def updates(model: ModelConfig) -> dict[str, Any]:
        optimizer = make_optimizer(config.model_copy(update={"model": model}))
        with jax.set_mesh(mesh):
            params = init_state(config, mesh).params
            gradients = jax.tree.map(lambda a: a + 0.1, params)
            found = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(gradients, params)
        return by_name(jax.device_get(found))

    plain, ours = updates(GPT), updates(with_base(GPT, 16))
    for name, update in ours.items():
        rate = expected if name.rpartition("/")[2] in HIDDEN else 1
        np.testing.assert_allclose(update, rate * plain[name], rtol=1e-5, err_msg=name)


def test_layouts_equal_one_device() -> None:
    model = with_base(LLAMA, 16, 8)
    ours, reference = (
        Runner(make_config(model, layout)).train(1e-3) for layout in (LayoutConfig(data=2, model=2), LayoutConfig())
    )
    assert compare_trees(ours.updates, reference.updates, 1e-2, reference.initial)[0].error < 1e-5
    np.testing.assert_allclose(ours.training, reference.training, rtol=1e-5)


def test_export_is_refused_where_logits_are_scaled() -> None:
    model = load("llama3-8b").config.model
    assert family_of(with_base(model, model.d_model)) is family_of(model)
    with pytest.raises(CheckpointError, match="needs mup_base_width=None"):
        family_of(with_base(model, 256))


@pytest.fixture(scope="module")
def checks() -> list[Coordinates]:
    return list(check_coordinates(load("quickstart").config, [64, 256], 8))


def test_activations_move_equally_far_with_mup(checks: list[Coordinates]) -> None:
    standard, mup = checks
    assert mup.flat and all(abs(slope) < 0.15 for slope in mup.slopes.values()), mup.slopes
    assert not standard.flat and standard.slopes["logits"] > 0.5 and standard.slopes["blocks"] > 0.5, standard.slopes
    # The narrowest model is the base: there the two are one.
    assert [by_step[-1][0] for by_step in standard.sizes.values()] == [by_step[-1][0] for by_step in mup.sizes.values()]


def test_numbers_and_picture(checks: list[Coordinates], tmp_path: Path) -> None:
    write(checks, "quickstart", load("quickstart").config, tmp_path)
    found = json.loads((tmp_path / "coordinates.json").read_text())
    assert found["widths"] == [64, 256] and found["muP"]["flat"] and not found["standard"]["flat"]
    assert len(found["muP"]["sizes"]["logits"]) == 9
    picture = ElementTree.parse(tmp_path / "coordinates.svg").getroot()
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 * 3 * 8 and all(len(line.attrib["points"].split()) == 2 for line in lines)


@pytest.mark.parametrize("widths", ["64", "64,x", "64,100", "128,64", "64,64", "2,4"])
def test_widths_that_do_not_do(widths: str) -> None:
    with pytest.raises(ConfigError, match="--widths"):
        _parse(widths)


def test_models_without_a_rule_are_refused() -> None:
    config = load("quickstart", ["model.scale_embeddings=true"]).config
    with pytest.raises(ConfigError, match="how scale_embeddings of the model grows"):
        next(check_coordinates(config, [64, 128], 1))
