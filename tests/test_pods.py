"""The training step compiles for a TPU pod slice and for a GPU pod, neither of which is here."""

from pathlib import Path
from typing import NamedTuple

import pytest
from compilers import compile_apart
from models import GPT, LLAMA, make_config

from qianyi.config.model import MoEConfig
from qianyi.config.schema import LayoutConfig, ModelConfig
from qianyi.program.collectives import count_sent, sent_by
from qianyi.program.hlo import parse

TARGETS = {("tpu", 8): "tpu-v5p:2x2x2", ("tpu", 32): "tpu-v5p:2x4x4", ("cuda", 8): "h100:1x8", ("cuda", 32): "h100:4x8"}
"""By number of devices."""
SEQ_LEN = 256
SIZES = {"dtype": "bfloat16", "d_model": 256, "n_heads": 4, "d_ff": 512, "max_seq_len": SEQ_LEN, "vocab_size": 1024}
ROWS = 2
"""Of a microbatch on one device."""


class Case(NamedTuple):
    model: ModelConfig
    layout: LayoutConfig
    accumulation: int
    permuted: int
    """Bytes that a device sends to neighbours in a step."""


def _pipeline(layout: LayoutConfig, accumulation: int) -> int:
    """An activation and a gradient, bfloat16, whenever the pipeline moves on: for every microbatch, and twice until it is full."""
    activation = 2 * ROWS * SEQ_LEN * SIZES["d_model"] // (layout.context * layout.model)
    return 2 * (accumulation + 2 * (layout.stage - 1)) * activation


def _ring(model: ModelConfig, layout: LayoutConfig) -> int:
    """In each layer keys and values go round forward, again backward with their gradients in float32, which then go home as bfloat16."""
    keys = 2 * ROWS * SEQ_LEN // layout.context * model.kv_heads * model.d_head
    return model.n_layers * 2 * keys * ((2 + 2) * (layout.context - 1) + 1)


FIVE = LayoutConfig(stage=2, data=2, context=2, expert=2, model=2)
RING = LayoutConfig(context=4, data=2, exchange="ring")
PIPELINE = LayoutConfig(stage=2, data=2, model=2)
ROTARY = LLAMA.model_copy(update=SIZES | {"n_kv_heads": 2})
CASES = {
    "pipeline": Case(GPT.model_copy(update=SIZES), PIPELINE, 4, _pipeline(PIPELINE, 4)),
    "ring": Case(ROTARY, RING, 1, _ring(ROTARY, RING)),
    "five axes": Case(ROTARY.model_copy(update={"moe": MoEConfig(n_experts=8)}), FIVE, 4, _pipeline(FIVE, 4)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", ["tpu", "cuda"])
def test_step_compiles_for_a_pod(target: str, name: str, tmp_path: Path) -> None:
    case = CASES[name]
    rows = ROWS * case.layout.batch_shards * case.accumulation
    config = make_config(case.model, case.layout, accumulation=case.accumulation, batch_size=rows, seq_len=SEQ_LEN)
    compiled = compile_apart(config, TARGETS[target, case.layout.n_devices], tmp_path)
    assert not compiled.rematerialized
    assert compiled.memory["temp"] > 0
    # The state is updated in place: all that is not is a batch and a few scalars.
    assert compiled.memory["argument"] - compiled.memory["alias"] < 2**16
    module = parse(compiled.text)
    sent = count_sent(module)
    assert sum(s.result_bytes * times for s, times in sent.items() if s.kind == "collective-permute") == case.permuted
    permutes = [op for ops in module.computations.values() for op in ops if (s := sent_by(op)) and s.kind == "collective-permute"]
    # A device in a branch may have neighbours that are in another one.
    assert not [op.op_name for op in permutes if "/branch_" in op.op_name]
