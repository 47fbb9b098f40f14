"""Products of activations and weights, in the compute type or in 8 bits.

A product is quantized by scales along the dim that it contracts, so that they factor out of the sum: one for each row of the left operand
and each column of the right one. The scale of a row that devices share is the maximum over them; a layout thus changes no scale.

native       in the type of the operands.
fp8          forward operands e4m3, gradients e5m2 (Micikevicius et al. 2022), all three products, scales from the operands at hand.
fp8_delayed  the same, but one scale for a whole operand, from its largest magnitudes in past steps (NVIDIA Transformer Engine): nothing
             is measured or sent before a product. The history of a weight is a parameter of kind "amax" beside it.
int8         forward and input gradient; the weight gradient, a sum over all tokens, in the compute type (SwitchBack: Wortsman et al.
             2023, section 2.2). Rounded to nearest.

Every backend computes the same: 8-bit operands, products and sums in float32 (int8: int32). H100 and newer GPUs and TPU v7 have units for
fp8, TPU v5 and newer and all recent GPUs for int8; elsewhere XLA widens the operands.

Dims: N rows (tokens), I input, O output; e experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qianyi.parallel.collectives import max_over
from qianyi.parallel.mesh import TOKEN_AXES

Kind = Literal["native", "fp8", "fp8_delayed", "int8"]
Split = Literal["input", "output"]
"""The dim of a weight that lies on axis `model`."""
HISTORY = 16
"""Steps that an amax history remembers."""
FIRST_AMAX = (16.0, 0.5, 2.0**-6)
"""Magnitudes of input, weight and gradient assumed in the first step, whose history is empty. Generous: what is larger is clipped, and for
what is smaller e4m3 has 18 powers of two and e5m2 32, normal and subnormal numbers together."""


class Types(NamedTuple):
    """Of operands."""

    forward: Any
    gradient: Any
    weight_gradient: bool
    """Is the product for the weight's gradient quantized too?"""


TYPES = {
    "fp8": Types(jnp.float8_e4m3fn, jnp.float8_e5m2, weight_gradient=True),
    "fp8_delayed": Types(jnp.float8_e4m3fn, jnp.float8_e5m2, weight_gradient=True),
    "int8": Types(jnp.int8, jnp.int8, weight_gradient=False),
}


@dataclass(frozen=True)
class Product:
    """How to multiply."""

    kind: Kind
    split: Split
    token_axes: tuple[str, ...] = TOKEN_AXES
    """Axes over which the rows are split."""


class Operands(NamedTuple):
    x: Array
    """[N, I], or [e, N, I] with a weight of each expert."""
    w: Array
    """[I, O] or [e, I, O]."""
    sizes: Array | None = None
    """int32 [e], where x is [N, I] and w [e, I, O]: that many rows for each expert, one expert after the other."""
    amax: Array | None = None
    """float32 [3, HISTORY], newest first: largest magnitudes of input, weight and gradient."""


def linear(x: Array, w: Mapping[str, Array], name: str, kind: Kind, split: Split) -> Array:
    """[B, T, *in] times w[name] [*in, *out] -> [B, T, *out], as one product of two matrices: what CPU libraries are fastest at, and what
    other compilers make of it anyway. Where w[name + "_amax"] is there, its gradient is what `observe` describes."""
    B, T, *inner = x.shape
    weight, width = w[name], prod(inner)
    operands = Operands(x.reshape(B * T, width), weight.reshape(width, -1), None, w.get(f"{name}_amax"))
    return multiply(operands, Product(kind, split)).reshape(B, T, *weight.shape[len(inner) :])


def multiply(operands: Operands, how: Product) -> Array:
    """[..., N, O], of the type of x; with `sizes`, rows beyond their sum are zero."""
    if how.kind == "native":
        x, w, sizes, _ = operands
        return x @ w if sizes is None else lax.ragged_dot(x, w, sizes)
    return _quantized(how, operands)


def next_history(history: Array, observed: Array) -> Array:
    """[..., 3, HISTORY] after a step; `observed` as `observe` makes it, the maximum over all devices and microbatches."""
    return jnp.concatenate([observed[..., :1], history[..., :-1]], axis=-1)


def observe(x: Array, w: Array, g: Array) -> Array:
    """[3, HISTORY]: the largest magnitudes on this device in the first column. It stands for the gradient of a history."""
    now = jnp.stack([_magnitude(a).max() for a in (x, w, g)])
    return jnp.zeros((3, HISTORY), jnp.float32).at[:, 0].set(now)


def quantize(a: Array, dtype: Any, dim: int, axes: tuple[str, ...] = (), amax: Array | None = None) -> tuple[Array, Array]:
    """Values of an 8-bit type and float32 scales, `a` being about their product.

    Args:
        a: the operand.
        dtype: the type.
        dim: the dim that the product contracts, of which each line has a scale.
        axes: mesh axes over which that dim is split.
        amax: where given, the magnitude that the type's largest number stands for; larger values are clipped.
    """
    largest = float(jnp.iinfo(dtype).max if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).max)
    if amax is None:
        amax = max_over(_magnitude(a).max(axis=dim, keepdims=True), axes)
    scale = jnp.where(amax == 0, 1.0, amax / largest)
    values = jnp.clip(a.astype(jnp.float32) / scale, -largest, largest)
    # NaN passes through the scale, whatever an integer makes of it.
    return (jnp.round(values) if jnp.issubdtype(dtype, jnp.integer) else values).astype(dtype), scale


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _quantized(how: Product, operands: Operands) -> Array:
    return _forward(how, operands)[0]


def _forward(how: Product, operands: Operands) -> tuple[Array, Operands]:
    x, w, sizes, history = operands
    dtype, axes, past = TYPES[how.kind].forward, _axes(how.split == "input"), _past(history)
    qx, x_scale = quantize(x, dtype, -1, axes, past[0])
    qw, w_scale = quantize(w, dtype, -2, axes, past[1])
    return (_dot(qx, qw, sizes) * x_scale * _of_rows(w_scale, x, sizes)).astype(x.dtype), operands


def _backward(how: Product, operands: Operands, g: Array) -> tuple[Operands]:
    x, w, sizes, history = operands
    types, axes, past = TYPES[how.kind], _axes(how.split == "output"), _past(history)
    qg, g_scale = quantize(g, types.gradient, -1, axes, past[2])
    qw, w_scale = quantize(w.mT, types.forward, -2, axes, past[1])
    d_x = _dot(qg, qw, sizes) * g_scale * _of_rows(w_scale, x, sizes)
    if types.weight_gradient:
        qx, x_scale = quantize(x, types.forward, -2, how.token_axes, past[0])
        qg, g_scale = quantize(g, types.gradient, -2, how.token_axes, past[2])
        d_w = _dot_over_rows(qx, qg, sizes) * x_scale.mT * g_scale
    else:
        d_w = _dot_over_rows(x, g, sizes)
    observed = None if history is None else observe(x, w, g)
    return (Operands(d_x.astype(x.dtype), d_w.astype(w.dtype), None, observed),)


_quantized.defvjp(_forward, _backward)


def _axes(split: bool) -> tuple[str, ...]:
    return ("model",) if split else ()


def _past(history: Array | None) -> tuple[Array | None, Array | None, Array | None]:
    """For each operand the largest magnitude in the history as [1, 1]; None where there is no history."""
    if history is None:
        return None, None, None
    largest = history.max(axis=-1)
    x, w, g = jnp.where(largest == 0, jnp.asarray(FIRST_AMAX), largest).reshape(3, 1, 1)
    return x, w, g


def _magnitude(a: Array) -> Array:
    return jnp.abs(a).astype(jnp.float32)


def _dot(a: Array, b: Array, sizes: Array | None) -> Array:
    """[..., N, I] times [..., I, O] in float32."""
    out_type = jnp.int32 if a.dtype == jnp.int8 else jnp.float32
    out = _contract(a, b, -1, -2, out_type) if sizes is None else lax.ragged_dot(a, b, sizes, preferred_element_type=out_type)
    return out.astype(jnp.float32)


def _dot_over_rows(x: Array, g: Array, sizes: Array | None) -> Array:
    """[..., N, I] and [..., N, O] -> float32 [..., I, O]."""
    if sizes is None:
        return _contract(x, g, -2, -2, jnp.float32)
    dims = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    return lax.ragged_dot_general(x, g, sizes, dims, preferred_element_type=jnp.float32)


def _contract(a: Array, b: Array, a_dim: int, b_dim: int, out_type: Any) -> Array:
    """Of matrices, or of matrices one by one; jnp.einsum refuses operands of different 8-bit types."""
    alike = tuple(range(a.ndim - 2))
    dims = (((a.ndim + a_dim,), (b.ndim + b_dim,)), (alike, alike))
    return lax.dot_general(a, b, dims, preferred_element_type=out_type)


def _of_rows(scale: Array, x: Array, sizes: Array | None) -> Array:
    """Scales of the weights' columns as the product's rows need them; with `sizes` [e, 1, O] -> [N, O], each row's expert's."""
    if sizes is None or scale.ndim == 2:
        return scale
    expert = jnp.repeat(jnp.arange(sizes.shape[0]), sizes, total_repeat_length=x.shape[0])
    return scale[expert, 0]
