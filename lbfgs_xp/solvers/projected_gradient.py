"""Spectral projected gradients: minimisation over a convex set, given the projection onto it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.returned import check_like
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import count, number, optional, setting
from lbfgs_xp.line_search import ACCEPTED, STUCK, Armijo, Fixed, Search
from lbfgs_xp.projections import Box, Projection
from lbfgs_xp.solvers.contract import Solver
from lbfgs_xp.solvers.descent import Iterate
from lbfgs_xp.solvers.method import Method
from lbfgs_xp.solvers.search import advance, begun, hidden, search_from

# How far a step along the gradient may reach, relative to max(1, largest |x|).
_LONGEST = 1e10


class ProjectedGradientState(NamedTuple):
    """The state of a run. Vectors are (..., n); scalars are floats, or arrays (B,) for a batch.

    x, value, gradient, step : the current iterate, and the step length that led to it.
    gradient_norm : the largest component of P(x - gradient) - x.
    direction, search : P(x - scale gradient) - x, and the search along it.
    squared : direction . direction.
    trial : the point to evaluate next.
    seen : the value at the last trial.
    recent, slot : the values of the last iterates (..., memory_size), and where the next one goes.
    scale : the length lambda of the step along the gradient, before the projection.
    decrement : half the decrease that the slope predicts.
    accepted, failed, unbounded, noise : see `SolverState`.
    """

    x: Array
    value: Any
    gradient: Array
    gradient_norm: Any
    step: Any
    direction: Array
    search: Search
    squared: Any
    trial: Array
    seen: Any
    recent: Array
    slot: Any
    scale: Any
    decrement: Any
    accepted: Any
    failed: Any
    unbounded: Any
    noise: Any


@dataclasses.dataclass(frozen=True)
class ProjectedGradient(Method, Solver):
    """Spectral projected gradients (Birgin, Martinez & Raydan 2000, Algorithm SPG2).

    Each iteration searches along d = P(x - lambda g) - x, with P the projection and lambda the step
    length of Barzilai & Borwein (1988), s . s / s . y. The value need not fall in every step: it
    must be lower than the largest of the last `memory_size` values (Grippo, Lampariello & Lucidi
    1986). The function is only evaluated at points of the set; a start outside is projected first.
    (Finite differences also evaluate it next to such points.)

    A run has converged when the largest component of P(x - g) - x is at most gtol; this is
    `res.gradient_norm`. Without constraints, P(x - g) - x is -g.

    Parameters
    ----------
    projection : projection, function or None
        One of `lx.projections`; or a function that maps a vector (..., n) to the nearest point of a
        convex set (on JAX, for a batch, one that can be compiled); or None, for the `bounds` of
        `lx.minimize` or, without them, no constraints. It sees the variables as one real vector:
        nested parameters flattened end to end, with all real parts of a complex leaf before its
        imaginary parts.
    step_size : float or None
        A constant lambda instead of Barzilai and Borwein's.
    memory_size : int
        How many values the decrease is measured against, at least 1; with 1, each step goes down.
    line_search : Armijo or Fixed
        How the search shortens its step, which is 1 at first. With `lx.Fixed()` every step counts:
        together with `step_size` that is the projected gradient method of textbooks,
        x <- P(x - step_size g), which diverges if step_size is above 2 / L for a gradient with the
        Lipschitz constant L (Goldstein 1964; Levitin & Polyak 1966).

    Raises
    ------
    ValueError, TypeError
        If a value is outside these ranges; the message says what was passed.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def fun(x):
    ...     return np.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)
    >>> solver = lx.ProjectedGradient(lx.projections.Simplex())
    >>> lx.minimize(fun, np.zeros(2), jac=True, method=solver).x
    array([0.5, 0.5])
    >>> bounds = None, np.asarray([1.0, 5.0])
    >>> lx.minimize(fun, np.zeros(2), jac=True, method="projected_gradient", bounds=bounds).x
    array([1., 3.])
    >>> solver = lx.ProjectedGradient(
    ...     lx.projections.Simplex(), step_size=0.1, line_search=lx.Fixed()
    ... )
    >>> lx.minimize(fun, np.zeros(2), jac=True, method=solver).x.round(6)
    array([0.5, 0.5])
    """

    projection: Projection | Callable[[Array], Array] | None = None
    _: dataclasses.KW_ONLY
    step_size: float | None = None
    memory_size: int = 10
    line_search: Armijo | Fixed = Armijo()

    supports_bounds = True
    projects = True
    resumes = True
    takes_noise = True

    def __post_init__(self) -> None:
        if self.projection is not None and not callable(self.projection):
            raise TypeError(
                f"projection is {self.projection!r}; wanted one of lx.projections, a function of a "
                "vector, or None"
            )
        if isinstance(self.projection, type):
            raise TypeError(
                f"projection is the class {self.projection.__name__}; wanted an object, such as "
                f"{self.projection.__name__}(...)"
            )
        setting(self, "memory_size", count, least=1)
        setting(self, "step_size", optional(number), above=0.0)
        if not isinstance(self.line_search, (Armijo, Fixed)):
            raise TypeError(
                f"line_search is {self.line_search!r}; wanted an lx.Armijo(...) or lx.Fixed(), "
                "because no other rule stays within the set"
            )
        alpha = self.line_search.alpha if isinstance(self.line_search, Fixed) else None
        if alpha is not None and alpha > 1.0:
            raise ValueError(
                f"line_search is {self.line_search!r}; wanted an alpha of at most 1, because "
                "longer steps leave the set"
            )

    @property
    def patience(self) -> int:  # type: ignore[override]
        """How many iterations may pass without a lower value: several times the memory, because
        values that have risen may take that long to fall again."""
        return 8 * self.memory_size

    @property
    def box(self) -> Box | None:
        """The bounds, if they are the constraint."""
        return self.projection if isinstance(self.projection, Box) else None

    def with_bounds(self, box: Box) -> ProjectedGradient:
        """The same solver, restricted to a box."""
        if self.projection is not None:
            raise ValueError(
                f"bounds were passed with projection={self.projection!r}; wanted only one of them"
            )
        return dataclasses.replace(self, projection=box)

    def of_rows(self, space: Space, count: int, here: Array) -> ProjectedGradient:
        """The same solver for those of `count` problems that have these indices."""
        if not isinstance(self.projection, Projection):
            return self
        return dataclasses.replace(self, projection=self.projection.of_rows(space, count, here))

    def project(self, space: Space, x: Array) -> Array:
        """The nearest feasible point to each vector x (..., n)."""
        projection = self.projection
        if projection is None:
            return x
        if isinstance(projection, Projection):
            return projection.nearest(space, x)
        nearest = projection(x)
        check_like("projection", nearest, x)
        return nearest

    def init(
        self, space: Space, x: Array, value: Any, gradient: Array, learned: None = None,
        noise: Any = 0.0,
    ) -> ProjectedGradientState:
        """The state at x, a feasible vector (..., n), with value and gradient there."""
        fn = space.scalars
        (norm,) = space.later(self.optimality(space, x, gradient))
        value, size, width, squared = space.read(
            value, space.max_abs(gradient), space.max_abs(x), space.dot(gradient, gradient)
        )
        # The first step is as long as x, because the scale of f is unknown; from 0 it has length 1
        # or, if rounding would hide the change, leads to where the linear model falls to -|f|.
        scale = fn.where(size > 0.0, fn.divide(fn.maximum(width, 1.0), size), 1.0)
        fall = fn.divide(2.0 * fn.abs(value), squared)
        hidden = scale * squared <= space.backend.noise * fn.abs(value)
        known = (width == 0.0) & hidden & (fall > 0.0) & fn.isfinite(fall)
        scale = fn.where(known, fall, scale)
        size_of_memory = (*x.shape[:-1], self.memory_size)
        zeros = space.small_zeros if space.batched else np.zeros
        recent = zeros(size_of_memory) - math.inf
        # The projection may hide that a gradient is not finite.
        norm = fn.where(fn.isfinite(size), now(norm), size)
        point = Iterate(x, value, gradient, norm, fn.full(0.0, value))
        no = fn.full(False, value)
        noise = fn.full(noise, value)
        state = self._aim(space, point, scale, recent, fn.full(0, value), noise)
        return state._replace(seen=value, accepted=no, failed=no)

    def step(
        self, space: Space, state: ProjectedGradientState, value: Any, gradient: Array,
        active: Any = True,
    ) -> ProjectedGradientState:
        """The state after the evaluation of value and gradient at `state.trial`, where `active`."""
        fn = space.scalars
        norm = None
        if space.remote:
            (norm,) = space.later(self.optimality(space, state.trial, gradient))
        phi, dphi, change, size, width = space.read(
            value,
            space.dot(gradient, state.direction),
            # Not as a difference of two slopes, which would cancel.
            space.dot(gradient - state.gradient, state.direction),
            space.max_abs(gradient),
            space.max_abs(state.trial),
        )
        old = begun(self.line_search, state.search)
        alpha = old.alpha
        search = advance(fn, self.line_search, old, phi, dphi, active)
        taken = active & (search.status == ACCEPTED)
        failed = active & (search.status == STUCK)
        onwards = state._replace(
            search=search,
            trial=space.pick(
                taken | failed | fn.logical_not(active),
                state.trial,
                space.move(state.x, search.alpha, state.direction),
            ),
            seen=phi,
            accepted=taken,
            failed=failed,
        )
        if fn.every(fn.logical_not(taken)):
            return onwards
        # Barzilai & Borwein: s . s / s . y with s = alpha d. If the curvature is not positive, take
        # longer steps, but only as long as numbers stay finite.
        scale = fn.divide(alpha * now(state.squared), change)
        scale = fn.where((change > 0.0) & fn.isfinite(scale), scale, 10.0 * state.scale)
        scale = fn.minimum(scale, fn.divide(_LONGEST * fn.maximum(width, 1.0), size))
        if norm is None:
            norm = space.read_one(self.optimality(space, state.trial, gradient))
        norm = fn.where(fn.isfinite(size), now(norm), size)
        point = Iterate(state.trial, phi, gradient, norm, alpha)
        arrived = self._aim(space, point, scale, state.recent, state.slot, state.noise)
        arrived = arrived._replace(seen=phi, accepted=taken, failed=failed)
        return space.merge(taken, arrived, onwards)

    def _aim(
        self, space: Space, point: Iterate, scale: Any, recent: Array, slot: Any, noise: Any
    ) -> ProjectedGradientState:
        """The state at an iterate, with a direction from there and a search begun along it; `seen`,
        `accepted` and `failed` are for the caller to set."""
        fn, (x, value, gradient, norm, step) = space.scalars, point
        if self.step_size is not None:
            scale = fn.full(float(self.step_size), value)
        trial = self.project(space, x - space.scale(scale, gradient))
        direction = trial - x
        slope = space.dot(gradient, direction)
        decrement, slope, squared = space.later(
            -0.5 * slope, slope, space.dot(direction, direction)
        )
        xp, places = _few(space, self.memory_size)
        recent = xp.where(places == space.per_problem(slot), space.per_problem(value), recent)
        highest = xp.max(recent, axis=-1)
        blur = hidden(fn, space.backend.noise, highest, noise)
        search = search_from(self.line_search, highest, slope, 1.0, blur)
        no = fn.full(False, value)
        return ProjectedGradientState(
            x, value, gradient, norm, step, direction, search, squared, trial, value, recent,
            (slot + 1) % self.memory_size, scale, decrement, no, no, no, noise,
        )

    def check_state(self, state: Any) -> None:
        """Refuse a state that does not come from a solver like this."""
        held = state.recent.shape[-1] if isinstance(state, ProjectedGradientState) else 0
        if held != self.memory_size:
            what = f"{held} values" if held else f"a {type(state).__name__}"
            raise ValueError(
                f"state holds {what}; wanted the state of ProjectedGradient with "
                f"memory_size={self.memory_size}"
            )


def _few(space: Space, count: int) -> tuple[Any, Array]:
    """The namespace of a few scalars per problem, and their indices: on the host for one problem,
    whose scalars are floats."""
    return (space.small, space.small_arange(count)) if space.batched else (np, np.arange(count))
