"""Finite differences (Nocedal & Wright, section 8.1), one coordinate at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend

METHODS = ("2-point", "3-point")


def calls_per_derivative(variables: int, central: bool) -> int:
    """How often the function is called, in addition to the call at x itself."""
    return (2 if central else 1) * variables


def differences(
    backend: Backend, function: Callable[[Array], Any], x: Array, value: Any, central: bool,
    least: float,
) -> list[Any]:
    """The derivative of `function` along each coordinate of x (..., n): n results like its own.

    Parameters
    ----------
    value : function(x), the lower end of forward differences.
    central : whether to step to both sides.
    least : a coordinate of at most this size takes the step of a coordinate of size 1. With 1,
        only large coordinates take larger steps; with 0, all steps are relative.
    """
    xp = backend.xp
    size = xp.abs(x)
    h = backend.eps ** (1 / 3 if central else 1 / 2)
    steps = h * xp.where(size > least, size, xp.ones_like(x))
    places = xp.arange(x.shape[-1], device=backend.creation_device)
    slopes = []
    for i in range(x.shape[-1]):
        here = places == i
        ahead = xp.where(here, x + steps, x)
        behind = xp.where(here, x - steps, x) if central else x
        high, low = function(ahead), function(behind) if central else value
        width = (ahead - behind)[..., i]
        # The results have another axis, such as residuals (..., m).
        if getattr(high, "ndim", 0) == x.ndim:
            width = width[..., None]
        with np.errstate(all="ignore"):    # the values may be infinite
            slopes.append((high - low) / width)
    return slopes
