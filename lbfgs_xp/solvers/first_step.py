"""The first step of a run, and the first after its memory was dropped."""

from __future__ import annotations

import math
from typing import Any

from lbfgs_xp.backend import Array
from lbfgs_xp.solvers.initial import Initial
from lbfgs_xp.solvers.search import FAR
from lbfgs_xp.space import Space


def first_step(
    space: Space, initial: Initial, weights: Any, x: Array, value: Any, gradient: Array, norm: Any,
    step: Any,
) -> tuple[Array, Any, Any]:
    """The direction before anything is known of the curvature, its slope, and the first step.

    The length of the first step is that at which the linear model has fallen to -|f|: exact for a
    quadratic whose minimum is 0, and free of the units of f and x. It is at most max(1, largest
    |x|), for f may be far from 0; nothing is known of the scale of x where x is 0.

    step : the length of the step before, 0 at the start of a run.
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
    far = (length > FAR) & (step == 0.0)
    if not space.none(far):
        # Where x has small units the direction is long, so that alpha stays within the limits of a
        # line search. Only at the start: later it may be that the function has no bound.
        unit = fn.where(far, length, one)
        direction, slope, length = space.scale(unit, direction), slope * unit, length / unit
    return direction, slope, length
