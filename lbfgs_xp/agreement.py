"""Whether value and gradient agree over a short step.

Where a run finds no lower point, rounding may be the reason, or a gradient that is not that of the
function. To first order both look the same from afar: the value no longer falls along the gradient.
A look at one more point tells them apart. By the trapezoidal rule

    f(x + d) - f(x) = (g(x) + g(x + d)) . d / 2,

but for third derivatives; a gradient that is wrong by more than a fifth along itself, a kink or a
jump breaks it over steps of any length. Where rounding hides what a look shows, it tells nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.backend import Array
from lbfgs_xp.space import Space

# Values and slopes agree where they differ by at most this share of the slopes: third derivatives
# may take it over the longest step, and a kink across the way takes half.
_SHARE = 0.1
# How many times its rounding a change of f must be to count as one; and how many times that a slope
# must promise, so that what is said of it does not hang on rounding.
_ROUNDED, _VISIBLE = 4.0, 4.0
# From one look to the next, where a long step has met third derivatives.
_SHORTER = 1.0 / 32.0


class Look(NamedTuple):
    """What one more point tells: the value there, and masks.

    agrees : the change of the value is what the slopes tell, or is hidden by rounding.
    visible : the slope at x promised much more than rounding hides.
    lower : they agree that the value is lower.
    """

    value: Any
    agrees: Any
    visible: Any
    lower: Any


def lengths(eps: float) -> list[float]:
    """How far to look, relative to the largest |x|: from where rounding of value and slopes weighs
    about the same, down to that of x."""
    found, length = [], eps**0.5
    while length > 8.0 * eps:    # so that the step, which is rounded, keeps a digit
        found.append(length)
        length *= _SHORTER
    return found


def ahead(
    solver: Any, space: Space, x: Array, gradient: Array, extent: Any, length: float
) -> Array:
    """The point at this distance down the gradient, or the nearest one within the constraints.

    extent : the largest |x| where the run began; for at x = 0 nothing is known of its units. A
        share of it, for a run may begin far away.
    """
    fn = space.scalars
    size, norm = space.read(space.max_abs(x), space.max_abs(gradient))
    size = fn.maximum(size, space.backend.eps**0.25 * extent)
    step = fn.where(size > 0.0, length * size, length)
    # Divided by its norm first, so that no product overflows.
    direction = space.scale(fn.where(norm > 0.0, fn.divide(-1.0, norm), 0.0), gradient)
    point = space.move(x, step, direction)
    return solver.project(space, point) if hasattr(solver, "project") else point


def look(space: Space, state: Any, x: Array, value: Any, gradient: Array) -> Look:
    """Compares what is known at the solver's state with value and gradient at x."""
    fn, backend, direction = space.scalars, space.backend, x - state.x
    there, before, after = space.read(
        value, space.dot(state.gradient, direction), space.dot(gradient, direction)
    )
    change = there - state.value
    usable = fn.isfinite(change) & fn.isfinite(after)
    magnitude = fn.maximum(fn.abs(state.value), fn.where(usable, fn.abs(there), 0.0))
    smallest = 4.0 / backend.largest    # of the normal numbers, below which digits are lost
    hidden = _ROUNDED * fn.maximum(backend.noise * magnitude, smallest)
    off = fn.abs(change - 0.5 * (before + after))
    agrees = usable & (off <= _SHARE * (fn.abs(before) + fn.abs(after)) + hidden)
    visible = fn.abs(before) > _VISIBLE * hidden
    return Look(there, agrees, visible, agrees & (change < -hidden))
