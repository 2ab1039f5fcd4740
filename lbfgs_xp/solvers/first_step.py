"""The first step of a run, and the first step after the memory was dropped."""

from __future__ import annotations

import math
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.solvers.clipping import Clipped
from lbfgs_xp.solvers.initial import Initial

# A first step longer than this means that x has small units. Below it, alpha has room to grow to
# the limit of a line search, usually 1e10.
_LONG = 1e9
# By which part of its size a variable may change. A step by all of it would end at 0, which says
# nothing about the size any more; so would a multiple of a half.
_PART = 0.6


def first_step(
    space: Space, initial: Initial, weights: Any, x: Array, value: Any, gradient: Array, norm: Any,
    beginning: Any, clip: Clipped | None = None,
) -> tuple[Array, Any, Any]:
    """The direction while the curvature is unknown, its slope, and the first alpha.

    Along this step the linear model falls to -|f|: exact for a quadratic whose minimum is 0, and
    independent of the units of f and x. Because f may be far from 0, the length is at most
    max(1, largest |x|), except at x = 0, which says nothing about the scale of x.

    beginning : whether this is the start of a run. Later the direction keeps the length 1, because
        f may fall without bound, which only a long alpha shows.
    clip : the clipped gradient, of which the direction is made; None for the gradient itself.
    """
    fn, limited, source = space.scalars, True, gradient
    if clip is not None:
        source, norm, _ = clip
    if not initial.scales_first:
        direction = initial.descent(space, source, weights)
        return direction, space.read_one(space.dot(gradient, direction)), fn.full(1.0, value)
    # Normalised, so that no product overflows.
    if weights is None:
        direction = space.scale(fn.fused(_downhill, norm), source)
    else:
        # The weights are the sizes of the variables, of which none is to change by all.
        scaled, limited = source * weights, False
        if space.batched:
            # Some of its problems have no units yet, which is the same as units of 1.
            limited = space.fetch_mask(space.xp.all(weights == 1.0, axis=-1))
        norm = space.read_one(space.max_abs(scaled))
        direction = space.scale(fn.fused(_downhill, norm), scaled) * weights
    slope, size = space.read(space.dot(gradient, direction), space.max_abs(x))
    alpha, long = fn.fused(_length, limited, value, slope, size, beginning)
    if not space.none(long):
        unit, slope, alpha = fn.fused(_stretched, long, slope, alpha)
        direction = space.scale(unit, direction)
    return direction, slope, alpha


def _downhill(fn: Scalars, norm: Any) -> Any:
    """The factor of the gradient."""
    return fn.where(norm > 0.0, fn.divide(-1.0, norm), -1.0)


def _length(
    fn: Scalars, limited: Any, value: Any, slope: Any, size: Any, beginning: Any
) -> tuple[Any, Any]:
    """The first alpha, and whether the direction takes over its length.

    limited : whether alpha may be as large as the largest |x|, if that is above 1.
    """
    limit = fn.full(_PART, value)
    if limited is not False:
        most = fn.maximum(fn.full(1.0, value), size)
        limit = most if limited is True else fn.where(limited, most, limit)
    fall = fn.divide(2.0 * fn.abs(value), fn.abs(slope))
    known = (fall > 0.0) & (fall < math.inf)
    alpha = fn.where(known, fn.where(size > 0.0, fn.minimum(fall, limit), fall), limit)
    return alpha, (alpha > _LONG) & beginning


def _stretched(fn: Scalars, long: Any, slope: Any, alpha: Any) -> tuple[Any, Any, Any]:
    """The factor of the direction, its slope and the first alpha, once the direction has taken over
    the length alpha where that is `long`."""
    unit = fn.where(long, alpha, fn.full(1.0, alpha))
    return unit, slope * unit, alpha / unit
