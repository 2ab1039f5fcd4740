"""What all methods with a direction and a line search share, apart from the direction.

A method derives from `Descent` and implements `aim`, the direction from an iterate, and `learn`,
what a step shows about the function. The same code serves one problem and a batch, by the functions
of `space.scalars`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.scalars import Scalars, named
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.line_search import ACCEPTED, STUCK, LineSearch, Search, rule_of
from lbfgs_xp.solvers.bounded import Path, along, path_at
from lbfgs_xp.solvers.bounded import trial as trial_on
from lbfgs_xp.solvers.clipping import Clipped, ClipsGradients
from lbfgs_xp.solvers.first_step import first_step
from lbfgs_xp.solvers.initial import UNSCALED
from lbfgs_xp.solvers.method import Method
from lbfgs_xp.solvers.search import FAR, Lowest, advance, at_floor, begun, hidden, search_from
from lbfgs_xp.typing import LineSearchName


class Iterate(NamedTuple):
    """An iterate: x and gradient (..., n), the value, the gradient's largest component, and the
    step length that led to it, 0 at the start of a run."""

    x: Array
    value: Any
    gradient: Array
    norm: Any
    step: Any


class Aim(NamedTuple):
    """Where to search from an iterate.

    direction, slope : d and g . d, which must be negative.
    first : the first step length to try.
    share : the part of the decrease along the slope that a quadratic model predicts for this step;
        inf without a model.
    steepest : whether d is the direction of steepest descent, after which there is no other to try.
    learned : what the method has learned; None if it keeps nothing.
    """

    direction: Array
    slope: Any
    first: Any
    share: Any
    steepest: Any
    learned: Any = None


class DescentState(NamedTuple):
    """The state of a run. Vectors are (..., n); scalars are floats, or arrays (B,) for a batch.

    x, value, gradient, gradient_norm, step, trial, seen, decrement, accepted, failed, unbounded,
        noise : see `lbfgs_xp.solvers.contract`.
    direction, search : the current line search.
    lowest : its lowest trial.
    share, steepest, learned : see `Aim`.
    path : what bounds do to the search; None without bounds.
    """

    x: Array
    value: Any
    gradient: Array
    gradient_norm: Any
    step: Any
    direction: Array
    search: Search
    trial: Array
    seen: Any
    lowest: Lowest
    share: Any
    steepest: Any
    learned: Any
    decrement: Any
    accepted: Any
    failed: Any
    unbounded: Any
    noise: Any
    path: Path | None = None


@dataclasses.dataclass(frozen=True)
class Descent(Method, ClipsGradients):
    """A direction and a line search (Nocedal & Wright, chapter 3)."""

    line_search: LineSearch | LineSearchName

    # Whether a search along steepest descent only has to find the scale, so that it ends at the
    # first lower trial that shows curvature.
    probes = False
    resumes = True
    takes_noise = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "line_search", rule_of(self.line_search))
        self._check_clips()

    @abstractmethod
    def aim(self, space: Space, point: Iterate, secant: Any, steepest: Any, **more: Any) -> Aim:
        """Where to search from `point`.

        secant : the step length at which the slopes of the last search place the minimum on its
            line; nan if they do not.
        steepest : a mask of problems that need steepest descent, because the last direction failed.
        more : `learned`, what `learn` returned; `turned`, a mask of the problems that search from
            here (what the others have learned must stay as it is); and the arguments of `init` and
            `step` beyond the contract.
        """

    def measure(
        self, space: Space, state: DescentState, alpha: Any, x: Array, gradient: Array
    ) -> Any:
        """What `learn` needs of the step of length alpha to x, with the gradient there.

        On a device it is called for every trial, so that `space.later` reads its numbers together
        with the value.
        """

    def learn(
        self, space: Space, state: DescentState, point: Iterate, slope: Any, taken: Any,
        kept: Any, measured: Any,
    ) -> Any:
        """What the state has learned, with the step to `point` where it was `taken`.

        slope : the slope along the step at its end.
        kept : whether the step shows curvature of use; see `clipping`.
        measured : what `measure` returned for this step.
        """
        return state.learned

    def promise(self, space: Space, state: DescentState) -> Any:
        fn, slope = space.scalars, now(state.search.dphi0)
        known = fn.isfinite(state.share) & (slope < 0.0) & (state.search.evaluations == 0)
        return fn.where(known, -slope * fn.where(known, state.share, 0.0), 0.0 * state.value)

    # --- resuming from an earlier run; methods with a memory override these ----------------------

    def check_state(self, state: Any) -> None:
        """Refuse a state that does not come from a method like this."""
        if not isinstance(state, DescentState) or state.learned is not None:
            raise ValueError(
                f"state holds a {type(state).__name__} of another method; wanted the state of "
                f"{type(self).__name__}"
            )

    def as_row(self, space: Space, state: DescentState) -> DescentState | None:
        if self.box is not None:
            return None
        rule: Any = self.line_search
        return state._replace(search=rule.completed(begun(rule, state.search)))

    def init(
        self, space: Space, x: Array, value: Any, gradient: Array, learned: Any = None,
        noise: Any = 0.0, **more: Any,
    ) -> DescentState:
        """The state at x, a vector (..., n), with value and gradient there."""
        value, norm = space.read(value, self.optimality(space, x, gradient))
        full = space.scalars.full
        point, no = Iterate(x, value, gradient, norm, full(0.0, value)), full(False, value)
        aim = self.aim(space, point, full(math.nan, value), no, learned=learned, **more)
        state = self._set_out(space, point, aim, full(noise, value))
        if self.box is not None:
            path = path_at(space, self.box, x, None)._replace(reach=aim.first)
            state = state._replace(path=path)
        return state._replace(
            trial=trial_on(space, state.path, x, state.search.alpha, state.direction)
        )

    def step(
        self, space: Space, state: DescentState, value: Any, gradient: Array, active: Any = True,
        **more: Any,
    ) -> DescentState:
        """The state after the evaluation of value and gradient at `state.trial`, where `active`.

        Trials that overflow are normal; `minimize` calls this under `numpy.errstate`.
        """
        fn, measured = space.scalars, None
        rule: Any = self.line_search
        alpha, path, d = state.search.alpha, state.path, state.direction
        if space.remote:
            measured = self._measured(space, state, alpha, state.trial, gradient, gradient)
        way = d if path is None else along(space, path, state.x, state.trial, alpha, d)
        phi, dphi = space.read(value, space.dot(gradient, way))
        old = begun(rule, state.search)
        if old is not state.search:
            state = state._replace(search=old)
        may_rise = space.remote or space.sharded
        told = fn.fused(
            _judged, rule, self.probes, may_rise, space.backend.eps, space.backend.noise,
            named(_Numbers, (
                old, state.value, state.lowest.alpha, state.lowest.value, state.share,
                state.steepest, state.decrement, state.noise,
            )),
            phi, dphi, active,
        )
        taken, turned = told.taken, told.turned
        lowest = Lowest(
            told.lowest_alpha, told.lowest_value,
            space.pick(told.lower, gradient, state.lowest.gradient),
        )
        unbounded = told.no
        if fn.every(fn.logical_not(turned)):
            after = state._replace(search=told.search, lowest=lowest)
        else:
            alpha, end, end_gradient = lowest
            new_x = space.pick(taken, trial_on(space, path, state.x, alpha, d), state.x)
            new_gradient = space.pick(taken, end_gradient, state.gradient)
            if measured is None or (taken and end_gradient is not gradient):
                measured = self._measured(space, state, alpha, new_x, new_gradient, end_gradient)
            norm, dphi, size = map(now, measured[0])
            if space.remote and not taken:
                norm = state.gradient_norm
            secant, unbounded, step, value = fn.fused(
                _arrived, rule.alpha_max, space.backend.eps, taken, old.dphi0, dphi, size, alpha,
                end, state.step, state.value,
            )
            point = Iterate(new_x, value, new_gradient, norm, step)
            kept = taken
            if self.clips:
                ends = (state.x, state.gradient), (new_x, new_gradient)
                begins, ends_there = (self.too_large(space, *end) for end in ends)
                kept = taken & fn.logical_not(begins | ends_there)
                secant = fn.where(kept, secant, math.nan)
            learned = self.learn(space, state, point, dphi, taken, kept, measured[1])
            aim = self.aim(
                space, point, secant, told.again, turned=turned, learned=learned, **more
            )
            # A search that continues keeps its line; the rest is the same for every problem.
            after = self._set_out(space, point, aim, state.noise)
            if path is not None:
                reach = fn.where(turned, aim.first, path.reach)
                after = after._replace(path=path._replace(reach=reach))
            if not fn.every(turned):
                lines = _Line.of(after), _Line.of(state)._replace(
                    search=told.search, lowest_alpha=alpha, lowest_value=end
                )
                line = fn.fused(_chosen, turned, *lines)
                after = after._replace(
                    direction=space.pick(turned, after.direction, state.direction),
                    search=line.search,
                    lowest=Lowest(
                        line.lowest_alpha, line.lowest_value,
                        space.pick(turned, after.lowest.gradient, end_gradient),
                    ),
                    share=line.share, steepest=line.steepest,
                )
        return after._replace(
            trial=trial_on(space, after.path, after.x, after.search.alpha, after.direction),
            seen=phi, decrement=told.decrement, accepted=taken, failed=told.failed,
            unbounded=unbounded,
        )

    def _measured(
        self, space: Space, state: DescentState, alpha: Any, x: Array, gradient: Array,
        end_gradient: Array,
    ) -> tuple[Sequence[Any], Any]:
        """The norm of the new gradient, the slope at the end of the step, the size of the
        direction, and what `measure` returns."""
        numbers = space.later(
            self.optimality(space, x, gradient), space.dot(end_gradient, state.direction),
            space.max_abs(state.direction),
        )
        return numbers, self.measure(space, state, alpha, x, gradient)

    def _set_out(self, space: Space, point: Iterate, aim: Aim, noise: Any) -> DescentState:
        """The state at `point` with a search begun along `aim`, except for its trial."""
        x, value, gradient, norm, step = point
        search, zero, far, no = space.scalars.fused(
            _begun, self.line_search, space.backend.noise, value, aim.slope, aim.first, noise
        )
        return DescentState(
            x, value, gradient, norm, step, aim.direction, search, x, value,
            Lowest(zero, value, gradient), aim.share, aim.steepest, aim.learned, far, no, no, no,
            noise,
        )


class _Numbers(NamedTuple):
    """The scalars of a state that `_judged` needs."""

    search: Search
    value: Any
    lowest_alpha: Any
    lowest_value: Any
    share: Any
    steepest: Any
    decrement: Any
    noise: Any


class _Verdict(NamedTuple):
    """What a trial means for each problem.

    search : after the trial.
    lower : whether the trial is the end of the step if one is taken.
    lowest_alpha, lowest_value : of the end.
    taken : whether there is a new iterate.
    again : whether the search begins again from the old one, along steepest descent.
    turned : taken or again.
    no : false.
    """

    search: Search
    lower: Any
    lowest_alpha: Any
    lowest_value: Any
    taken: Any
    again: Any
    turned: Any
    failed: Any
    decrement: Any
    no: Any


class _Line(NamedTuple):
    """The scalars of a line and of the search along it."""

    search: Search
    lowest_alpha: Any
    lowest_value: Any
    share: Any
    steepest: Any

    @classmethod
    def of(cls, state: DescentState) -> _Line:
        return cls(
            state.search, state.lowest.alpha, state.lowest.value, state.share, state.steepest
        )


def _judged(
    fn: Scalars, rule: LineSearch, probes: bool, may_rise: bool, eps: float, rounding: float,
    state: _Numbers, phi: Any, dphi: Any, active: Any,
) -> _Verdict:
    """may_rise : whether a slope was pending when the search began, so that it may not go down."""
    old = state.search
    search = advance(fn, rule, old, phi, dphi, active)
    accepted = active & (search.status == ACCEPTED)
    lower = active & (search.best_phi < old.best_phi)
    if probes:
        bent = dphi - old.dphi0 > eps * -old.dphi0
        accepted = accepted | (lower & state.steepest & bent)
    stuck = active & (search.status == STUCK) & fn.logical_not(accepted)
    lower = lower | accepted
    # Stuck, but lower than the start: the lowest trial is the new iterate.
    taken = accepted | (stuck & (search.best_phi < search.phi0))
    lost = stuck & fn.logical_not(taken)
    decrement = fn.where(taken | lost, state.share * -old.dphi0, state.decrement)
    # At the precision floor steepest descent would do no better.
    floor = at_floor(fn, rounding, decrement, state.value, state.noise)
    if may_rise:
        floor = floor & (old.dphi0 < 0.0)
    again = lost & fn.logical_not(state.steepest | floor)
    return named(_Verdict, (
        search, lower, fn.where(lower, old.alpha, state.lowest_alpha),
        fn.where(lower, phi, state.lowest_value), taken, again, taken | again,
        lost & fn.logical_not(again), decrement, fn.full(False, phi),
    ))


def _arrived(
    fn: Scalars, alpha_max: float, eps: float, taken: Any, before: Any, slope: Any, size: Any,
    alpha: Any, end: Any, step: Any, value: Any,
) -> tuple[Any, Any, Any, Any]:
    """For an iterate: where the slopes place the minimum of the line, whether the function is
    unbounded, the step length that led here and the value.

    before, slope : the slopes at both ends of the step alpha; size: of its direction; end : its
        value. step, value : of the old iterate.
    """
    bend = slope - before
    bent = bend > eps * -before
    secant = fn.where(taken & bent, fn.divide(alpha * -before, bend), math.nan)
    far = (alpha >= alpha_max) & (alpha * size >= FAR)
    return (
        secant, taken & far & fn.logical_not(bent), fn.where(taken, alpha, step),
        fn.where(taken, end, value),
    )


def _begun(
    fn: Scalars, rule: LineSearch, rounding: float, value: Any, slope: Any, first: Any, noise: Any
) -> tuple[Search, Any, Any, Any]:
    """A search, and the scalars of a state that are the same at each iterate: 0, inf and false."""
    search = search_from(rule, value, slope, first, hidden(fn, rounding, value, noise))
    return search, fn.full(0.0, value), fn.full(math.inf, value), fn.full(False, value)


def _chosen(fn: Scalars, mask: Any, new: _Line, old: _Line) -> _Line:
    return fn.choose(mask, new, old)


def steepest_descent(space: Space, point: Iterate, clip: Clipped | None = None) -> Aim:
    """The direction -g, with a first step for an unknown scale: as long as that of L-BFGS (see
    `first_step`).

    clip : the clipped gradient, if it is not g.
    """
    fn, (x, value, gradient, norm, _) = space.scalars, point
    # The direction is not normalised, because later steps are relative to its length.
    _, _, length = first_step(space, UNSCALED, None, x, value, gradient, norm, False, clip)
    norm = norm if clip is None else clip.norm
    return downhill(space, point, clip)._replace(first=fn.divide(length, norm))


def downhill(space: Space, point: Iterate, clip: Clipped | None = None) -> Aim:
    """The direction -g, without a first step."""
    full, (_, value, gradient, _, _) = space.scalars.full, point
    direction = -(gradient if clip is None else clip.gradient)
    (slope,) = space.later(space.dot(gradient, direction))
    return Aim(direction, slope, None, full(math.inf, value), full(True, value))
