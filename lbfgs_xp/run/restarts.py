"""Restarts of a run from its best points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.result import DOUBTED, Best, Status
from lbfgs_xp.run import stopping, units
from lbfgs_xp.run.iteration import Standing, succeeded
from lbfgs_xp.run.measuring import SPREAD

if TYPE_CHECKING:
    from lbfgs_xp.run.loop import Run

_GRADIENT, _PRECISION = int(Status.GRADIENT), int(Status.PRECISION)
_LINE_SEARCH, _HIGHER = int(Status.LINE_SEARCH), int(Status.HIGHER)
# How often a run may restart from its best point.
_DEPARTURES = 30


class Restarts:
    """The restarts of a phase of a run.

    departures : how often each problem has restarted from its best point.
    departed : the value at which it last started.
    """

    def __init__(self, run: Run):
        self.run = run
        value = run.standing.solver_state.value
        self.departures: Any = run.space.scalars.full(0, value)
        self.departed = value

    def from_best(self, matters: Any = False) -> bool:
        """Restart from the best point if a run has ended elsewhere; return whether any has.

        A rejected trial, in another valley, may be lower than everything that came after it. The
        run never restarts from the same point twice: it would only take the same path again.

        matters : in which problems the best point is lower by more than what does not matter.
        """
        run = self.run
        run.rejoin_rows()
        if not run.solver.searches:
            return False
        space, fn, (state, p, best) = run.space, run.space.scalars, run.standing
        limit = best.value + fn.maximum(4.0 * run.criteria.noise * fn.abs(best.value), p.noise)
        looked = p.status == _HIGHER
        ended = succeeded(p.status)
        if not run.objective.forward:
            # Forward differences give way to central ones.
            ended = ended | (p.status == _LINE_SEARCH)
        elsewhere = (ended & (state.value > limit)) | looked
        if run.criteria.relative > 0.0:
            # Lower by what does not matter is not elsewhere.
            least = stopping.negligible(fn, run.criteria, p, best.value)
            close = (p.status == _GRADIENT) & (state.value <= best.value + least)
            elsewhere = elsewhere & fn.logical_not(close)
            steeper = close & (best.gradient_norm > fn.maximum(p.gtol, state.gradient_norm))
            p = p._replace(status=fn.where(steeper, _PRECISION, p.status))
            run.note(p)
        if not space.any(elsewhere):
            return False
        p = p._replace(status=fn.where(elsewhere, _HIGHER, p.status))
        run.note(p)
        # Points that are lower by what does not matter may be found for ever.
        gain, p = self.departed - best.value, run.standing.progress
        least = stopping.negligible(fn, run.criteria, p, best.value)
        enough = looked & (self.departures > 2) & (gain <= least)
        if run.objective.differs:
            enough = enough | (looked & (state.value - best.value <= least))
        enough = enough & (p.claim != DOUBTED) & (p.claim != _LINE_SEARCH)
        enough = enough & fn.logical_not(fn.full(False, p.status) | matters)
        run.note(p._replace(status=fn.where(enough, _PRECISION, p.status)))
        elsewhere = elsewhere & fn.logical_not(enough)
        elsewhere = elsewhere & (best.value < self.departed) & (self.departures < _DEPARTURES)
        return run.once(elsewhere, self._restart, looked)

    def _restart(self, elsewhere: Any, looked: Any) -> None:
        """Restart these problems from their best points.

        looked : in which of them a look has found that point.
        """
        run = self.run
        space, fn, (state, p, best) = run.space, run.space.scalars, run.standing
        self.departures = fn.where(elsewhere, self.departures + 1, self.departures)
        self.departed = fn.where(elsewhere, best.value, self.departed)
        unit = {}
        if run.solver.rescales:
            unit["unit"] = units.of_run(run, best.x)
            if space.batched:
                state = run.solver.in_units(space, state)
        fresh = run.afresh(best.x, best.value, best.gradient, **unit)
        norm = fresh.gradient_norm
        again = stopping.again(fn, run.criteria, p, fresh.value, norm, 0)
        # A look has confirmed the gradient, no matter how large it was elsewhere.
        highest = fn.where(looked, norm, fn.maximum(p.highest_norm, norm))
        again = again._replace(highest_norm=highest)
        run.standing = space.merge(
            elsewhere, Standing(fresh, again, best), Standing(state, p, best)
        )

    def among_noise(self, rows: Any) -> None:
        """Continue these problems from their best points, knowing the noise of the value."""
        run = self.run
        space, fn, (state, p, best) = run.space, run.space.scalars, run.standing
        if run.objective.differs:
            (value, gradient, unit), count = self._differences_among_noise(rows)
        else:
            (value, gradient, unit), count = (best.value, best.gradient, {}), 0
        if space.batched and unit:
            state = run.solver.in_units(space, state)
        fresh = run.afresh(best.x, value, gradient, **unit)
        norm = fresh.gradient_norm
        if run.objective.differs:
            again = stopping.again(
                fn, run.criteria, p._replace(first_norm=norm), fresh.value, norm, count
            )
        else:
            again = stopping.again(fn, run.criteria, p, fresh.value, norm, count)
            again = stopping.where_small(fn, run.criteria, again, norm)
            again = again._replace(highest_norm=fn.maximum(p.highest_norm, norm))
        here = Best(best.x, fresh.value, gradient, norm, fresh.value)
        again = again._replace(measured=p.measured + 1)
        self.departed = fn.where(rows, fresh.value, self.departed)
        run.standing = space.merge(rows, Standing(fresh, again, here), Standing(state, p, best))

    def _differences_among_noise(
        self, rows: Any
    ) -> tuple[tuple[Any, Array, dict[str, Array]], Any]:
        """Take differences that suit the noise from now on: value and gradient at the best point, a
        unit of each variable for solvers that take one, and how many calls this took."""
        run, (_, p, best) = self.run, self.run.standing
        space, objective, most = run.space, run.objective, run.criteria.maxfun
        calls = objective.expect_noise(
            best.x, run.to_user(best.value), run.to_user(p.noise * (1.0 / SPREAD)),
            lambda calls: bool(space.any(rows & (p.nfev + 3 * calls <= most))),
        )
        value, gradient, _, count = run.evaluate(best.x)
        (value,) = space.read(value)
        unit = {"unit": objective.differences.known.bends.step} if run.solver.rescales else {}
        if not space.batched:
            calls = int(calls)
        elif space.small_on_host:
            calls = space.backend.to_host(calls)
        return (value, gradient, unit), calls + count
