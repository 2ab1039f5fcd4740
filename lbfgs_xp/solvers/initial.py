"""The initial inverse Hessian of L-BFGS, in any of its forms."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, is_array
from lbfgs_xp.arrays.returned import check_like
from lbfgs_xp.arrays.space import Space


class Initial:
    """H before any pair.

    A diagonal H is the identity in the coordinates z = x / sqrt(diagonal). The pairs are stored in
    these coordinates, and nothing else needs to know.

    Attributes
    ----------
    gamma : float, the multiple of the identity unless a pair gives another.
    function : H as a function of a vector (..., n), or None.
    scales_first : whether the scale of x and f is unknown, so that the first step has to find it.
    """

    def __init__(self, given: Any, scale: bool):
        if isinstance(given, (bool, str)):
            raise TypeError(f"initial_inverse_hessian is {given!r}; wanted {_WANTED}")
        number = isinstance(given, numbers.Real)
        kinds = (list, tuple, np.ndarray)
        if not (given is None or number or callable(given) or is_array(given)
                or isinstance(given, kinds)):
            raise TypeError(f"initial_inverse_hessian is {given!r}; wanted {_WANTED}")
        if number and not (math.isfinite(given) and given > 0):
            raise ValueError(f"initial_inverse_hessian is {given!r}; wanted {_WANTED}")
        self.gamma = float(given) if number else 1.0
        self.function: Callable | None = None
        if callable(given) and not is_array(given):
            self.function = functools.partial(_product, given)
        self.diagonal = None if number or self.function is not None else given
        self.scales_first = scale and given is None

    def weights(self, space: Space, x: Array) -> Any:
        """The square roots of the diagonal, shaped like x; None if there is no diagonal."""
        if self.diagonal is None:
            return None
        backend = space.backend
        # On the host, because not every library rounds square roots correctly.
        if is_array(self.diagonal):
            diagonal = Backend.of(self.diagonal).to_host(self.diagonal)
        else:
            diagonal = np.asarray(self.diagonal)
        diagonal = diagonal.astype(np.float64)
        if diagonal.size != x.shape[-1] and diagonal.shape != tuple(x.shape):
            raise ValueError(
                f"initial_inverse_hessian has shape {diagonal.shape}; wanted one number for each "
                f"of the {x.shape[-1]} variables"
            )
        if not (np.all(np.isfinite(diagonal)) and np.all(diagonal > 0)):
            raise ValueError(
                "initial_inverse_hessian has entries that are not positive and finite; wanted the "
                "diagonal of a positive definite matrix"
            )
        roots = np.sqrt(diagonal)
        roots = roots if roots.shape == x.shape else roots.reshape(-1)
        # In a batch, each problem has its own.
        return backend.from_host(np.broadcast_to(roots, x.shape).copy())

    def descent(self, space: Space, gradient: Array, weights: Any) -> Array:
        """-H g before any pair."""
        if self.function is not None:
            return -self.function(space.backend.own(gradient))
        if weights is not None:
            return -(gradient * weights * weights)
        return -self.gamma * gradient


def _product(function: Callable, vector: Array) -> Array:
    """H v from the user's function, checked."""
    out = function(vector)
    check_like("initial_inverse_hessian", out, vector)
    return out


# For when the scale of f and x is unknown.
UNSCALED = Initial(None, True)

_WANTED = (
    "None, a positive number, an array of positive numbers (the diagonal), or a function of a "
    "vector (..., n)"
)
