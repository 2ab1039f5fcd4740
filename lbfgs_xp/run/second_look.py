"""The second look at a run that says it has ended.

A claim that rounding has ended a run is provisional: looks confirm or refute it (`agreement`,
`across`, `promises`, `noise_looks`). A run that has settled above its best point restarts from
there (`restarts`), and a run with forward differences switches to central ones if only their error
may have ended it (`central`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from lbfgs_xp.result import CLAIMED, DOUBTED, FLAT, NOISY, Status
from lbfgs_xp.run import across, agreement, given_steps, silent, way_back
from lbfgs_xp.run.central import Central
from lbfgs_xp.run.iteration import Standing, better_point, succeeded
from lbfgs_xp.run.noise_looks import NoiseLooks
from lbfgs_xp.run.promises import Promises
from lbfgs_xp.run.restarts import Restarts
from lbfgs_xp.run.visits import Visits
from lbfgs_xp.solvers.search import FAR

if TYPE_CHECKING:
    from lbfgs_xp.run.loop import Run

_RUNNING, _GRADIENT = int(Status.RUNNING), int(Status.GRADIENT)
_PRECISION, _LINE_SEARCH = int(Status.PRECISION), int(Status.LINE_SEARCH)
_EVALUATIONS, _HIGHER = int(Status.EVALUATIONS), int(Status.HIGHER)
_UNBOUNDED = int(Status.UNBOUNDED)


class SecondLook:
    """The second look at a phase of a run."""

    def __init__(self, run: Run):
        self.run = run
        self.visits = Visits(run)
        self.restarts = Restarts(run)
        self.noise = NoiseLooks(self.visits, self.restarts)
        self.promises = Promises(self.visits, self.noise.measuring)
        self.central = Central(run, self.restarts)
        # How far each problem had come when it was last looked at far away, and still ended well.
        self.looked: Any = run.space.scalars.full(-1, run.standing.solver_state.value)

    @property
    def memory(self) -> dict[str, Any]:
        """What it knows, to be saved."""
        restarts = self.restarts
        return {
            "departures": restarts.departures, "departed": restarts.departed,
            "began": self.noise.measuring.began, "looked": self.looked,
        }

    @memory.setter
    def memory(self, memory: dict[str, Any]) -> None:
        self.restarts.departures, self.restarts.departed = memory["departures"], memory["departed"]
        self.noise.measuring.began, self.looked = memory["began"], memory["looked"]

    def resumes(self) -> bool:
        """Whether any problem resumes, now that all have stopped."""
        run = self.run
        run.rejoin_rows()
        if run.objective.differs:
            self.noise.judge_differences(self.central.leave())
            if run.is_running():
                return True
        begun = self._confirm()
        if run.is_running():
            return True
        # A problem that has begun again may have ended at once, which is a claim again.
        if self.restarts.from_best():
            return run.is_running() or self.resumes()
        begun = self.central.switch() or begun
        if begun:
            return run.is_running() or self.resumes()
        if run.objective.differs and self._goes_back():
            return run.is_running() or self.resumes()
        given_steps.explain(self.visits)
        return False

    def _goes_back(self) -> bool:
        """Whether runs by differences restart from a lower value than the one they ended at."""
        run = self.run
        for look in (self.noise.look_far, functools.partial(silent.look, self.visits)):
            p = run.standing.progress
            look(succeeded(p.status) & (self._steps() > self.looked))
            lower = way_back.take(self.visits)
            if run.space.any(lower) and self.restarts.from_best(lower):
                return True
        ended = succeeded(run.standing.progress.status)
        self.looked = run.space.scalars.where(ended, self._steps(), self.looked)
        return False

    def _steps(self) -> Any:
        """Iterations, and how often each problem has begun anew."""
        p = self.run.standing.progress
        return p.earlier + p.nit + p.measured + self.restarts.departures

    def _confirm(self) -> bool:
        """Look at the claims; return whether problems have begun again among noise."""
        run, space = self.run, self.run.space
        fn, p = space.scalars, run.standing.progress
        if not space.any(p.status < _RUNNING):
            return False
        self._end_far_away()
        p = run.standing.progress
        claimed = (p.status == DOUBTED) | (p.status == CLAIMED)
        claim = fn.where(p.status < _RUNNING, p.status, _RUNNING)
        run.note(p._replace(claim=claim, status=fn.where(claimed, _RUNNING, p.status)))
        if space.any(claimed):
            self._take_looks(agreement.lengths_of(space.backend.eps))
            run.rejoin_rows()
        self._open_claims()
        if run.is_running():
            fall = across.look(self.visits)
            promised = self.promises.look()
            if promised is not None:
                self.noise.explain(*promised, fall)
        run.rejoin_rows()
        p = run.standing.progress
        run.note(p._replace(status=fn.where(p.status == FLAT, _RUNNING, p.status)))
        return run.once(p.status == NOISY, self.restarts.among_noise)

    def _end_far_away(self) -> None:
        """End problems that were stopped by rounding so far away that only an overflow has kept
        the value from falling."""
        run, (state, p, _) = self.run, self.run.standing
        fn = run.space.scalars
        claimed = (p.status == DOUBTED) | (p.status == CLAIMED)
        if not run.space.any(claimed):
            return
        size = run.space.read_one(run.space.max_abs(state.x))
        far = claimed & (size > FAR * FAR * fn.maximum(p.extent, 1.0))
        run.note(p._replace(status=fn.where(far, _UNBOUNDED, p.status)))

    def _open_claims(self) -> None:
        """Set `claim` to how each problem ends if nothing lower is found, and run those for which
        this takes more looks."""
        run, p = self.run, self.run.standing.progress
        fn = run.space.scalars
        agreed, refuted = p.status == _PRECISION, p.status == _LINE_SEARCH
        claim = fn.full(_RUNNING, p.status)
        claim = fn.where(agreed & (p.claim == CLAIMED), _PRECISION, claim)
        claim = fn.where(agreed & (p.claim == DOUBTED), DOUBTED, claim)
        claim = fn.where(refuted & (p.claim < _RUNNING), _LINE_SEARCH, claim)
        claim = fn.where(p.status == FLAT, _GRADIENT, claim)
        status = fn.where(claim != _RUNNING, _RUNNING, p.status)
        run.note(p._replace(claim=claim, status=status))

    # --- looks along the gradient; see `agreement.confirm` -------------------------------------

    def _take_looks(self, lengths: list[float]) -> None:
        agreement.confirm(self, lengths)

    def pending(self) -> bool:
        run = self.run
        p = run.standing.progress
        unpaid = self.visits.unpaid(1) & (p.status == _RUNNING)
        status = run.space.scalars.where(unpaid, _EVALUATIONS, p.status)
        run.note(p._replace(status=status))
        if run.is_late():
            run.end(Status.TIME)
        return run.is_running()

    def look(self, length: Any, first: Any) -> None:
        run = self.run
        space, (state, p, best), (solver, smooth) = run.space, run.standing, self.visits.smooth()
        fn = space.scalars
        x = agreement.ahead(solver, space, state.x, smooth.gradient, p.extent, length)
        value, gradient, aux, count = run.evaluate(x)
        look = agreement.look(space, smooth, x, value, self.visits.whole(gradient), p.noise)
        running = p.status == _RUNNING
        # If rounding hides the first look, nothing contradicts the claim; if it hides a later one,
        # all the visible looks before it did.
        hidden = fn.where(running & first, _PRECISION, fn.full(_LINE_SEARCH, p.status))
        status = fn.where(running & look.agrees, _PRECISION, p.status)
        status = fn.where(running & fn.logical_not(look.visible), hidden, status)
        status = fn.where(running & look.lower, _HIGHER, status)
        nfev = fn.where(running, p.nfev + count, p.nfev)
        seen = state._replace(seen=look.value, accepted=fn.full(False, look.value))
        best, better = better_point(
            run.solver_here(), space, run.criteria, best, x, seen, gradient, running, p.noise
        )
        p = p._replace(status=status, nfev=nfev)
        run.move_to(Standing(state, p, best), aux, better)

    def refute(self) -> None:
        # Not `Run.end`, which also ends the other provisional ends of a batch.
        self.visits.fail(self.run.standing.progress.status == _RUNNING)
