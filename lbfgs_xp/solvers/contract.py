"""What `minimize` asks of a solver."""

from __future__ import annotations

from typing import Any, Protocol

from lbfgs_xp.backend import Array
from lbfgs_xp.space import Space


class SolverState(Protocol):
    """Where a solver stands: a named tuple of arrays and scalars.

    Vectors are (..., n); scalars are floats, or arrays (B,) for a batch.

    x, value, gradient, gradient_norm, step : the current iterate, and the step length to it.
    trial : where value and gradient are wanted next.
    seen : the value at the last trial.
    decrement : the decrease that the last quasi-Newton step promised, or inf.
    accepted, failed, unbounded : whether the last trial ended an iteration; whether no lower point
        was found; whether the function seems to fall without bound.
    """

    x: Array
    value: Any
    gradient: Array
    gradient_norm: Any
    step: Any
    trial: Array
    seen: Any
    decrement: Any
    accepted: Any
    failed: Any
    unbounded: Any


class Solver(Protocol):
    """A frozen, hashable set of settings.

    A solver with `needs_hessian` (taken as False) is handed to `init` and `step` as the keyword
    `hessian` a function from x to its Hessian (..., n, n), symmetric; such a one is not compiled.

    A solver may also have `supports_bounds` (taken as False), `inverse_hessian(space, state)`, and
    for `minimize(..., state=)` the methods `check_state(state)`, `pairs(space, state)`,
    `resume(state)` and an argument `pairs` of `init`.
    """

    def init(self, space: Space, x: Array, value: Any, gradient: Array) -> SolverState:
        """The state at x, where value and gradient are known."""
        ...

    def step(
        self, space: Space, state: Any, value: Any, gradient: Array, active: Any = True
    ) -> SolverState:
        """The state after value and gradient at `state.trial` were seen.

        Problems of a batch outside the mask `active` keep their iterate and their search. The
        buffers of the old state may be overwritten: go on from the new one.
        """
        ...
