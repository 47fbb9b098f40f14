"""Cross-entropy over a vocabulary that may be split over devices, without ever holding all logits.

The loss is a sum of per-token terms, so its gradient is known as soon as the logits of a chunk are: both are computed
together, chunk by chunk, and the backward pass only scales (the idea of Hsu et al. 2024, "Liger Kernel"). Three matmuls, no
recomputation, and logits of one chunk at a time.

Dims: N tokens, C chunk, D width, V vocabulary rows on this device.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qianyi.parallel.collectives import index_on, max_over, sum_over, vary
from qianyi.parallel.mesh import LOSS_AXES


class LossSums(NamedTuple):
    """Sums over the tokens of this device's rows; divide by the number of scored tokens of the whole batch."""

    cross_entropy: Array
    """Sum of -log p(target), in nats."""
    z: Array
    """Sum of log(Z)^2, Z the softmax's normalizer."""
    correct: Array
    """Number of targets that have the highest logit; float32."""
    balance: Array
    """Balancing loss of experts, a mean over the microbatch: not to be divided by tokens."""
    sentence: Array
    """Sum of -log p(label) over rows with a sentence label; divide by their number in the whole batch."""


class Output(NamedTuple):
    """The output projection, this device's rows of it (shard i of axis `model` has rows i*V to (i+1)*V)."""

    table: Array
    """[V, D]."""
    bias: Array | None = None
    """[V]."""


class Shape(NamedTuple):
    """How the loss is made of logits."""

    z_weight: float
    """The weight with which `z` will be added to `cross_entropy`: the gradient is that of `cross_entropy + z_weight * z`."""
    chunk_tokens: int
    """Tokens per chunk."""
    cap: float | None = None
    """Logits are bent to cap * tanh(logit / cap)."""


def vocabulary_loss(x: Array, output: Output, targets: Array, shape: Shape) -> LossSums:
    """Cross-entropy of `x @ table.T + bias` against `targets`, and the z-loss (Chowdhery et al. 2022, section 5).

    Args:
        x: [B, T, D], the final hidden states.
        output: the projection.
        targets: int32 [B, T]; -1 is not scored.
        shape: see `Shape`.

    Returns:
        Sums, the same on all devices of axis `model`. Only `cross_entropy` carries the gradient (of both).
    """
    D = x.shape[-1]
    x, targets = x.reshape(-1, D), targets.reshape(-1)
    N = x.shape[0]
    chunk = min(shape.chunk_tokens, N)
    padding = -N % chunk
    x = jnp.pad(x, ((0, padding), (0, 0)))
    targets = jnp.pad(targets, (0, padding), constant_values=-1)
    sums: Sums = _loss(shape._replace(chunk_tokens=chunk), x, output, targets)  # pyright: ignore[reportAssignmentType]
    return LossSums(*sums, balance=jnp.zeros(()), sentence=jnp.zeros(()))


Sums = tuple[Array, Array, Array]
"""Cross-entropy, z, number of right ones."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(shape: Shape, x: Array, output: Output, targets: Array) -> Sums:
    def body(sums: Sums, part: tuple[Array, Array]) -> tuple[Sums, None]:
        return _add(sums, _chunk_terms(*part, output, shape.cap)[0]), None

    sums, _ = lax.scan(body, _zero_sums(), _chunks(shape.chunk_tokens, x, targets))
    return sums


def _loss_forward(shape: Shape, x: Array, output: Output, targets: Array) -> tuple[Sums, tuple[Array, Output]]:
    table, bias = output

    def body(carry: tuple[Sums, Array, Array | None], part: tuple[Array, Array]) -> tuple[Any, Array]:
        sums, d_table, d_bias = carry
        xc, tc = part
        more, logits, log_z = _chunk_terms(xc, tc, output, shape.cap)
        p = jnp.exp(logits - log_z[:, None])
        d_logits = p * (1 + 2 * shape.z_weight * log_z[:, None]) - _is_target(tc, table.shape[0])
        d_logits = jnp.where((tc >= 0)[:, None], d_logits, 0)
        if shape.cap is not None:
            d_logits *= 1 - (logits / shape.cap) ** 2
        d_bias = None if d_bias is None else d_bias + d_logits.sum(axis=0)
        d_logits = d_logits.astype(x.dtype)
        with jax.named_scope("gradient"):  # by which readers of the program tell these from the forward pass
            d_x = jnp.einsum("cv,vd->cd", d_logits, table)
            d_table = d_table + jnp.einsum("cv,cd->vd", d_logits, xc, preferred_element_type=jnp.float32)
        return (_add(sums, more), d_table, d_bias), d_x

    d_bias = None if bias is None else vary(jnp.zeros(bias.shape, jnp.float32))
    init = (_zero_sums(), vary(jnp.zeros(table.shape, jnp.float32)), d_bias)
    (sums, d_table, d_bias), d_x = lax.scan(body, init, _chunks(shape.chunk_tokens, x, targets))
    return sums, (d_x.reshape(x.shape), Output(d_table.astype(table.dtype), d_bias))


def _loss_backward(shape: Shape, saved: tuple[Array, Output], cotangents: Sums) -> tuple[Array, Output, None]:
    d_x, d_output = jax.tree.map(lambda d: (d * cotangents[0]).astype(d.dtype), saved)
    return d_x, d_output, None


_loss.defvjp(_loss_forward, _loss_backward)


def _chunk_terms(x: Array, targets: Array, output: Output, cap: float | None) -> tuple[Sums, Array, Array]:
    """Sums of one chunk, its logits [C, V] and log Z [C]."""
    logits = jnp.einsum("cd,vd->cv", x, output.table, preferred_element_type=jnp.float32)
    logits = logits if output.bias is None else logits + output.bias
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    top = max_over(lax.stop_gradient(logits).max(axis=-1), "model")
    log_z = top + jnp.log(sum_over(jnp.exp(logits - top[:, None]).sum(axis=-1), ("model",)))
    at_target = sum_over(jnp.sum(jnp.where(_is_target(targets, output.table.shape[0]), logits, 0), axis=-1), ("model",))
    scored = targets >= 0
    terms = (log_z - at_target, log_z**2, (at_target >= top).astype(jnp.float32))
    return tuple(jnp.sum(jnp.where(scored, term, 0)) for term in terms), logits, log_z  # pyright: ignore[reportReturnType]


def _is_target(targets: Array, rows: int) -> Array:
    """[C, V] bool: is this device's row the target."""
    return (targets - index_on("model") * rows)[:, None] == jnp.arange(rows)[None, :]


def _chunks(chunk: int, x: Array, targets: Array) -> tuple[Array, Array]:
    return x.reshape(-1, chunk, x.shape[-1]), targets.reshape(-1, chunk)


def _zero_sums() -> Sums:
    """Zeros that vary over the axes over which the sums will vary."""
    zero = vary(jnp.zeros(()), LOSS_AXES)
    return zero, zero, zero


def _add(sums: Sums, more: Sums) -> Sums:
    return sums[0] + more[0], sums[1] + more[1], sums[2] + more[2]
