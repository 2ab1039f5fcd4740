"""Looks for a decrease that the slopes promise in the units of each variable.

The gradient may hide it: along the gradient, the steepest variables hide all others.
"""

from __future__ import annotations

from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.result import FLAT, Status
from lbfgs_xp.run import agreement, stopping, units
from lbfgs_xp.run.measuring import Measuring
from lbfgs_xp.run.units import Descent
from lbfgs_xp.run.visits import Visits

_RUNNING, _GRADIENT = int(Status.RUNNING), int(Status.GRADIENT)
_PRECISION, _LINE_SEARCH = int(Status.PRECISION), int(Status.LINE_SEARCH)
_HIGHER = int(Status.HIGHER)
# How often a run continues with a smaller tolerance before it restarts from a lower point.
_LATER = 2
# How often it does so because of its own promise.
_OWN = 8
# Differences are about as long as this many times eps^(1/3) |x|.
_BEYOND = 8.0
# Their errors do not reach beyond this many times sqrt(eps) |x|.
_SHORTEST = 100.0
# How many steps down the gradient a promise may take. After the second, each step must have made it
# grow by this factor, as in badly conditioned functions, and so many times the promise must matter.
# By differences it may be an error.
_STEPS, _GROWS, _NEARLY = 6, 2.0, 1e4
# For a small gradient it is one step, because a network promises something for ever; but more where
# the value has fallen by this factor and is larger than the promise by the next, if they make the
# promise grow by the last: a start far away makes any gradient on the floor of a valley seem small.
_FALLEN, _LARGER, _LEAP = 1e6, 1e3, 1e4
# A smaller factor shows it where second derivatives shape the steps, which find the floor sooner,
# or where a small gradient has already turned out not to be that of a minimum.
_FALLEN_MORE = 1e3
# In float32, eps of such a fall is large. While a step changes x by more than the first part of it,
# or promises less than the second part of the value, as short steps along the floor of a curved
# valley do, all that rounding does not hide matters.
_PART, _SHARE = 2.0**-14, 0.1
# float64 has digits to spare: see `plan.relative_tolerance`.
_DIGITS = 1e-10
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
        level = self.visits.level(p, state, p.claim)
        if run.objective.differs:
            # After a small gradient the errors of differences promise more than there is.
            spoils_nothing = self.measuring.spoils_nothing()
            level = fn.where(p.flat > 0, fn.maximum(level, spoils_nothing), level)
        level = _ENOUGH * level
        descent, cut = self._follow(unit, level, asks)
        p = run.standing.progress
        # If a step would still change x visibly, how far the value has fallen shows nothing: the
        # start may be higher by any factor than all that matters.
        least = _HIDDEN * space.backend.eps * space.xp.abs(state.x)
        reach, size, share, step, seen = space.read(
            space.max_abs(descent.way), space.max_abs(state.x),
            space.max_abs(descent.way / unit), space.max_abs((state.trial - state.x) / unit),
            space.max_abs(space.xp.where(
                space.xp.abs(descent.way) > least, descent.way, 0.0 * descent.way
            )),
        )
        coarse = (p.claim == _GRADIENT) & self._started_far() & (space.backend.eps > _DIGITS)
        far = (reach > self.visits.visible(p, size)) | (coarse & (share > _PART))
        if run.objective.differs:
            vacuous = level > fn.abs(state.value)
            far = far & fn.logical_not(self._is_within_differences(share, vacuous))
        hidden = agreement.hidden_by_rounding(fn, space.backend, state.value)
        level = fn.where(far, _ENOUGH * fn.maximum(hidden, p.noise), level)
        wanted = (p.status == _RUNNING) & asks & (descent.decrease > level)
        # Nor does a gradient that the rounding of x explains.
        wanted = wanted & (seen > 0.0)
        wanted = self._postpone(wanted, far, level, coarse, step)
        return unit, self._seek(descent, wanted, level, cut)

    def _settle(self, unit: Array) -> bool:
        """Believe small gradients that promise nothing; return whether any problem still runs.

        Even if each variable changes by all of its size, rounding hides what they promise. How far
        the value has fallen does not show this without a look: while steps are long, the start may
        be higher by any factor than all that matters.
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

    def _follow(self, unit: Array, level: Any, asks: Any) -> tuple[Descent, Any]:
        """Steps down the gradient until they promise more than this; and where they led out of the
        domain of the function."""
        run, (solver, state) = self.run, self.visits.smooth()
        space, fn = run.space, run.space.scalars
        descent = self.visits.descent(unit)
        p = run.standing.progress
        size, small = fn.abs(state.value), p.claim == _GRADIENT
        started_far = self._started_far()

        def step(
            _: int, going: Any, descent: Descent, cut: Any, kept: Descent
        ) -> tuple[Any, Descent, Any, Descent]:
            going = self.visits.affords(1, going & (descent.decrease <= level))
            if not space.any(going):
                return going, descent, cut, kept
            before = descent.decrease
            # Long enough to show the curvature.
            step = units.stride(space, descent, space.backend.eps**0.5)
            x = units.at_steps(solver, space, state.x, step)
            # A lower value next to a small gradient does not matter unless it is promised.
            value, gradient = self.visits.visit(x, going, p.claim != _GRADIENT)
            if run.objective.differs:
                cut = cut | (going & fn.logical_not(fn.isfinite(now(value))))
            change = gradient - state.gradient
            change = solver.reduced(space, state.x, state.gradient, change)
            descent = units.followed(space, descent, unit, x - state.x, change, going)
            first = before == 0.0
            grows = (descent.decrease > _GROWS * before) & (_NEARLY * descent.decrease > level)
            more = first | (grows & (not run.objective.differs))
            leaps = first | fn.logical_not(small) | (descent.decrease > _LEAP * kept.decrease)
            kept = space.merge(leaps, descent, kept)
            hides = started_far & (_LARGER * kept.decrease < size)
            return going & fn.where(small, hides, more), descent, cut, kept

        # Without the first step the steepest variables hide the others.
        going = (p.status == _RUNNING) & asks
        no = fn.full(False, p.status)
        _, cut, kept = run.repeat(_STEPS, step, going, descent, no, descent)
        return kept, cut

    def _started_far(self) -> Any:
        """Whether the value has fallen by such a factor that the start shows nothing about it."""
        run, p, (_, state) = self.run, self.run.standing.progress, self.visits.smooth()
        fn, solver = run.space.scalars, run.solver
        factor = fn.where(p.flat > 0, fn.full(_FALLEN_MORE, state.value), _FALLEN)
        if solver.needs_hessian or solver.needs_products:
            factor = _FALLEN_MORE
        return fn.abs(p.first_value) > factor * fn.abs(state.value)

    def _postpone(self, wanted: Any, far: Any, level: Any, coarse: Any, step: Any) -> Any:
        """Continue with a smaller tolerance if a small gradient is not that of a minimum, because
        the start was much steeper than everything after it. Return which promises are left.

        wanted : which problems promise a decrease that matters.
        far : in which of them the way to it would change x visibly.
        coarse : where eps of what the value has fallen shows nothing.
        step : the largest part of a variable by which the next trial changes it.
        """
        run, p, (solver, state) = self.run, self.run.standing.progress, self.visits.smooth()
        space, fn, eps = run.space, run.space.scalars, run.space.backend.eps
        early = wanted & (p.claim == _GRADIENT) & (far | (p.flat < _LATER))
        # The run itself may know better: the steepest variables may hide the others in these
        # units, too.
        own = solver.promise(space, state)
        visible = stopping.hidden(fn, run.criteria, p, state.value)
        # The steps along the floor of a curved valley are short, and promise only a part.
        shows = coarse & ((step > _PART) | (own < _SHARE * fn.abs(state.value)))
        own = own > fn.where(shows, visible, level)
        own = own & (p.status == _RUNNING) & (p.claim == _GRADIENT) & (p.flat < _OWN)
        # The errors of differences promise much.
        own = own & (not run.objective.differs)
        early = early | own
        norm = state.gradient_norm
        gtol = fn.where(coarse, eps**0.5, fn.full(eps**0.25, norm)) * norm
        if run.objective.differs:
            # What is left may be the error of differences. That of forward ones shows nothing.
            errors = self.visits.rounding_of_differences(state)
            share = space.read_one(space.max_abs(state.gradient / errors))
            lost = early & (share <= 1.0)
            early, wanted = early & fn.logical_not(lost), wanted & fn.logical_not(lost)
            if run.objective.forward:
                p = p._replace(status=fn.where(lost, _LINE_SEARCH, p.status))
            gtol = fn.maximum(gtol, space.read_one(space.xp.min(errors, axis=-1)))
        run.note(p._replace(
            status=fn.where(early, FLAT, p.status),
            flat=fn.where(early, p.flat + 1, p.flat),
            first_value=fn.where(early & fn.logical_not(coarse), state.value, p.first_value),
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

    def _is_within_differences(self, share: Any, vacuous: Any) -> Any:
        """Whether a way is so short that differences may be what promises a decrease.

        share : how far it leads along any variable, at most, in its unit.
        vacuous : where the value has fallen so far that the usual bound says nothing.
        """
        eps, fn = self.run.space.backend.eps, self.run.space.scalars
        usual = fn.full(_BEYOND * eps ** (1 / 3), share)
        return share <= fn.where(vacuous, _SHORTEST * eps**0.5, usual)
