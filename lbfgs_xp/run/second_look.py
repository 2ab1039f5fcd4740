"""What a run does before it says that it has ended.

A claim that rounding has ended a run is provisional: looks confirm or refute it (`agreement`). A
run that has settled above its best point sets out again from there, and one along forward
differences goes on with central ones where only their error may have ended it.
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
# How often a run may set out again from its best point.
_DEPARTURES = 10
# How many times gtol the error of a forward difference must be before a small one is not believed.
# Where f is of order 1 it is twice gtol, and a small one is right as a rule.
_BLIND = 100.0


class SecondLook:
    """The second look at a phase of a run.

    departures : how often each problem has set out again.
    departed : the value where it last set out.
    """

    def __init__(self, run: Run):
        self.run = run
        value = run.standing.solver_state.value
        self.departures: Any = run.space.scalars.full(0, value)
        self.departed = value

    def resumes(self) -> bool:
        """Whether some problem goes on after all, now that all have stopped."""
        self.run.rejoin_rows()
        self._confirm()
        return self._set_out_again() or self._switch_to_central()

    # --- looks that confirm a floor of precision; see `agreement.confirm` ----------------------

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
        # Hidden at once, nothing contradicts the claim; later, all that was visible did.
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

    # --- setting out again ---------------------------------------------------------------------

    def _set_out_again(self) -> bool:
        """Set out from the best point where a run has settled elsewhere.

        A trial that was passed over may be lower than all that came after it, in another valley.
        From a point that it has set out from before, the run would only go the same way again.
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
        # A look has found the gradient to be right, however large it was elsewhere.
        highest = fn.where(looked, norm, fn.maximum(p.highest_norm, norm))
        again = again._replace(highest_norm=highest)
        run.standing = space.merge(
            elsewhere, Standing(fresh, again, best), Standing(state, p, best)
        )
        return run.is_running()

    # --- from forward differences to central ones ----------------------------------------------

    def _switch_to_central(self) -> bool:
        """Go on with central differences where the error of forward ones may be all that ended a
        run: a failed search, or a gradient that is small beside what they can tell. Where a budget
        does not allow it, such a gradient is no success."""
        run = self.run
        objective = run.objective
        if not objective.forward:
            return False
        run.rejoin_rows()
        space, criteria, (state, p, best) = run.space, run.criteria, run.standing
        fn = space.scalars
        # At least that of rounding, eps |f| at either end of steps of sqrt(eps).
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
        # If the differences reach beyond the end of the domain, the run ends as it did.
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
