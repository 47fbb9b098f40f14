"""Readers of compiled programs, on real ones whose answers the model knows."""

from pathlib import Path
from typing import Any

import jax
import pytest
from compilers import compile_apart
from models import LLAMA, make_config

from qianyi.compile.compilers import Compiled
from qianyi.compile.read import branches
from qianyi.config.schema import Config, LayoutConfig
from qianyi.parallel.mesh import make_mesh
from qianyi.plan.build import model_numbers
from qianyi.program.collectives import collectives
from qianyi.program.flops import flops
from qianyi.program.hlo import Module, parse
from qianyi.program.memory import replay
from qianyi.train.batch import abstract_batch
from qianyi.train.footprint import sends
from qianyi.train.state import abstract_state
from qianyi.train.step import make_train_step

SEQ, ROWS = 256, 16
MODEL = LLAMA.model_copy(
    update={"n_layers": 4, "d_model": 256, "n_heads": 2, "n_kv_heads": 1, "d_ff": 512, "max_seq_len": SEQ, "vocab_size": 1024}
)
LAYOUT = LayoutConfig(data=4)
ATTENTION = {"cpu": (1 + 128 / SEQ, 2.5 * (1 + 128 / SEQ)), "h100:1x4": (1.0, 2.5), "tpu-v5p:2x2x1": (1.0, 3.5)}
"""What attention multiplies, forward and in gradients, in forward passes that leave out all masked pairs: blocks of 128 queries on a CPU
meet some; scores are made again for gradients, by the kernels of TPUs twice."""


def small(on: str, remat: str = "none", layout: LayoutConfig = LAYOUT, **train: Any) -> Config:
    model = MODEL.model_copy(update={"dtype": "float32" if on == "cpu" else "bfloat16", "remat": remat})
    return make_config(model, layout, seq_len=SEQ, batch_size=ROWS, loss_chunk_tokens=SEQ, **train)


def on_cpus(config: Config) -> Compiled:
    """The step on virtual devices, which need not run it."""
    mesh = make_mesh(config.layout, jax.devices()[: config.layout.n_devices])
    with jax.set_mesh(mesh):
        step: Any = make_train_step(config)
        compiled = step.lower(abstract_state(config, mesh), abstract_batch(config, mesh)).compile()
    memory = compiled.memory_analysis()  # which tells no peak
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return Compiled(compiled.as_text(), {"peak_memory": peak}, 0, 0, {}, 0, (), [], "cpu", {}, [])


def by_pass(module: Module) -> dict[str, float]:
    total = dict.fromkeys(("forward", "recompute", "backward"), 0.0)
    for product, times in flops(module).items():
        total[product.part] += product.flops * times
    return total


def needed(config: Config) -> tuple[float, float]:
    """FLOPs of a forward pass on one device by the formula, and of these attention's."""
    m, tokens = config.model, ROWS * SEQ / config.layout.n_devices
    attention = 4 * m.n_layers * m.n_heads * m.d_head * SEQ / 2
    return tokens * float(model_numbers(m, SEQ).flops_per_token) / 3, tokens * attention


@pytest.mark.parametrize("on", ATTENTION)
def test_programs_multiply_send_and_hold_what_they_should(on: str, tmp_path: Path) -> None:
    config = small(on)
    compiled = on_cpus(config) if on == "cpu" else compile_apart(config, on, tmp_path)
    module = parse(compiled.text)
    found, (forward, attention) = by_pass(module), needed(config)
    once, again = ATTENTION[on]
    assert found["forward"] == pytest.approx(forward + (once - 1) * attention, rel=0.01)
    assert found["backward"] == pytest.approx(2 * forward + (again - 2) * attention, rel=0.01)
    assert found["recompute"] == 0
    sent = {c.kind: c.bytes_per_device for c in collectives(compiled.text, config.layout.sizes)}
    said = {s.what: s.bytes_per_device for s in sends(config)}
    assert sent["all-gather"] == said["weights gathered"]
    if not on.startswith("tpu"):  # whose compiler sums small gradients whole
        assert sent["reduce-scatter"] == said["gradients reduced and scattered"]
        assert sent["all-reduce"] == pytest.approx(said["gradients summed over copies"], rel=0.01)  # beside these a few scalars
    assert replay(module).bytes == pytest.approx(compiled.memory["peak_memory"], rel=0.15)


def test_recomputed_layers_show() -> None:
    """All of the layers but the last products of each, which no gradient needs, and not the head, whose gradient is made at once."""
    config = small("cpu", remat="full")
    found, (forward, attention) = by_pass(parse(on_cpus(config).text)), needed(config)
    m, (once, _) = config.model, ATTENTION["cpu"]
    left_out = 2 * m.d_model * (m.vocab_size + m.n_layers * m.d_hidden) * ROWS * SEQ / config.layout.n_devices
    assert found["recompute"] == pytest.approx(forward + (once - 1) * attention - left_out, rel=0.01)
    assert found["forward"] == pytest.approx(forward + (once - 1) * attention, rel=0.01)
    assert found["backward"] == pytest.approx(2 * found["forward"], rel=0.01)  # whose scores are those made again


def test_stages_that_run_again_show() -> None:
    """Of a pipeline: its layers run forward once more, the head does not."""
    config = small("cpu", layout=LayoutConfig(stage=2, data=2), accumulation=4)
    found = dict.fromkeys(("forward", "recompute", "backward"), 0.0)
    for product, times in flops(parse(on_cpus(config).text), branches(config).own_stage).items():
        found[product.part] += product.flops * times
    (forward, attention), (once, again) = needed(config), ATTENTION["cpu"]
    head = 2 * config.model.d_model * config.model.vocab_size * ROWS * SEQ / config.layout.n_devices
    layers = forward - head + (once - 1) * attention
    # The last stage's only forward pass is the one before its backward pass.
    assert found["forward"] == pytest.approx(layers / 2 + head, rel=0.01)
    assert found["recompute"] == pytest.approx(layers, rel=0.02)  # less the last products, whose results nobody needs
    assert found["backward"] == pytest.approx(2 * forward + (again - 2) * attention, rel=0.01)
