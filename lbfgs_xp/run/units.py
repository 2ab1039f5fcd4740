"""What the slopes promise in the units of each variable.

Variables in different units are the rule. Along the gradient, the one with the smallest unit hides
the others. Steps of conjugate gradients in the variables x / unit show them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.solvers.contract import Solver

if TYPE_CHECKING:
    from lbfgs_xp.run.loop import Run

# How far a promise may lie ahead: by this fraction of the unit of the variable that moves most.
_REACH = 0.5
# Signs repeat after so many variables; the factor has no divisor in common with it.
_PERIOD, _FACTOR = 1024, 619


class Descent(NamedTuple):
    """Steps of the method of conjugate gradients from x, in units of each variable (..., n), with
    Hessian products from differences of gradients.

    way : from x to the minimum of the quadratic model so far.
    residual : the gradient of the model there.
    direction, longest : the next direction, and its largest component in these units.
    squared : the residual's squared norm in these units.
    decrease : how much lower the model is there, the promise that the slopes make.
    variation : how far the value changes along these steps if a variable changes by its unit.
    """

    way: Array
    residual: Array
    direction: Array
    longest: Any
    squared: Any
    decrease: Any
    variation: Any


def of_variables(space: Space, x: Array, extent: Any) -> Array:
    """The size of each variable, or an estimate where it is 0.

    extent : the largest |x| at the start of the run.
    """
    fn, xp = space.scalars, space.xp
    size = space.read_one(space.max_abs(x))
    size = fn.maximum(size, space.backend.eps**0.25 * extent)
    size = space.backend.eps**0.25 * fn.where(size > 0.0, size, 1.0)
    return xp.where(x == 0.0, space.spread(size) + xp.zeros_like(x), xp.abs(x))


def of_run(run: Run, x: Array) -> Array:
    """The unit of each variable of a run at x: its size or, once differences have found it, the
    length over which the function bends."""
    size = of_variables(run.space, x, run.standing.progress.extent)
    if not run.objective.differs or run.objective.differences.known.lengths is None:
        return size
    length = run.objective.differences.lengths(x)
    return run.space.xp.where(length > 0.0, length, size)


def descent(space: Space, gradient: Array, unit: Array) -> Descent:
    """No step yet. The first direction is steepest descent in the variables x / unit."""
    zero, scaled = space.xp.zeros_like(gradient), gradient * unit
    direction = -scaled * unit
    squared, longest = space.later(space.dot(scaled, scaled), space.max_abs(direction / unit))
    nothing = space.scalars.full(0.0, squared)
    return Descent(zero, gradient, direction, longest, squared, nothing, nothing)


def stride(space: Space, descent: Descent, share: float) -> Array:
    """A step along the next direction by this share of the unit of the variable that moves most."""
    fn, size = space.scalars, now(descent.longest)
    known = (size > 0.0) & fn.isfinite(size)
    return space.scale(fn.where(known, fn.divide(share, size), 0.0), descent.direction)


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
    per_unit = fn.divide(1.0, size)
    varies = fn.where(usable, per_unit * (-slope + 0.5 * per_unit * fn.abs(bend)), 0.0)
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
        descent.decrease + decrease, fn.maximum(descent.variation, varies),
    )
    return space.merge(usable, onwards, descent)


def at_steps(solver: Solver, space: Space, x: Array, step: Array) -> Array:
    """The feasible point nearest to x + step."""
    return solver.project(space, x + step) if solver.projects else x + step


def signs(backend: Backend, x: Array, first: int = 0) -> Array:
    """A factor between 1/2 and 1 for each variable, of either sign, the same in every run.

    first : the place in their order at which to begin, for other factors.
    """
    xp = backend.xp
    places = (xp.arange(x.shape[-1], device=backend.creation_device) + first) % _PERIOD
    part = xp.astype((places * _FACTOR) % _PERIOD, x.dtype) / _PERIOD - 0.5
    return xp.where(part < 0.0, part - 0.5, part + 0.5)
