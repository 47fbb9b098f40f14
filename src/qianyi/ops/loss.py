"""Cross-entropy over a vocabulary that may be split over devices, without ever holding all logits.

The loss is a sum of per-token terms, so its gradient is known as soon as the logits of a chunk are: both are computed
together, chunk by chunk, and the backward pass only scales (the idea of Hsu et al. 2024, "Liger Kernel"). Three matmuls, no
recomputation, and logits of one chunk at a time.

Dims: N tokens, C chunk, D width, V vocabulary rows on this device.
"""

from functools import partial
from typing import NamedTuple

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
    balance: Array
    """Balancing loss of experts, a mean over the microbatch: not to be divided by tokens."""


def vocabulary_loss(x: Array, table: Array, targets: Array, z_weight: float, chunk_tokens: int) -> LossSums:
    """Cross-entropy of `x @ table.T` against `targets`, and the z-loss (Chowdhery et al. 2022, section 5).

    Args:
        x: [B, T, D], the final hidden states.
        table: [V, D], this device's rows of the output projection (shard i of axis `model` has rows i*V to (i+1)*V).
        targets: int32 [B, T]; -1 is not scored.
        z_weight: the weight with which `z` will be added to `cross_entropy`: the gradient is that of
            `cross_entropy + z_weight * z`.
        chunk_tokens: tokens per chunk.

    Returns:
        Sums, the same on all devices of axis `model`. Only `cross_entropy` carries the gradient (of both).
    """
    D = x.shape[-1]
    x, targets = x.reshape(-1, D), targets.reshape(-1)
    N = x.shape[0]
    chunk = min(chunk_tokens, N)
    padding = -N % chunk
    x = jnp.pad(x, ((0, padding), (0, 0)))
    targets = jnp.pad(targets, (0, padding), constant_values=-1)
    sums: tuple[Array, Array] = _loss(z_weight, chunk, x, table, targets)  # pyright: ignore[reportAssignmentType]
    return LossSums(*sums, jnp.zeros(()))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(z_weight: float, chunk: int, x: Array, table: Array, targets: Array) -> tuple[Array, Array]:
    def body(sums: tuple[Array, Array], part: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        cross_entropy, z, _, _ = _chunk_terms(*part, table)
        return (sums[0] + cross_entropy, sums[1] + z), None

    sums, _ = lax.scan(body, _zero_sums(), _chunks(chunk, x, targets))
    return sums


def _loss_forward(
    z_weight: float, chunk: int, x: Array, table: Array, targets: Array
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    def body(carry: tuple[Array, Array, Array], part: tuple[Array, Array]) -> tuple[tuple[Array, Array, Array], Array]:
        cross_entropy, z, d_table = carry
        xc, tc = part
        ce_c, z_c, logits, log_z = _chunk_terms(xc, tc, table)
        scored = (tc >= 0)[:, None]
        p = jnp.exp(logits - log_z[:, None])
        d_logits = p * (1 + 2 * z_weight * log_z[:, None]) - _is_target(tc, table.shape[0])
        d_logits = jnp.where(scored, d_logits, 0).astype(x.dtype)
        d_x = jnp.einsum("cv,vd->cd", d_logits, table)
        d_table = d_table + jnp.einsum("cd,cv->dv", xc, d_logits, preferred_element_type=jnp.float32)
        return (cross_entropy + ce_c, z + z_c, d_table), d_x

    init = (*_zero_sums(), vary(jnp.zeros(table.shape[::-1], jnp.float32)))
    (cross_entropy, z, d_table), d_x = lax.scan(body, init, _chunks(chunk, x, targets))
    return (cross_entropy, z), (d_x.reshape(x.shape), d_table.T.astype(table.dtype))


def _loss_backward(
    z_weight: float, chunk: int, saved: tuple[Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, None]:
    d_x, d_table = saved
    scale = cotangents[0]
    return (d_x * scale).astype(d_x.dtype), (d_table * scale).astype(d_table.dtype), None


_loss.defvjp(_loss_forward, _loss_backward)


def _chunk_terms(x: Array, targets: Array, table: Array) -> tuple[Array, Array, Array, Array]:
    """Cross-entropy sum, z sum, logits [C, V] and log Z [C] of one chunk."""
    logits = jnp.einsum("cd,vd->cv", x, table, preferred_element_type=jnp.float32)
    top = max_over(lax.stop_gradient(logits).max(axis=-1), "model")
    log_z = top + jnp.log(sum_over(jnp.exp(logits - top[:, None]).sum(axis=-1), ("model",)))
    at_target = sum_over(jnp.sum(jnp.where(_is_target(targets, table.shape[0]), logits, 0), axis=-1), ("model",))
    scored = targets >= 0
    return jnp.sum(jnp.where(scored, log_z - at_target, 0)), jnp.sum(jnp.where(scored, log_z**2, 0)), logits, log_z


def _is_target(targets: Array, rows: int) -> Array:
    """[C, V] bool: is this device's row the target."""
    return (targets - index_on("model") * rows)[:, None] == jnp.arange(rows)[None, :]


def _chunks(chunk: int, x: Array, targets: Array) -> tuple[Array, Array]:
    return x.reshape(-1, chunk, x.shape[-1]), targets.reshape(-1, chunk)


def _zero_sums() -> tuple[Array, Array]:
    """Zeros that vary over the axes over which the sums will vary."""
    zero = vary(jnp.zeros(()), LOSS_AXES)
    return zero, zero
