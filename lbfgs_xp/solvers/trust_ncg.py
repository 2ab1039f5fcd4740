"""Newton's method with conjugate gradients within a trust region."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array, copy_of
from lbfgs_xp.arrays.scalars import Scalars, named
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import count, number, optional, setting
from lbfgs_xp.solvers.contract import Solver
from lbfgs_xp.solvers.method import Method
from lbfgs_xp.solvers.products import (
    ROUNDING,
    Products,
    checked,
    conjugate_gradients,
    forcing_term,
    most_products,
)
from lbfgs_xp.solvers.search import FAR, at_floor, hidden

# A step is taken if it achieves this share of the predicted decrease.
_ENOUGH = 1e-4
# Below the first share of the predicted decrease, the radius becomes this part of the step; above
# the second, twice as long, if the step reached it (Nocedal & Wright, algorithm 4.1).
_POOR, _SHORTER, _GOOD, _LONGER, _REACHED = 0.25, 0.25, 0.75, 2.0, 0.9


class Region(NamedTuple):
    """What a run keeps: the largest component of its first gradient, and the radius."""

    first: Any
    radius: Any


class TrustState(NamedTuple):
    """The state of a run. Vectors are (..., n); scalars are floats, or arrays (B,) for a batch.

    x, value, gradient, gradient_norm, step, trial, seen, decrement, accepted, failed, unbounded,
        noise : see `lbfgs_xp.solvers.contract`.
    region : see `Region`.
    length, longest : of trial - x, Euclidean and in its largest component.
    predicted : the decrease that the quadratic model predicts for the trial.
    flat : whether the model has no positive curvature along the step.
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
    noise: Any
    region: Region
    length: Any
    longest: Any
    predicted: Any
    flat: Any


@dataclasses.dataclass(frozen=True)
class TrustNCG(Method, Solver):
    """Newton's method within a trust region, with steps by truncated conjugate gradients.

    A step minimises the quadratic model of f within a ball around x, by conjugate gradients that
    end where they leave the ball, or along the first direction of negative curvature at its surface
    (Steihaug 1983; Nocedal & Wright, algorithms 4.1 and 7.2). They are as precise as those of
    `lx.NewtonCG`, and need the same products with the Hessian; each trial costs one evaluation, and
    one that is rejected makes the ball smaller. Away from saddles, steps along negative curvature
    grow with the ball, so that they need no line search. A batch computes the products of all its
    rows at once.

    Parameters
    ----------
    initial_radius : float or None
        The radius of the first ball, above 0; None: the Euclidean norm of x, and 1 for x = 0.
    tolerance : float
        Above 0 and below 1; see `lx.NewtonCG`.
    max_products : int or None
        The most products for a step, at least 1; None: the smaller of 2 n and 200.

    Raises
    ------
    ValueError, TypeError
        If a value is outside these ranges; the message says what was passed.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> problem = lx.problems.rosenbrock(10)
    >>> res = lx.minimize(problem.value_and_gradient, problem.x0, jac=True, method="trust-ncg")
    >>> bool(np.allclose(res.x, 1.0)), res.success
    (True, True)
    """

    initial_radius: float | None = None
    tolerance: float = 0.5
    max_products: int | None = None

    needs_products = True
    compiles = False
    takes_noise = True
    resumes = True

    def __post_init__(self) -> None:
        setting(self, "initial_radius", optional(number), above=0.0)
        setting(self, "tolerance", number, above=0.0, below=1.0)
        setting(self, "max_products", optional(count), least=1)

    def init(
        self, space: Space, x: Array, value: Any, gradient: Array, learned: Region | None = None,
        noise: Any = 0.0, products: Products | None = None,
    ) -> TrustState:
        """The state at x, a vector (..., n), with value and gradient there."""
        fn = space.scalars
        value, norm, squares = space.read(
            value, self.optimality(space, x, gradient), space.dot(x, x)
        )
        zero, no = fn.full(0.0, value), fn.full(False, value)
        if learned is None:
            given = self.initial_radius
            radius = fn.fused(_size, squares) if given is None else fn.full(given, value)
            learned = Region(norm, radius)
        state = TrustState(
            x, value, gradient, norm, zero, x, value, fn.full(float("inf"), value), no, no, no,
            fn.full(noise, value), learned, zero, zero, zero, no,
        )
        return self._aimed(space, state, fn.full(True, value), products)

    def step(
        self, space: Space, state: TrustState, value: Any, gradient: Array, active: Any = True,
        products: Products | None = None,
    ) -> TrustState:
        """The state after the evaluation of value and gradient at `state.trial`, where `active`."""
        fn = space.scalars
        phi, norm, size = space.read(
            value, self.optimality(space, state.trial, gradient), space.max_abs(state.x)
        )
        told = fn.fused(
            _judged, space.backend.noise, space.backend.eps, state.value, state.predicted,
            state.gradient_norm, state.length, state.longest, state.region.radius, state.flat,
            state.noise, state.decrement, phi, norm, size, active,
        )
        taken = told.taken
        after = state._replace(
            x=space.pick(taken, state.trial, state.x),
            value=fn.where(taken, phi, state.value),
            gradient=space.pick(taken, gradient, state.gradient),
            gradient_norm=fn.where(taken, norm, state.gradient_norm),
            step=fn.where(taken, fn.full(1.0, phi), state.step),
            region=state.region._replace(radius=told.radius),
            seen=phi, decrement=told.decrement, accepted=taken, failed=told.failed,
            unbounded=told.unbounded,
        )
        return self._aimed(space, after, told.again, products)

    def _aimed(
        self, space: Space, state: TrustState, again: Any, products: Products | None
    ) -> TrustState:
        """The state with a new trial for the problems in the mask."""
        products = checked("TrustNCG", products)
        fn, gradient = space.scalars, state.gradient
        norm = state.gradient_norm
        again = again & (norm > 0.0) & fn.isfinite(norm) & fn.isfinite(state.region.radius)
        if not space.any(again):
            return state
        step, residual, flat = self._solved(space, products(state.x, gradient), state, again)
        trial = state.x + step
        slope, rest, squares, longest = space.read(
            space.dot(gradient, step), space.dot(residual, step), space.dot(step, step),
            space.max_abs(step),
        )
        predicted, length = fn.fused(_promised, slope, rest, squares)
        return state._replace(
            trial=space.pick(again, trial, state.trial),
            length=fn.where(again, length, state.length),
            longest=fn.where(again, longest, state.longest),
            predicted=fn.where(again, predicted, state.predicted),
            flat=fn.where(again, flat, state.flat),
        )

    def _solved(
        self, space: Space, product: Callable[[Array], Array], state: TrustState, active: Any
    ) -> tuple[Array, Array, Any]:
        """The step d, H d + g, and whether it ends along a direction without curvature."""
        fn, gradient, radius = space.scalars, state.gradient, state.region.radius
        squares = space.read_one(space.dot(gradient, gradient))
        goal = fn.fused(_goal, self.tolerance, state.gradient_norm, state.region.first, squares)

        def along(step: Array, d: Array, curved: Array, *told: Any) -> Any:
            numbers = space.read(
                space.dot(d, curved), space.dot(d, d), space.dot(step, d), space.dot(step, step)
            )
            return fn.fused(_along, ROUNDING * space.backend.eps, radius, *numbers, *told)

        most = most_products(self.max_products, gradient.shape[-1])
        return conjugate_gradients(space, product, gradient, squares, goal, most, along, active)

    def promise(self, space: Space, state: TrustState) -> Any:
        return state.predicted

    def check_state(self, state: Any) -> None:
        """Refuse a state that does not come from a solver like this."""
        if not isinstance(state, TrustState):
            raise ValueError(
                f"state holds a {type(state).__name__} of another method; wanted the state of "
                "TrustNCG"
            )

    def learned(self, space: Space, state: TrustState) -> Region:
        """What another run starts from."""
        return Region(*(
            each if isinstance(each, float) else copy_of(each) for each in state.region
        ))


class _Verdict(NamedTuple):
    """What a trial means for each problem; again : whether another one follows."""

    taken: Any
    radius: Any
    failed: Any
    again: Any
    unbounded: Any
    decrement: Any


def _size(fn: Scalars, squares: Any) -> Any:
    size = fn.sqrt(squares)
    return fn.where(size > 0.0, size, 1.0)


def _goal(fn: Scalars, tolerance: float, norm: Any, first: Any, squares: Any) -> Any:
    share = forcing_term(fn, tolerance, norm, first)
    return share * share * squares


def _promised(fn: Scalars, slope: Any, rest: Any, squares: Any) -> tuple[Any, Any]:
    """The decrease of the model, and the length of the step; slope, rest : g.d and (g + H d).d."""
    return -0.5 * (slope + rest), fn.sqrt(squares)


def _along(
    fn: Scalars, rounding: float, radius: Any, curvature: Any, square: Any, ahead: Any,
    length: Any, squares: Any, largest: Any, active: Any,
) -> tuple[Any, Any, Any, Any, Any]:
    """What `conjugate_gradients` asks of a direction d.

    curvature, square, ahead, length : d.Hd, d.d, s.d and s.s, for the step s so far.
    """
    known = active & fn.isfinite(curvature) & fn.isfinite(square)
    bends = curvature > rounding * largest * square
    room = fn.maximum(radius * radius - length, fn.full(0.0, length))
    to_end = fn.divide(room, ahead + fn.sqrt(ahead * ahead + square * room))
    alpha = fn.divide(squares, fn.where(bends, curvature, 1.0))
    inside = known & bends & (alpha < to_end)
    per_unit = fn.divide(fn.abs(curvature), square)
    return (
        fn.where(inside, alpha, to_end), known, inside, known & fn.logical_not(bends),
        fn.where(known, fn.maximum(largest, per_unit), largest),
    )


def _judged(
    fn: Scalars, rounding: float, eps: float, value: Any, predicted: Any, norm_here: Any,
    length: Any, longest: Any, radius: Any, flat: Any, noise: Any, decrement: Any, phi: Any,
    norm: Any, size: Any, active: Any,
) -> _Verdict:
    """norm_here, norm : the largest components of both gradients. size : the largest |x|."""
    finite = fn.isfinite(phi) & fn.isfinite(norm)
    decrease = value - phi
    ratio = fn.divide(decrease, predicted)
    floor = at_floor(fn, rounding, predicted, value, noise)
    # Where values say nothing, the gradient decides.
    unseen = floor & (fn.abs(decrease) <= hidden(fn, rounding, value, noise)) & (norm < norm_here)
    enough = (decrease > _ENOUGH * predicted) & fn.logical_not(floor)
    taken = active & finite & (predicted > 0.0) & (enough | unseen)
    refused = active & fn.logical_not(taken)
    failed = refused & (floor | (longest <= eps * size) | fn.logical_not(predicted > 0.0))
    poor = refused | (active & (ratio < _POOR) & fn.logical_not(floor))
    good = taken & (floor | (ratio > _GOOD)) & (length > _REACHED * radius)
    radius = fn.where(poor, _SHORTER * length, fn.where(good, _LONGER * radius, radius))
    return named(_Verdict, (
        taken, radius, failed, taken | (refused & fn.logical_not(failed)),
        taken & flat & (length >= FAR), fn.where(taken | failed, predicted, decrement),
    ))
