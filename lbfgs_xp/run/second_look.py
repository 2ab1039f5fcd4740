"""The checks that a run makes before it reports that it has ended.

A claim that rounding has ended a run is provisional: looks confirm or refute it (`agreement`). A
run that has settled above its best point restarts from there, and a run with forward differences
switches to central ones if only their error may have ended it.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.result import CLAIMED, DOUBTED, FLAT, Status
from lbfgs_xp.run import agreement, stopping
from lbfgs_xp.run.iteration import Standing, better_point, succeeded

if TYPE_CHECKING:
    from lbfgs_xp.run.loop import Run

_RUNNING, _GRADIENT = int(Status.RUNNING), int(Status.GRADIENT)
_PRECISION, _LINE_SEARCH = int(Status.PRECISION), int(Status.LINE_SEARCH)
_EVALUATIONS, _TIME = int(Status.EVALUATIONS), int(Status.TIME)
_NOT_FINITE, _HIGHER = int(Status.NOT_FINITE), int(Status.HIGHER)
# How often a run may restart from its best point.
_DEPARTURES = 30
# A small gradient by forward differences is not trusted if their error exceeds this many times
# gtol. For f of order 1 the error is twice gtol, and a small gradient is usually right.
_BLIND = 100.0
# How often a run continues with a smaller tolerance before it restarts from a lower point.
_LATER = 2
# A step by this many times sqrt(eps) |x| is visible.
_FAR = 64.0
# How many steps down the gradient a promise may take; for a small gradient, one.
_STEPS = 2
# A promise counts if it exceeds what does not matter by this factor.
_ENOUGH = 4.0
# How often the way to a promised decrease is shortened before it counts as broken.
_CLOSER = 4
# The number of values by which noise is measured, and how many times that noise a difference of two
# values may be.
_NOISY, _SPREAD = 6, 8.0


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
        run = self.run
        run.rejoin_rows()
        self._confirm()
        if run.is_running():
            return True
        return self._set_out_again() or self._switch_to_central()

    # --- ends that are provisional -------------------------------------------------------------

    def _confirm(self) -> None:
        run, space = self.run, self.run.space
        fn, p = space.scalars, run.standing.progress
        if not space.any(p.status < _RUNNING):
            return
        doubted = p.status == DOUBTED
        claimed = doubted | (p.status == CLAIMED)
        claim = fn.where(p.status < _RUNNING, p.status, _RUNNING)
        run.note(p._replace(claim=claim, status=fn.where(claimed, _RUNNING, p.status)))
        if space.any(claimed):
            agreement.confirm(self, agreement.lengths_of(space.backend.eps))
            run.rejoin_rows()
        self._open_claims()
        if run.is_running():
            self._look_in_units()
        run.rejoin_rows()
        p = run.standing.progress
        run.note(p._replace(status=fn.where(p.status == FLAT, _RUNNING, p.status)))

    def _open_claims(self) -> None:
        """Set `claim` to how each problem ends if nothing lower is found, and run those for which
        this takes more looks."""
        run, space = self.run, self.run.space
        fn, (state, p, _) = space.scalars, run.standing
        agreed, refuted = p.status == _PRECISION, p.status == _LINE_SEARCH
        flat = p.status == FLAT
        claim = fn.full(_RUNNING, p.status)
        claim = fn.where(agreed & (p.claim == CLAIMED), _PRECISION, claim)
        claim = fn.where(agreed & (p.claim == DOUBTED), DOUBTED, claim)
        claim = fn.where(refuted & (p.claim < _RUNNING), _LINE_SEARCH, claim)
        claim = fn.where(flat, _GRADIENT, claim)
        status = p.status
        if space.any(flat):
            # Even if each variable changes by all of its size, rounding hides what the gradient
            # promises. How far the value has fallen does not tell this without a look: while steps
            # are long, the start may be higher than all that matters by any factor.
            unit = agreement.units(space, state.x, p.extent)
            gradient = run.solver_here().reduced(space, state.x, state.gradient, state.gradient)
            most = space.read_one(space.sum(space.xp.abs(gradient) * unit))
            hidden = agreement.hidden_by_rounding(fn, space.backend, state.value)
            settled = flat & (most <= _ENOUGH * hidden)
            settled = settled | (flat & (state.gradient_norm == 0.0))
            status = fn.where(settled, _GRADIENT, status)
            claim = fn.where(settled, _RUNNING, claim)
        status = fn.where(claim != _RUNNING, _RUNNING, status)
        run.note(p._replace(claim=claim, status=status))

    def _level(self, p: Any, state: Any, claim: Any) -> Any:
        """The change of the value that does not matter: what rounding hides, and a part of how far
        the value has fallen. That part is eps for a small gradient; for a claim that rounding has
        ended a run it is eps^2, the rounding of a sum of squares whose minimum is 0."""
        space = self.run.space
        fn, eps = space.scalars, space.backend.eps
        part = fn.where(claim == _GRADIENT, fn.full(4.0 * eps, state.value), 4.0 * eps * eps)
        level = stopping.negligible(fn, self.run.criteria, p, state.value, part)
        return fn.maximum(level, agreement.hidden_by_rounding(fn, space.backend, state.value))

    def _visible(self, p: Any, state: Any) -> Any:
        """The length of a step that changes x visibly."""
        space = self.run.space
        size, eps = space.read_one(space.max_abs(state.x)), space.backend.eps
        return _FAR * eps**0.5 * space.scalars.maximum(size, eps**0.25 * p.extent)

    # --- looks in the units of each variable ---------------------------------------------------

    def _affords(self, evaluations: int, rows: Any) -> Any:
        """Those of the problems `rows` that still run and can pay for that many evaluations; the
        others of them end."""
        run = self.run
        p, fn = run.standing.progress, run.space.scalars
        unpaid = p.nfev + evaluations * run.criteria.calls_per_trial > run.criteria.maxfun
        rows = rows & (p.status == _RUNNING)
        status = fn.where(unpaid & rows, _EVALUATIONS, p.status)
        if time.perf_counter() >= run.deadline:
            status = fn.where(rows, _TIME, status)
        run.note(p._replace(status=status))
        return rows & (status == _RUNNING)

    def _visit(self, x: Array, rows: Any, counts: Any = True) -> tuple[Any, Array]:
        """Value and gradient at x, for these rows; x may become the best where it `counts`."""
        run, (state, p, known) = self.run, self.run.standing
        space, fn = run.space, run.space.scalars
        value, gradient, aux, count = run.evaluate(x)
        (there,) = space.read(value)
        p = p._replace(nfev=fn.where(rows, p.nfev + count, p.nfev))
        better = fn.full(False, there)
        if counts is not False:
            seen = state._replace(seen=there, accepted=better)
            known, better = better_point(
                run.solver_here(), space, run.criteria, known, x, seen, gradient, rows & counts
            )
        run.move_to(Standing(state, p, known), aux, better)
        return there, gradient

    def _look_in_units(self) -> None:
        """Look down the gradient in the units of each variable, which the gradient may hide. If the
        slopes promise a decrease that matters, look for it."""
        run = self.run
        space, solver, (state, p, _) = run.space, run.solver_here(), run.standing
        fn, eps = space.scalars, space.backend.eps
        unit = agreement.units(space, state.x, p.extent)
        # Variables that a bound holds stay where they are.
        inner = solver.reduced(space, state.x, state.gradient, state.gradient)
        descent = agreement.descent_in_units(space, inner, unit)
        level = _ENOUGH * self._level(p, state, p.claim)
        # Without the first step the steepest variables hide the others.
        first = True
        for _ in range(_STEPS):
            p = run.standing.progress
            going = (p.status == _RUNNING) & (p.claim != _LINE_SEARCH)
            going = going & (descent.decrease <= level) & ((p.claim != _GRADIENT) | first)
            first = False
            going = self._affords(1, going)
            if not space.any(going):
                break
            step, _ = agreement.short_step(space, descent, unit)
            x = agreement.at_steps(solver, space, state.x, step)
            # A lower value next to a small gradient does not matter unless it is promised.
            _, gradient = self._visit(x, going, p.claim != _GRADIENT)
            change = gradient - state.gradient
            change = solver.reduced(space, state.x, state.gradient, change)
            descent = agreement.followed(space, descent, unit, x - state.x, change, going)
        p = run.standing.progress
        # Where a step would still change x visibly, how far the value has fallen shows nothing: a
        # start may be higher than all that matters by any factor.
        (reach,) = space.read(space.max_abs(descent.way))
        far = reach > self._visible(p, state)
        hidden = _ENOUGH * agreement.hidden_by_rounding(fn, space.backend, state.value)
        level = fn.where(far, hidden, level)
        wanted = (p.status == _RUNNING) & (p.claim != _LINE_SEARCH) & (descent.decrease > level)
        # A small gradient that is not that of a minimum: the start was much steeper than what came
        # after it. The run continues, with a tolerance relative to where it is now.
        early = wanted & (p.claim == _GRADIENT) & (far | (p.flat < _LATER))
        norm = state.gradient_norm
        run.note(p._replace(
            status=fn.where(early, FLAT, p.status),
            flat=fn.where(early, p.flat + 1, p.flat),
            first_value=fn.where(early, state.value, p.first_value),
            first_norm=fn.where(early, norm, p.first_norm),
            highest_norm=fn.where(early, norm, p.highest_norm),
            gtol=fn.where(early, eps**0.25 * norm, p.gtol),
        ))
        wanted = wanted & fn.logical_not(early)
        share = 1.0
        for _ in range(_CLOSER):
            wanted = self._affords(1, wanted)
            if not space.any(wanted):
                break
            x = agreement.at_steps(solver, space, state.x, share * descent.way)
            there, _ = self._visit(x, wanted)
            lower = wanted & (there < state.value - 0.25 * level)
            p = run.standing.progress
            run.note(p._replace(status=fn.where(lower, _HIGHER, p.status)))
            wanted = wanted & fn.logical_not(lower)
            # Closer to x a linear function keeps this share of what a quadratic one promises.
            wanted = wanted & (2.0 * share * descent.decrease > level)
            share = 0.125 * share
        p = run.standing.progress
        broken = fn.where(wanted, 2.0 * share * descent.decrease, 0.0)
        stands = (p.claim == _GRADIENT) | ((p.claim == _PRECISION) & fn.logical_not(wanted))
        status = fn.where((p.status == _RUNNING) & stands, p.claim, p.status)
        run.note(p._replace(status=status))
        self._measure_noise(unit, broken)

    def _measure_noise(self, unit: Array, broken: Any) -> None:
        """Decide whether noise of the value explains why no lower point was found.

        The value of a sum of many terms or of a factorisation has larger rounding errors than a
        single number.

        broken : the decrease that was promised in the units of each variable, and not found.
        """
        run = self.run
        space, solver, (state, p, _) = run.space, run.solver_here(), run.standing
        fn, backend = space.scalars, space.backend
        rows = p.status == _RUNNING
        if not run.criteria.forward and space.any(rows):
            rows = self._affords(_NOISY + 1, rows)
        if run.criteria.forward or not space.any(rows):
            self._fail()
            return
        points = agreement.noise_points(space, state.x, state.gradient, unit, _NOISY)
        if solver.projects:
            points = [solver.project(space, x) for x in points]
        noise = agreement.noise_of(fn, [self._visit(x, rows, False)[0] for x in points])
        hidden = agreement.hidden_by_rounding(fn, backend, state.value)
        measured = _SPREAD * noise
        known = measured <= backend.eps**0.5 * fn.abs(state.value)
        level = fn.where(known, fn.maximum(hidden, measured), hidden)
        length = agreement.lengths_of(backend.eps)[0]
        x = agreement.ahead(solver, space, state.x, state.gradient, p.extent, length)
        there, gradient = self._visit(x, rows)
        before, after = space.read(
            space.dot(state.gradient, x - state.x), space.dot(gradient, x - state.x)
        )
        slopes = fn.abs(before) + fn.abs(after)
        off = fn.abs(there - state.value - 0.5 * (before + after))
        usable = fn.isfinite(off)
        agrees = usable & agreement.follows_slopes(off, slopes, level)
        hides = fn.abs(before) <= _ENOUGH * level
        bend = after - before
        down = (bend > 0.0) & (before < 0.0)
        promised = fn.where(agrees & down, fn.divide(before * before, 2.0 * bend), 0.0)
        steps = fn.where(down, fn.divide(-before, bend), math.inf)
        (reach,) = space.read(space.max_abs(x - state.x))
        close = agrees & (steps * reach <= self._visible(p, state))
        level = fn.where(close, fn.maximum(level, self._level(p, state, p.claim)), level)
        decrement = fn.where(p.claim == DOUBTED, state.decrement, 0.0)
        decrement = fn.where(fn.isfinite(decrement), decrement, 0.0)
        most = fn.maximum(fn.maximum(promised, broken), decrement)
        explained = (agrees | hides) & (most <= _ENOUGH * level)
        p = run.standing.progress
        status = fn.where((p.status == _RUNNING) & explained, _PRECISION, p.status)
        run.note(p._replace(status=status))
        self._fail()

    def _fail(self) -> None:
        p = self.run.standing.progress
        fn = self.run.space.scalars
        status = fn.where(p.status == _RUNNING, _LINE_SEARCH, p.status)
        self.run.note(p._replace(status=status))

    # --- looks along the gradient; see `agreement.confirm` -------------------------------------

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
        if run.criteria.relative > 0.0:
            # Lower by what does not matter is not elsewhere.
            part = 4.0 * run.criteria.eps
            least = stopping.negligible(fn, run.criteria, p, best.value, part)
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
        part = 4.0 * run.criteria.eps
        least = stopping.negligible(fn, run.criteria, p, best.value, part)
        enough = looked & (self.departures > 2) & (gain <= least)
        enough = enough & (p.claim != DOUBTED) & (p.claim != _LINE_SEARCH)
        run.note(p._replace(status=fn.where(enough, _PRECISION, p.status)))
        elsewhere = elsewhere & fn.logical_not(enough)
        elsewhere = elsewhere & (best.value < self.departed) & (self.departures < _DEPARTURES)
        if not space.any(elsewhere):
            return False
        self.departures = fn.where(elsewhere, self.departures + 1, self.departures)
        self.departed = fn.where(elsewhere, best.value, self.departed)
        unit = {}
        if run.solver.rescales:
            unit["unit"] = agreement.units(space, best.x, p.extent)
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
        small = (p.status == _GRADIENT) & (error > _BLIND * p.gtol)
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
        again = stopping.where_small(fn, again, norm)
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
        return run.is_running()
