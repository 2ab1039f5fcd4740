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

    A solver may also have

    supports_bounds : whether it takes bounds (taken as False), and then `with_bounds(box)`, the
        same solver within a `Box` of vectors.
    project(space, x) : the nearest feasible point. The start is projected, and what counts as its
        gradient is project(x - gradient) - x (see `optimality`).
    patience : how many iterations may pass without a lower value or gradient before no more is
        expected (taken as 8).
    needs_hessian : whether `init` and `step` are handed, as the keyword `hessian`, a function from
        x to its Hessian (..., n, n), symmetric (taken as False). Such a solver is not compiled.
    compiles : whether JAX can compile `init` and `step` for a batch (taken as True).
    searches : whether it looks for lower points (taken as True). Where it does not, a run that ends
        above its best point is no failure, and only what is not finite is one.
    of_rows(space, count, here) : the same solver for those of `count` problems that have these
        numbers, where it has settings of single problems.
    inverse_hessian(space, state)
    check_state(state), pairs(space, state), resume(state) and an argument `pairs` of `init`, for
        `minimize(..., state=)`.
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


def optimality(solver: Any, space: Space, x: Array, gradient: Array) -> Array:
    """The number for each problem that is 0 at a solution, and that `gtol` bounds.

    The largest component of the gradient; or, of a solver that projects, of
    project(x - gradient) - x, which is the same where no constraint is near.
    """
    if hasattr(solver, "project"):
        ahead = x - gradient
        nearest = solver.project(space, ahead)
        # Where the projection changes nothing, without the rounding of x - gradient.
        gradient = space.xp.where(nearest == ahead, gradient, x - nearest)
    return space.max_abs(gradient)
