"""Linear layers of a block, what is between two, and how their weights begin."""

import math
from functools import partial

import jax
from jax import Array, lax

from qianyi.config.schema import ModelConfig
from qianyi.model.param import Tree
from qianyi.ops.matmul import Split, linear
from qianyi.parallel.collectives import scatter_sequence


def matmul(x: Array, w: Tree, name: str, m: ModelConfig, split: Split | None) -> Array:
    """[B, T, *in] times w[name] [*in, *out] -> [B, T, *out], at the precision of `model.matmul`. `split` is the side of the weight that
    lies on axis `model`; where all its devices have the whole weight, their gradients are parts of a sum, of which no scale is known:
    such products, small ones, stay in the compute type."""
    return linear(x, w, name, "native" if split is None else m.matmul, split or "output")


def fan_out(x: Array, n: int) -> tuple[Array, ...]:
    """x for each of n products. Their gradients, each as large as x, are added up one after the other; XLA alone would hold all of them for
    one sum."""
    copies: tuple[Array, ...] = _copies(x, n)  # pyright: ignore[reportAssignmentType]
    return copies


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _copies(x: Array, n: int) -> tuple[Array, ...]:
    return (x,) * n


def _add_in_turn(_: int, __: None, gradients: tuple[Array, ...]) -> tuple[Array]:
    total, *others = gradients
    for gradient in others:
        total = lax.optimization_barrier(total) + gradient
    return (total,)


_copies.defvjp(lambda x, n: (_copies(x, n), None), _add_in_turn)


@jax.custom_vjp
def settle(x: Array, weights: Tree) -> tuple[Array, Tree]:
    """Both as they are. Going backward, the gradients of the weights are finished before what made x is gone through; XLA would leave
    them for later and hold them as they come, not reduced."""
    return x, weights


def _after_weights(_: None, gradients: tuple[Array, Tree]) -> tuple[Array, Tree]:
    # What comes out of a barrier counts as differing between devices wherever any of it does: the gradients of weights go around it.
    return lax.optimization_barrier(gradients)[0], gradients[1]


settle.defvjp(lambda x, weights: ((x, weights), None), _after_weights)


def add_bias(x: Array, w: Tree, name: str) -> Array:
    return x + w[name].astype(x.dtype) if name in w else x


def to_residual(partial_sums: Array, w: Tree, bias: str) -> Array:
    """[B, T, D] partial sums -> [B, t, D]; the bias is added once, after the sum."""
    return add_bias(scatter_sequence(partial_sums), w, bias)


def activate(up: Array, gate: Array | None, m: ModelConfig) -> Array:
    """The hidden layer from its inputs."""
    if gate is not None:
        return (jax.nn.silu(gate) if m.mlp == "swiglu" else jax.nn.gelu(gate, approximate=True)) * up
    return jax.nn.relu(up) if m.mlp == "relu" else jax.nn.gelu(up, approximate=m.mlp == "gelu")


def init_std(m: ModelConfig, fan_in: int) -> float:
    """Initial deviation of a matrix with so many inputs."""
    return 1 / math.sqrt(fan_in) if m.init == "fan_in" else m.init_std


def residual_std(m: ModelConfig, fan_in: int) -> float:
    """Initial deviation of a projection into the residual stream (Radford et al. 2019, section 2.3)."""
    return m.init_std / math.sqrt(2 * m.n_layers) if m.init == "scaled" else init_std(m, fan_in) * deepnorm_gain(m)


def deepnorm_gain(m: ModelConfig) -> float:
    """What DeepNorm multiplies initial values, the output and the feed-forward layer with (Zeng et al. 2022, GLM-130B, section 2.1)."""
    return 1 / deepnorm_scale(m)


def deepnorm_scale(m: ModelConfig) -> float:
    """What DeepNorm multiplies the residual stream with (likewise)."""
    return math.sqrt(2 * m.n_layers) if m.norm_at == "deepnorm" else 1.0
