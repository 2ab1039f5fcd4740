"""Where the noise of residuals is measured, and what counts as noise (`lbfgs_xp.run.noise`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits import jacobian
from lbfgs_xp.run.noise import deviations, largest, points, smallest

# The number of points: the differences of these orders must agree up to the factor.
POINTS, _ORDERS, _ALIKE = 7, (3, 4, 5, 6), 16.0
# Their distances, one after another, relative to the length over which the residuals change by
# their size (no round numbers, because those are the spacings of tables); and the least distance,
# in units in the last place.
SPACINGS, _LEAST = (1.37e-3, 3.91e-2), 64.0
# Over longer distances than the first, a smooth function may look like noise. If the points are
# moved together by these factors, its third differences fall by their cubes; those of noise or of a
# table fall by their square roots at most, unless a factor happens to be a period. They must keep
# more than this share for one of the factors.
_LONG, CLOSER, _KEPT = 1e-2, (5.37, 7.91), 1.0 / 16.0
_GOLDEN = 0.5 * (1.0 + math.sqrt(5.0))
# Noise counts if it exceeds rounding by this factor.
_ROUNDED = 32.0


def points_along(
    space: Space, x: Array, residuals: Array, columns: Array, box: Any, spacing: float
) -> list[Array]:
    """Equally spaced points (B, p) on one side of x."""
    xp, size = space.xp, space.xp.abs(x)
    size = xp.where(size > 0.0, size, xp.ones_like(size))
    steepest = jacobian.largest(space, columns)
    reach = space.per_problem(space.max_abs(residuals)) / xp.where(steepest > 0.0, steepest, 1.0)
    # Of a parameter without influence only its size is known.
    known = (steepest > 0.0) & xp.isfinite(reach) & (reach > 0.0)
    unit = xp.where(known, xp.minimum(reach, xp.maximum(size, xp.ones_like(size))), size)
    # Not in proportion, because what a model depends on may be a sum of parameters.
    share = np.modf(_GOLDEN * np.arange(1, x.shape[-1] + 1))[0]
    unit = unit * space.backend.adopt(0.5 + share, "the steps")
    step = xp.maximum(spacing * unit, _LEAST * space.backend.eps * xp.abs(x))
    downhill = xp.where(jacobian.pull(space, columns, residuals) > 0.0, -1.0, xp.ones_like(x))
    if box is not None:
        above, below = box[1] - x, x - box[0]
        wider = xp.where(above >= below, xp.ones_like(x), -1.0)
        narrow = xp.minimum(above, below) < POINTS * step
        downhill = xp.where(narrow, wider, downhill)
        step = xp.minimum(step, xp.maximum(above, below) / POINTS)
    return points(x, step * downhill, POINTS)


def estimate(space: Space, x: Array, columns: Array, found: list[Array]) -> Array:
    """The standard deviation of the noise of each residual (B,) from residuals (B, m) at `points`;
    0 if it is no more than rounding, or unknown."""
    xp, eps, fn = space.xp, space.backend.eps, Scalars(space.xp)
    spread = _deviations(space, found)
    least, most = smallest(fn, spread), largest(fn, spread)
    rounding = space.max_abs(found[0]) + space.sum(jacobian.largest(space, columns) * xp.abs(x))
    noisy = (least > _ROUNDED * eps * rounding) & (most <= _ALIKE * least) & xp.isfinite(most)
    return xp.where(noisy, least, xp.zeros_like(least))


def is_long(spacing: float) -> bool:
    """Whether noise at points so far apart must be `lasting`."""
    return spacing > _LONG


def lasting(space: Space, found: list[Array], closer: list[Array]) -> Array:
    """Whether what was found is noise, a mask (B,), from residuals at points closer together."""
    left, all_of_it = _deviations(space, closer)[0], _deviations(space, found)[0]
    # Between its steps, a table or a model of integers does not change at all. No smooth function
    # falls as far.
    return (left > _KEPT * all_of_it) | (left < space.backend.eps**0.5 * all_of_it)


def _deviations(space: Space, found: list[Array]) -> list[Array]:
    """The standard deviations (B,) of noise by the differences of each order."""
    count = found[0].shape[-1]
    return deviations(
        Scalars(space.xp), found, _ORDERS,
        size=lambda row: space.xp.sqrt(space.dot(row, row) / count),
    )
