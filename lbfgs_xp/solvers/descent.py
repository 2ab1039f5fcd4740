"""What all methods of a direction and a line search share, but for the direction.

A method derives from `Descent` and says in `aim` where to go from an iterate, and in `learn` what a
step has taught it. Everything here is written once for one problem and for a batch, with the
functions of `space.scalars`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.line_search import ACCEPTED, STUCK, LineSearch, Search, rule_of
from lbfgs_xp.solvers.contract import Solver
from lbfgs_xp.solvers.first_step import first_step
from lbfgs_xp.solvers.initial import UNSCALED
from lbfgs_xp.solvers.method import Method
from lbfgs_xp.solvers.search import FAR, Lowest, advance, at_floor
from lbfgs_xp.typing import LineSearchName


class Iterate(NamedTuple):
    """An iterate: x and gradient (..., n), the value, the gradient's largest component, and the
    step length to it, 0 at the start of a run."""

    x: Array
    value: Any
    gradient: Array
    norm: Any
    step: Any


class Aim(NamedTuple):
    """Where to go from an iterate.

    direction, slope : d and g . d, which has to be negative.
    first : the first step to try.
    promised : the decrease that this step promises by a quadratic model; inf without a model.
    steepest : whether d is that of steepest descent, so that there is none better.
    learned : what the method has learned; None for one that keeps nothing.
    """

    direction: Array
    slope: Any
    first: Any
    promised: Any
    steepest: Any
    learned: Any = None


class DescentState(NamedTuple):
    """Where a run stands. Vectors are (..., n); scalars are floats, or arrays (B,) for a batch.

    x, value, gradient, gradient_norm, step, trial, seen, decrement, accepted, failed, unbounded :
        see `lbfgs_xp.solvers.contract`.
    direction, search : the line search under way.
    lowest : its lowest trial.
    promised, steepest, learned : see `Aim`.
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
    promised: Any
    steepest: Any
    learned: Any
    decrement: Any
    accepted: Any
    failed: Any
    unbounded: Any


@dataclasses.dataclass(frozen=True)
class Descent(Method, Solver):
    """A direction and a line search (Nocedal & Wright, chapter 3)."""

    line_search: LineSearch | LineSearchName

    # Whether all that a search along steepest descent is for is to find the scale, so that it ends
    # at the first lower trial that shows curvature.
    probes = False
    resumes = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "line_search", rule_of(self.line_search))

    @abstractmethod
    def aim(self, space: Space, point: Iterate, secant: Any, steepest: Any, **more: Any) -> Aim:
        """Where to go from `point`.

        secant : the step at which the slopes of the search that led here put the minimum on its
            line; nan where they do not.
        steepest : a mask: where no other direction will do, the last one having led nowhere.
        more : what `learn` returned, as `learned`; `turned`, a mask: the problems that set out from
            here, for what others have learned is to stay as it is; and what `init` and `step` are
            handed beyond the contract.
        """

    def learn(
        self, space: Space, state: DescentState, point: Iterate, alpha: Any, slope: Any, taken: Any
    ) -> Any:
        """What the state has learned, and what the step to `point` has shown, where it was `taken`.

        alpha, slope : of the step: alpha state.direction, and the slope of the line at its end.
        """
        return state.learned

    # --- going on from an earlier run; a method with a memory has its own of these ---------------

    def check_state(self, state: Any) -> None:
        """Refuses a state that is not one of a method like this."""
        if not isinstance(state, DescentState) or state.learned is not None:
            raise ValueError(
                f"state holds a {type(state).__name__} of another method; wanted that of "
                f"{type(self).__name__}"
            )

    def init(
        self, space: Space, x: Array, value: Any, gradient: Array, learned: Any = None, **more: Any
    ) -> DescentState:
        """The state at x, a vector (..., n), where value and gradient are known."""
        value, norm = space.read(value, space.max_abs(gradient))
        full = space.scalars.full
        point, no = Iterate(x, value, gradient, norm, full(0.0, value)), full(False, value)
        aim = self.aim(space, point, full(math.nan, value), no, learned=learned, **more)
        state = self._set_out(space, point, aim)
        return state._replace(trial=space.move(x, state.search.alpha, state.direction))

    def step(
        self, space: Space, state: DescentState, value: Any, gradient: Array, active: Any = True,
        **more: Any,
    ) -> DescentState:
        """The state after value and gradient at `state.trial` were seen, where `active`.

        Trials that overflow are ordinary; `minimize` calls this under `numpy.errstate`.
        """
        fn, old = space.scalars, state.search
        rule: Any = self.line_search
        phi, dphi = space.read(value, space.dot(gradient, state.direction))
        search = advance(fn, rule, old, phi, dphi, active)

        accepted = active & (search.status == ACCEPTED)
        lower = active & (search.best_phi < old.best_phi)
        if self.probes:
            bent = dphi - old.dphi0 > space.backend.eps * -old.dphi0
            accepted = accepted | (lower & state.steepest & bent)
        stuck = active & (search.status == STUCK) & fn.logical_not(accepted)
        lowest = space.merge(lower | accepted, Lowest(old.alpha, phi, gradient), state.lowest)
        # Stuck, but lower than the start: the lowest trial is the new iterate.
        taken = accepted | (stuck & (search.best_phi < search.phi0))
        lost = stuck & fn.logical_not(taken)
        decrement = fn.where(taken | lost, state.promised, state.decrement)
        # Steepest descent would do no better there.
        floor = at_floor(space, decrement, state.value)
        again = lost & fn.logical_not(state.steepest | floor)

        after = state._replace(search=search, lowest=lowest)
        unbounded = fn.full(False, phi)
        turned = taken | again
        if not fn.every(fn.logical_not(turned)):
            alpha, end, end_gradient = lowest
            new_x = space.pick(taken, space.move(state.x, alpha, state.direction), state.x)
            new_gradient = space.pick(taken, end_gradient, state.gradient)
            norm, dphi, size = space.read(
                space.max_abs(new_gradient), space.dot(end_gradient, state.direction),
                space.max_abs(state.direction),
            )
            bend = dphi - old.dphi0
            bent = bend > space.backend.eps * -old.dphi0
            secant = fn.where(taken & bent, fn.divide(alpha * -old.dphi0, bend), math.nan)
            far = (alpha >= rule.alpha_max) & (alpha * size >= FAR)
            unbounded = taken & far & fn.logical_not(bent)
            step = fn.where(taken, alpha, state.step)
            point = Iterate(new_x, fn.where(taken, end, state.value), new_gradient, norm, step)
            learned = self.learn(space, state, point, alpha, dphi, taken)
            aim = self.aim(space, point, secant, again, turned=turned, learned=learned, **more)
            fresh = self._set_out(space, point, aim)
            # Where a search goes on it keeps its line; all else is that of every problem.
            after = fresh if fn.every(turned) else space.merge(turned, fresh, fresh._replace(
                direction=state.direction, search=search, lowest=lowest,
                promised=state.promised, steepest=state.steepest,
            ))
        return after._replace(
            trial=space.move(after.x, after.search.alpha, after.direction), seen=phi,
            decrement=decrement, accepted=taken, failed=lost & fn.logical_not(again),
            unbounded=unbounded,
        )

    def _set_out(self, space: Space, point: Iterate, aim: Aim) -> DescentState:
        """The state at `point` with a search begun towards `aim`, but for its trial."""
        full, (x, value, gradient, norm, step) = space.scalars.full, point
        noise = space.scalars.abs(value) * space.backend.noise
        rule: Any = self.line_search
        search = rule.begin(value, aim.slope, aim.first, noise)
        no = full(False, value)
        return DescentState(
            x, value, gradient, norm, step, aim.direction, search,
            x, value, Lowest(full(0.0, value), value, gradient), aim.promised, aim.steepest,
            aim.learned, full(math.inf, value), no, no, no,
        )


def steepest_descent(space: Space, point: Iterate) -> Aim:
    """Along -g, with a first step for when nothing is known of the scale: as long as that of
    L-BFGS (see `first_step`)."""
    fn, (x, value, gradient, norm, _) = space.scalars, point
    # The direction keeps its length, to which later steps refer.
    _, _, length = first_step(space, UNSCALED, None, x, value, gradient, norm, False)
    slope = space.read_one(space.dot(gradient, -gradient))
    return Aim(
        -gradient, slope, fn.divide(length, norm), fn.full(math.inf, value), fn.full(True, value)
    )
