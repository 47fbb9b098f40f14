"""For TPUs and GPUs that are not here: 8-bit products stay 8-bit products, and what is moved to host memory leaves the device."""

import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from models import LLAMA, make_config
from test_pods import PACKAGES, SEQ_LEN, SIZES, absent_devices, compile_apart

from qianyi.config.schema import Config, LayoutConfig
from qianyi.parallel.mesh import make_mesh
from qianyi.parallel.rules import batch_spec
from qianyi.train.footprint import held
from qianyi.train.state import abstract_state
from qianyi.train.step import make_train_step

LAYOUT = LayoutConfig(data=4, model=2)
KEPT = dict.fromkeys(("query", "key", "value", "attn_out", "attn_proj", "mlp_up"), "keep")
SETTINGS = {
    # GPUs that are not here describe no memories, so JAX cannot place the state in them; activations it can.
    "cuda": ("fp8", {}),
    "tpu": ("int8", {"offload": "optimizer", "param_dtype": "bfloat16"}),
}
"""Kind of product, and settings of training."""
EIGHT_BIT_PRODUCTS = {"fp8": 3 * 7, "int8": 2 * 7}
"""Of the seven matrices of a layer: forward, input gradient, and in fp8 weight gradient."""


def config_of(target: str) -> Config:
    matmul, train = SETTINGS[target]
    changes = SIZES | {"n_kv_heads": 2, "n_layers": 2, "matmul": matmul, "remat": KEPT | {"mlp_gate": "offload"}}
    return make_config(LLAMA.model_copy(update=changes), LAYOUT, seq_len=SEQ_LEN, **train)


@pytest.mark.parametrize("target", PACKAGES)
def test_precision_and_memory_reach_the_program(target: str) -> None:
    report, config = compile_apart(__file__, target, "memory"), config_of(target)
    assert report["products"] >= EIGHT_BIT_PRODUCTS[config.model.matmul]
    rows = config.train.batch_size // LAYOUT.batch_shards
    gate_bytes = 2 * config.model.n_layers * rows * SEQ_LEN * config.model.d_hidden // LAYOUT.model
    assert report["host_temporary"] >= gate_bytes
    if config.train.offload == "optimizer":
        # A batch, and what tiles of 8 x 128 numbers round up to.
        assert report["argument"] < held(config).parameters + held(config).optimizer / 8
        assert report["host_argument"] >= held(config).optimizer
    else:
        assert report["argument"] >= held(config).parameters + held(config).optimizer


def compile_step(target: str) -> dict[str, Any]:
    devices, config = absent_devices(target, LAYOUT.n_devices), config_of(target)
    mesh = make_mesh(LAYOUT, devices)
    shape = (config.train.batch_size, SEQ_LEN)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, batch_spec(LAYOUT)))
    with jax.set_mesh(mesh):
        step = make_train_step(config)
        compiled = step.lower(abstract_state(config, mesh), {"inputs": tokens, "targets": tokens}).compile()
    memory: Any = compiled.memory_analysis()
    return {
        "products": eight_bit_products(compiled.as_text() or ""),
        "argument": memory.argument_size_in_bytes,
        "host_argument": memory.host_argument_size_in_bytes,
        "host_temporary": memory.host_temp_size_in_bytes,
    }


def eight_bit_products(program: str) -> int:
    """Products both of whose operands are 8-bit numbers."""
    found, types = 0, dict[str, str]()
    for line in program.splitlines():
        if line and not line[0].isspace():
            types = {}
        match = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (\w+)\[\S* ([\w\-]+)\(([^)]*)\)", line)
        if match:
            types[match[1]], operation, operands = match[2], match[3], re.findall(r"%([\w.\-]+)", match[4])
            if operation in {"dot", "convolution"}:
                found += all(re.match(r"f8|s8", types.get(operand, "")) for operand in operands[:2])
    return found


if __name__ == "__main__":
    print(json.dumps(compile_step(sys.argv[1])))
