"""Looks for a decrease that the slopes promise in the units of each variable.

The gradient may hide it: along the gradient, the steepest variables hide all others.
"""

from __future__ import annotations

import math
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.result import DOUBTED, FLAT, Status
from lbfgs_xp.run import agreement, units
from lbfgs_xp.run.measuring import Measuring
from lbfgs_xp.run.units import Descent
from lbfgs_xp.run.visits import Visits

_RUNNING, _GRADIENT = int(Status.RUNNING), int(Status.GRADIENT)
_PRECISION, _LINE_SEARCH = int(Status.PRECISION), int(Status.LINE_SEARCH)
_HIGHER = int(Status.HIGHER)
# How often a run continues with a smaller tolerance because of its own promise.
_OWN = 8
# How many steps down the gradient a promise may take. After the second, each step must have made it
# grow by this factor, as in badly conditioned functions, and so many times the promise must matter.
# By differences it may be an error.
_STEPS, _GROWS, _NEARLY = 6, 2.0, 1e4
# A start is far away if the value has fallen from there by more than so many times what it changes
# by if a variable changes by its unit: then the fall shows nothing.
_FAR = 16.0
# In float64 one step shows it, unless the fall is larger by this factor.
_MUCH, _DIGITS = 1e3, 1e-10
# The smaller tolerance leaves this share of the gradient whose promise would not matter.
_LEFT = 0.3
# A promise counts if it exceeds what does not matter by this factor.
_ENOUGH = 4.0
# A step by this many times the rounding of x shows nothing.
_HIDDEN = 4.0
# How often the way to a promised decrease is shortened before it counts as broken.
_CLOSER = 4


class Promises:
    """What the slopes promise in a phase of a run."""

    def __init__(self, visits: Visits, measuring: Measuring):
        self.run, self.visits, self.measuring = visits.run, visits, measuring

    def look(self) -> tuple[Array, Any] | None:
        """Look down the gradient in units of each variable. If the slopes promise a decrease that
        matters, look for it: problems then have the status HIGHER, or FLAT if they are to continue
        with a smaller tolerance. For those that still run, return the units, and the decrease that
        was promised and not found. None if no problem runs."""
        run = self.run
        space, fn, (state, p, _) = run.space, run.space.scalars, run.standing
        unit = units.of_run(run, state.x)
        if not self._settle(unit):
            return None
        # Whether a promise is looked for: a wrong gradient promises anything, but differences are
        # only inaccurate.
        asks = fn.full(run.objective.differs, p.status) | (p.claim != _LINE_SEARCH)
        descent, level, cut = self._follow(unit, asks)
        # Nothing is promised by a gradient that the rounding of x explains, or by a search that
        # failed for what it promised.
        least = _HIDDEN * space.backend.eps * space.xp.abs(state.x)
        way = space.xp.abs(descent.way)
        moves = space.read_one(space.max_abs(space.xp.where(way > least, way, 0.0 * way))) > 0.0
        p = run.standing.progress
        running = p.status == _RUNNING
        wanted = running & asks & moves & (descent.decrease > level)
        still = running & (p.claim == DOUBTED) & fn.logical_not(moves)
        if space.any(still):
            decrement = now(state.decrement)
            more = fn.isfinite(decrement) & (decrement > _ENOUGH * descent.decrease)
            explained = still & (descent.decrease > 0.0) & fn.logical_not(more)
            run.note(p._replace(status=fn.where(explained, _PRECISION, p.status)))
        wanted = self._postpone(wanted, level, descent)
        return unit, self._seek(descent, wanted, level, cut)

    def _settle(self, unit: Array) -> bool:
        """Believe small gradients that promise nothing; return whether any problem still runs.

        Even if each variable changes by all of its size, rounding hides what they promise. How far
        the value has fallen does not show this without a look: the start may be far away.
        """
        run, p, (solver, state) = self.run, self.run.standing.progress, self.visits.smooth()
        space, fn = run.space, run.space.scalars
        flat = (p.status == _RUNNING) & (p.claim == _GRADIENT)
        if not space.any(flat):
            return True
        gradient = solver.reduced(space, state.x, state.gradient, state.gradient)
        most = space.read_one(space.sum(space.xp.abs(gradient) * unit))
        hidden = agreement.hidden_by_rounding(fn, space.backend, state.value)
        settled = flat & ((most <= _ENOUGH * hidden) | (state.gradient_norm == 0.0))
        status = fn.where(settled, _GRADIENT, p.status)
        run.note(p._replace(claim=fn.where(settled, _RUNNING, p.claim), status=status))
        return bool(space.any(status == _RUNNING))

    def _level(self, descent: Descent, usual: Any) -> tuple[Any, Any]:
        """The decrease that does not matter, and whether it takes more than one step down the
        gradient to say so.

        If the value has fallen far more than it changes over the sizes of the variables, the start
        was far away, and a part of that change takes the place of the same part of the fall.
        """
        run, p, (_, state) = self.run, self.run.standing.progress, self.visits.smooth()
        space, fn = run.space, run.space.scalars
        hidden = fn.maximum(agreement.hidden_by_rounding(fn, space.backend, state.value), p.noise)
        near = fn.maximum(hidden, _FAR * run.criteria.part * descent.variation)
        if run.objective.differs:
            errors = self.visits.rounding_of_differences(state) * space.xp.abs(descent.way)
            near = fn.maximum(near, space.read_one(space.sum(errors)))
        far = (p.claim == _GRADIENT) & (descent.variation > 0.0) & (near < usual)
        much = _MUCH if space.backend.eps < _DIGITS else 1.0
        doubtful = (far & (much * near < usual)) | (usual <= hidden)
        return _ENOUGH * fn.where(far, near, usual), doubtful

    def _follow(self, unit: Array, asks: Any) -> tuple[Descent, Any, Any]:
        """Steps down the gradient until they promise more than what does not matter; that; and
        where they led out of the domain of the function."""
        run, (solver, state) = self.run, self.visits.smooth()
        space, fn = run.space, run.space.scalars
        descent, p = self.visits.descent(unit), run.standing.progress
        small, usual = p.claim == _GRADIENT, self.visits.level(p, state, p.claim)
        if run.objective.differs:
            # After a small gradient the errors of differences promise more than there is.
            spoils_nothing = self.measuring.spoils_nothing()
            usual = fn.where(p.flat > 0, fn.maximum(usual, spoils_nothing), usual)

        def step(
            _: int, going: Any, descent: Descent, level: Any, cut: Any
        ) -> tuple[Any, Descent, Any, Any]:
            going = self.visits.affords(1, going & (descent.decrease <= level))
            if not space.any(going):
                return going, descent, level, cut
            before = descent.decrease
            # Long enough to show the curvature.
            step = units.stride(space, descent, space.backend.eps**0.5)
            x = units.at_steps(solver, space, state.x, step)
            # A lower value next to a small gradient does not matter unless it is promised.
            least = fn.where(small, fn.full(math.inf, level), -math.inf)
            value, gradient = self.visits.visit(x, going, least=least)
            if run.objective.differs:
                cut = cut | (going & fn.logical_not(fn.isfinite(value)))
            change = gradient - state.gradient
            change = solver.reduced(space, state.x, state.gradient, change)
            descent = units.followed(space, descent, unit, x - state.x, change, going)
            level, doubtful = self._level(descent, usual)
            first = before == 0.0
            grows = (descent.decrease > _GROWS * before) & (_NEARLY * descent.decrease > level)
            more = first | (grows & (not run.objective.differs))
            return going & fn.where(small, first & doubtful, more), descent, level, cut

        # Without the first step the steepest variables hide the others.
        going = (p.status == _RUNNING) & asks
        no = fn.full(False, p.status)
        descent, level, cut = run.repeat(_STEPS, step, going, descent, _ENOUGH * usual, no)
        return descent, level, cut

    def _postpone(self, wanted: Any, level: Any, descent: Descent) -> Any:
        """Continue with a smaller tolerance if a small gradient is not that of a minimum, because
        the start was much steeper than everything after it. Return which promises are left.

        wanted : which problems promise a decrease that matters.
        """
        run, p, (solver, state) = self.run, self.run.standing.progress, self.visits.smooth()
        space, fn, eps = run.space, run.space.scalars, run.space.backend.eps
        # The run itself may know better: the steepest variables may hide the others in these
        # units, too. By differences, errors promise much.
        own = fn.full(0.0, level) if run.objective.differs else solver.promise(space, state)
        own_promise = (own > level) & (p.flat < _OWN) & (p.status == _RUNNING)
        early = (wanted | own_promise) & (p.claim == _GRADIENT)
        norm = state.gradient_norm
        # What is promised falls with the square of the gradient.
        left = _LEFT * fn.divide(level, fn.maximum(descent.decrease, own)) ** 0.5
        gtol = fn.maximum(left, eps**0.25) * norm
        if run.objective.differs:
            # What is left may be the error of differences. That of forward ones shows nothing.
            errors = self.visits.rounding_of_differences(state)
            share = space.read_one(space.max_abs(state.gradient / errors))
            lost = early & (share <= 1.0)
            early, wanted = early & fn.logical_not(lost), wanted & fn.logical_not(lost)
            if run.objective.forward:
                p = p._replace(status=fn.where(lost, _LINE_SEARCH, p.status))
            gtol = fn.maximum(gtol, space.read_one(space.xp.min(errors, axis=-1)))
        # From now on, the value has fallen from no farther than matters here.
        begins = state.value + descent.variation
        nearer = descent.variation < fn.abs(p.first_value - state.value)
        run.note(p._replace(
            status=fn.where(early, FLAT, p.status),
            flat=fn.where(early, p.flat + 1, p.flat),
            first_value=fn.where(early & nearer, begins, p.first_value),
            first_norm=fn.where(early, norm, p.first_norm),
            highest_norm=fn.where(early, norm, p.highest_norm),
            gtol=fn.where(early, gtol, p.gtol),
        ))
        return wanted & fn.logical_not(early)

    def _seek(self, descent: Descent, wanted: Any, level: Any, cut: Any) -> Any:
        """Look for the decrease that was promised, and return how much of it was not found. Claims
        stand if nothing was promised.

        cut : where the way down leads out of the domain of the function.
        """
        run, (solver, state) = self.run, self.visits.smooth()
        space, fn = run.space, run.space.scalars
        nothing = fn.full(0.0, state.value)

        def step(_: int, wanted: Any, share: Any, __: Any) -> tuple[Any, Any, Any]:
            wanted = self.visits.affords(1, wanted)
            if not space.any(wanted):
                return wanted, share, nothing
            x = units.at_steps(solver, space, state.x, share * descent.way)
            there, _ = self.visits.visit(x, wanted)
            lower = wanted & (there < state.value - 0.25 * level)
            p = run.standing.progress
            run.note(p._replace(status=fn.where(lower, _HIGHER, p.status)))
            wanted = wanted & fn.logical_not(lower)
            # Closer to x a linear function keeps this share of what a quadratic one promises.
            wanted = wanted & (2.0 * share * descent.decrease > level)
            share = 0.125 * share
            return wanted, share, fn.where(wanted, 2.0 * share * descent.decrease, 0.0)

        _, broken = run.repeat(_CLOSER, step, wanted, 1.0, nothing)
        wanted, p = broken != 0.0, run.standing.progress
        stands = (p.claim == _GRADIENT) | ((p.claim == _PRECISION) & fn.logical_not(wanted))
        status = fn.where((p.status == _RUNNING) & stands, p.claim, p.status)
        if run.objective.differs:
            # Differences that promise nothing need not agree with the values.
            failed = (status == _RUNNING) & (p.claim == _LINE_SEARCH) & fn.logical_not(wanted)
            verdict = fn.where(cut, fn.full(_LINE_SEARCH, p.status), _PRECISION)
            status = fn.where(failed, verdict, status)
        run.note(p._replace(status=status))
        return broken
