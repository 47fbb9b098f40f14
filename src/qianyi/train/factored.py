"""Adafactor's factored second moment (Shazeer & Stern 2018), of each layer's and expert's matrix."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from qianyi.model.param import Param, Tree, map_params, matrix_axes


class Factored(NamedTuple):
    """The second moment of a matrix as means over its columns and over its rows, of which the whole is approximately the product. Means
    keep their dims, of size one."""

    rows: Array
    columns: Array


class FactoredState(NamedTuple):
    step: Array
    """int32: updates made."""
    second_moment: Tree
    """`Factored` for a matrix, an array like the parameter for everything else."""


def scale_by_factored_rms(declared: Tree, exponent: float, eps: float, *, factored: bool) -> optax.GradientTransformation:
    """Divide gradients by the root of their second moment (algorithm 4; its decay at step n is 1 - n ** -exponent, section 7.2).

    Args:
        declared: the parameters.
        exponent: of the decay.
        eps: its square is added to squared gradients.
        factored: keep means of rows and columns of a matrix; False: the whole second moment.
    """

    def moment_of(p: Param, squares: Array) -> Factored | Array:
        sides = matrix_axes(p) if factored else None
        if sides is None:
            return squares
        rows, columns = sides
        return Factored(jnp.mean(squares, columns, keepdims=True), jnp.mean(squares, rows, keepdims=True))

    def init(params: Any) -> FactoredState:
        moments = map_params(lambda p, w: _each(jnp.zeros_like, moment_of(p, w)), declared, params)
        return FactoredState(jnp.zeros((), jnp.int32), moments)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        share = (state.step + 1.0) ** -exponent  # of the newest gradient

        def follow(p: Param, g: Array, old: Factored | Array) -> Factored | Array:
            return _each(lambda new, old: (1 - share) * old + share * new, moment_of(p, g * g + eps**2), old)

        def divide(p: Param, g: Array, moment: Factored | Array) -> Array:
            if not isinstance(moment, Factored):
                return g / jnp.sqrt(moment)
            sides = matrix_axes(p)
            assert sides is not None
            rows = moment.rows / jnp.mean(moment.rows, sides[0], keepdims=True)
            return g / jnp.sqrt(rows) / jnp.sqrt(moment.columns)

        moments = map_params(follow, declared, updates, state.second_moment)
        return map_params(divide, declared, updates, moments), FactoredState(state.step + 1, moments)

    return optax.GradientTransformation(init, update)


def _each(f: Callable[..., Array], *moments: Any) -> Any:
    """Apply `f` to arrays, or to both factors."""
    first = moments[0]
    return Factored(*map(f, *moments)) if isinstance(first, Factored) else f(*moments)
