"""Looks for noise: whether it explains that a run finds no lower point, and how the run continues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.result import DOUBTED, FLAT, NOISY, Status
from lbfgs_xp.run import agreement, units
from lbfgs_xp.run.measuring import CHANGED, SPREAD, Measuring
from lbfgs_xp.run.restarts import Restarts
from lbfgs_xp.run.visits import Visits

_RUNNING, _GRADIENT = int(Status.RUNNING), int(Status.GRADIENT)
_PRECISION, _LINE_SEARCH = int(Status.PRECISION), int(Status.LINE_SEARCH)
_HIGHER = int(Status.HIGHER)
# What is promised counts if it exceeds what does not matter by this factor.
_ENOUGH = 4.0
# How far apart the first values are along a variable: this fraction of sqrt(eps) of its size, or of
# the step of its differences.
_SPACING = 0.125
# How often a run continues because of noise.
_MEASUREMENTS = 8
# How far to look for a lower value, relative to the sizes of the variables.
_SHARES = (0.5, 0.5, 2.0**-3, 2.0**-5, 2.0**-8)
# How many trials of a search call for a look for noise.
_LONG = 5
# Over a sixteenth of its length, a function changes by more than this part of what its slope says,
# and of its value.
_CHANGES, _LEAST = 0.1, 2e-3
# How many steps of the differences a look reaches.
_FEW = 4.0
# Noise is much if it is more than this part of what the value has fallen.
_MUCH = 0.01
# A value this many times larger than what it has fallen is mostly a constant.
_BESIDE = 1e4
# A gradient whose square is at most this many times that of its errors is lost among them.
_LOST = 16.0


class NoiseLooks:
    """The looks for noise of a phase of a run."""

    def __init__(self, visits: Visits, restarts: Restarts):
        self.run, self.visits, self.restarts = visits.run, visits, restarts
        self.measuring = Measuring(visits)

    def explain(self, unit: Array, broken: Any, fall: Any) -> None:
        """Decide whether noise explains that no lower point was found.

        The value of a sum of many terms or of a factorisation has larger rounding errors than a
        single number, and so may the gradient. If the values turn out to be noisy, the run
        continues by slopes where values do not show which point is lower: its status is NOISY.

        broken : the decrease that was promised in the units of each variable, and not found.
        fall : how steeply the value falls in these units where the gradient does not show it.
        """
        run, space, fn = self.run, self.run.space, self.run.space.scalars
        rows = run.standing.progress.status == _RUNNING
        if run.criteria.forward or not space.any(rows):
            self.visits.fail(rows)
            return
        eps = space.backend.eps
        noise, errors, rounding, rows = self.measuring.at(_SPACING * eps**0.5 * unit, rows)
        p, (_, state) = run.standing.progress, self.visits.smooth()
        hidden = fn.maximum(
            agreement.hidden_by_rounding(fn, space.backend, state.value), p.noise
        )
        measured = SPREAD * noise
        again = rows & (measured > fn.maximum(hidden, rounding)) & (p.measured < _MEASUREMENTS)
        again = again & run.solver_here().takes_noise
        if run.objective.differs:
            again = again & (measured > self.measuring.spoils_nothing())
        level = fn.where(rows, fn.maximum(hidden, measured), hidden)
        if run.objective.differs:
            # Differences need not agree with values that they cannot resolve.
            level = fn.maximum(level, self.measuring.spoils_nothing())
            rows = rows & fn.logical_not(again)
            explained = rows & (broken <= _ENOUGH * level)
            # A search may have failed for what its pairs promised, without the curvature here.
            refuted = (p.claim == _LINE_SEARCH) | (self._failed() > _ENOUGH * level)
            refuted = explained & refuted
            explained = explained & fn.logical_not(self._disagree_over_steps(refuted, level))
        else:
            rows = self.visits.affords(1, rows & fn.logical_not(again))
            explained = self._is_explained(rows, level, broken) & (fall == 0.0)
        # A gradient that is not much larger than its own errors shows no way down.
        size, error = self._squares(run.standing.solver_state, errors, unit)
        lost = fn.where(fall > 0.0, fall * fall, size) <= _LOST * error
        if run.plan.noise.of_gradient:
            # If errors were given, those of the best gradient are no chance.
            size, error = self._squares(run.standing.best, errors, unit)
            lost = lost | ((fall == 0.0) & (size <= _LOST * error))
        explained = explained | (rows & lost)
        p = run.standing.progress
        status = fn.where(rows & explained, _PRECISION, p.status)
        run.note(p._replace(status=status))
        self.visits.fail(rows & fn.logical_not(explained))
        p = run.standing.progress
        run.note(p._replace(
            status=fn.where(again, NOISY, p.status), noise=fn.where(again, measured, p.noise)
        ))

    def _squares(self, point: Any, errors: Array, unit: Array) -> Sequence[Any]:
        """The squared norms of the gradient at a point and of its errors, in these units, in the
        variables that nothing holds.

        point : with x and the gradient of fun there.
        """
        space, (solver, point) = self.run.space, self.visits.smooth(point)
        x, whole = point.x, point.gradient
        vectors = (solver.reduced(space, x, whole, each) * unit for each in (whole, errors))
        return space.read(*(space.dot(vector, vector) for vector in vectors))

    def _disagree_over_steps(self, rows: Any, level: Any) -> Any:
        """Where value and slopes disagree over a few steps of the differences, as next to a kink.
        Over shorter ways differences need not agree."""
        run, (solver, state) = self.run, self.visits.smooth()
        space, fn = run.space, run.space.scalars
        rows = self.visits.can_afford(1, rows)
        if not space.any(rows):
            return rows
        steps = run.objective.differences.steps(state.x, run.to_user(state.value), True)
        step = units.stride(space, self.visits.descent(steps), _FEW)
        x = units.at_steps(solver, space, state.x, step)
        there, gradient = self.visits.visit(x, rows)
        look = agreement.look_again(space, state, x, there, gradient, level)
        return rows & fn.logical_not(look.agrees)

    def _is_explained(self, rows: Any, level: Any, broken: Any) -> Any:
        """Whether one more look along the gradient, the search that failed and the looks before
        it promise no change above this level."""
        run, p, (solver, state) = self.run, self.run.standing.progress, self.visits.smooth()
        space, fn = run.space, run.space.scalars
        length = agreement.lengths_of(space.backend.eps)[0]
        x = agreement.ahead(solver, space, state.x, state.gradient, p.extent, length)
        there, gradient = self.visits.visit(x, rows)
        before, after = space.read(
            space.dot(state.gradient, x - state.x), space.dot(gradient, x - state.x)
        )
        slopes = fn.abs(before) + fn.abs(after)
        off = fn.abs(there - state.value - 0.5 * (before + after))
        agrees = fn.isfinite(off) & agreement.follows_slopes(off, slopes, level)
        hides = fn.abs(before) <= _ENOUGH * level
        bend = after - before
        down = (bend > 0.0) & (before < 0.0)
        promised = fn.where(agrees & down, fn.divide(before * before, 2.0 * bend), 0.0)
        steps = fn.where(down, fn.divide(-before, bend), math.inf)
        reach, size = space.read(space.max_abs(x - state.x), space.max_abs(state.x))
        close = agrees & (steps * reach <= self.visits.visible(p, size))
        level = fn.where(close, fn.maximum(level, self.visits.level(p, state, p.claim)), level)
        most = fn.maximum(fn.maximum(promised, broken), self._failed())
        return (agrees | hides) & (most <= _ENOUGH * level)

    def _failed(self) -> Any:
        """The decrease that a search promised and did not find; 0 if no search has failed."""
        (state, p, _), fn = self.run.standing, self.run.space.scalars
        promised = fn.where(p.claim == DOUBTED, state.decrement, 0.0)
        return fn.where(fn.isfinite(promised), promised, 0.0)

    def look_at_differences(self) -> None:
        """Look for noise if the first differences were taken over short steps: noise may have made
        the function look as if it bent that fast."""
        run, p = self.run, self.run.standing.progress
        # Forward differences end early among noise, and give way to central ones.
        if run.objective.forward or not run.solver.takes_noise:
            return
        rows = p.status == _RUNNING
        rows = rows & self._narrow() if run.space.any(rows) else rows
        if run.space.any(rows):
            self._look_for_noise(rows, everywhere=False)

    def look_at_search(self) -> None:
        """Look for noise in problems whose search takes many trials, which may be no better than
        chance."""
        run = self.run
        if run.objective.forward or not run.solver.takes_noise:
            return
        if run.space.any(self._is_long()):
            run.rejoin_rows()
            self._look_for_noise(self._is_long(), everywhere=True)

    def judge_differences(self, left: Any) -> None:
        """Look for noise in problems that have ended by differences, which turn it into large
        errors of the gradient: a small gradient may be chance, a large one may show no way down.

        left : the problems that are left to central differences.
        """
        run, (state, p, _) = self.run, self.run.standing
        space, fn = run.space, run.space.scalars
        ended = self._ended()
        size, fallen = fn.abs(state.value), fn.abs(p.first_value - state.value)
        stale = (CHANGED * size < p.looked) | (p.looked != p.looked)
        # A kink higher up may have looked like noise.
        stale = stale | ((p.noise > _MUCH * fallen) & (size + p.noise < p.looked))
        rows = ended & stale & (p.measured < _MEASUREMENTS) & fn.isfinite(state.value)
        rows = rows & fn.logical_not(left)
        if run.solver.takes_noise and space.any(rows):
            self._look_for_noise(rows, everywhere=True)
        if not run.objective.forward:
            self._judge_among_noise()

    def _judge_among_noise(self) -> None:
        """Decide whether differences among noise promise a lower point."""
        run, p, (solver, state) = self.run, self.run.standing.progress, self.visits.smooth()
        space, fn = run.space, run.space.scalars
        rows = self._ended() & (p.noise > 0.0)
        if not space.any(rows):
            return
        _, noise, bends, _ = run.objective.differences.known
        xp, noise, (_, step, second, _) = space.xp, space.per_problem(noise), bends
        bend = xp.where(second > noise, second, noise)
        way = xp.where(bend > 0.0, -state.gradient * step * (step / bend), 0.0 * step)
        way = units.at_steps(solver, space, state.x, way) - state.x
        (slope,) = space.read(space.dot(state.gradient, way))
        small = -0.5 * slope <= _ENOUGH * p.noise
        # A gradient that is only small beside the first ones is looked at like any other.
        failed = fn.where(p.status == FLAT, FLAT, fn.full(_LINE_SEARCH, p.status))
        verdict = fn.where(small, _PRECISION, failed)
        status = fn.where(rows, verdict, p.status)
        if run.criteria.relative == 0.0:
            # The gradient is as small as `gtol` asks if its errors are.
            error = space.read_one(space.max_abs(xp.where(step > 0.0, noise / step, 0.0 * step)))
            flat = rows & (p.status == _GRADIENT) & (error <= run.criteria.gtol)
            status = fn.where(flat, _GRADIENT, status)
        run.note(p._replace(status=status))

    def look_far(self, ended: Any) -> None:
        """Look for a lower value far away, to both sides, where runs have ended well although the
        function seems to bend over lengths much shorter than its variables: waves that are small
        but short have minima everywhere. So has a function that changes in steps, on each of which
        all differences are 0. `lowest` goes back to what is found."""
        run = self.run
        if not run.objective.differs:
            return
        p, (solver, state) = run.standing.progress, self.visits.smooth()
        space, fn = run.space, run.space.scalars
        if not space.any(ended):
            return
        rows = ended & ((p.noise > 0.0) | (state.gradient_norm == 0.0) | self._narrow())
        unit = units.of_variables(space, state.x, p.extent)
        # A size of 0 shows nothing.
        unit = space.xp.where(state.x == 0.0, units.of_run(run, state.x), unit)
        way = space.xp.where(state.gradient > 0.0, -unit, unit)
        level = _ENOUGH * fn.maximum(
            agreement.hidden_by_rounding(fn, space.backend, state.value), p.noise
        )
        for k, share in enumerate(_SHARES):
            if k > 0:
                # The gradient may be wrong in each variable.
                way = unit * units.signs(space.backend, state.x, k)
            for side in (share, -share):
                rows = self.visits.can_afford(1, rows)
                if not space.any(rows):
                    return
                x = units.at_steps(solver, space, state.x, side * way)
                rows = rows & (self.visits.value_at(x, rows) >= state.value - level)

    def _ended(self) -> Any:
        """Which problems have ended at a small gradient, at a floor, or in a failed search."""
        status = self.run.standing.progress.status
        return (status < _RUNNING) | (status == _GRADIENT) | (status == _LINE_SEARCH)

    def _is_long(self) -> Any:
        """Which searches have taken many trials, in problems that were not looked at before."""
        p = self.run.standing.progress
        return (p.status == _RUNNING) & (p.trials >= _LONG) & (p.looked != p.looked)

    def _narrow(self) -> Any:
        """Where the function seems to bend over lengths much shorter than its variables."""
        space = self.run.space
        narrow = space.xp.any(self.run.objective.differences.narrow(), axis=-1)
        return space.read_one(space.xp.astype(narrow, space.backend.dtype)) > 0.0

    def _changes_over_lengths(self, rows: Any) -> Any:
        """Whether the function changes over a part of the short lengths as much as they suggest.
        Noise only looks as if it would."""
        run, (solver, state) = self.run, self.visits.smooth()
        space, fn, differences = run.space, run.space.scalars, run.objective.differences
        length = differences.lengths(state.x)
        short = space.xp.where(differences.narrow(), length, 0.0 * length)
        follows = fn.full(False, state.value)
        for x in self.measuring.points(short / 16.0, 2):
            x = solver.project(space, x)
            there = self.visits.value_at(x, rows)
            (slope,) = space.read(space.dot(state.gradient, x - state.x))
            change, least = fn.abs(there - state.value), _LEAST * fn.abs(state.value)
            follows = follows | (change > fn.maximum(least, _CHANGES * fn.abs(slope)))
        return follows

    def _look_for_noise(self, rows: Any, everywhere: bool) -> None:
        """Measure the noise of the values for these problems, and continue those for which it
        matters.

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
        noise, _, rounding, paid = self.measuring.at(
            spacing, rows, narrow if space.any(narrow) else False
        )
        short = paid & narrow & (noise <= rounding)
        if everywhere and space.any(short):
            spacing = _SPACING * steps
            found, _, bound, paid = self.measuring.at(spacing, short)
            noise, rounding = fn.where(short, found, noise), fn.where(short, bound, rounding)
        p, level = run.standing.progress, SPREAD * noise
        rows = rows & (p.status == _RUNNING)
        p = p._replace(status=fn.where(rows, before.status, p.status))
        if everywhere:
            p = p._replace(looked=fn.where(rows, fn.abs(state.value), p.looked))
        run.note(p)
        changed = (CHANGED * level < p.noise) | (level > CHANGED * p.noise)
        above = level > fn.maximum(rounding, self.measuring.spoils_nothing())
        # Beside a large constant, rounding does.
        fallen, size = fn.abs(p.first_value - state.value), fn.abs(state.value)
        beside = everywhere & (size > 0.0) & (_BESIDE * fallen < size)
        level = fn.where(beside, fn.maximum(level, SPREAD * space.backend.eps * size), level)
        again = rows & fn.where(p.noise > 0.0, changed, above | beside)
        if not space.any(again):
            return
        run.note(p._replace(noise=fn.where(again, level, p.noise)))
        if run.objective.forward:
            # Central ones take over.
            p = run.standing.progress
            run.note(p._replace(status=fn.where(again, _LINE_SEARCH, p.status)))
        else:
            self.restarts.among_noise(again)
