"""Directions of L-BFGS: what to do with the gradient at a new iterate."""

from __future__ import annotations

import math
from typing import Any

from lbfgs_xp.backend import Array
from lbfgs_xp.line_search import STUCK, LineSearch, Search
from lbfgs_xp.scalars import Scalars
from lbfgs_xp.solvers import curvature
from lbfgs_xp.solvers.curvature import Pairs
from lbfgs_xp.solvers.initial import Initial
from lbfgs_xp.solvers.two_loop import two_loop
from lbfgs_xp.space import Space

# The least part of gamma g . g that g . H g must be, to be taken as a difference.
_KEPT = 1e-2


def quasi_newton(
    space: Space, initial: Initial, weights: Any, pairs: Pairs, gradient: Array,
    with_gradient: Array, squared: Any,
) -> tuple[Array, Any]:
    """-H g and its slope.

    with_gradient : (..., 2m), the products of the pairs' rows with the (weighted) gradient.
    squared : g . g of one problem, which spares a product with the direction; infinite where it
        was not asked for, and anything for a batch.
    """
    if initial.function is not None:
        s, y = curvature.by_age(space, pairs)
        direction = -two_loop(gradient, s, y, initial.function, dot=space.dot)
    else:
        c = curvature.coefficients(space, pairs, with_gradient)
        if weights is None:
            direction = space.descend(c, pairs.rows, pairs.gamma, gradient)
        else:
            direction = space.descend(c, pairs.rows, pairs.gamma, gradient * weights) * weights
        if not space.batched and squared < math.inf:
            # From the numbers at hand, where few digits cancel. On a device in any case: one more
            # product would be one more wait.
            level = pairs.gamma * squared
            slope = float(c @ with_gradient) - level
            if space.remote or slope < -_KEPT * level:
                return direction, slope
    return direction, space.read_one(space.dot(gradient, direction))


def descent(
    space: Space, initial: Initial, weights: Any, x: Array, value: Any, gradient: Array, norm: Any
) -> tuple[Array, Any, Any]:
    """The direction before there are pairs, its slope, and the first step along it.

    The length of the first step is that at which the linear model has fallen to -|f|: exact for a
    quadratic whose minimum is 0, and free of the units of f and x. It is at most max(1, largest
    |x|), for f may be far from 0; nothing is known of the scale of x where x is 0.
    """
    fn = space.scalars
    one = fn.full(1.0, value)
    if not initial.scales_first:
        direction = initial.descent(space, gradient, weights)
        return direction, space.read_one(space.dot(gradient, direction)), one
    # Divided by its norm, so that no product overflows.
    direction = space.scale(fn.where(norm > 0.0, fn.divide(-1.0, norm), -1.0), gradient)
    slope, size = space.read(space.dot(gradient, direction), space.max_abs(x))
    limit = fn.maximum(one, size)
    fall = fn.divide(2.0 * fn.abs(value), fn.abs(slope))
    known = (fall > 0.0) & (fall < math.inf)
    length = fn.where(known, fn.where(size > 0.0, fn.minimum(fall, limit), fall), limit)
    return direction, slope, length


def advance(
    fn: Scalars, rule: LineSearch, search: Search, phi: Any, dphi: Any, active: Any
) -> Search:
    """The searches, advanced where `active`."""
    if active is True:
        return rule.advance(search, phi, dphi)
    # Rows that are done stay as they are.
    told = search._replace(status=fn.where(active, search.status, STUCK))
    after = rule.advance(told, phi, dphi)
    return after._replace(status=fn.where(active, after.status, search.status))


def weighted(vector: Array, weights: Any) -> Array:
    """In the coordinates in which the initial inverse Hessian is a multiple of the identity."""
    return vector if weights is None else vector * weights
