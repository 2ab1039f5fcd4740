"""Whether the error of differences over steps that were given explains why a search has failed.

Such steps stay as they are, however the function bends, so the gradient has an error which limits
how close a run can come. Half of the step, and a quarter of it, show that error: of a smooth
function it falls to a quarter each time (Richardson 1911), beside a kink or a jump it does not.
"""

from __future__ import annotations

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.result import Status
from lbfgs_xp.run import units
from lbfgs_xp.run.visits import Visits

_PRECISION, _LINE_SEARCH = int(Status.PRECISION), int(Status.LINE_SEARCH)
# At most this share of the error is left with half of the step.
_LEFT = 0.5
# A gradient is lost in its error if it is at most so many times as large.
_LOST = 4.0
# What is left to gain does not matter: all of every variable, along the better gradient, is less
# than this share of what the value has fallen.
_LITTLE = 1e-3


def explain(visits: Visits) -> None:
    """Turn failed searches into PRECISION where that error explains them and little is lost."""
    run = visits.run
    space, differences = run.space, run.objective.differences
    if not run.objective.differs or run.objective.forward or differences.step is None:
        return
    fn, (_, p, best) = space.scalars, run.standing
    rows = visits.can_afford(2, (p.status == _LINE_SEARCH) & (p.noise == 0.0))
    if not space.any(rows):
        return
    given, gradients = differences.step, [best.gradient]
    try:
        for share in (0.5, 0.25):
            differences.step = share * given
            _, gradient, _, count = run.evaluate(best.x)
            gradients.append(gradient)
            p = p._replace(nfev=fn.where(rows, p.nfev + count, p.nfev))
    finally:
        differences.step = given
    unit, solver = units.of_variables(space, best.x, p.extent), run.solver_here()

    def scaled(gradient: Array) -> Array:
        gradient = visits.whole(gradient)
        return unit * solver.reduced(space, best.x, gradient, gradient)

    whole, half, quarter = map(scaled, gradients)
    size, error, left, reach = space.read(
        space.dot(whole, whole), space.dot(whole - half, whole - half),
        space.dot(half - quarter, half - quarter), space.dot(quarter, quarter),
    )
    explained = rows & (left <= _LEFT**2 * error) & (size <= _LOST**2 * error)
    explained = explained & (reach**0.5 <= _LITTLE * fn.abs(p.first_value - best.value))
    run.note(p._replace(status=fn.where(explained, _PRECISION, p.status)))
