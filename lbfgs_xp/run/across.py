"""Looks across the gradient: whether the value falls although the gradient says that it cannot.

A gradient that lacks a term may vanish where the function has no minimum. It agrees with the values
along itself, but not across.
"""

from __future__ import annotations

from typing import Any

from lbfgs_xp.result import Status
from lbfgs_xp.run import agreement, units
from lbfgs_xp.run.visits import Visits

_RUNNING, _LINE_SEARCH = int(Status.RUNNING), int(Status.LINE_SEARCH)
# The length of a look is this power of eps, relative to the size of each variable: where rounding
# and third derivatives affect its value about equally.
_LENGTH = 1 / 3


def look(visits: Visits) -> Any:
    """Refute the claims of runs with a given gradient if the value falls in a direction that has
    nothing to do with the gradient, and value and slopes disagree. Return how steeply it falls, per
    step by the size of each variable; 0 if no claim is refuted.

    At a kink in the minimum they disagree, too, but the value does not fall to either side.
    """
    run, (state, p, _) = visits.run, visits.run.standing
    space, fn = run.space, run.space.scalars
    nothing = fn.full(0.0, state.value)
    if run.objective.differs:
        return nothing
    solver, smooth = visits.smooth()
    hidden = fn.maximum(agreement.hidden_by_rounding(fn, space.backend, state.value), p.noise)
    length = space.backend.eps**_LENGTH
    unit = units.of_variables(space, state.x, p.extent)
    way = length * unit * units.signs(space.backend, state.x)

    def step(_: int, going: Any, sign: Any, fall: Any) -> tuple[Any, Any, Any]:
        going = visits.can_afford(1, going)
        if not space.any(going):
            return going, sign, fall
        x = units.at_steps(solver, space, state.x, sign * way)
        seen = visits.evaluate(x, going)
        gradient = visits.whole(seen.gradient)
        found = agreement.look(space, smooth, x, seen.value, gradient, p.noise)
        fallen = state.value - found.value
        falls = going & fn.isfinite(fallen) & (fallen > hidden)
        visits.consider(x, seen._replace(value=found.value), falls)
        off = going & fn.isfinite(fallen) & fn.logical_not(found.agrees)
        lower = off & falls
        return off & fn.logical_not(lower), -sign, fn.where(lower, fallen / length, fall)

    going = (p.status == _RUNNING) & (p.claim != _LINE_SEARCH)
    _, fall = run.repeat(2, step, going, 1.0, nothing)
    p = run.standing.progress
    run.note(p._replace(claim=fn.where(fall > 0.0, _LINE_SEARCH, p.claim)))
    return fall
