"""The checks that a run makes before it reports that it has ended.

A claim that rounding has ended a run is provisional: looks confirm or refute it (`agreement`). A
run that has settled above its best point restarts from there, and a run with forward differences
switches to central ones if only their error may have ended it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lbfgs_xp.result import CLAIMED, Status
from lbfgs_xp.run import agreement, stopping
from lbfgs_xp.run.iteration import Standing, better_point, succeeded

if TYPE_CHECKING:
    from lbfgs_xp.run.loop import Run

_RUNNING, _GRADIENT = int(Status.RUNNING), int(Status.GRADIENT)
_PRECISION, _LINE_SEARCH = int(Status.PRECISION), int(Status.LINE_SEARCH)
_EVALUATIONS, _TIME = int(Status.EVALUATIONS), int(Status.TIME)
_NOT_FINITE, _HIGHER = int(Status.NOT_FINITE), int(Status.HIGHER)
# How often a run may restart from its best point.
_DEPARTURES = 10
# A small gradient by forward differences is not trusted if their error exceeds this many times
# gtol. For f of order 1 the error is twice gtol, and a small gradient is usually right.
_BLIND = 100.0


class SecondLook:
    """The second look at a phase of a run.

    departures : how often each problem has restarted from its best point.
    departed : the value at which it last started.
    """

    def __init__(self, run: Run):
        self.run = run
        value = run.standing.solver_state.value
        self.departures: Any = run.space.scalars.full(0, value)
        self.departed = value

    def resumes(self) -> bool:
        """Whether any problem resumes, now that all have stopped."""
        self.run.rejoin_rows()
        self._confirm()
        return self._set_out_again() or self._switch_to_central()

    # --- looks that confirm the precision floor; see `agreement.confirm` -----------------------

    def _confirm(self) -> None:
        run = self.run
        p = run.standing.progress
        status = run.space.scalars.where(p.status == CLAIMED, _RUNNING, p.status)
        run.note(p._replace(status=status))
        agreement.confirm(self, agreement.lengths_of(run.space.backend.eps))

    def pending(self) -> bool:
        run = self.run
        p = run.standing.progress
        unpaid = p.nfev + run.criteria.calls_per_trial > run.criteria.maxfun
        status = run.space.scalars.where(unpaid & (p.status == _RUNNING), _EVALUATIONS, p.status)
        run.note(p._replace(status=status))
        if time.perf_counter() >= run.deadline:
            run.end(Status.TIME)
        return run.is_running()

    def look(self, length: float, first: bool) -> None:
        run = self.run
        space, solver, (state, p, best) = run.space, run.solver_here(), run.standing
        fn = space.scalars
        x = agreement.ahead(solver, space, state.x, state.gradient, p.extent, length)
        value, gradient, aux, count = run.evaluate(x)
        look = agreement.look(space, state, x, value, gradient)
        running = p.status == _RUNNING
        # If rounding hides the first look, nothing contradicts the claim; if it hides a later one,
        # all the visible looks before it did.
        hidden = fn.full(_PRECISION if first else _LINE_SEARCH, p.status)
        status = fn.where(running & look.agrees, _PRECISION, p.status)
        status = fn.where(running & fn.logical_not(look.visible), hidden, status)
        status = fn.where(running & look.lower, _HIGHER, status)
        nfev = fn.where(running, p.nfev + count, p.nfev)
        seen = state._replace(seen=look.value, accepted=fn.full(False, look.value))
        best, better = better_point(
            solver, space, run.criteria, best, x, seen, gradient, running
        )
        p = p._replace(status=status, nfev=nfev)
        run.move_to(Standing(state, p, best), aux, better)

    def refute(self) -> None:
        self.run.end(Status.LINE_SEARCH)

    # --- restarting from the best point --------------------------------------------------------

    def _set_out_again(self) -> bool:
        """Restart from the best point if a run has settled elsewhere.

        A rejected trial, in another valley, may be lower than everything that came after it. From
        a point where it has started before, the run would only take the same path again.
        """
        run = self.run
        run.rejoin_rows()
        if not run.solver.searches:
            return False
        space, fn, (state, p, best) = run.space, run.space.scalars, run.standing
        limit = best.value + 4.0 * run.criteria.noise * fn.abs(best.value)
        looked = p.status == _HIGHER
        elsewhere = (succeeded(p.status) & (state.value > limit)) | looked
        if not space.any(elsewhere):
            return False
        p = p._replace(status=fn.where(elsewhere, _HIGHER, p.status))
        run.note(p)
        elsewhere = elsewhere & (best.value < self.departed) & (self.departures < _DEPARTURES)
        if not space.any(elsewhere):
            return False
        self.departures = fn.where(elsewhere, self.departures + 1, self.departures)
        self.departed = fn.where(elsewhere, best.value, self.departed)
        fresh = run.afresh(best.x, best.value, best.gradient)
        norm = fresh.gradient_norm
        again = stopping.again(fn, run.criteria, p, fresh.value, norm, 0)
        # A look has confirmed the gradient, no matter how large it was elsewhere.
        highest = fn.where(looked, norm, fn.maximum(p.highest_norm, norm))
        again = again._replace(highest_norm=highest)
        run.standing = space.merge(
            elsewhere, Standing(fresh, again, best), Standing(state, p, best)
        )
        return run.is_running()

    # --- from forward differences to central ones ----------------------------------------------

    def _switch_to_central(self) -> bool:
        """Switch to central differences if only the error of forward ones may have ended a run: if
        a search has failed, or the gradient is small compared with that error. If a budget does not
        allow the switch, such a gradient is not a success."""
        run = self.run
        objective = run.objective
        if not objective.forward:
            return False
        run.rejoin_rows()
        space, criteria, (state, p, best) = run.space, run.criteria, run.standing
        fn = space.scalars
        # At least the rounding error: eps |f| at either end of a step of sqrt(eps).
        error = 2.0 * space.backend.eps**0.5 * fn.abs(best.value)
        small = (p.status == _GRADIENT) & (error > _BLIND * criteria.gtol)
        unpaid = p.nfev + objective.calls_per_trial(forward=False) > criteria.maxfun
        late = fn.full(time.perf_counter() >= run.deadline, p.nfev)
        doubted = (small | (p.status == _LINE_SEARCH)) & fn.logical_not(unpaid | late)
        status = fn.where(small & late, _TIME, p.status)
        status = fn.where(small & unpaid, _EVALUATIONS, status)
        p = p._replace(status=status)
        run.note(p)
        if not space.any(doubted):
            return False
        run.set_differences(forward=False)
        _, gradient, _, count = run.evaluate(best.x)
        fresh = run.afresh(best.x, best.value, gradient)
        norm = fresh.gradient_norm
        again = stopping.again(fn, run.criteria, p, fresh.value, norm, count)
        # If the differences reach beyond the domain, the run keeps the outcome it had.
        beyond = again.status == _NOT_FINITE
        flat = state.gradient_norm <= criteria.gtol
        ended = fn.where(flat, fn.full(_GRADIENT, again.status), _LINE_SEARCH)
        status = fn.where(beyond, ended, again.status)
        again = again._replace(status=status, highest_norm=fn.maximum(p.highest_norm, norm))
        p = space.merge(doubted, again, p)
        sharper = best._replace(gradient=gradient, gradient_norm=norm)
        known = doubted & fn.logical_not(beyond)
        run.standing = space.merge(known, Standing(fresh, p, sharper), Standing(state, p, best))
        return run.is_running()
