"""Whether value and gradient agree over a short step.

A run that finds no lower point may have reached the precision floor, or its gradient may not
belong to the function. From afar both look the same: the value no longer falls along the negative
gradient. A look, which evaluates one more point, tells them apart. By the trapezoidal rule

    f(x + d) - f(x) = (g(x) + g(x + d)) . d / 2,

up to third derivatives. A gradient whose slope along itself is wrong by more than a fifth, a kink
or a jump violates this over steps of any length. If rounding hides the changes, a look is
inconclusive.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.solvers.contract import Solver

# Value and slopes agree if they differ by at most this fraction of the slopes: third derivatives
# may use it up over the longest step, whereas a kink next to x takes up to half of the slopes.
_SHARE = 0.1
# A change of f counts if it exceeds its rounding error by the first factor. A slope must predict
# the second factor times as much again, so that the verdict does not depend on rounding.
_ROUNDED, _VISIBLE = 4.0, 4.0
# The ratio of successive looks; over a long step third derivatives may matter.
_SHORTER = 1.0 / 32.0


class Look(NamedTuple):
    """What one more point shows: the value there, and masks.

    agrees : the change of the value is as the slopes predict, or is hidden by rounding.
    visible : the slope at x predicted a change much larger than rounding hides.
    lower : value and slopes agree, and the value is lower.
    """

    value: Any
    agrees: Any
    visible: Any
    lower: Any


class Claims(Protocol):
    """Claims that rounding has ended a run, for looks to confirm or refute."""

    def pending(self) -> bool:
        """Whether some claim is still open and the budgets allow another look."""
        ...

    def look(self, length: float, first: bool) -> None:
        """Take one look of this length, which decides some of the claims."""
        ...

    def refute(self) -> None:
        """Reject the claims that no look has confirmed."""
        ...


def confirm(claims: Claims, lengths: list[float]) -> None:
    """Confirm or refute claims that rounding has ended a run, for `minimize` and for fits."""
    for length in lengths:
        if not claims.pending():
            return
        claims.look(length, length == lengths[0])
    claims.refute()


def lengths(longest: float, shortest: float) -> list[float]:
    """How far to look: the longest first, then shorter and shorter."""
    found, length = [], longest
    while length >= shortest:
        found.append(length)
        length *= _SHORTER
    return found


def follows_slopes(off: Any, slopes: Any, hidden: Any = 0.0) -> Any:
    """Whether a change agrees with the trapezoidal rule.

    off : by how much it differs from the prediction of the slopes.
    slopes : the sum of their magnitudes.
    hidden : the change that rounding hides.
    """
    return off <= _SHARE * slopes + hidden


def lengths_of(eps: float) -> list[float]:
    """How far to look, relative to the largest |x|: from where rounding affects value and slopes
    about equally, down to the rounding of x."""
    # A step of 8 eps or more keeps a digit when it is rounded.
    return lengths(eps**0.5, 8.0 * eps)


def ahead(
    solver: Solver, space: Space, x: Array, gradient: Array, extent: Any, length: float
) -> Array:
    """The point at this distance along the negative gradient, or the nearest feasible one.

    extent : the largest |x| at the start of the run. Near x = 0, which says nothing about the units
        of x, a fraction of it is used instead; only a fraction, as the start may be far away.
    """
    fn = space.scalars
    gradient = solver.reduced(space, x, gradient, gradient)
    size, norm = space.read(space.max_abs(x), space.max_abs(gradient))
    size = fn.maximum(size, space.backend.eps**0.25 * extent)
    step = fn.where(size > 0.0, length * size, length)
    # Normalised first, so that no product overflows.
    direction = space.scale(fn.where(norm > 0.0, fn.divide(-1.0, norm), 0.0), gradient)
    point = space.move(x, step, direction)
    return solver.project(space, point) if solver.projects else point


def look(
    space: Space, state: Any, x: Array, value: Any, gradient: Array, noise: Any = 0.0
) -> Look:
    """Compare value and gradient of the solver's state with those at x.

    noise : how far apart two values may be through noise that was measured.
    """
    direction = x - state.x
    there, before, after = space.read(
        value, space.dot(state.gradient, direction), space.dot(gradient, direction)
    )
    return _judged(space, state, there, before, after, noise)


def look_again(
    space: Space, state: Any, x: Array, there: Any, gradient: Array, noise: Any = 0.0
) -> Look:
    """`look`, where the value at x has been read before."""
    direction = x - state.x
    before, after = space.read(
        space.dot(state.gradient, direction), space.dot(gradient, direction)
    )
    return _judged(space, state, there, before, after, noise)


def _judged(space: Space, state: Any, there: Any, before: Any, after: Any, noise: Any) -> Look:
    """What the value there and the slopes at both ends show."""
    fn, backend = space.scalars, space.backend
    change = there - state.value
    usable = fn.isfinite(change) & fn.isfinite(after)
    hidden = fn.maximum(hidden_by_rounding(fn, backend, state.value), noise)
    off, slopes = fn.abs(change - 0.5 * (before + after)), fn.abs(before) + fn.abs(after)
    # A value that the slopes explain has its own rounding error; a jump upwards hides nothing.
    higher = fn.where(usable, fn.minimum(fn.abs(there), fn.abs(state.value) + slopes), 0.0)
    larger = fn.maximum(hidden, _ROUNDED * backend.noise * higher)
    agrees = usable & follows_slopes(off, slopes, larger)
    visible = fn.abs(before) > _VISIBLE * hidden
    return Look(there, agrees, visible, agrees & (change < -hidden))


def hidden_by_rounding(fn: Scalars, backend: Backend, value: Any) -> Any:
    """The change of a value that rounding hides, if fun is as accurate as its dtype."""
    smallest = 4.0 / backend.largest    # the smallest normal number, below which digits are lost
    return _ROUNDED * fn.maximum(backend.noise * fn.abs(value), smallest)
