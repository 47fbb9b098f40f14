"""Transformations of updates that look at the array of one layer (and expert) at a time, as the methods say it of separate arrays."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from qianyi.model.param import Param, Tree, map_params, own_axes

SMALLEST_SCALE = 1e-3
"""The least root mean square that a parameter is taken to have (Shazeer & Stern 2018, table 1: epsilon_2)."""


def stateless(declared: Tree, scale: Callable[[Param, Array, Array], Array]) -> optax.GradientTransformation:
    """A transformation of each update by its declaration and its parameter."""

    def update(updates: Any, params: Any) -> Any:
        return map_params(scale, declared, updates, params)

    return optax.stateless(update)


def scale_by_trust_ratio(declared: Tree, coefficient: float) -> optax.GradientTransformation:
    """Make the length of each matrix's update `coefficient` times that of the matrix, 1 where either is zero. Vectors are left alone, as
    implementations of LARS and LAMB do: a bias begins at zero and would hardly grow."""

    def scale(p: Param, u: Array, w: Array) -> Array:
        if p.kind not in {"matrix", "router"}:
            return u
        length, norm = (jnp.sqrt(jnp.sum(a * a, own_axes(p), keepdims=True)) for a in (w, u))
        moves = (length > 0) & (norm > 0)
        return u * jnp.where(moves, coefficient * length / jnp.where(moves, norm, 1), 1)

    return stateless(declared, scale)


def clip_by_rms(declared: Tree, limit: float) -> optax.GradientTransformation:
    """Scale updates down to this root mean square (Shazeer & Stern 2018, section 6)."""

    def scale(p: Param, u: Array, _: Array) -> Array:
        return u / jnp.maximum(1, _rms(p, u) / limit)

    return stateless(declared, scale)


def scale_by_parameter_rms(declared: Tree) -> optax.GradientTransformation:
    """Make updates relative to the size of what they change (Shazeer & Stern 2018, section 8)."""

    def scale(p: Param, u: Array, w: Array) -> Array:
        return u * jnp.maximum(_rms(p, w), SMALLEST_SCALE)

    return stateless(declared, scale)


def _rms(p: Param, a: Array) -> Array:
    return jnp.sqrt(jnp.mean(a * a, own_axes(p), keepdims=True))
