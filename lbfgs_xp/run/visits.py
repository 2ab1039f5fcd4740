"""Evaluations beside the path of a run, as far as its budgets allow, and what they may show."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.result import Status
from lbfgs_xp.run import agreement, stopping, units
from lbfgs_xp.run.iteration import Standing, better_point
from lbfgs_xp.solvers.contract import Solver

if TYPE_CHECKING:
    from lbfgs_xp.run.loop import Run

_RUNNING, _GRADIENT = int(Status.RUNNING), int(Status.GRADIENT)
_LINE_SEARCH, _EVALUATIONS = int(Status.LINE_SEARCH), int(Status.EVALUATIONS)
_TIME = int(Status.TIME)
# A step by this many times sqrt(eps) |x| is visible.
_FAR = 64.0


class Seen(NamedTuple):
    """The function at a point: the value of all that is minimised, the gradient of fun, and its
    auxiliary output."""

    value: Any
    gradient: Array
    aux: Any


class Visits:
    """Evaluations of the function of a run for looks, which may find a better point."""

    def __init__(self, run: Run):
        self.run = run

    def unpaid(self, evaluations: int) -> Any:
        """Which problems have no budget for that many evaluations."""
        run = self.run
        calls = evaluations * run.criteria.calls_per_trial
        return run.standing.progress.nfev + calls > run.criteria.maxfun

    def affords(self, evaluations: int, rows: Any, optional: Any = False) -> Any:
        """Those of the problems `rows` that still run and have the budget for that many
        evaluations. Running ones without it end, unless these are `optional`."""
        run = self.run
        p, fn = run.standing.progress, run.space.scalars
        rows = rows & (p.status == _RUNNING)
        status = fn.where(self.unpaid(evaluations) & rows, _EVALUATIONS, p.status)
        if run.is_late():
            status = fn.where(rows, _TIME, status)
        ended = status if optional is False else fn.where(
            fn.full(False, status) | optional, p.status, status
        )
        run.note(p._replace(status=ended))
        return rows & (status == _RUNNING)

    def can_afford(self, evaluations: int, rows: Any) -> Any:
        """Those of the problems `rows` that have the budget for looks that are optional: the others
        do not end."""
        paid = self.run.space.scalars.logical_not(self.unpaid(evaluations))
        return rows & paid & (not self.run.is_late())

    def smooth(self, point: Any = None) -> tuple[Solver, Any]:
        """The solver, restricted to where all that is minimised is smooth around a point with x and
        the gradient of fun there, by default its state; and this point with the gradient of all
        that is minimised."""
        run = self.run
        point = run.standing.solver_state if point is None else point
        solver, pull = run.solver_here().around(run.space, point.x, point.gradient)
        return solver, point if pull is None else point._replace(gradient=point.gradient + pull)

    def descent(self, unit: Array) -> units.Descent:
        """No step yet down the gradient of all that is minimised, in these units; variables that a
        bound holds stay where they are."""
        (solver, state), space = self.smooth(), self.run.space
        inner = solver.reduced(space, state.x, state.gradient, state.gradient)
        return units.descent(space, inner, unit)

    def whole(self, gradient: Array) -> Array:
        """The gradient of all that is minimised at a point where that is smooth around the iterate,
        given that of fun."""
        state = self.run.standing.solver_state
        _, pull = self.run.solver_here().around(self.run.space, state.x, state.gradient)
        return gradient if pull is None else gradient + pull

    def visit(
        self, x: Array, rows: Any, counts: bool = True, least: Any = -inf
    ) -> tuple[Any, Array]:
        """Value and gradient of all that is minimised at x, for these rows. If it `counts`, x may
        become the best where it is lower than the iterate by at least so much; otherwise the value
        is left on the device."""
        seen = self.evaluate(x, rows)
        if counts:
            (value,) = self.run.space.read(seen.value)
            seen = seen._replace(value=value)
            here = self.run.standing.solver_state.value
            enough = self.run.space.scalars.logical_not(value > here - least)
            self.consider(x, seen, rows & enough)
        return seen.value, self.whole(seen.gradient)

    def evaluate(self, x: Array, rows: Any) -> Seen:
        """The function at x, for these rows."""
        run, p = self.run, self.run.standing.progress
        value, gradient, aux, count = run.evaluate(x)
        run.note(p._replace(nfev=run.space.scalars.where(rows, p.nfev + count, p.nfev)))
        return Seen(value, gradient, aux)

    def consider(self, x: Array, seen: Seen, rows: Any) -> None:
        """Make x the best point of these rows if it is better."""
        run, (state, p, best) = self.run, self.run.standing
        fn = run.space.scalars
        here = state._replace(seen=seen.value, accepted=fn.full(False, p.nfev))
        best, better = better_point(
            run.solver_here(), run.space, run.criteria, best, x, here, seen.gradient, rows, p.noise
        )
        run.move_to(Standing(state, p, best), seen.aux, better)

    def value_at(self, x: Array, rows: Any) -> Any:
        """The value alone at x, for these rows."""
        run = self.run
        value, count = run.value_at(x)
        (there,) = run.space.read(value)
        p, fn = run.standing.progress, run.space.scalars
        run.note(p._replace(nfev=fn.where(rows, p.nfev + count, p.nfev)))
        return there

    def fail(self, rows: Any) -> None:
        """End those of these problems that still run: no lower point was found."""
        run, (state, p, best) = self.run, self.run.standing
        fn = run.space.scalars
        failed: Any = fn.full(_LINE_SEARCH, p.status)
        if not run.objective.differs:
            # The best trial may be a stationary point to which no search could move: at a bound
            # where the gradient is infinite.
            elsewhere = (best.gradient_norm == 0.0) & (state.gradient_norm != 0.0)
            failed = fn.where(elsewhere, _GRADIENT, failed)
        run.note(p._replace(status=fn.where(rows & (p.status == _RUNNING), failed, p.status)))

    def level(self, p: Any, state: Any, claim: Any) -> Any:
        """The change of the value that does not matter: what rounding hides, and a part of how far
        the value has fallen. That part is 4 eps for a small gradient and for searches that failed
        by differences. For a claim that rounding has ended a run it is 4 eps^2, the rounding of a
        sum of squares whose minimum is 0."""
        space = self.run.space
        fn, eps = space.scalars, space.backend.eps
        small = (claim == _GRADIENT) | ((claim == _LINE_SEARCH) & self.run.objective.differs)
        part = fn.where(small, fn.full(self.run.criteria.part, state.value), 4.0 * eps * eps)
        level = stopping.negligible(fn, self.run.criteria, p, state.value, part)
        return fn.maximum(level, agreement.hidden_by_rounding(fn, space.backend, state.value))

    def visible(self, p: Any, size: Any) -> Any:
        """The length of a step that changes x, of this size, visibly."""
        fn, eps = self.run.space.scalars, self.run.space.backend.eps
        return _FAR * eps**0.5 * fn.maximum(size, eps**0.25 * p.extent)

    def rounding_of_differences(self, state: Any) -> Array:
        """The error of each component of the gradient by differences, from rounding alone."""
        run, (xp, eps) = self.run, (self.run.space.xp, self.run.space.backend.eps)
        value = run.to_user(state.value)
        step = run.objective.differences.steps(state.x, value, not run.objective.forward)
        size = run.space.spread(abs(state.value))
        least = 1.0 / run.space.backend.largest
        return xp.maximum(eps * size / step, xp.full_like(step, least))
