"""Every optimizer does to each layer's and expert's matrix what its method says, under every layout, and continues from a checkpoint."""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from models import GPT, make_config

from qianyi.config.optimizer import OptimizerConfig, ScheduleConfig
from qianyi.config.schema import Config, LayoutConfig, ModelConfig, MoEConfig
from qianyi.config.stages import layer_places
from qianyi.errors import CheckpointError
from qianyi.model.decoder import decoder_params
from qianyi.model.param import Param, map_params
from qianyi.parallel.mesh import abstract_mesh, make_mesh
from qianyi.train.checkpoint import Checkpoints, make_record
from qianyi.train.footprint import held
from qianyi.train.muon import plan
from qianyi.train.schedule import learning_rate
from qianyi.train.state import TrainState, abstract_state, init_state, reorder_layers
from qianyi.train.step import make_update
from qianyi.train.weights import gradient_specs
from qianyi.verify.compare import _natural

MODEL = GPT.model_copy(update={"vocab_size": 64, "n_layers": 4, "n_kv_heads": 8, "d_ff": 48, "moe": MoEConfig(n_experts=4, n_shared=1)})
UNEVEN = MODEL.model_copy(update={"n_layers": 5})
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw, decay by the rate squared": {"kind": "adamw", "decay_power": 2, "weight_decay": 1.0},
    "lamb": {},
    "lars": {"learning_rate": 1.0, "nesterov": True},
    "adafactor": {},
    "adafactor as in PaLM": {"kind": "adafactor", "factored": False, "momentum": 0.9, "eps": 1e-15},
    "lion": {"learning_rate": 1e-3},
    "sgd": {},
    "muon": {},
}
STEPS = 3


def recipe(name: str, model: ModelConfig = MODEL, layout: LayoutConfig | None = None) -> Config:
    config = make_config(model, layout, accumulation=max(1, layout.stage if layout else 1))
    settings: dict[str, Any] = {"kind": name, "learning_rate": 1e-2, "clip_norm": None} | OPTIMIZERS[name]
    return config.model_copy(update={"optimizer": OptimizerConfig(**settings)})


def host_gradients(config: Config, seed: int) -> Any:
    """Of every parameter, rows and columns of different size; layers in the model's order."""
    random = np.random.default_rng(seed)

    def draw(p: Param) -> np.ndarray:
        sizes = np.exp(random.normal(size=p.shape[-1])) * np.exp(random.normal(size=(*p.shape[:-1], 1)))
        return (1e-2 * sizes * random.normal(size=p.shape)).astype(np.float32)

    return map_params(draw, decoder_params(config.model))


def gradients(config: Config, seed: int, mesh: jax.sharding.Mesh) -> Any:
    host = host_gradients(config, seed)
    blocks = jax.device_get(reorder_layers(host["blocks"], range(config.model.n_layers), layer_places(config)))
    return jax.tree.map(
        lambda g, spec: jax.device_put(g, NamedSharding(mesh, spec)), {**host, "blocks": blocks}, gradient_specs(config)
    )


def updated(config: Config, steps: range, state: TrainState | None = None) -> TrainState:
    """The state after updates with the gradients of these steps."""
    mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
    with jax.set_mesh(mesh):
        state, update = state or init_state(config, mesh), jax.jit(make_update(config))
        for step in steps:
            state = update(state, gradients(config, step, mesh), np.float32(1))
    return state


def params_of(config: Config, state: TrainState) -> Any:
    return _natural(jax.device_get(state.params), config)


@cache
def alone(name: str, model: ModelConfig, steps: int) -> Any:
    config = recipe(name, model)
    return params_of(config, updated(config, range(steps)))


# What the methods say, of separate arrays.


def separate(tree: Any) -> dict[str, np.ndarray]:
    """Every layer's and expert's array by itself: a matrix as [inputs, outputs], a vector as [size]."""
    found: dict[str, np.ndarray] = {}
    for path, a in jax.tree_util.tree_leaves_with_path(tree):
        names = [key.key for key in path]
        matrix = names[-1] in {"query", "key", "value", "out", "up", "down", "tokens", "positions", "router"} or "experts" in names[-1]
        n_stacked = ("blocks" in names) + ("experts" in names[-1])
        for index in np.ndindex(a.shape[:n_stacked]):
            part = np.asarray(a)[index]
            shape = (-1, part.shape[-1]) if names[-1] == "out" else (part.shape[0], -1) if matrix else (-1,)
            found["/".join([*names, *map(str, index)])] = part.reshape(shape)
    return found


def textbook(name: str, config: Config, matrices: dict[str, bool]) -> optax.GradientTransformation:
    o, rate = config.optimizer, learning_rate(config)
    decay = optax.add_decayed_weights(o.weight_decay, matrices)
    step = optax.scale_by_learning_rate(rate)
    adam = optax.scale_by_adam(o.b1, o.b2, o.eps)
    match name:
        case "adamw":
            return optax.adamw(rate, o.b1, o.b2, o.eps, weight_decay=o.weight_decay, mask=matrices)
        case "adamw, decay by the rate squared":
            return optax.chain(adam, step, optax.add_decayed_weights(lambda n: -(rate(n) ** 2), matrices))
        case "lamb":
            return optax.chain(adam, decay, optax.masked(optax.scale_by_trust_ratio(), matrices), step)
        case "lars":
            return optax.lars(rate, o.weight_decay, matrices, 0.001, 0, matrices, 0.9, nesterov=True)
        case "adafactor" | "adafactor as in PaLM":
            factored = name == "adafactor"
            moment = optax.scale_by_factored_rms(factored, min_dim_size_to_factor=1, epsilon=o.eps**2)
            scaled = optax.chain(moment, optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms(1e-3))
            return optax.chain(scaled, optax.identity() if factored else optax.ema(0.9, debias=False), decay, step)
        case "lion":
            return optax.lion(rate, o.b1, o.b2, weight_decay=o.weight_decay, mask=matrices)
        case "sgd":
            return optax.chain(optax.sgd(1.0, 0.9), optax.scale(-1), decay, step)
        case _:
            inside = {key: "muon" if matrix and key.startswith("blocks") and "router" not in key else "adam" for key, matrix in matrices.items()}
            return optax.chain(optax.partition({"muon": jordan(), "adam": adam}, inside), decay, step)


def jordan() -> optax.GradientTransformation:
    """Momentum, Nesterov's, of each matrix, then five iterations; scaled as by Liu et al. 2025. In NumPy."""

    def orthogonal(m: np.ndarray) -> np.ndarray:
        x = np.asarray(m, np.float64)
        x = x / (np.linalg.norm(x) + 1e-7)
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
        return np.float32(0.2 * np.sqrt(max(m.shape)) * x)

    def update(g: Any, moment: Any, params: Any = None) -> tuple[Any, Any]:
        moment = jax.tree.map(lambda m, g: 0.95 * m + 0.05 * g, moment, g)
        return jax.tree.map(lambda m, g: orthogonal(0.95 * m + 0.05 * g), moment, g), moment

    return optax.GradientTransformation(lambda p: jax.tree.map(np.zeros_like, p), update)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_the_method_on_separate_arrays(name: str) -> None:
    config = recipe(name)
    mesh = make_mesh(config.layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = separate(jax.device_get(init_state(config, mesh).params))
    method = textbook(name, config, {key: a.ndim == 2 for key, a in params.items()})
    state = method.init(params)
    for step in range(STEPS):
        updates, state = method.update(separate(host_gradients(config, step)), state, params)
        params = jax.device_get(optax.apply_updates(params, updates))
    for key, ours in separate(alone(name, MODEL, STEPS)).items():
        np.testing.assert_allclose(ours, params[key], rtol=1e-5, atol=2e-6, err_msg=key)


LAYOUTS = {
    "fsdp 4 x tensor 2": (MODEL, LayoutConfig(data=4, model=2)),
    "zero 1, data 8": (UNEVEN, LayoutConfig(data=8, zero=1)),
    "experts 4 x tensor 2": (MODEL, LayoutConfig(expert=4, model=2)),
    "uneven stages 2 x fsdp 2 x tensor 2": (UNEVEN, LayoutConfig(stage=2, data=2, model=2)),
    "replica 2 x context 2 x data 2, zero 2": (MODEL, LayoutConfig(replica=2, context=2, data=2, zero=2)),
}


@pytest.mark.parametrize("name", ["lamb", "lars", "adafactor", "lion", "sgd", "muon"])
@pytest.mark.parametrize(("model", "layout"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout_equals_one_device(model: ModelConfig, layout: LayoutConfig, name: str) -> None:
    config = recipe(name, model, layout)
    state = updated(config, range(STEPS))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))
    wanted = abstract_state(config, make_mesh(layout)).opt_state
    assert jax.tree.map(lambda a: (a.shape, a.sharding.spec), state.opt_state) == jax.tree.map(
        lambda a: (a.shape, a.sharding.spec), wanted
    )
    for key, ours in separate(params_of(config, state)).items():
        np.testing.assert_allclose(ours, separate(alone(name, model, STEPS))[key], rtol=1e-5, atol=2e-6, err_msg=key)
