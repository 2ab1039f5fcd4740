"""The checks that a run makes before it reports that it has ended.

A claim that rounding has ended a run is provisional: looks confirm or refute it (`agreement`). A
run that has settled above its best point restarts from there, and a run with forward differences
switches to central ones if only their error may have ended it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.result import CLAIMED, DOUBTED, FLAT, NOISY, Best, Status
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
# How often it does so because of its own promise.
_OWN = 8
# A step by this many times sqrt(eps) |x| is visible.
_FAR = 64.0
# Differences are about as long as this many times eps^(1/3) |x|.
_BEYOND = 8.0
# How many steps down the gradient a promise may take; for a small gradient, one.
_STEPS = 2
# A promise counts if it exceeds what does not matter by this factor.
_ENOUGH = 4.0
# How often the way to a promised decrease is shortened before it counts as broken.
_CLOSER = 4
# The number of values by which noise is measured, and how many times that noise a difference of two
# values may be.
_NOISY, _SPREAD = 8, 8.0
# As many of them show that a function is smooth.
_FIRST = 5
# How far apart they are along a variable: at first by this fraction of sqrt(eps) of its size, or of
# the step of its differences; how much farther from time to time; and how often.
_SPACING, _FARTHER, _DISTANCES = 0.125, 8.0, 9
# Noise counts anew once it has changed by this factor, and the value by its inverse; how often.
_CHANGED, _MEASUREMENTS = 4.0, 8
# A function whose differences were taken over less than this part of the ordinary length is narrow;
# its changes are clear if they are this many times larger than its noise.
_NARROW, _CLEAR = 0.03, 30.0
# How many trials of a search call for a look for noise.
_LONG = 5
# Over a length, a function changes by more than this part of its value.
_CHANGES = 0.1
# A value this many times larger than what it has fallen is mostly a constant.
_BESIDE = 1e4
# A gradient whose square is at most this many times that of its errors is lost among them.
_LOST = 16.0


class SecondLook:
    """The second look at a phase of a run.

    departures : how often each problem has restarted from its best point.
    departed, began : the value at which it last started, and at which it first did.
    """

    def __init__(self, run: Run):
        self.run = run
        value = run.standing.solver_state.value
        self.departures: Any = run.space.scalars.full(0, value)
        self.departed = self.began = value

    @property
    def memory(self) -> dict[str, Any]:
        """What it knows, to be saved."""
        return {name: known for name, known in vars(self).items() if name != "run"}

    @memory.setter
    def memory(self, memory: dict[str, Any]) -> None:
        vars(self).update(memory)

    def resumes(self) -> bool:
        """Whether any problem resumes, now that all have stopped."""
        run = self.run
        run.rejoin_rows()
        if run.objective.differs:
            self._leave_to_central()
            self._judge_differences()
            if run.is_running():
                return True
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
        noisy = p.status == NOISY
        if space.any(noisy):
            self._begin_among_noise(noisy)

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

    def _visible(self, p: Any, size: Any) -> Any:
        """The length of a step that changes x, of this size, visibly."""
        fn, eps = self.run.space.scalars, self.run.space.backend.eps
        return _FAR * eps**0.5 * fn.maximum(size, eps**0.25 * p.extent)

    def _is_within_differences(self, step: Array, unit: Array) -> Any:
        """Whether a step is no longer, along any variable, than differences."""
        space = self.run.space
        share = space.read_one(space.max_abs(step / unit))
        return share <= _BEYOND * space.backend.eps ** (1 / 3)

    # --- budgets -------------------------------------------------------------------------------

    def _unpaid(self, evaluations: int) -> Any:
        """Which problems have no budget for that many evaluations."""
        run = self.run
        calls = evaluations * run.criteria.calls_per_trial
        return run.standing.progress.nfev + calls > run.criteria.maxfun

    def _is_late(self) -> bool:
        return self.run.is_late()

    def _affords(self, evaluations: int, rows: Any) -> Any:
        """Those of the problems `rows` that still run and can pay for that many evaluations; the
        others of them end."""
        run = self.run
        p, fn = run.standing.progress, run.space.scalars
        rows = rows & (p.status == _RUNNING)
        status = fn.where(self._unpaid(evaluations) & rows, _EVALUATIONS, p.status)
        if self._is_late():
            status = fn.where(rows, _TIME, status)
        run.note(p._replace(status=status))
        return rows & (status == _RUNNING)

    def _still_pay(self, evaluations: int, rows: Any) -> Any:
        """`_affords` for looks that are not needed: no problem ends."""
        paid = self.run.space.scalars.logical_not(self._unpaid(evaluations))
        return rows & paid & (not self._is_late())

    # --- looks in the units of each variable ---------------------------------------------------

    def _visit(self, x: Array, rows: Any, counts: Any = True) -> tuple[Any, Array]:
        """Value and gradient at x, for these rows; x may become the best where it `counts`. If it
        is False, the value is left on the device."""
        run, (state, p, known) = self.run, self.run.standing
        space, fn = run.space, run.space.scalars
        value, gradient, aux, count = run.evaluate(x)
        p = p._replace(nfev=fn.where(rows, p.nfev + count, p.nfev))
        better = fn.full(False, p.nfev)
        if counts is not False:
            (value,) = space.read(value)
            seen = state._replace(seen=value, accepted=better)
            known, better = better_point(
                run.solver_here(), space, run.criteria, known, x, seen, gradient, rows & counts,
                p.noise,
            )
        run.move_to(Standing(state, p, known), aux, better)
        return value, gradient

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
            step = agreement.short_step(space, descent)
            x = agreement.at_steps(solver, space, state.x, step)
            # A lower value next to a small gradient does not matter unless it is promised.
            _, gradient = self._visit(x, going, p.claim != _GRADIENT)
            change = gradient - state.gradient
            change = solver.reduced(space, state.x, state.gradient, change)
            descent = agreement.followed(space, descent, unit, x - state.x, change, going)
        p = run.standing.progress
        # Where a step would still change x visibly, how far the value has fallen shows nothing: a
        # start may be higher than all that matters by any factor.
        reach, size = space.read(space.max_abs(descent.way), space.max_abs(state.x))
        far = reach > self._visible(p, size)
        if run.objective.differs:
            far = far & fn.logical_not(self._is_within_differences(descent.way, unit))
        hidden = agreement.hidden_by_rounding(fn, space.backend, state.value)
        level = fn.where(far, _ENOUGH * fn.maximum(hidden, p.noise), level)
        wanted = (p.status == _RUNNING) & (p.claim != _LINE_SEARCH) & (descent.decrease > level)
        # A small gradient that is not that of a minimum: the start was much steeper than what came
        # after it. The run continues, with a tolerance relative to where it is now.
        early = wanted & (p.claim == _GRADIENT) & (far | (p.flat < _LATER))
        # Or one of which the run itself knows better: the steepest variables may hide the others
        # in these units, too.
        own = solver.promise(space, state) > level
        own = own & (p.status == _RUNNING) & (p.claim == _GRADIENT) & (p.flat < _OWN)
        # The errors of differences promise much.
        own = own & (not run.objective.differs)
        early = early | own
        norm = state.gradient_norm
        gtol = eps**0.25 * norm
        if run.objective.differs:
            # What is left may be the error of differences. That of forward ones shows nothing.
            errors = self._rounding_of_differences(state)
            share = space.read_one(space.max_abs(state.gradient / errors))
            lost = early & (share <= 1.0)
            early, wanted = early & fn.logical_not(lost), wanted & fn.logical_not(lost)
            if run.objective.forward:
                run.note(p._replace(status=fn.where(lost, _LINE_SEARCH, p.status)))
                p = run.standing.progress
            gtol = fn.maximum(gtol, space.read_one(space.xp.min(errors, axis=-1)))
        run.note(p._replace(
            status=fn.where(early, FLAT, p.status),
            flat=fn.where(early, p.flat + 1, p.flat),
            first_value=fn.where(early, state.value, p.first_value),
            first_norm=fn.where(early, norm, p.first_norm),
            highest_norm=fn.where(early, norm, p.highest_norm),
            gtol=fn.where(early, gtol, p.gtol),
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
        """Decide whether noise explains why no lower point was found.

        The value of a sum of many terms or of a factorisation has larger rounding errors than a
        single number, and so may the gradient. If the values turn out to be noisy, the run
        continues by slopes where values do not show which point is lower.

        broken : the decrease that was promised in the units of each variable, and not found.
        """
        run = self.run
        space, solver = run.space, run.solver_here()
        fn, backend = space.scalars, space.backend
        rows = run.standing.progress.status == _RUNNING
        if run.criteria.forward or not space.any(rows):
            self._fail(rows)
            return
        eps = backend.eps
        noise, errors, rounding, rows = self._noise_at(_SPACING * eps**0.5 * unit, rows)
        state, p, _ = run.standing
        hidden = fn.maximum(agreement.hidden_by_rounding(fn, backend, state.value), p.noise)
        measured = _SPREAD * noise
        again = rows & (measured > fn.maximum(hidden, rounding)) & (p.measured < _MEASUREMENTS)
        again = again & solver.takes_noise
        if run.objective.differs:
            again = again & (measured > self._spoils_nothing())
        level = fn.where(rows, fn.maximum(hidden, measured), hidden)
        length = agreement.lengths_of(eps)[0]
        rows = self._affords(1, rows & fn.logical_not(again))
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
        reach, size = space.read(space.max_abs(x - state.x), space.max_abs(state.x))
        close = agrees & (steps * reach <= self._visible(p, size))
        level = fn.where(close, fn.maximum(level, self._level(p, state, p.claim)), level)
        decrement = fn.where(p.claim == DOUBTED, state.decrement, 0.0)
        decrement = fn.where(fn.isfinite(decrement), decrement, 0.0)
        most = fn.maximum(fn.maximum(promised, broken), decrement)
        explained = (agrees | hides) & (most <= _ENOUGH * level)
        # A gradient that is not much larger than its own errors shows no way down.
        size, error = space.read(
            space.dot(state.gradient * unit, state.gradient * unit),
            space.dot(errors * unit, errors * unit),
        )
        explained = explained | (rows & (size <= _LOST * error))
        p = run.standing.progress
        status = fn.where(rows & explained, _PRECISION, p.status)
        run.note(p._replace(status=status))
        self._fail(rows & fn.logical_not(explained))
        p = run.standing.progress
        run.note(p._replace(
            status=fn.where(again, NOISY, p.status), noise=fn.where(again, measured, p.noise)
        ))

    # --- noise ---------------------------------------------------------------------------------

    def _spoils_nothing(self) -> Any:
        """Noise that spoils no difference: it is small beside how far the value has fallen."""
        run, (state, p, _) = self.run, self.run.standing
        space, here = run.space, run.rows.here
        fn = space.scalars
        began = self.began if here is None else space.take(self.began, here)
        all_the_way = 4.0 * space.backend.eps * fn.abs(began - state.value)
        level = self._level(p, state, fn.full(_GRADIENT, state.value))
        return fn.maximum(level, all_the_way)

    def _noise_at(
        self, spacing: Array, rows: Any, narrow: Any = False
    ) -> tuple[Any, Array, Any, Any]:
        """The standard deviation of the noise of the values next to the iterate, that of each
        component of the gradient (0 by differences, whose errors follow from the values), what
        rounding may hide there, and the problems `rows` that could pay for it.

        Points farther and farther apart show it. The nearest ones may lie on one step of a
        function that only changes in steps, or in one dent: the slope then promises other changes.

        spacing : how far apart points are along each variable.
        narrow : where the function bends over far less than this. It may be that noise bends it:
            then it looks the same from point to point however far apart they are, beside changes
            that are much larger in the end.
        """
        run = self.run
        space, solver, state = run.space, run.solver_here(), run.standing.solver_state
        fn, differs = space.scalars, run.objective.differs
        noise, errors = fn.full(0.0, state.value), space.xp.zeros_like(state.x)
        largest, first = fn.abs(state.value), fn.full(math.inf, state.value)
        # Among noise the errors of differences depend on its last measurement.
        known, least = run.standing.progress.noise > 0.0, first
        left, never = rows, fn.full(False, state.value)
        for attempt in range(_DISTANCES):
            # Without more than the nearest points, what they show decides.
            left = self._affords(_NOISY, left) if attempt == 0 else self._still_pay(_NOISY, left)
            if not space.any(left):
                break
            points = agreement.noise_points(space, state.x, state.gradient, spacing, _NOISY)
            if solver.projects:
                points = [solver.project(space, x) for x in points]
            if differs and attempt == 0:
                values = [self._value_at(x, left) for x in points[:_FIRST]]
                smooth = left & fn.logical_not(known | narrow) & self._is_smooth(points, values)
                left = left & fn.logical_not(smooth)
                if not space.any(left):
                    break
                values = values + [self._value_at(x, left) for x in points[_FIRST:]]
            elif differs:
                values = [self._value_at(x, left) for x in points]
            else:
                values, gradients = [], []
                for x in points:
                    value, gradient = self._visit(x, left, False)
                    values += space.read(value)
                    gradients.append(gradient)
                if attempt == 0:
                    errors = agreement.noise_of(Scalars(space.xp), gradients)
            found = agreement.noise_of(fn, values)
            left = left & fn.isfinite(found)
            noise = fn.where(left, found, noise)
            for value in values:
                largest = fn.where(left, fn.maximum(largest, fn.abs(value)), largest)
            (slope,) = space.read(space.dot(state.gradient, points[1] - points[0]))
            beyond = agreement.beyond_slope(fn, values, slope)
            rounding = agreement.hidden_by_rounding(fn, space.backend, largest)
            unclear = float(_NOISY) * beyond > _ENOUGH * noise + rounding
            if differs:
                # On one step differences are 0, too.
                equal = agreement.are_equal(fn, space.backend, values)
                unclear = (unclear & fn.logical_not(known)) | equal
            # However far apart the points are, noise is the same, unlike what a bend adds.
            visible = left & (noise > rounding)
            same = visible & (noise <= _CHANGED * least) & (_CHANGED * noise >= least)
            least = fn.where(visible & (noise < least), noise, least)
            if not differs and attempt > 0:
                # A bend explains any change over a distance that is long enough.
                unclear = fn.full(True, noise)
            unclear = left & unclear & fn.logical_not(same)
            if narrow is not False:
                first = fn.where(first < math.inf, first, noise)
                alike = noise <= _CHANGED * first
                clear = agreement.extent_of(fn, values) > _CLEAR * noise
                unclear = fn.where(narrow, left & alike & fn.logical_not(clear), unclear)
                never = fn.where(left & narrow, fn.logical_not(clear & alike), never)
            else:
                never = fn.where(left, unclear, never)
            left = unclear
            spacing = _FARTHER * spacing
        if differs and narrow is False:
            noise = fn.where(never, fn.where(least < math.inf, least, 0.0), noise)
        else:
            noise = fn.where(never, 0.0, noise)
        rounding = agreement.hidden_by_rounding(fn, space.backend, largest)
        return noise, errors, rounding, rows & (run.standing.progress.status == _RUNNING)

    def _is_smooth(self, points: list[Array], values: list[Any]) -> Any:
        """Whether values at the first of these points show no noise that matters at all."""
        run, state = self.run, self.run.standing.solver_state
        space, fn = run.space, run.space.scalars
        largest = fn.abs(state.value)
        for value in values:
            largest = fn.maximum(largest, fn.abs(value))
        rounding = agreement.hidden_by_rounding(fn, space.backend, largest)
        most = agreement.most_noise(fn, values)
        (slope,) = space.read(space.dot(state.gradient, points[1] - points[0]))
        beyond = float(_NOISY) * agreement.beyond_slope(fn, values, slope)
        smooth = _SPREAD * most <= fn.maximum(rounding, self._spoils_nothing())
        smooth = smooth & (beyond <= _ENOUGH * most + rounding)
        return smooth & fn.logical_not(agreement.are_equal(fn, space.backend, values))

    def _value_at(self, x: Array, rows: Any) -> Any:
        run = self.run
        value, count = run.value_at(x)
        (there,) = run.space.read(value)
        p, fn = run.standing.progress, run.space.scalars
        run.note(p._replace(nfev=fn.where(rows, p.nfev + count, p.nfev)))
        return there

    def _judge_differences(self) -> None:
        """Look for noise where a run by differences has ended, because they turn it into large
        errors of the gradient: a small one may be chance, a large one may show no way down."""
        run, (state, p, _) = self.run, self.run.standing
        space, fn = run.space, run.space.scalars
        ended = self._ended()
        stale = (_CHANGED * fn.abs(state.value) < p.looked) | (p.looked != p.looked)
        rows = ended & stale & (p.measured < _MEASUREMENTS) & fn.isfinite(state.value)
        if run.objective.forward:
            rows = rows & fn.logical_not(self._is_left_to_central())
        if run.solver.takes_noise and space.any(rows):
            self._look_for_noise(rows, everywhere=True)
        if not run.objective.forward:
            self._judge_among_noise()

    def look_at_differences(self) -> None:
        """Look for noise where the first differences were taken over short steps: it may have made
        the function look as if it bent that fast."""
        run, p = self.run, self.run.standing.progress
        # Forward differences end early among noise, and give way to central ones.
        if run.objective.forward or not run.solver.takes_noise:
            return
        narrow = self._narrow() & (p.status == _RUNNING)
        if run.space.any(narrow):
            self._look_for_noise(narrow, everywhere=False)

    def look_at_search(self) -> None:
        """Look for noise where a search takes many trials, which then are no better than chance."""
        run = self.run
        if run.objective.forward or not run.solver.takes_noise:
            return
        if run.space.any(self._is_long()):
            run.rejoin_rows()
            self._look_for_noise(self._is_long(), everywhere=True)

    def _is_long(self) -> Any:
        """Which searches have taken many trials, in problems that were not looked at before."""
        p = self.run.standing.progress
        return (p.status == _RUNNING) & (p.trials >= _LONG) & (p.looked != p.looked)

    def _narrow(self) -> Any:
        """Where the function seems to bend over lengths much shorter than its variables."""
        length, space = self.run.objective.differences.known[0], self.run.space
        shortest = space.xp.min(length, axis=-1)
        return space.read_one(shortest) < _NARROW

    def _changes_over_lengths(self, rows: Any) -> Any:
        """Whether the function does change over the short lengths as much as the differences there
        suggest. Noise only looks as if it would."""
        run, state = self.run, self.run.standing.solver_state
        space, fn, differences = run.space, run.space.scalars, run.objective.differences
        length = differences.lengths(state.x)
        short = space.xp.where(differences.known[0] < _NARROW, length, 0.0 * length)
        change = fn.full(0.0, state.value)
        for x in agreement.noise_points(space, state.x, state.gradient, 0.5 * short, 2):
            there = self._value_at(run.solver_here().project(space, x), rows)
            change = fn.maximum(change, fn.abs(there - state.value))
        return change > _CHANGES * fn.abs(state.value)

    def _look_for_noise(self, rows: Any, everywhere: bool) -> None:
        """Measure the noise of the values for these problems, and let those go on for which it
        counts.

        everywhere : whether to look over short lengths, too.
        """
        run, (state, before, _) = self.run, self.run.standing
        space, fn, differences = run.space, run.space.scalars, run.objective.differences
        run.note(before._replace(status=fn.where(rows, _RUNNING, before.status)))
        value = run.to_user(state.value)
        narrow = self._narrow() & (before.noise == 0.0)
        if space.any(rows & narrow):
            narrow = narrow & fn.logical_not(self._changes_over_lengths(rows & narrow))
        steps = differences.steps(state.x, value, True)
        spacing = differences.ordinary_steps(state.x, value)
        wide = (steps >= spacing) | (space.per_problem(narrow) & (spacing > 0.0))
        spacing = _SPACING * space.xp.where(wide, spacing, steps)
        noise, _, rounding, paid = self._noise_at(
            spacing, rows, narrow if space.any(narrow) else False
        )
        short = paid & narrow & (noise <= rounding)
        if everywhere and space.any(short):
            spacing = _SPACING * steps
            found, _, bound, paid = self._noise_at(spacing, short)
            noise, rounding = fn.where(short, found, noise), fn.where(short, bound, rounding)
        p, level = run.standing.progress, _SPREAD * noise
        rows = rows & (p.status == _RUNNING)
        p = p._replace(status=fn.where(rows, before.status, p.status))
        if everywhere:
            p = p._replace(looked=fn.where(rows, fn.abs(state.value), p.looked))
        run.note(p)
        changed = (_CHANGED * level < p.noise) | (level > _CHANGED * p.noise)
        above = level > fn.maximum(rounding, self._spoils_nothing())
        # Beside a large constant, rounding does.
        fallen, size = fn.abs(p.first_value - state.value), fn.abs(state.value)
        beside = everywhere & (size > 0.0) & (_BESIDE * fallen < size)
        level = fn.where(beside, fn.maximum(level, _SPREAD * space.backend.eps * size), level)
        again = rows & fn.where(p.noise > 0.0, changed, above | beside)
        if not space.any(again):
            return
        run.note(p._replace(noise=fn.where(again, level, p.noise)))
        if run.objective.forward:
            # Central ones take over.
            p = run.standing.progress
            run.note(p._replace(status=fn.where(again, _LINE_SEARCH, p.status)))
        else:
            self._begin_among_noise(again)

    def _ended(self) -> Any:
        """Which problems have ended at a small gradient, at a floor, or in a failed search."""
        status = self.run.standing.progress.status
        return (status < _RUNNING) | (status == _GRADIENT) | (status == _LINE_SEARCH)

    def _judge_among_noise(self) -> None:
        """Decide whether differences among noise promise a lower point."""
        run, (state, p, _) = self.run, self.run.standing
        space, solver, fn = run.space, run.solver_here(), run.space.scalars
        rows = self._ended() & (p.noise > 0.0)
        if not space.any(rows):
            return
        noise, step, second = run.objective.differences.bends
        xp = space.xp
        bend = xp.where(second > noise, second, noise)
        way = xp.where(bend > 0.0, -state.gradient * step * (step / bend), 0.0 * step)
        way = agreement.at_steps(solver, space, state.x, way) - state.x
        (slope,) = space.read(space.dot(state.gradient, way))
        small = -0.5 * slope <= _ENOUGH * p.noise
        verdict = fn.where(small, fn.full(_PRECISION, p.status), _LINE_SEARCH)
        status = fn.where(rows, verdict, p.status)
        if run.criteria.relative == 0.0:
            # The gradient is as small as was wanted if its errors are.
            error = space.read_one(space.max_abs(xp.where(step > 0.0, noise / step, 0.0 * step)))
            flat = rows & (p.status == _GRADIENT) & (error <= run.criteria.gtol)
            status = fn.where(flat, _GRADIENT, status)
        run.note(p._replace(status=status))

    def _begin_among_noise(self, rows: Any) -> None:
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
            again = stopping.where_small(fn, again, norm)
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
            best.x, run.to_user(best.value), run.to_user(p.noise * (1.0 / _SPREAD)),
            lambda calls: bool(space.any(rows & (p.nfev + 3 * calls <= most))),
        )
        value, gradient, _, count = run.evaluate(best.x)
        (value,) = space.read(value)
        unit = {"unit": objective.differences.bends[1]} if run.solver.rescales else {}
        if not space.batched:
            calls = int(calls)
        elif space.small_on_host:
            calls = space.backend.to_host(calls)
        return (value, gradient, unit), calls + count

    def _fail(self, rows: Any) -> None:
        p = self.run.standing.progress
        fn = self.run.space.scalars
        status = fn.where(rows & (p.status == _RUNNING), _LINE_SEARCH, p.status)
        self.run.note(p._replace(status=status))

    # --- looks along the gradient; see `agreement.confirm` -------------------------------------

    def pending(self) -> bool:
        run = self.run
        p = run.standing.progress
        unpaid = self._unpaid(1) & (p.status == _RUNNING)
        status = run.space.scalars.where(unpaid, _EVALUATIONS, p.status)
        run.note(p._replace(status=status))
        if self._is_late():
            run.end(Status.TIME)
        return run.is_running()

    def look(self, length: float, first: bool) -> None:
        run = self.run
        space, solver, (state, p, best) = run.space, run.solver_here(), run.standing
        fn = space.scalars
        x = agreement.ahead(solver, space, state.x, state.gradient, p.extent, length)
        value, gradient, aux, count = run.evaluate(x)
        look = agreement.look(space, state, x, value, gradient, p.noise)
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
            solver, space, run.criteria, best, x, seen, gradient, running, p.noise
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
        limit = best.value + fn.maximum(4.0 * run.criteria.noise * fn.abs(best.value), p.noise)
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

    def _rounding_of_differences(self, state: Any) -> Array:
        """The error of each component of the gradient by differences, from rounding alone."""
        run, (xp, eps) = self.run, (self.run.space.xp, self.run.space.backend.eps)
        value = run.to_user(state.value)
        step = run.objective.differences.steps(state.x, value, not run.objective.forward)
        size = run.space.spread(abs(state.value))
        least = 1.0 / run.space.backend.largest
        return xp.maximum(eps * size / step, xp.full_like(step, least))

    def _is_left_to_central(self) -> Any:
        """Which ends by forward differences central ones will judge, as far as is known now."""
        p = self.run.standing.progress
        ended = (p.status == _GRADIENT) | (p.status == _PRECISION)
        ended = ended | (p.status == FLAT) | (p.status == CLAIMED)
        left = (ended & self._is_blind()) | (p.status == _LINE_SEARCH)
        unpaid, late = self._cannot_switch()
        return left & self.run.space.scalars.logical_not(unpaid | late)

    def _leave_to_central(self) -> None:
        """Leave claims to central differences at once where looks by forward ones decide nothing.
        """
        run = self.run
        if not run.objective.forward:
            return
        p, fn = run.standing.progress, run.space.scalars
        left = self._is_left_to_central()
        status = fn.where(left & (p.status == CLAIMED), _LINE_SEARCH, p.status)
        run.note(p._replace(status=fn.where(left & (p.status == FLAT), _GRADIENT, status)))

    def _is_blind(self) -> Any:
        """Where the error of forward differences hides a gradient as small as the tolerance. It is
        at least that of rounding: eps |f| at either end of a step of sqrt(eps)."""
        space, (_, p, best) = self.run.space, self.run.standing
        error = 2.0 * space.backend.eps**0.5 * space.scalars.abs(best.value)
        return error > _BLIND * p.gtol

    def _cannot_switch(self) -> tuple[Any, Any]:
        """Which problems have no evaluations left for central differences, and which no time."""
        run, p = self.run, self.run.standing.progress
        calls = run.objective.calls_per_trial(forward=False)
        late = run.space.scalars.full(self._is_late(), p.nfev)
        return p.nfev + calls > run.criteria.maxfun, late

    def _switch_to_central(self) -> bool:
        """Switch to central differences if only the error of forward ones may have ended a run: if
        a search has failed, or the gradient is small compared with that error. If a budget does not
        allow the switch, such a gradient is not a success."""
        run = self.run
        if not run.objective.forward:
            return False
        run.rejoin_rows()
        space, p, blind = run.space, run.standing.progress, self._is_blind()
        fn = space.scalars
        unpaid, late = self._cannot_switch()
        small = (p.status == _GRADIENT) & blind
        doubted = small | ((p.status == _PRECISION) & blind) | (p.status == _LINE_SEARCH)
        doubted = doubted & fn.logical_not(unpaid | late)
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
            self._begin_centrally(doubted)
        if space.any(noisy):
            self._begin_among_noise(noisy)
        return run.is_running()

    def _begin_centrally(self, doubted: Any) -> None:
        """Continue these problems from their best points by central differences."""
        run, (state, p, best) = self.run, self.run.standing
        space, fn = run.space, run.space.scalars
        _, gradient, _, count = run.evaluate(best.x)
        fresh = run.afresh(best.x, best.value, gradient)
        norm = fresh.gradient_norm
        # Forward differences may have been 0.
        known = p._replace(first_norm=fn.where(p.first_norm > 0.0, p.first_norm, norm))
        again = stopping.again(fn, run.criteria, known, fresh.value, norm, count)
        again = again._replace(looked=fn.full(math.nan, norm))
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
