"""Floating-point operations of a compiled program: its matrix products, by what the pass is for and by the kind of numbers.

Elementwise operations are not counted, as in the FLOPs of a model. What a product multiplies beyond what the model needs (recomputed
layers, padding, masked scores, all rows of experts) is: that is the difference worth seeing.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qianyi.program.hlo import Module, Op, Shape
from qianyi.program.runs import Taken, always, executions

Pass = Literal["forward", "recompute", "backward"]
_DIMS = re.compile(r"(lhs|rhs)_contracting_dims=\{([\d,]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_GEMM_DIMS = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_FMHA = re.compile(r'"intermediate_tensor_shape":\s*\{[^{}]*"dimensions":\s*\[([^\]]*)\]')


@dataclass(frozen=True)
class Product:
    """A matrix product of the program."""

    flops: float
    eight_bit: bool
    attention: bool
    """Of a fused kernel."""
    part: Pass


def flops(module: Module, taken: Taken = always) -> dict[Product, float]:
    """Products of a step on one device, and how often each runs (`taken`: see `executions`)."""
    found = defaultdict[Product, float](float)
    for name, times in executions(module, lambda op: product_flops(module, op), taken).items():
        table = module.tables[name]
        for op in module.computations[name]:
            if n := product_flops(module, op, table):
                found[Product(n, _eight_bit(op, table), op.opcode == "custom-call" and is_attention(op), part(op))] += times
    return found


def part(op: Op) -> Pass:
    """Which pass an operation belongs to, by the names that JAX's transformations leave, the loss, which makes its gradient at once, and
    pipelines, whose stages run forward again before they go backward."""
    if "rematted_computation" in op.op_name:
        return "recompute"
    if "transpose(" in op.op_name or "/gradient/" in op.op_name:
        return "backward"
    return "recompute" if "forward_again" in op.op_name else "forward"


def product_flops(module: Module, op: Op, table: Mapping[str, Op] | None = None) -> float:
    """Of one operation, once; 0 of what is no product. Without the table of its computation (by name) operands are looked up everywhere."""
    if op.opcode not in {"dot", "convolution", "custom-call"}:
        return 0.0
    shapes = [_operand(module, name, table) for name in op.operands]
    if op.opcode == "dot":
        return _dot(op, shapes[0])
    if op.opcode == "convolution":
        return _convolution(op, shapes[0], shapes[1])
    if is_attention(op):
        return _attention(op, shapes)
    if "__cublas" in op.attributes:
        dims = _GEMM_DIMS.search(op.attributes)
        return _contracted(op.shapes[0], shapes[0], dims[1].replace('"', "") if dims else "")
    return 0.0


def _operand(module: Module, name: str, table: Mapping[str, Op] | None) -> Shape:
    tables = [table] if table is not None else module.tables.values()
    return next(t[name].shapes[0] for t in tables if name in t)


def _dot(op: Op, left: Shape) -> float:
    dims = dict(_DIMS.findall(op.attributes))
    return _contracted(op.shapes[0], left, dims.get("lhs", ""))


def _contracted(result: Shape, left: Shape, dims: str) -> float:
    inner = 1
    for d in dims.split(","):
        inner *= left.dims[int(d)] if d.strip() else 1
    return 2.0 * result.elements * inner


def _convolution(op: Op, left: Shape, right: Shape) -> float:
    """Matrix products on TPUs are convolutions, with heads or experts as spatial dims: what counts are the taps that meet an element, not
    those that meet padding or the holes of a dilation."""
    labels = _LABELS.search(op.attributes)
    if labels is None:
        return 0.0
    lhs, rhs, out = labels.groups()
    at = {c: op.shapes[0].dims[i] for i, c in enumerate(out)}
    inner = right.dims[rhs.index("i")]
    groups = re.search(r"batch_group_count=(\d+)", op.attributes)
    total = 2.0 * at["b"] * at["f"] * inner / (int(groups[1]) if groups else 1)
    windows = _window(op)
    for i, c in enumerate(sorted(c for c in out if c.isdigit())):
        total *= _taps(left.dims[lhs.index(c)], right.dims[rhs.index(c)], at[c], {k: v[i] for k, v in windows.items()})
    return total


def _window(op: Op) -> dict[str, list[tuple[int, ...]]]:
    """Numbers of each spatial dim: `size=1x12 pad=0_0x11_11 stride=1x2`."""
    found = _WINDOW.search(op.attributes)
    fields = dict(field.split("=") for field in found[1].split()) if found else {}
    return {name: [tuple(int(n) for n in part.split("_")) for part in value.split("x")] for name, value in fields.items()}


def _taps(size: int, kernel: int, out: int, window: Mapping[str, tuple[int, ...]]) -> int:
    """Pairs of an output position and a kernel position that meet an element of the input."""
    stride, low = window.get("stride", (1,))[0], window.get("pad", (0, 0))[0]
    holes, spread = window.get("lhs_dilate", (1,))[0], window.get("rhs_dilate", (1,))[0]
    reach = (size - 1) * holes + 1
    count = 0
    for o in range(out):
        for k in range(kernel):
            place = o * stride - low + k * spread
            count += 0 <= place < reach and place % holes == 0
    return count


def is_product(module: Module, op: Op) -> bool:
    """A matrix product, alone or with what is fused to it."""
    if op.opcode == "fusion":
        return any(inner.opcode in {"dot", "convolution"} for inner in module.computations[op.called[0]])
    return op.opcode in {"dot", "convolution"} or (op.opcode == "custom-call" and "__cublas" in op.attributes)


def is_attention(op: Op) -> bool:
    """A fused attention kernel."""
    return "__cudnn$fmha" in op.attributes or "splash_mha" in op.attributes


def _attention(op: Op, shapes: list[Shape]) -> float:
    """Of a fused kernel: two products of all pairs forward, five backward (of which a kernel for the gradient of queries alone makes three
    and one for keys and values four, as scores are made twice). Causal kernels leave out the blocks that nothing sees, half of all."""
    if dims := _FMHA.search(op.attributes):
        b, h, t, s = (int(n) for n in dims[1].replace('"', "").replace(" ", "").split(","))
        width, causal = shapes[0].dims[-1], "CAUSAL" in op.attributes
        products = 5 if "Backward" in op.attributes else 2
    else:
        masks = [shape for shape in shapes if shape.dtype.startswith("bf16") or shape.dtype == "f32"]
        q, k = masks[0], masks[1]
        b, h, t, width = (1, *q.dims)[-4:]
        s, causal = k.dims[-2], True
        products = 3 if "splash_mha_dq" in op.name else 4 if "dkv" in op.name else 2
        if "dkv" in op.name and '\\"use_fused_bwd_kernel\\": true' in op.attributes:
            products = 5
    return products * 2.0 * b * h * t * s * width * (0.5 if causal else 1.0)


def _eight_bit(op: Op, table: Mapping[str, Op]) -> bool:
    return not is_attention(op) and all(table[name].shapes[0].bits == 8 for name in op.operands[:2])
