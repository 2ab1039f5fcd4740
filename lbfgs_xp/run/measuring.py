"""The noise of the values of a run, measured next to its iterate."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.result import Status
from lbfgs_xp.run import agreement
from lbfgs_xp.run.noise import (
    are_equal,
    are_multiples,
    are_steps,
    beyond_slope,
    deviation,
    most_deviation,
    points,
    range_of,
    smallest_gap,
)
from lbfgs_xp.run.visits import Visits

_RUNNING, _GRADIENT = int(Status.RUNNING), int(Status.GRADIENT)
# How many times its standard deviation noise may be in a difference of two values.
SPREAD = 8.0
# Noise is the same if it differs by at most this factor.
CHANGED = 4.0
# A change counts if it exceeds what noise and rounding explain by this factor.
_ENOUGH = 4.0
# The number of values by which noise is measured, and how many of them may show that a function is
# smooth.
_NOISY, _FIRST = 8, 5
# By which factor the points of each look are farther apart than those before, and the most looks.
_FARTHER, _DISTANCES = 8.0, 9
# The standard deviation of what rounding to multiples of a number does, in units of it.
_ROUNDED = 12.0**-0.5
# The changes of a narrow function are clear if they are this many times larger than its noise.
_CLEAR = 30.0
# Changes that are this many times larger than the noise among them are those of bends.
_BENDS = 100.0


class _Seen(NamedTuple):
    """What looks for noise have shown so far.

    spacing : how far apart the next points are along each variable.
    noise, errors : of the value, and of each component of the gradient.
    largest : the largest magnitude of a value.
    least, first : the smallest noise that rounding does not explain, and the first one.
    never : whether no look was clear.
    gap : the smallest one between values of a function that changes in steps.
    clean, shown : how much the values changed before they showed any noise, and whether they have:
        smaller noise farther away is that of bends, kinks and jumps.
    """

    spacing: Array
    noise: Any
    errors: Array
    largest: Any
    least: Any
    first: Any
    never: Any
    gap: Any
    clean: Any
    shown: Any


class Measuring:
    """Measurements of noise in a phase of a run.

    began : the value at which the phase began.
    """

    def __init__(self, visits: Visits):
        self.visits = visits
        self.began = visits.run.standing.solver_state.value

    def at(
        self, spacing: Array, rows: Any, narrow: Any = False
    ) -> tuple[Any, Array, Any, Any]:
        """The standard deviation of the noise of the values next to the iterate; that of each
        component of the gradient (0 for differences, whose errors follow from the values); what
        rounding may hide there; and those of the problems `rows` that had the budget.

        Points farther and farther apart show it. The nearest ones may lie on one step of a
        function that only changes in steps, or in one dent: the slope then promises other changes.
        Where there is a gradient and the values at the nearest points change smoothly by more than
        rounding, points closer and closer together show it instead.

        spacing : how far apart points are along each variable.
        narrow : where the function bends over far less than this. It may be that noise bends it:
            then it looks the same from point to point however far apart they are, beside changes
            that are much larger in the end.
        """
        run, given = self.visits.run, self.visits.run.plan.noise
        space, state = run.space, run.standing.solver_state
        fn = space.scalars
        nothing, no = fn.full(0.0, state.value), fn.full(False, state.value)
        endless = fn.full(math.inf, state.value)
        seen = _Seen(
            spacing, nothing, space.xp.zeros_like(state.x), fn.abs(state.value), endless, endless,
            no, endless, nothing, no,
        )
        (seen,) = run.repeat(_DISTANCES, functools.partial(self._look, narrow), rows, seen)
        lowest = fn.full(0.0, seen.noise)
        if run.objective.differs and narrow is False:
            lowest = fn.where((seen.least < math.inf) & (seen.clean == 0.0), seen.least, lowest)
        noise = fn.where(seen.never, lowest, seen.noise)
        noise = fn.where(seen.clean > _CLEAR * noise, 0.0, noise)
        rounding = agreement.hidden_by_rounding(fn, space.backend, seen.largest)
        # What may be the rounding of larger values is smaller here.
        share = fn.where(seen.largest > 0.0, fn.divide(fn.abs(state.value), seen.largest), 1.0)
        scaled = fn.where(seen.least < noise, seen.least, share * noise)
        noise = fn.where(noise <= _ENOUGH * rounding, scaled, noise)
        errors = seen.errors
        if given.apart is not None:
            # What is given holds, unless there clearly is more.
            told = given.apart / SPREAD
            noise = fn.where(noise > CHANGED * told, noise, told)
        if given.of_gradient is not None:
            errors = space.xp.maximum(errors, space.xp.full_like(errors, given.of_gradient))
        return noise, errors, rounding, rows & (run.standing.progress.status == _RUNNING)

    def _look(self, narrow: Any, k: Any, left: Any, seen: _Seen) -> tuple[Any, _Seen]:
        """Which of the problems `left` are unclear after look number k, and what it showed."""
        run, nearest = self.visits.run, k == 0
        space, (solver, state) = run.space, self.visits.smooth()
        fn, differs = space.scalars, run.objective.differs
        spacing, noise, errors, largest, least, first, never, gap, clean, shown = seen
        closer = left & (clean > 0.0) & (not differs)
        largest = fn.where(closer, fn.abs(state.value), largest)
        # Among noise the errors of differences depend on its last measurement.
        known = run.standing.progress.noise > 0.0
        # If there is no budget for farther points, what the nearest ones show decides.
        left = self.visits.affords(_NOISY, left, optional=k > 0)
        if not space.any(left):
            return left, seen
        near = self.points(spacing, _NOISY)
        if solver.projects:
            near = [solver.project(space, x) for x in near]
        if differs and nearest:
            values = [self.visits.value_at(x, left) for x in near[:_FIRST]]
            smooth = left & fn.logical_not(known | narrow) & self._is_smooth(near, values)
            left = left & fn.logical_not(smooth)
            if not space.any(left):
                return left, seen
            values = values + [self.visits.value_at(x, left) for x in near[_FIRST:]]
        elif differs:
            values = [self.visits.value_at(x, left) for x in near]
        else:
            values, gradients = run.each(functools.partial(self._visit, left), near)
            of_arrays, known_errors = Scalars(space.xp, type(space.backend)), errors
            errors = run.either(
                nearest, lambda: deviation(of_arrays, gradients), lambda: known_errors
            )
        found, equal = deviation(fn, values), are_equal(fn, space.backend, values)
        # Steps hide most of their errors where values differ by few of them.
        rounded = fn.maximum(found, fn.where(gap < math.inf, gap, 0.0) * _ROUNDED)
        found = fn.where(are_steps(fn, values, gap) & fn.logical_not(equal), rounded, found)
        left = left & fn.isfinite(found)
        noise = fn.where(left, found, noise)
        for value in values:
            largest = fn.where(left, fn.maximum(largest, fn.abs(value)), largest)
        (slope,) = space.read(space.dot(state.gradient, near[1] - near[0]))
        beyond = beyond_slope(fn, values, slope)
        rounding = agreement.hidden_by_rounding(fn, space.backend, largest)
        unclear = float(_NOISY) * beyond > _ENOUGH * noise + rounding
        multiples = are_multiples(fn, space.backend, values)
        if differs:
            # On one step differences are 0, too.
            unclear = (unclear & fn.logical_not(known)) | multiples
        # However far apart the points are, noise is the same, unlike what a bend adds.
        visible = left & (noise > rounding)
        if not differs:
            # What may be the rounding of much larger values is smaller here.
            close = largest <= _ENOUGH * fn.abs(state.value)
            visible = visible & (close | (noise > _ENOUGH * rounding))
        extent = range_of(fn, values)
        # Where closer points showed none, noise is less than the run has fallen, and most of
        # what changes is not smooth.
        fallen = fn.abs(run.standing.progress.first_value - state.value)
        bends = (SPREAD * noise > fallen) | (extent > _BENDS * noise)
        visible = visible & fn.logical_not((clean > 0.0) & bends)
        same = visible & (noise <= CHANGED * least) & (CHANGED * noise >= least)
        least = fn.where(visible & (noise < least), noise, least)
        steps = left & equal & (extent > rounding)
        gap = fn.where(steps, fn.minimum(gap, smallest_gap(fn, space.backend, values)), gap)
        smooth = fn.logical_not(multiples) & (extent > fn.maximum(clean, rounding))
        shown = shown | visible | steps
        clean = fn.where(left & smooth & fn.logical_not(shown), extent, clean)
        unclear = unclear | (clean > 0.0)
        # A bend explains any change over a distance that is long enough.
        unclear = unclear | ((k > 0) & (not differs))
        unclear = fn.where(closer, fn.logical_not(visible) & (extent > rounding), unclear)
        clean = fn.where(closer & visible, 0.0, clean)
        unclear = left & unclear & fn.logical_not(same)
        if narrow is not False:
            # Points that lie evenly on the steps of a function show no noise.
            first = fn.where((first < math.inf) | multiples, first, noise)
            alike = noise <= CHANGED * first
            clear = (extent > _CLEAR * noise) & fn.logical_not(multiples)
            unclear = fn.where(narrow, left & alike & fn.logical_not(clear), unclear)
            never = fn.where(left & narrow, fn.logical_not(clear & alike), never)
        else:
            never = fn.where(left, unclear, never)
        ratio = fn.where((clean > 0.0) & (not differs), 1.0 / _FARTHER, fn.full(_FARTHER, clean))
        return unclear, _Seen(
            space.per_problem(ratio) * spacing, noise, errors, largest, least, first, never, gap,
            clean, shown,
        )

    def _visit(self, left: Any, x: Array) -> tuple[Any, Array]:
        value, gradient = self.visits.visit(x, left, False)
        (value,) = self.visits.run.space.read(value)
        return value, gradient

    def _is_smooth(self, near: list[Array], values: list[Any]) -> Any:
        """Whether values at the first of these points show no noise that matters at all."""
        run, (_, state) = self.visits.run, self.visits.smooth()
        space, fn = run.space, run.space.scalars
        largest = fn.abs(state.value)
        for value in values:
            largest = fn.maximum(largest, fn.abs(value))
        rounding = agreement.hidden_by_rounding(fn, space.backend, largest)
        most = most_deviation(fn, values)
        (slope,) = space.read(space.dot(state.gradient, near[1] - near[0]))
        beyond = float(_NOISY) * beyond_slope(fn, values, slope)
        smooth = SPREAD * most <= fn.maximum(rounding, self.spoils_nothing())
        smooth = smooth & (beyond <= _ENOUGH * most + rounding)
        return smooth & fn.logical_not(are_equal(fn, space.backend, values))

    def spoils_nothing(self) -> Any:
        """Noise that spoils no difference: it is small beside how far the value has fallen."""
        run, (state, p, _) = self.visits.run, self.visits.run.standing
        space, here = run.space, run.rows.here
        fn = space.scalars
        began = self.began if here is None else space.take(self.began, here)
        all_the_way = run.criteria.part * fn.abs(began - state.value)
        level = self.visits.level(p, state, fn.full(_GRADIENT, state.value))
        return fn.maximum(level, all_the_way)

    def points(self, spacing: Array, count: int) -> list[Array]:
        """Points next to the iterate, so far apart along each variable, all down the gradient."""
        (_, state), xp = self.visits.smooth(), self.visits.run.space.xp
        up = xp.ones_like(state.x)
        return points(state.x, spacing * xp.where(state.gradient > 0.0, -up, up), count)
