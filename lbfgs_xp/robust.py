"""Losses that grow slower than the square, so that outliers weigh less.

A loss rho maps z = (residual / f_scale)^2 to f_scale^2 rho(z), of which least squares take half the
sum. Near 0 each is z, and so least squares themselves. See Triggs, McLauchlan, Hartley & Fitzgibbon
(2000), Bundle Adjustment - A Modern Synthesis, section 4.3.

>>> import numpy as np
>>> value, slope, bend = LOSSES["huber"](np, np.asarray([0.25, 4.0]))
>>> value, slope
(array([0.25, 3.  ]), array([1. , 0.5]))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lbfgs_xp.backend import Array

__all__ = ["LOSSES", "check", "cost", "weights"]

Loss = tuple[Array, Array, Array]


def _linear(xp: Any, z: Array) -> Loss:
    return z, xp.ones_like(z), xp.zeros_like(z)


def _soft_l1(xp: Any, z: Array) -> Loss:
    root = xp.sqrt(1.0 + z)
    # 2 (root - 1), without the cancellation
    return 2.0 * z / (root + 1.0), 1.0 / root, -0.5 / (root * root * root)


def _huber(xp: Any, z: Array) -> Loss:
    inside = z <= 1.0
    root = xp.sqrt(xp.where(inside, xp.ones_like(z), z))
    slope = 1.0 / root
    bend = xp.where(inside, xp.zeros_like(z), -0.5 * slope / xp.where(inside, slope, z))
    return xp.where(inside, z, 2.0 * root - 1.0), slope, bend


def _cauchy(xp: Any, z: Array) -> Loss:
    slope = 1.0 / (1.0 + z)
    return xp.log1p(z), slope, -slope * slope


LOSSES: dict[str, Callable[[Any, Array], Loss]] = {
    "linear": _linear,
    "soft_l1": _soft_l1,
    "huber": _huber,
    "cauchy": _cauchy,
}
"""From a name to (xp, z) -> (rho, rho', rho'')."""


def check(loss: Any) -> str:
    """The name of a loss, or a clear error."""
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; wanted one of {', '.join(map(repr, LOSSES))}")
    return loss


def cost(xp: Any, loss: str, f_scale: float, residuals: Array) -> Array:
    """Half the loss of each residual; their sum is what a fit minimises."""
    if loss == "linear":
        return 0.5 * (residuals * residuals)
    scaled = residuals * (1.0 / f_scale)
    return (0.5 * f_scale * f_scale) * LOSSES[loss](xp, scaled * scaled)[0]


def weights(
    xp: Any, loss: str, f_scale: float, residuals: Array, least: float
) -> tuple[Array, Array]:
    """Factors for the rows of the Jacobian and for the residuals.

    With J and r so multiplied, J^T r is the gradient of the cost, and J^T J its Gauss-Newton
    Hessian: row by row rho' + 2 z rho'', which is negative far out, but here at least least rho'.
    """
    scaled = residuals * (1.0 / f_scale)
    z = scaled * scaled
    _, slope, bend = LOSSES[loss](xp, z)
    share = 1.0 + 2.0 * z * bend / slope
    share = xp.where(share > least, share, xp.full_like(share, least))
    return xp.sqrt(slope * share), xp.sqrt(slope / share)
