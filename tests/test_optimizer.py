"""Every optimizer does to each layer's and expert's matrix what its method says, under every layout, and continues from a checkpoint."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from models import GPT, make_config

from qianyi.config.model import MoEConfig
from qianyi.config.optimizer import OptimizerConfig
from qianyi.config.schema import Config, LayoutConfig, ModelConfig
from qianyi.config.stages import layer_places
from qianyi.errors import CheckpointError
from qianyi.model.param import Param, abstract, map_params
from qianyi.model.transformer import model_params
from qianyi.parallel.mesh import abstract_mesh, make_mesh
from qianyi.parallel.rules import make_rules
from qianyi.program.collectives import collectives
from qianyi.train.checkpoint import Checkpoints, make_record
from qianyi.train.footprint import held, sends
from qianyi.train.muon import plan
from qianyi.train.optimizer import make_optimizer
from qianyi.train.schedule import learning_rate
from qianyi.train.state import TrainState, abstract_state, init_state, reorder_layers, stored_params
from qianyi.train.step import make_update
from qianyi.train.weights import gradient_specs, param_specs
from qianyi.verify.compare import HELD, _natural

MODEL = GPT.model_copy(
    update={"vocab_size": 64, "n_layers": 2, "n_kv_heads": 8, "d_ff": 48, "moe": MoEConfig(n_experts=2, n_shared=1)}
)
UNEVEN = MODEL.model_copy(update={"n_layers": 3})
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
RTOL = 1e-5


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

    return map_params(draw, model_params(config.model))


@cache
def host_params(model: ModelConfig) -> Any:
    config = make_config(model)
    mesh = make_mesh(config.layout, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return jax.device_get(init_state(config, mesh).params)


def place(tree: Any, config: Config, specs: Any, mesh: jax.sharding.Mesh) -> Any:
    """A tree like the parameters, layers in the model's order, as the layout has it."""
    blocks = jax.device_get(reorder_layers(tree["blocks"], range(config.model.n_layers), layer_places(config)))
    return jax.tree.map(lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec)), {**tree, "blocks": blocks}, specs)


def start(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
    """What `init_state` does, with parameters that are drawn once for all tests."""
    shardings = jax.tree.map(lambda a: a.sharding, abstract_state(config, mesh))
    params = place(host_params(config.model), config, param_specs(config), mesh)
    opt_state = jax.jit(make_optimizer(config).init, out_shardings=shardings.opt_state)(params)
    step, rng = jax.device_put((jnp.int32(0), jax.random.key_data(jax.random.key(0))), (shardings.step, shardings.rng))
    return TrainState(step, params, opt_state, rng)


def updated(config: Config, steps: range, state: TrainState | None = None) -> TrainState:
    """The state after updates with the gradients of these steps."""
    mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
    with jax.set_mesh(mesh):
        state, update = state or start(config, mesh), jax.jit(make_update(config))
        for step in steps:
            gradients = place(host_gradients(config, step), config, gradient_specs(config), mesh)
            state = update(state, gradients, jnp.float32(1))
    return state


def params_of(config: Config, state: TrainState) -> dict[str, np.ndarray]:
    return separate(_natural(jax.device_get(state.params), config))


@cache
def alone(name: str, model: ModelConfig, steps: int) -> dict[str, np.ndarray]:
    config = recipe(name, model)
    return params_of(config, updated(config, range(steps)))


def assert_same_change(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray], initial: dict[str, np.ndarray]) -> None:
    """Each array changed alike, relative to the change and to what float32 holds of the array."""
    assert ours.keys() == expected.keys()
    for key, a in ours.items():
        size = np.linalg.norm(expected[key] - initial[key]) + HELD * np.linalg.norm(initial[key])
        assert np.linalg.norm(a - expected[key]) <= RTOL * size, key


# What the methods say, of separate arrays.


def separate(tree: Any) -> dict[str, np.ndarray]:
    """Every layer's and expert's array by itself: a matrix as [inputs, outputs], a vector as [size]."""
    found: dict[str, np.ndarray] = {}
    for path, a in jax.tree_util.tree_leaves_with_path(tree):
        names = [key.key for key in path]
        matrix = (
            names[-1] in {"query", "key", "value", "out", "up", "down", "tokens", "positions", "router"} or "experts" in names[-1]
        )
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
    squared = optax.add_decayed_weights(lambda n: -(rate(n) ** 2), matrices)

    def adafactor(factored: bool) -> optax.GradientTransformation:
        moment = optax.scale_by_factored_rms(factored, min_dim_size_to_factor=1, epsilon=o.eps**2)
        return optax.chain(moment, optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms(1e-3))

    def method(key: str) -> str:
        return "muon" if matrices[key] and key.startswith("blocks") and "router" not in key else "adam"

    return {
        "adamw": optax.adamw(rate, o.b1, o.b2, o.eps, weight_decay=o.weight_decay, mask=matrices),
        "adamw, decay by the rate squared": optax.chain(adam, step, squared),
        "lamb": optax.chain(adam, decay, optax.masked(optax.scale_by_trust_ratio(), matrices), step),
        "lars": optax.lars(rate, o.weight_decay, matrices, 0.001, 0, matrices, 0.9, nesterov=True),
        "adafactor": optax.chain(adafactor(True), decay, step),
        "adafactor as in PaLM": optax.chain(adafactor(False), optax.ema(0.9, debias=False), decay, step),
        "lion": optax.lion(rate, o.b1, o.b2, weight_decay=o.weight_decay, mask=matrices),
        "sgd": optax.chain(optax.trace(0.9), decay, step),
        "muon": optax.chain(
            optax.partition({"muon": jordan(), "adam": adam}, {key: method(key) for key in matrices}), decay, step
        ),
    }[name]


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
    config, initial = recipe(name), separate(host_params(MODEL))
    method, params = textbook(name, config, {key: a.ndim == 2 for key, a in initial.items()}), initial
    state, update = method.init(params), method.update if name == "muon" else jax.jit(method.update)
    for step in range(STEPS):
        updates, state = update(separate(host_gradients(config, step)), state, params)
        params = jax.device_get(optax.apply_updates(params, updates))
    assert_same_change(alone(name, MODEL, STEPS), params, initial)


LAYOUTS = {
    "fsdp 4 x tensor 2": (MODEL, LayoutConfig(data=4, model=2)),
    "experts 2 x data 4, zero 1": (UNEVEN, LayoutConfig(expert=2, data=4, zero=1)),
    "uneven stages 2 x fsdp 2 x tensor 2": (UNEVEN, LayoutConfig(stage=2, data=2, model=2)),
    "replica 2 x context 2 x data 2, zero 2": (MODEL, LayoutConfig(replica=2, context=2, data=2, zero=2)),
}


@pytest.mark.parametrize("name", ["lamb", "lars", "adafactor", "lion", "sgd", "muon"])
@pytest.mark.parametrize(("model", "layout"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout_equals_one_device(model: ModelConfig, layout: LayoutConfig, name: str) -> None:
    config = recipe(name, model, layout)
    state = updated(config, range(STEPS))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))
    assert places(state.opt_state) == places(abstract_state(config, make_mesh(layout)).opt_state)
    assert_same_change(params_of(config, state), alone(name, model, STEPS), separate(host_params(model)))


def places(tree: Any) -> Any:
    return jax.tree.map(lambda a: (a.shape, a.sharding.spec), tree)


def test_adafactor_keeps_sums_of_sides() -> None:
    """Beside parameters, a few per cent of what AdamW keeps, and sharded."""
    layout = LayoutConfig(data=2, model=4)
    said = [held(recipe(name, MODEL, layout)).optimizer for name in ("adamw", "adafactor")]
    assert said[1] < said[0] / 10
    mesh = make_mesh(layout)
    moment = abstract_state(recipe("adafactor", MODEL, layout), mesh).opt_state[0][0].second_moment["blocks"]["moe"]["experts_up"]
    assert [(a.shape, a.sharding.spec) for a in moment] == [
        ((2, 2, 64, 1), P(None, None, "data", None)),
        ((2, 2, 1, 48), P(None, None, None, "model")),
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_takes_what_is_said(name: str) -> None:
    config = recipe(name, UNEVEN, LayoutConfig(stage=2, data=2, model=2, zero=1))
    mesh = make_mesh(config.layout)
    with jax.set_mesh(mesh):
        state = jax.tree.leaves(start(config, mesh).opt_state)
    assert sum(a.addressable_shards[0].data.nbytes for a in state if a.ndim) == held(config).optimizer


@pytest.mark.parametrize(
    ("layout", "n_layers", "moves", "along"),
    [
        (LayoutConfig(data=32, model=8), 96, [("data", 1, 0)], ("model",)),  # three layers on each of 32, whose columns 8 split
        (LayoutConfig(data=8, model=4), 96, [("data", 1, 0), ("model", 2, 0)], ()),
        (LayoutConfig(data=4, model=2), 7, [("model", 2, 1)], ("data", "model")),  # nothing divides the layers: by rows
        (LayoutConfig(data=4, model=2, zero=0), 2, [("model", 2, 0), ("data", None, 1)], ("data",)),
        (LayoutConfig(replica=4, data=2, stage=3), 6, [("data", 1, 0)], ()),
    ],
    ids=str,
)
def test_matrices_are_spread_over_all_devices(layout: LayoutConfig, n_layers: int, moves: list[Any], along: Any) -> None:
    query = Param((n_layers, 12288, 96, 128), ("layers", "embed", "heads", "head_dim"))
    rules = make_rules(layout, gradients=True)
    lies = NamedSharding(abstract_mesh(layout), rules.spec(query.dims))
    found = plan(query, lies.shard_shape(query.shape), lies.spec, layout.sizes)
    assert [(m.axis, m.source, m.target) for m in found.moves] == moves
    assert found.along == along
    assert math.prod(found.shape) * layout.n_devices == layout.replica * query.size


def test_devices_share_the_work_of_muon() -> None:
    """By the compiled program: a device has an eighth of the operations, and sends what `show --layout` says."""

    def compile_update(config: Config, mesh: jax.sharding.Mesh) -> Any:
        gradients = abstract(stored_params(config), make_rules(config.layout, gradients=True), mesh)
        norm = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.jit(make_update(config)).lower(abstract_state(config, mesh), gradients, norm).compile()

    whole = 0.0
    for layout in (LayoutConfig(), LayoutConfig(data=2, model=4), LayoutConfig(data=8), LayoutConfig(data=2, replica=2, zero=0)):
        config = recipe("muon", MODEL.model_copy(update={"moe": MoEConfig(), "d_ff": 256, "d_model": 128}), layout)
        mesh = make_mesh(layout, jax.devices()[: layout.n_devices])
        with jax.set_mesh(mesh):
            compiled = compile_update(config, mesh)
        operations = compiled.cost_analysis()["flops"]
        whole = whole or operations
        assert operations < 1.2 * whole * layout.replica / layout.n_devices
        said = [s.bytes_per_device for s in sends(config) if s.what == "matrices to be orthogonalized"]
        sent = [c.bytes_per_device for c in collectives(compiled.as_text(), mesh.shape)]
        assert sum(sent) == pytest.approx(sum(said), rel=0.01)


MOVED = ["lars", "adafactor", "lion", "muon"]


@pytest.mark.parametrize("name", MOVED)
def test_continues_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Bit for bit on the same layout; on another pipeline and without one as on one device."""
    saved = recipe(name, UNEVEN, LayoutConfig(stage=2, data=2))
    state = updated(saved, range(1))
    files = Checkpoints(tmp_path, saved.checkpoint)
    files.save(state, 1, make_record(saved, {}))
    files.finish()

    def restored(config: Config) -> TrainState:
        mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
        with jax.set_mesh(mesh):
            return files.restore(abstract_state(config, mesh), make_record(config, {}))

    assert jax.tree.all(jax.tree.map(lambda a, b: bool((jax.device_get(a) == jax.device_get(b)).all()), restored(saved), state))
    for layout in (LayoutConfig(stage=3), LayoutConfig(data=2, model=2)):
        config = recipe(name, UNEVEN, layout)
        ours = params_of(config, updated(config, range(1, STEPS), restored(config)))
        assert_same_change(ours, alone(name, UNEVEN, STEPS), separate(host_params(UNEVEN)))
    with pytest.raises(CheckpointError, match=f'optimizer.kind: checkpoint "{name}", recipe "sgd"'):
        restored(recipe("sgd", UNEVEN, LayoutConfig(data=2)))
    files.close()
