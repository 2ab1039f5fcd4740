"""What `NewtonCG` and `TrustNCG` share: products of the Hessian, and when to stop solving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars

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


def forcing_term(fn: Scalars, tolerance: float, norm: Any, first: Any) -> Any:
    """The residual at which to stop, relative to the gradient (Nocedal & Wright, Algorithm 7.1).

    norm, first : the largest components of the gradient and of the first one of the run.
    """
    return fn.minimum(fn.full(tolerance, norm), fn.sqrt(fn.divide(norm, first)))
