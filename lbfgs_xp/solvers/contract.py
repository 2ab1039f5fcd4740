"""What `minimize` requires of a solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.keyed import Keyed
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.projections import Box


class SolverState(Protocol):
    """The state of a solver: a named tuple of arrays and scalars.

    Vectors are (..., n); scalars are floats, or arrays (B,) for a batch.

    x, value, gradient, gradient_norm, step : the current iterate, and the step length that led to
        it.
    trial : the point to evaluate next.
    seen : the value at the last trial.
    decrement : the decrease predicted for the last quasi-Newton step, or inf.
    noise : if the solver `takes_noise`, how far apart two values may be through noise beyond
        rounding.
    accepted, failed, unbounded : whether the last trial ended an iteration; whether no lower point
        was found; whether the function seems to fall without bound.
    """

    @property
    def x(self) -> Array: ...
    @property
    def value(self) -> Any: ...
    @property
    def gradient(self) -> Array: ...
    @property
    def gradient_norm(self) -> Any: ...
    @property
    def step(self) -> Any: ...
    @property
    def trial(self) -> Array: ...
    @property
    def seen(self) -> Any: ...
    @property
    def decrement(self) -> Any: ...
    @property
    def accepted(self) -> Any: ...
    @property
    def failed(self) -> Any: ...
    @property
    def unbounded(self) -> Any: ...


class Solver(ABC):
    """A frozen, hashable set of settings with `init` and `step`; the rest has defaults.

    Attributes
    ----------
    supports_bounds : bool
        Whether it has `with_bounds`.
    supports_l1 : bool
        Whether it has `with_l1`.
    projects : bool
        Whether it has `project`. The start is then projected, and `gtol` bounds the projected
        gradient; see `optimality`.
    needs_hessian : bool
        Whether `init` and `step` take the keyword `hessian`, a function from x to the symmetric
        Hessian (..., n, n). Such a solver is not compiled.
    needs_products : bool
        Whether `init` and `step` take the keyword `products`, a function from x and its gradient to
        the function from a vector (..., n) to the Hessian times it. Not compiled either.
    compiles : bool
        Whether JAX can compile `init` and `step` for a batch.
    in_programs : bool
        Whether `init` and `step` can be parts of a larger program of JAX, where one problem is a
        batch of one, to which a function of one vector does not apply.
    searches : bool
        Whether it looks for lower points. If not, ending above the best point is not a failure;
        only a value or gradient that is not finite is one.
    rescales : bool
        Whether `init` takes the keyword `unit`, the unit of each variable (..., n), to restart in
        variables of similar size; see `in_units`.
    takes_noise : bool
        Whether `init` takes the keyword `noise`: values that differ by less do not show which
        point is lower, which the slopes then decide.
    patience : int or None
        How many iterations may pass without a lower value or gradient before the precision floor
        counts as reached; None for the default.
    shards : bool
        Whether the variables may be divided among processes: all that `init` and `step` need of
        vectors beside elementwise operations are numbers that the space reads.
    resumes : bool
        Whether another run can resume from its state, with `check_state`, `learned`, `resume` and
        the argument `learned` of `init`.
    """

    supports_bounds = False
    supports_l1 = False
    projects = False
    needs_hessian = False
    needs_products = False
    compiles = True
    searches = True
    rescales = False
    takes_noise = False
    patience: int | None = None
    shards = False
    resumes = False

    @property
    def in_programs(self) -> bool:
        return self.compiles and not self.needs_products

    @abstractmethod
    def init(
        self, space: Space, x: Array, value: Any, gradient: Array, learned: Any = None
    ) -> Any:
        """The state at x, with value and gradient there.

        learned : what `learned` returned for the state of an earlier run, to start from.
        """

    @abstractmethod
    def step(
        self, space: Space, state: Any, value: Any, gradient: Array, active: Any = True
    ) -> Any:
        """The state after the evaluation of value and gradient at `state.trial`.

        Problems of a batch outside the mask `active` keep their iterate and their search. The
        buffers of the old state may be overwritten: continue from the new one.
        """

    @property
    def box(self) -> Any:
        """The bounds, if there are any."""
        return None

    def with_bounds(self, box: Box) -> Solver:
        """The same solver, restricted to a box."""
        raise NotImplementedError

    def with_l1(self, l1: Any) -> Solver:
        """The same solver, for fun + sum(weight |x|); see `lbfgs_xp.solvers.orthant`. Its values
        are those of the sum, its gradients those of fun."""
        raise NotImplementedError

    def with_gradient_error(self, error: float) -> Solver:
        """The same solver, for gradients whose components have errors of up to this size. A solver
        that compares no gradients needs no more than to be told the noise of the value."""
        return self

    def penalised(self, space: Space, x: Array, value: Any) -> Any:
        """The value of all that is minimised at x, given that of fun."""
        return value

    def around(self, space: Space, x: Array, gradient: Array) -> tuple[Solver, Any]:
        """The solver, restricted to where all that is minimised is smooth and a search from x would
        stay, and the gradient of the penalty there; None without a penalty."""
        return self, None

    def project(self, space: Space, x: Array) -> Array:
        """The nearest feasible point to each vector x (..., n)."""
        return x

    def optimality(self, space: Space, x: Array, gradient: Array) -> Array:
        """The number that `gtol` bounds, for each problem; 0 at a solution.

        The largest component of the gradient or, for a solver that projects, of
        project(x - gradient) - x, which is the same away from the constraints.
        """
        if self.projects:
            ahead = x - gradient
            nearest = self.project(space, ahead)
            # Where the projection changes nothing, avoid the rounding of x - gradient.
            gradient = space.xp.where(nearest == ahead, gradient, x - nearest)
        return space.max_abs(gradient)

    def reduced(self, space: Space, x: Array, gradient: Array, vector: Array) -> Array:
        """The vector, 0 for the variables that bounds hold at x, where this is the gradient."""
        return vector

    def of_rows(self, space: Space, count: int, rows: Array) -> Solver:
        """The same solver for these rows of `count` problems, if its settings differ by row."""
        return self

    def as_row(self, space: Space, state: Any) -> Any:
        """The state of one problem with the entries that the state of a batch has: with one more
        axis in front it is that of a batch of one. None if there is no such form."""
        return None

    def inverse_hessian(self, space: Space, state: Any) -> Any:
        """The inverse Hessian at the state's iterate, as an operator; None if there is none."""
        return None

    def promise(self, space: Space, state: Any) -> Any:
        """The decrease that the solver's own model predicts for the search that begins at the
        iterate; 0 if it has no model."""
        return space.scalars.full(0.0, state.value)

    def in_units(self, space: Space, state: Any) -> Any:
        """The same state, in the form that `init` with `unit` returns, to be merged with it."""
        return state

    def check_state(self, state: Any) -> None:
        """Refuse a state that does not come from a solver like this."""
        raise NotImplementedError

    def learned(self, space: Space, state: Any) -> Any:
        """A copy of what the state has learned, for another run to start from."""
        return None

    def resume(self, state: Any) -> Any:
        """The same state, with its own copy of every array that `step` overwrites."""
        return state


# What a solver that does not derive from `Solver` may have in addition to `init` and `step`.
_OPTIONAL = (
    "supports_bounds", "with_bounds", "supports_l1", "with_l1", "penalised", "around", "project",
    "reduced", "needs_hessian", "needs_products", "compiles",
    "searches", "patience", "of_rows", "as_row", "rescales", "takes_noise", "shards", "in_units",
    "inverse_hessian", "check_state", "learned", "resume", "promise",
)


class _Completed(Keyed, Solver):
    """A solver that does not derive from `Solver`, with defaults for what it lacks."""

    def __init__(self, solver: Any):
        self._key = solver
        vars(self).update(
            {name: getattr(solver, name) for name in _OPTIONAL if hasattr(solver, name)},
            projects=hasattr(solver, "project"), resumes=hasattr(solver, "check_state"),
        )

    def init(self, *args: Any, **more: Any) -> Any:
        return self._key.init(*args, **more)

    def step(self, *args: Any, **more: Any) -> Any:
        return self._key.step(*args, **more)


def completed(solver: Any) -> Solver:
    """`solver`, which has `init` and `step`, with defaults for the rest of the contract."""
    return solver if isinstance(solver, Solver) else _Completed(solver)
