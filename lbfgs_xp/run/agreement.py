"""Whether value and gradient agree over a short step.

A run that finds no lower point may have reached the limit of rounding, or its gradient may not be
that of the function. To first order both look the same from afar: the value no longer falls along
the gradient. A look at one more point tells them apart. By the trapezoidal rule

    f(x + d) - f(x) = (g(x) + g(x + d)) . d / 2,

up to third derivatives. A gradient that is wrong by more than a fifth along itself, a kink or a
jump breaks this over steps of any length. Where rounding hides what a look shows, the look says
nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.solvers.contract import Solver

# Values and slopes agree if they differ by at most this share of the slopes: third derivatives may
# take it over the longest step, and a kink halfway takes half.
_SHARE = 0.1
# How many times its rounding a change of f must be to count as one; and how many times that a slope
# must promise, so that the verdict does not depend on rounding.
_ROUNDED, _VISIBLE = 4.0, 4.0
# From one look to the next, for a long step may have met third derivatives.
_SHORTER = 1.0 / 32.0


class Look(NamedTuple):
    """What one more point tells: the value there, and masks.

    agrees : the change of the value is what the slopes predict, or is hidden by rounding.
    visible : the slope at x promised much more than rounding hides.
    lower : they agree that the value is lower.
    """

    value: Any
    agrees: Any
    visible: Any
    lower: Any


class Claims(Protocol):
    """Problems that rounding is said to have ended, which looks are to confirm."""

    def pending(self) -> bool:
        """Whether some claim is still open and the budgets allow another look."""
        ...

    def look(self, length: float, first: bool) -> None:
        """One look of this length; it decides some of the claims."""
        ...

    def refute(self) -> None:
        """Reject what no look has confirmed."""
        ...


def confirm(claims: Claims, lengths: list[float]) -> None:
    """Decide claims that rounding ended a run, for `minimize` and for fits."""
    for length in lengths:
        if not claims.pending():
            return
        claims.look(length, length == lengths[0])
    claims.refute()


def lengths(longest: float, shortest: float) -> list[float]:
    """How far to look: first the longest, then shorter and shorter."""
    found, length = [], longest
    while length >= shortest:
        found.append(length)
        length *= _SHORTER
    return found


def follows_slopes(off: Any, slopes: Any, hidden: Any = 0.0) -> Any:
    """Whether a change agrees with the trapezoidal rule.

    off : by how much it differs from what the slopes predict.
    slopes : their sizes.
    hidden : what rounding hides.
    """
    return off <= _SHARE * slopes + hidden


def lengths_of(eps: float) -> list[float]:
    """How far to look, relative to the largest |x|: from where rounding of value and slopes weighs
    about the same, down to that of x."""
    # So that the step, which is rounded, keeps a digit.
    return lengths(eps**0.5, 8.0 * eps)


def ahead(
    solver: Solver, space: Space, x: Array, gradient: Array, extent: Any, length: float
) -> Array:
    """The point at this distance down the gradient, or the nearest one within the constraints.

    extent : the largest |x| where the run began. A share of it counts, since at x = 0 nothing is
        known of its units, and a run may begin far away.
    """
    fn = space.scalars
    size, norm = space.read(space.max_abs(x), space.max_abs(gradient))
    size = fn.maximum(size, space.backend.eps**0.25 * extent)
    step = fn.where(size > 0.0, length * size, length)
    # Divided by its norm first, so that no product overflows.
    direction = space.scale(fn.where(norm > 0.0, fn.divide(-1.0, norm), 0.0), gradient)
    point = space.move(x, step, direction)
    return solver.project(space, point) if solver.projects else point


def look(space: Space, state: Any, x: Array, value: Any, gradient: Array) -> Look:
    """Compare what is known at the solver's state with value and gradient at x."""
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
    agrees = usable & follows_slopes(off, fn.abs(before) + fn.abs(after), hidden)
    visible = fn.abs(before) > _VISIBLE * hidden
    return Look(there, agrees, visible, agrees & (change < -hidden))
