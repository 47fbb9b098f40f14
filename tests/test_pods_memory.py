"""For TPUs and GPUs that are not here: 8-bit products stay 8-bit products, and what is moved to host memory leaves the device."""

from pathlib import Path
from typing import Any

import pytest
from compilers import compile_apart
from models import LLAMA, make_config
from test_pods import SEQ_LEN, SIZES, TARGETS

from qianyi.config.schema import LayoutConfig
from qianyi.program.flops import flops
from qianyi.program.hlo import parse
from qianyi.train.footprint import held

LAYOUT = LayoutConfig(data=4, model=2)
KEPT = dict.fromkeys(("query", "key", "value", "attn_out", "attn_proj", "mlp_up"), "keep")
SETTINGS = {
    # GPUs that are not here describe no memories, so JAX cannot place the state in them; activations it can.
    "cuda": ("fp8", {}),
    "tpu": ("int8", {"offload": "optimizer", "param_dtype": "bfloat16"}),
}
"""Kind of product, and settings of training."""
EIGHT_BIT_PRODUCTS = {"fp8": 3, "int8": 2}
"""Of each matrix of a layer: forward, input gradient, and in fp8 weight gradient."""


@pytest.mark.parametrize("target", SETTINGS)
def test_precision_and_memory_reach_the_program(target: str, tmp_path: Path) -> None:
    matmul, train = SETTINGS[target]
    changes: dict[str, Any] = SIZES | {"n_kv_heads": 2, "n_layers": 2, "matmul": matmul, "remat": KEPT | {"mlp_gate": "offload"}}
    config = make_config(LLAMA.model_copy(update=changes), LAYOUT, seq_len=SEQ_LEN, **train)
    m, rows = config.model, config.train.batch_size // LAYOUT.batch_shards
    compiled = compile_apart(config, TARGETS[target, LAYOUT.n_devices], tmp_path)
    matrices = m.d_model * m.d_head * (2 * m.n_heads + 2 * m.kv_heads) + 3 * m.d_model * m.d_hidden
    once = 2 * rows * SEQ_LEN * m.n_layers * matrices // LAYOUT.model
    products = flops(parse(compiled.text)).items()
    assert sum(p.flops * times for p, times in products if p.eight_bit) == EIGHT_BIT_PRODUCTS[matmul] * once
    gate_bytes = 2 * m.n_layers * rows * SEQ_LEN * m.d_hidden // LAYOUT.model
    memory, state = compiled.memory, held(config)
    assert memory["host_temp"] >= gate_bytes
    if config.train.offload == "optimizer":
        # A batch, and what tiles of 8 x 128 numbers round up to.
        assert memory["argument"] < state.parameters + state.optimizer / 8
        assert memory["host_argument"] >= state.optimizer
    else:
        assert memory["argument"] >= state.parameters + state.optimizer
