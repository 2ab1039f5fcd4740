"""Central differences instead of forward ones if only the error of those may have ended a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lbfgs_xp.result import CLAIMED, FLAT, Status
from lbfgs_xp.run import stopping
from lbfgs_xp.run.iteration import Standing
from lbfgs_xp.run.restarts import Restarts

if TYPE_CHECKING:
    from lbfgs_xp.run.loop import Run

_GRADIENT, _PRECISION = int(Status.GRADIENT), int(Status.PRECISION)
_LINE_SEARCH, _EVALUATIONS = int(Status.LINE_SEARCH), int(Status.EVALUATIONS)
_TIME, _NOT_FINITE = int(Status.TIME), int(Status.NOT_FINITE)
# A small gradient by forward differences is not trusted if their error exceeds this many times
# gtol. If f and its first gradients are of order 1, the error is a quarter of the default gtol, and
# a small gradient is usually right.
_BLIND = 100.0
# Forward differences with relative errors above this do not end a run.
_COARSE = 1e-5


class Central:
    """When a phase of a run switches to central differences."""

    def __init__(self, run: Run, restarts: Restarts):
        self.run, self.restarts = run, restarts

    def leave(self) -> Any:
        """Leave ends that looks by forward differences cannot judge to central ones, if a budget
        allows the switch: claims then become what `switch` expects. Return which problems these
        are."""
        run, p, fn = self.run, self.run.standing.progress, self.run.space.scalars
        if not run.objective.forward:
            return fn.full(False, p.nfev)
        left = self._is_doubted(self._is_blind(), *self._cannot_switch())
        status = fn.where(left & (p.status == CLAIMED), _LINE_SEARCH, p.status)
        run.note(p._replace(status=fn.where(left & (p.status == FLAT), _GRADIENT, status)))
        return left

    def switch(self) -> bool:
        """Switch to central differences if only the error of forward ones may have ended a run: if
        a search has failed, or the gradient is small compared with that error. If a budget does not
        allow the switch, such a gradient is not a success. Return whether it did."""
        run = self.run
        if not run.objective.forward:
            return False
        run.rejoin_rows()
        space, p, blind = run.space, run.standing.progress, self._is_blind()
        fn = space.scalars
        unpaid, late = self._cannot_switch()
        doubted = self._is_doubted(blind, unpaid, late)
        small = (p.status == _GRADIENT) & blind
        status = fn.where(small & late, _TIME, p.status)
        status = fn.where(small & unpaid, _EVALUATIONS, status)
        p = p._replace(status=status)
        run.note(p)
        if not space.any(doubted):
            return False
        run.set_differences(forward=False)
        noisy = doubted & (p.noise > 0.0)
        doubted = doubted & fn.logical_not(noisy)
        if space.any(doubted):
            self._begin_again(doubted)
        if space.any(noisy):
            self.restarts.among_noise(noisy)
        return True

    def _is_doubted(self, blind: Any, unpaid: Any, late: Any) -> Any:
        """Which problems only the error of forward differences may have ended, and a budget allows
        to continue."""
        p = self.run.standing.progress
        ended = (p.status == _GRADIENT) | (p.status == _PRECISION)
        ended = ended | (p.status == FLAT) | (p.status == CLAIMED)
        doubted = (ended & blind) | (p.status == _LINE_SEARCH)
        return doubted & self.run.space.scalars.logical_not(unpaid | late)

    def _begin_again(self, doubted: Any) -> None:
        """Continue these problems from their best points by central differences."""
        run, (state, p, best) = self.run, self.run.standing
        space, fn = run.space, run.space.scalars
        _, gradient, _, count = run.evaluate(best.x)
        fresh = run.afresh(best.x, best.value, gradient)
        norm = fresh.gradient_norm
        # Forward differences may have been 0.
        before = p._replace(first_norm=fn.where(p.first_norm > 0.0, p.first_norm, norm))
        again = stopping.again(fn, run.criteria, before, fresh.value, norm, count)
        again = again._replace(looked=fn.full(math.nan, norm))
        again = stopping.where_small(fn, run.criteria, again, norm)
        # If the differences reach beyond the domain, the run keeps the outcome it had.
        beyond = again.status == _NOT_FINITE
        flat = state.gradient_norm <= p.gtol
        ended = fn.where(flat, fn.full(_GRADIENT, again.status), _LINE_SEARCH)
        status = fn.where(beyond, ended, again.status)
        again = again._replace(status=status, highest_norm=fn.maximum(p.highest_norm, norm))
        p = space.merge(doubted, again, p)
        sharper = best._replace(gradient=gradient, gradient_norm=norm)
        known = doubted & fn.logical_not(beyond)
        run.standing = space.merge(known, Standing(fresh, p, sharper), Standing(state, p, best))

    def _is_blind(self) -> Any:
        """Where the error of forward differences hides a gradient as small as the tolerance. It is
        at least that of rounding: eps |f| at either end of a step of sqrt(eps). A tolerance that
        was reduced, because the start was misleadingly steep, lies below it; and in float32 the
        curvature of the function may lead far astray."""
        space, (_, p, best) = self.run.space, self.run.standing
        share = space.backend.eps**0.5
        error = 2.0 * share * space.scalars.abs(best.value)
        return (error > _BLIND * p.gtol) | (p.flat > 0) | (share > _COARSE)

    def _cannot_switch(self) -> tuple[Any, Any]:
        """Which problems have no evaluations left for central differences, and which no time."""
        run, p = self.run, self.run.standing.progress
        calls = run.objective.calls_per_trial(forward=False)
        late = run.space.scalars.full(run.is_late(), p.nfev)
        return p.nfev + calls > run.criteria.maxfun, late
