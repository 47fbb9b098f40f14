"""The cost model: counts as published, memory as the program allocates it, collectives by hand."""

import math
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from qianyi.cli.layout import layout_overrides
from qianyi.config import recipes
from qianyi.config.check import check
from qianyi.config.counts import flops_per_token, parameter_count
from qianyi.config.load import load
from qianyi.config.schema import Config
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.rules import batch_spec
from qianyi.plan.build import case_of, machine_numbers, model_numbers
from qianyi.plan.case import Case, Machine
from qianyi.plan.chips import chips
from qianyi.plan.cluster import cluster
from qianyi.plan.constants import Constants, constants
from qianyi.plan.formulas import MEMORY, TIME
from qianyi.plan.memory import memory, total_bytes
from qianyi.plan.network import exchange_seconds, gather_seconds, hop_seconds, reduce_seconds
from qianyi.plan.stack import OURS, stack
from qianyi.plan.step import step_seconds, terms
from qianyi.train.footprint import held
from qianyi.train.state import abstract_state
from qianyi.train.step import make_train_step

HERE = cluster("h100:1x8")


def config_of(recipe: str, layout: str, *overrides: str) -> Config:
    found = load(recipe, ["train.batch_ramp=[]", *overrides, *layout_overrides(layout)]).config
    check(found)
    return found


def scalars(found: dict[str, Any]) -> dict[str, float]:
    return {name: float(np.ravel(value)[0]) for name, value in found.items()}


@pytest.mark.parametrize("recipe", recipes.names())
def test_a_model_in_numbers_has_its_parameters_and_flops(recipe: str) -> None:
    config = load(recipe).config
    m, seq_len = config.model, config.train.seq_len
    numbers = model_numbers(m, seq_len)
    assert numbers.params == parameter_count(m)
    if parameter_count(m) > 1e8:
        assert abs(numbers.other_params) < 0.03 * numbers.params, "matrices are nearly all"
    if m.kind == "decoder":
        assert math.isclose(numbers.flops_per_token, flops_per_token(m, seq_len), rel_tol=1e-3)


@pytest.mark.parametrize(
    ("recipe", "layout"),
    [
        ("llama3-8b", "data=8"),
        ("llama3-8b", "data=2,context=2,model=2"),
        ("llama3-8b", "data=4,model=2,zero=1"),
        ("gpt3-6.7b", "data=4,zero=2"),
        ("gpt3-6.7b", "data=4,zero=0"),
        ("llama3-70b", "stage=4,data=8,model=8"),
        ("llama3-70b", "stage=4,data=4,model=8,chunks=2"),
        ("mixtral-8x7b", "data=4,expert=8"),
        ("qwen3-235b-a22b", "replica=2,data=4,expert=4,model=4"),
        ("bert-large", "data=4"),
        ("t5-11b", "data=8"),
    ],
)
def test_state_is_what_the_declarations_say(recipe: str, layout: str) -> None:
    extra = ["train.accumulation=8", "train.batch_size=1024"] if "stage" in layout else ["train.batch_size=1024"]
    config = config_of(recipe, layout, *extra)
    ours, true = scalars(memory(case_of(config, HERE))), held(config)
    assert math.isclose(ours["weights"], true.parameters, rel_tol=0.02)
    assert math.isclose(ours["weights in use"], true.weights_in_use or ours["weights in use"], rel_tol=0.02)
    if config.optimizer.kind == "adamw":
        assert math.isclose(ours["optimizer"], true.optimizer, rel_tol=0.02)
    if config.layout.stage == 1:
        assert math.isclose(ours["gradients"], true.gradients, rel_tol=0.02)


SMALL = (
    *("model.n_layers=8", "model.d_model=512", "model.n_heads=8", "model.n_kv_heads=4", "model.head_dim=64", "model.d_ff=2048"),
    *("model.vocab_size=8192", "train.seq_len=512", "model.max_seq_len=512", "train.batch_size=32", "model.dtype=float32"),
)


@pytest.mark.parametrize(
    ("layout", "overrides"),
    [
        ("data=8", ("train.accumulation=1", "model.remat=full")),
        ("data=8", ("train.accumulation=1", "model.remat=none")),
        ("data=4,model=2", ("train.accumulation=4", "model.remat=matmuls")),
        ("stage=2,data=4", ("train.accumulation=4", "model.remat=full")),
    ],
)
def test_memory_is_what_the_compiled_step_allocates(layout: str, overrides: tuple[str, ...]) -> None:
    config = config_of("llama3-8b", layout, *SMALL, *overrides)
    mesh = make_mesh(config.layout)
    with jax.set_mesh(mesh):
        shape = (config.train.batch_size, config.train.seq_len)
        tokens = jax.ShapeDtypeStruct(shape, np.int32, sharding=NamedSharding(mesh, batch_spec(config.layout)))
        step: Any = make_train_step(config)
        compiled = step.lower(abstract_state(config, mesh), {"inputs": tokens, "targets": tokens}).compile()
    found: Any = compiled.memory_analysis()
    ours = scalars(memory(case_of(config, HERE)))
    state = ours["weights"] + ours["optimizer"]
    assert math.isclose(state, found.argument_size_in_bytes, rel_tol=0.02)
    whole = found.argument_size_in_bytes + found.temp_size_in_bytes
    assert math.isclose(sum(ours.values()), whole, rel_tol=0.08)


def test_arrays_cost_what_their_elements_cost() -> None:
    layouts = ("data=8", "stage=2,data=2,model=2", "data=2,context=2,model=2", "data=4,model=2,zero=1")
    cases = [case_of(config_of("llama3-8b", layout, "train.accumulation=4"), HERE) for layout in layouts]
    k = constants(stack(OURS), HERE.chip, "bf16")
    together = Case.stack(cases)
    for cost in (step_seconds, total_bytes):
        one_by_one = [float(np.ravel(cost(case, k))[0]) for case in cases]
        np.testing.assert_allclose(cost(together, k), one_by_one, rtol=1e-12)


def test_every_term_is_explained() -> None:
    case = case_of(config_of("mixtral-8x7b", "data=2,expert=4"), HERE)
    assert list(terms(case, constants(stack(OURS), HERE.chip, "bf16"))) == list(TIME)
    assert [*memory(case), "runtime"] == list(MEMORY)


@pytest.mark.parametrize("chip", [c.name for c in chips()])
def test_no_chip_is_faster_than_its_peak(chip: str) -> None:
    """Products alone, by the fitted constants, take at least the time that the data sheet allows."""
    on = cluster(f"{chip}:1x2" if "tpu" not in chip else f"{chip}:{'1x2' if chip in TWO_DIMS else '1x1x2'}")
    config = config_of("llama3-8b", "data=2")
    case = case_of(config, on)
    k = constants(stack(OURS), on.chip, "bf16")
    found = scalars(terms(case, k))
    tokens = config.train.batch_size * config.train.seq_len / 2
    least = 6 * float(case.model.active_matmul_params) * tokens / on.chip.bf16_flops
    assert found["products"] + found["head"] > least
    measured = on.chip.measured_bf16_flops
    if measured:
        assert found["products"] + found["head"] > 0.9 * least * on.chip.bf16_flops / measured, "nor than what was ever measured"


TWO_DIMS = ("tpu-v2", "tpu-v3", "tpu-v5e", "tpu-v6e")

# Collectives, with perfect links and no latency.


def perfect(on: str) -> tuple[Machine, Constants]:
    found = cluster(on)
    k = constants(stack(OURS), found.chip, "bf16")
    values = k.__dict__ | {"near_efficiency": 1.0, "far_efficiency": 1.0, "near_latency_seconds": 0.0, "far_latency_seconds": 0.0}
    return machine_numbers(found, "bf16"), Constants(**values)


@pytest.mark.parametrize(
    ("on", "size", "stride", "seconds"),
    [
        ("h100:1x8", 8, 1, 7 / 8 / 450),
        ("h100:1x8", 2, 4, 1 / 2 / 450),
        ("h100:4x8", 4, 8, 3 / 4 / 50),  # one chip of each host: its own network card
        ("h100:4x8", 32, 1, max(7 / 8 / 450, 3 / 4 / 400)),  # eight cards of a host together
        ("tpu-v5e:16x16", 16, 1, 15 / 16 / 90),  # a ring, both ways
        ("tpu-v5e:4x4", 4, 1, 3 / 4 / 45),  # a line
        ("tpu-v5p:8x8x8", 512, 1, 511 / 512 / 540),  # three rings at once
        ("tpu-v5e:16x16*4", 4, 256, 3 / 4 / 3.125),  # between slices
    ],
)
def test_gathers_take_the_time_of_their_links(on: str, size: int, stride: int, seconds: float) -> None:
    machine, k = perfect(on)
    assert float(gather_seconds(machine, k, size, stride, 1e9)) == pytest.approx(seconds, rel=0.01)
    assert float(reduce_seconds(machine, k, size, stride, 1e9)) == pytest.approx(2 * seconds, rel=0.01)


def test_exchanges_and_hops() -> None:
    machine, k = perfect("h100:4x8")
    # Every token to all of eight ranks in a host: seven eighths of eight copies leave the chip.
    assert float(exchange_seconds(machine, k, 8, 1, 1e9, 1e6)) == pytest.approx(7 / 450, rel=0.01)
    # One copy to one of four hosts.
    assert float(exchange_seconds(machine, k, 32, 1, 1e9, 1)) == pytest.approx(3 / 4 / 50, rel=0.01)
    assert float(hop_seconds(machine, k, 4, 8, 1e9)) == pytest.approx(1 / 50, rel=0.01)
    assert float(hop_seconds(machine, k, 2, 1, 1e9)) == pytest.approx(1 / 450, rel=0.01)
    assert float(hop_seconds(machine, k, 1, 1, 1e9)) == 0
