"""The way back to the lowest value that differences and looks have seen.

They evaluate the function at points that no search has tried, some of them far away. A run that
ends above one of these points has not reached a minimum.
"""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING, Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.result import Best, Status
from lbfgs_xp.run import agreement, units
from lbfgs_xp.run.iteration import Standing, succeeded
from lbfgs_xp.run.lowest import Lowest, nothing
from lbfgs_xp.run.measuring import SPREAD
from lbfgs_xp.run.noise import are_equal, largest, most_deviation, points
from lbfgs_xp.run.visits import Visits

if TYPE_CHECKING:
    from lbfgs_xp.run.loop import Run

_RUNNING, _HIGHER = int(Status.RUNNING), int(Status.HIGHER)
_LINE_SEARCH = int(Status.LINE_SEARCH)
_EVALUATIONS, _TIME = int(Status.EVALUATIONS), int(Status.TIME)
# A value is lower if it is so by this many times what does not matter.
_ENOUGH = 4.0
# How many points next to either place must agree that one is lower, and how far apart these are, in
# units of sqrt(eps) of the size of each variable.
_AROUND, _SPACING = 5, 0.125


def take(visits: Visits) -> Any:
    """Go back to the lowest value of problems that have ended above it, unless noise has made it
    low: its point becomes the best one. A success becomes HIGHER if it is lower by more than noise.
    Failures stay what they are, because at a kink there is always a lower point. Return which
    problems are to restart."""
    run, (_, p, best) = visits.run, visits.run.standing
    space, fn, differences = run.space, run.space.scalars, run.objective.differences
    lengths, lowest = differences.known.lengths, differences.known.lowest
    none = fn.full(False, p.status)
    if lengths is None or lowest is None or not run.solver.searches:
        return none
    # The start may be higher by any factor than what the function does here.
    value, varies = space.read(lowest.value, lengths.variation)
    varies, eps = fn.minimum(fn.abs(p.first_value - best.value), varies), space.backend.eps
    # Noise that was measured may be what the function does over the distance to that point.
    hidden = agreement.hidden_by_rounding(fn, space.backend, best.value)
    hidden = fn.maximum(hidden, run.plan.noise.apart or 0.0)
    limit = best.value - _ENOUGH * fn.maximum(hidden, 4.0 * eps * varies)
    ended = succeeded(p.status) | (p.status == _LINE_SEARCH) | (p.status == _HIGHER)
    rows = ended & fn.isfinite(value) & (value < limit)
    if not space.any(rows):
        return none

    def set_lowest(rows: Any, new: Lowest) -> None:
        known = differences.known
        differences.known = known._replace(lowest=space.merge(rows, new, known.lowest))

    set_lowest(rows, nothing(lowest))
    run.note(p._replace(status=fn.where(rows, _RUNNING, p.status)))
    x = units.at_steps(run.solver_here(), space, lowest.x, 0.0)
    close = rows & (value >= limit - _ENOUGH * eps**0.5 * varies)
    lower, smooth = _is_lower_around(
        visits, x, (rows & fn.logical_not(close)) | _bends_down(visits, x, value, close, limit),
        limit,
    )
    lower = visits.affords(1, lower)
    # What looked like noise is the shape of a function that is smooth here.
    shape = lower & smooth & (p.noise > 0.0) & (run.plan.noise.apart is None)
    if space.any(shape):
        _forget_noise(run, shape)
    if space.any(lower):
        lower = _make_best(visits, x, lower, limit)
    after = run.standing.progress
    # A run that goes on with a larger budget still knows it.
    spent = (after.status == _EVALUATIONS) | (after.status == _TIME)
    set_lowest(rows & spent, lowest)
    again = lower & succeeded(p.status) & (shape | (value < best.value - p.noise))
    kept = (after.status == _RUNNING) | (rows & fn.logical_not(succeeded(p.status)))
    status = fn.where(kept, p.status, after.status)
    run.note(after._replace(status=fn.where(again, _HIGHER, status)))
    return again


def _bends_down(visits: Visits, x: Array, value: Any, rows: Any, limit: Any) -> Any:
    """For which of these problems the value as far on the other side of the best point as x is so
    low, too, that the slope there explains neither."""
    run, (_, _, best) = visits.run, visits.run.standing
    space, solver = run.space, run.solver_here()
    rows = visits.affords(1, rows)
    if not space.any(rows):
        return rows
    opposite = best.x - (x - best.x)
    there = units.at_steps(solver, space, opposite, 0.0)
    (off,) = space.read(space.max_abs(there - opposite))
    return rows & (off == 0.0) & (visits.value_at(there, rows) - best.value < limit - value)


def _is_lower_around(visits: Visits, x: Array, rows: Any, limit: Any) -> tuple[Any, Any]:
    """For which of these problems the values next to x are all below this limit, and below those
    next to the best point, since noise does not know where it is; and where they show none."""
    run, (_, p, best) = visits.run, visits.run.standing
    space, fn, solver = run.space, run.space.scalars, run.solver_here()

    def around(x: Array) -> list[Array]:
        spacing = _SPACING * space.backend.eps**0.5 * units.of_variables(space, x, p.extent)
        return [units.at_steps(solver, space, near, 0.0) for near in points(x, spacing, _AROUND)]

    values: list[Any] = []
    for near in around(x) + around(best.x):
        rows = visits.affords(1, rows)
        if not space.any(rows):
            return rows, rows
        there = visits.value_at(near, rows)
        if len(values) < _AROUND:
            values.append(there)
            rows = rows & (there < limit)
        else:
            rows = rows & (there > largest(fn, values))
    size = largest(fn, [fn.abs(value) for value in values])
    hidden = agreement.hidden_by_rounding(fn, space.backend, size)
    smooth = SPREAD * most_deviation(fn, values) <= hidden
    return rows, smooth & fn.logical_not(are_equal(fn, space.backend, values))


def _forget_noise(run: Run, rows: Any) -> None:
    """Take these problems to be without noise."""
    space, p = run.space, run.standing.progress
    fn, rows_there = space.scalars, space.send(rows) if space.batched else rows
    run.objective.differences.forget_noise(rows_there)
    run.note(p._replace(
        noise=fn.where(rows, 0.0, p.noise), looked=fn.where(rows, nan, p.looked)
    ))


def _make_best(visits: Visits, x: Array, rows: Any, limit: Any) -> Any:
    """Make x the best point of those of these problems whose value is below this limit again;
    return which these are."""
    run = visits.run
    space, fn = run.space, run.space.scalars
    value, gradient, aux, count = run.evaluate(x)
    state, p, best = run.standing
    value, norm = space.read(value, run.solver_here().optimality(space, x, gradient))
    lower = rows & (value < limit) & fn.isfinite(norm)
    p = p._replace(nfev=fn.where(rows, p.nfev + count, p.nfev))
    best = space.merge(lower, Best(x, value, gradient, norm, value), best)
    run.move_to(Standing(state, p, best), aux, lower)
    return lower
