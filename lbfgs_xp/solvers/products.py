"""What `NewtonCG` and `TrustNCG` share: products of the Hessian, and conjugate gradients with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space

# From x and its gradient to the function from a vector to the Hessian times it.
Products = Callable[[Array, Array], Callable[[Array], Array]]

# Curvature counts as negative if it is below this many rounding errors of the largest one seen.
ROUNDING = 16.0
# The most products for a step if the user sets no limit.
_MOST = 200


def checked(method: str, products: Products | None) -> Products:
    """The products, if they were passed; `method` names the method in the message."""
    if products is None:
        raise TypeError(
            f"{method} was given no products; wanted products= a function from x and its "
            "gradient to the function from a vector to the Hessian times it, in init and step"
        )
    return products


def most_products(limit: int | None, n: int) -> int:
    """The most products for a step of n variables; `limit` is that of the user."""
    return min(2 * n, _MOST) if limit is None else limit


def conjugate_gradients(
    space: Space, product: Callable[[Array], Array], gradient: Array, squares: Any, goal: Any,
    most: int, along: Callable, active: Any, precondition: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array, Any]:
    """A step d that minimises the quadratic model; H d + g; and whether it ends along a direction
    without positive curvature.

    squares, goal : g . g, and to which square of the residual to go.
    along : (step, direction, H direction, squares, largest, active) -> how far to go along a
        conjugate direction; where to go there at all; where to continue from there; where it has
        no positive curvature; and the largest curvature per unit of length so far. `squares` is
        that of the residual, or its product with the preconditioned one.
    precondition : from the residual to the inverse of a positive definite matrix times it.
    """
    fn = space.scalars
    step, residual, d = 0.0 * gradient, gradient, -gradient
    if precondition is not None:
        d = -precondition(gradient)
        squares = -space.read_one(space.dot(gradient, d))
    largest, flat = 0.0 * squares, fn.full(False, squares)
    for _ in range(most):
        curved = product(d)
        alpha, moved, good, bad, largest = along(step, d, curved, squares, largest, active)
        step = space.pick(moved, space.move(step, alpha, d), step)
        residual = space.pick(moved, space.move(residual, alpha, curved), residual)
        left = space.read_one(space.dot(residual, residual))
        flat, active = flat | bad, good & (left > goal)
        if not space.any(active):
            break
        inner = residual
        if precondition is not None:
            inner = precondition(residual)
            left = space.read_one(space.dot(residual, inner))
        ratio = fn.where(active, fn.divide(left, squares), fn.full(0.0, left))
        d = space.pick(active, space.scale(ratio, d) - inner, d)
        squares = fn.where(active, left, squares)
    return step, residual, flat


def forcing_term(fn: Scalars, tolerance: float, norm: Any, first: Any) -> Any:
    """The residual at which to stop, relative to the gradient (Nocedal & Wright, Algorithm 7.1).

    norm, first : the largest components of the gradient and of the first one of the run.
    """
    return fn.minimum(fn.full(tolerance, norm), fn.sqrt(fn.divide(norm, first)))
