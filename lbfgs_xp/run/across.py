"""Looks across the gradient: whether the value falls although the gradient says that it cannot.

A gradient that lacks a term may vanish where the function has no minimum. It agrees with the values
along itself, but not across. At a saddle or a maximum they agree, but the value falls.
"""

from __future__ import annotations

from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.result import Status
from lbfgs_xp.run import agreement, units
from lbfgs_xp.run.visits import Visits

_RUNNING, _LINE_SEARCH = int(Status.RUNNING), int(Status.LINE_SEARCH)
# The length of a look is this power of eps, relative to the size of each variable: where rounding
# and third derivatives affect its value about equally.
_LENGTH = 1 / 3
# Where the gradient stays 0, or once the value falls, the next look is this many times as long.
# Where nothing shows, the last one is the first that is longer than this part of the size of each
# variable. So many looks suffice for that in float64.
_LONGER, _LONGEST, _LOOKS = 8.0, 0.5, 14
# The part of a direction that must be left without what bends upwards.
_LEFT = 2.0**-7


def look(visits: Visits) -> Any:
    """Refute the claims of runs with a given gradient if the value falls in a direction that has
    nothing to do with the gradient, and value and slopes disagree. Return how steeply it falls, per
    step by the size of each variable; 0 if no claim is refuted.

    At a kink in the minimum they disagree, too, but the value does not fall to either side. If they
    agree and the value falls, as at a saddle, longer and longer steps that way lead to the point
    from which the run may restart. Variables in which the gradient is exactly 0, perhaps because
    the start is symmetric, are looked at once more, alone. Where the gradient stays 0, looks to
    both sides become longer and longer.
    """
    run, (state, p, best) = visits.run, visits.run.standing
    space, fn = run.space, run.space.scalars
    nothing, no = fn.full(0.0, state.value), fn.full(False, state.value)
    if run.objective.differs:
        return nothing
    solver, smooth = visits.smooth()
    hidden = fn.maximum(agreement.hidden_by_rounding(fn, space.backend, state.value), p.noise)
    # A run that has settled above its best point restarts from there, see `restarts`.
    lowest = best.value >= state.value - hidden
    shortest = space.backend.eps**_LENGTH
    unit, still = _units(space, smooth, p.extent), state.gradient_norm == 0.0

    def step(
        k: Any, going: Any, way: Array, length: Any, turned: Any, gain: Any, fall: Any
    ) -> tuple[Any, ...]:
        x = units.at_steps(solver, space, state.x, space.scale(length, way))
        taken = x - state.x
        # Bounds may hold all variables.
        going = visits.can_afford(1, going & (space.read_one(space.max_abs(taken)) > 0.0))
        if not space.any(going):
            return going, way, length, turned, gain, fall
        seen = visits.evaluate(x, going)
        gradient = visits.whole(seen.gradient)
        found = agreement.look(space, smooth, x, seen.value, gradient, p.noise)
        change = gradient - smooth.gradient
        (most,) = space.read(space.max_abs(change))
        fallen = state.value - found.value
        usable = going & fn.isfinite(fallen)
        falls = usable & (fallen > fn.maximum(hidden, gain))
        silent = usable & still & (most == 0.0)
        # Over a longer way the slopes at its ends say little, unless there are none.
        off = usable & fn.logical_not(found.agrees) & (silent | (length <= shortest))
        # Where there are none, no run goes on.
        visits.consider(x, seen._replace(value=found.value), falls & fn.logical_not(silent))
        fall = fn.where(off & falls, fallen / length, fall)
        onwards = falls & lowest & fn.logical_not(off | silent)
        gain = fn.where(onwards, fallen, gain)

        unclear = fn.logical_not(falls) & (silent | off)
        downwards, left = _downwards(space, smooth, unit, way, taken, change)
        alone = usable & fn.logical_not(falls | unclear) & left & (k == 0)
        farther = unclear & silent & turned & (length <= _LONGEST)
        back = unclear & fn.logical_not(turned)
        way = space.pick(alone, downwards, space.pick(back | farther, -way, way))
        length = fn.where(farther | onwards, _LONGER * length, length)
        return alone | back | farther | onwards, way, length, back, gain, fall

    going = (p.status == _RUNNING) & (p.claim != _LINE_SEARCH)
    way, length = unit * units.signs(space.backend, state.x), fn.full(shortest, state.value)
    *_, fall = run.repeat(_LOOKS, step, going, way, length, no, nothing, nothing)
    p = run.standing.progress
    run.note(p._replace(claim=fn.where(fall > 0.0, _LINE_SEARCH, p.claim)))
    return fall


def _units(space: Space, point: Any, extent: Any) -> Array:
    """The size of each variable. One that is 0 and in which the gradient is exactly 0 moves as far
    as the largest, or rounding hides what changes."""
    xp, fn = space.xp, space.scalars
    unit = units.of_variables(space, point.x, extent)
    size = fn.maximum(space.read_one(space.max_abs(point.x)), extent)
    size = space.spread(fn.where(size > 0.0, size, 1.0)) + xp.zeros_like(unit)
    return xp.where((point.x == 0.0) & (point.gradient == 0.0), size, unit)


def _downwards(
    space: Space, point: Any, unit: Array, way: Array, step: Array, change: Array
) -> tuple[Array, Any]:
    """The way of a look along the variables in which the gradient at a point is exactly 0, less
    what bends upwards: a step of the power method for the smallest eigenvalue of the Hessian. And
    whether anything is left of it.

    step, change : a step along the last way, and the change of the gradient there.
    """
    xp, fn = space.xp, space.scalars
    still = (point.gradient == 0.0) & (step != 0.0)
    bends = xp.where(still, change / xp.where(still, step, unit) * unit * unit, 0.0 * unit)
    (largest,) = space.read(space.max_abs(bends))
    bent = (largest > 0.0) & fn.isfinite(largest)
    share = space.scale(fn.where(bent, fn.divide(1.0, largest), 0.0), bends)
    direction = xp.where(still, (1.0 - share) * way, 0.0 * way)
    (left,) = space.read(space.max_abs(direction / unit))
    bent = bent & (left > _LEFT)
    return space.scale(fn.where(bent, fn.divide(1.0, left), 0.0), direction), bent
