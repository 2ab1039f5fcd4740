"""Directions of L-BFGS, from its curvature pairs."""

from __future__ import annotations

import math
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.solvers.bounded import reduced
from lbfgs_xp.solvers.clipping import Clipped
from lbfgs_xp.solvers.initial import Initial
from lbfgs_xp.solvers.lbfgs import curvature, remote
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.two_loop import two_loop

# The smallest fraction of gamma g . g at which g . H g is taken as a difference.
_KEPT = 1e-2


def quasi_newton(
    space: Space, initial: Initial, weights: Any, pairs: Pairs, gradient: Array,
    with_gradient: Array, squared: Any, free: Any = None,
) -> tuple[Array, Any]:
    """-H g and its slope.

    with_gradient : (..., 2m), the products of the pairs' rows with the (weighted) gradient.
    squared : g . g for one problem, which saves a product with the direction; infinite if it was
        not computed, and anything for a batch.
    free : the mask of the free variables, to which gradient and pairs are restricted; None for all.
    """
    if initial.function is not None:
        s, y = curvature.by_age(space, pairs)
        if free is not None:
            s, y = (reduced(space, free[..., None, :], rows) for rows in (s, y))
        direction = -two_loop(gradient, s, y, initial.function, dot=space.dot)
    else:
        if space.remote:
            direction, slope = remote.descent(space, pairs, with_gradient, gradient, weights)
            return reduced(space, free, direction), slope
        c = curvature.coefficients(space, pairs, with_gradient)
        if weights is None:
            direction = space.descend(c, pairs.rows, pairs.gamma, gradient)
        else:
            direction = space.descend(c, pairs.rows, pairs.gamma, gradient * weights) * weights
        if not space.batched and squared < math.inf:
            # From the numbers at hand, if few digits cancel.
            level = pairs.gamma * squared
            slope = float(c @ with_gradient) - level
            if slope < -_KEPT * level:
                return reduced(space, free, direction), slope
    direction = reduced(space, free, direction)
    return direction, space.later(space.dot(gradient, direction))[0]


def clipped(
    space: Space, solver: Any, clip: Clipped | None, weights: Any, pairs: Pairs, gradient: Array,
    direction: Array, slope: Any, free: Any,
) -> tuple[Array, Any]:
    """The direction -H g and its slope, with g clipped."""

    def descent(vector: Array) -> Array:
        products = curvature.small_products(space, pairs.rows, weighted(vector, weights))
        return quasi_newton(
            space, solver.initial, weights, pairs, vector, products, math.inf, free
        )[0]

    return solver.aimed(space, clip, gradient, direction, slope, descent)


def weighted(vector: Array, weights: Any) -> Array:
    """The vector in coordinates where the initial inverse Hessian is a multiple of the identity."""
    return vector if weights is None else vector * weights
