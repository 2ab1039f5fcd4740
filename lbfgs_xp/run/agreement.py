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
from lbfgs_xp.arrays.pending import now
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
    fn, backend, direction = space.scalars, space.backend, x - state.x
    there, before, after = space.read(
        value, space.dot(state.gradient, direction), space.dot(gradient, direction)
    )
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


# --- what the slopes promise in the units of each variable --------------------------------------

# How far a promise may lie ahead: by this fraction of the unit of the variable that moves most.
_REACH = 0.5


class Descent(NamedTuple):
    """Steps of the method of conjugate gradients from x, in units of each variable (..., n), with
    Hessian products from differences of gradients.

    way : from x to the minimum of the quadratic model so far.
    residual : the gradient of the model there.
    direction, longest : the next direction, and its largest component in these units.
    squared : the residual's squared norm in these units.
    decrease : how much lower the model is there, the promise that the slopes make.
    """

    way: Array
    residual: Array
    direction: Array
    longest: Any
    squared: Any
    decrease: Any


def units(space: Space, x: Array, extent: Any) -> Array:
    """The size of each variable, or an estimate where it is 0.

    Variables in different units are the rule. Along the gradient, the one with the smallest unit
    hides the others.
    """
    fn, xp = space.scalars, space.xp
    size = space.read_one(space.max_abs(x))
    size = fn.maximum(size, space.backend.eps**0.25 * extent)
    size = space.backend.eps**0.25 * fn.where(size > 0.0, size, 1.0)
    return xp.where(x == 0.0, space.spread(size) + xp.zeros_like(x), xp.abs(x))


def descent_in_units(space: Space, gradient: Array, unit: Array) -> Descent:
    """No step yet. The first direction is steepest descent in the variables x / unit."""
    zero, scaled = space.xp.zeros_like(gradient), gradient * unit
    direction = -scaled * unit
    squared, longest = space.later(space.dot(scaled, scaled), space.max_abs(direction / unit))
    nothing = space.scalars.full(0.0, squared)
    return Descent(zero, gradient, direction, longest, squared, nothing)


def short_step(space: Space, descent: Descent) -> Array:
    """A step along the next direction that is long enough to show the curvature."""
    fn, size = space.scalars, now(descent.longest)
    known = (size > 0.0) & fn.isfinite(size)
    length = fn.where(known, fn.divide(space.backend.eps**0.5, size), 0.0)
    return space.scale(length, descent.direction)


def followed(
    space: Space, descent: Descent, unit: Array, step: Array, change: Array, going: Any
) -> Descent:
    """The descent with one more step, where `going`.

    step, change : a short step along the direction, and the change of the gradient there.
    """
    fn = space.scalars
    slope, bend, size = space.read(
        space.dot(descent.residual, step), space.dot(change, step), space.max_abs(step / unit)
    )
    usable = going & (slope < 0.0) & fn.isfinite(bend) & (size > 0.0)
    longest = fn.divide(_REACH, size)
    steps = fn.where(usable & (bend > 0.0), fn.divide(-slope, bend), longest)
    steps = fn.where(usable, fn.minimum(steps, longest), 0.0)
    decrease = fn.where(usable, -steps * (slope + 0.5 * steps * bend), 0.0)
    residual = descent.residual + space.scale(steps, space.pick(usable, change, 0.0 * step))
    scaled = residual * unit
    (squared,) = space.read(space.dot(scaled, scaled))
    before = now(descent.squared)
    share = fn.where(before > 0.0, fn.divide(squared, before), 0.0)
    share = fn.where(fn.isfinite(share), share, 0.0)
    direction = space.scale(share, descent.direction) - scaled * unit
    (longest,) = space.later(space.max_abs(direction / unit))
    onwards = Descent(
        descent.way + space.scale(steps, step), residual, direction, longest, squared,
        descent.decrease + decrease,
    )
    return space.merge(usable, onwards, descent)


def at_steps(solver: Solver, space: Space, x: Array, step: Array) -> Array:
    """The feasible point nearest to x + step."""
    return solver.project(space, x + step) if solver.projects else x + step


def noise_points(
    space: Space, x: Array, gradient: Array, spacing: Array, count: int
) -> list[Array]:
    """Equally spaced points next to x, all down the gradient.

    Without x itself, so that a jump or a kink at x is not taken for noise.

    spacing : how far apart they are along each variable.
    """
    xp = space.xp
    step = spacing * xp.where(gradient > 0.0, -xp.ones_like(x), xp.ones_like(x))
    return [x + float(k) * step for k in range(1, count + 1)]


def noise_of(fn: Scalars, values: list[Any]) -> Any:
    """The standard deviation of the noise of equally spaced values, from their differences (Moré &
    Wild 2011, Estimating Computational Noise): the smallest estimate from the second to the fourth
    ones. Their medians, because a single jump or kink is no noise."""
    rows, found = values, []
    square = 1.0
    for order in range(1, 5):
        rows = [b - a for a, b in zip(rows, rows[1:], strict=False)]
        square *= 2.0 * (2.0 * order - 1.0) / order    # the binomial coefficient (2k over k)
        if order > 1:
            found.append(_median(fn, [fn.abs(row) for row in rows]) * (_NORMAL / square**0.5))
    return fn.minimum(found[0], fn.minimum(found[1], found[2]))


def most_noise(fn: Scalars, values: list[Any]) -> Any:
    """No less than the standard deviation of the noise of equally spaced values, by all their
    differences of third and higher orders."""
    rows, most, square = values, 0.0, 1.0
    for order in range(1, len(values)):
        rows = [b - a for a, b in zip(rows, rows[1:], strict=False)]
        square *= 2.0 * (2.0 * order - 1.0) / order
        if order > 2:
            for row in rows:
                most = fn.maximum(fn.abs(row) * (1.0 / square**0.5), most)
    return most


def beyond_slope(fn: Scalars, values: list[Any], slope: Any) -> Any:
    """How far the differences of equally spaced values are from the one that the slope predicts,
    beyond what their bend explains."""
    first = [b - a for a, b in zip(values, values[1:], strict=False)]
    second = [fn.abs(b - a) for a, b in zip(first, first[1:], strict=False)]
    off = fn.abs(_median(fn, first) - slope) - float(len(values)) * _median(fn, second)
    return fn.where(off > 0.0, off, 0.0)


def extent_of(fn: Scalars, values: list[Any]) -> Any:
    """The difference of the highest and the lowest value."""
    ordered = _sorted(fn, values)
    return ordered[-1] - ordered[0]


def are_equal(fn: Scalars, backend: Backend, values: list[Any]) -> Any:
    """Whether most of these values equal another one up to rounding, or most of their differences
    equal the next one, as if they could only be multiples of something."""
    ordered = _sorted(fn, values)
    least = _ROUNDED * backend.eps * fn.maximum(fn.abs(ordered[0]), fn.abs(ordered[-1]))
    equal = sum(
        fn.where(b - a <= least, 1.0, 0.0 * a) for a, b in zip(ordered, ordered[1:], strict=False)
    )
    first = [b - a for a, b in zip(values, values[1:], strict=False)]
    second = [fn.abs(b - a) for a, b in zip(first, first[1:], strict=False)]
    return (equal > len(values) // 2) | (_median(fn, second) <= least)


# The ratio of the standard deviation of normal errors to the median of their magnitudes.
_NORMAL = 1.4826


def _sorted(fn: Scalars, values: list[Any]) -> list[Any]:
    ordered = list(values)
    for last in range(len(ordered) - 1, 0, -1):
        for i in range(last):
            a, b = ordered[i], ordered[i + 1]
            ordered[i], ordered[i + 1] = fn.minimum(a, b), fn.maximum(a, b)
    return ordered


def _median(fn: Scalars, values: list[Any]) -> Any:
    ordered, half = _sorted(fn, values), len(values) // 2
    if len(values) % 2:
        return ordered[half]
    return 0.5 * (ordered[half - 1] + ordered[half])
