"""Robust losses, which grow more slowly than the square, so that outliers weigh less.

With a loss rho, the cost of a fit is half the sum of f_scale^2 rho(z) over its residuals, where
z = (residual / f_scale)^2. Near 0, rho(z) is about z, as in least squares. See Triggs, McLauchlan,
Hartley & Fitzgibbon (2000), Bundle Adjustment - A Modern Synthesis, section 4.3.

>>> import numpy as np
>>> value, slope, bend = LOSSES["huber"](np, np.asarray([0.25, 4.0]))
>>> value, slope
(array([0.25, 3.  ]), array([1. , 0.5]))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import number

__all__ = ["LOSSES", "ResidualLoss"]

Terms = tuple[Array, Array, Array]


def _linear(xp: Any, z: Array) -> Terms:
    return z, xp.ones_like(z), xp.zeros_like(z)


def _soft_l1(xp: Any, z: Array) -> Terms:
    root = xp.sqrt(1.0 + z)
    # 2 (root - 1) without cancellation
    return 2.0 * z / (root + 1.0), 1.0 / root, -0.5 / (root * root * root)


def _huber(xp: Any, z: Array) -> Terms:
    inside = z <= 1.0
    root = xp.sqrt(xp.where(inside, xp.ones_like(z), z))
    slope = 1.0 / root
    bend = xp.where(inside, xp.zeros_like(z), -0.5 * slope / xp.where(inside, slope, z))
    return xp.where(inside, z, 2.0 * root - 1.0), slope, bend


def _cauchy(xp: Any, z: Array) -> Terms:
    slope = 1.0 / (1.0 + z)
    return xp.log1p(z), slope, -slope * slope


def _arctan(xp: Any, z: Array) -> Terms:
    slope = 1.0 / (1.0 + z * z)
    return xp.atan(z), slope, -2.0 * z * slope * slope


LOSSES: dict[str, Callable[[Any, Array], Terms]] = {
    "linear": _linear,
    "soft_l1": _soft_l1,
    "huber": _huber,
    "cauchy": _cauchy,
    "arctan": _arctan,
}
"""Functions (xp, z) -> (rho, rho', rho'') by name."""


class ResidualLoss(NamedTuple):
    """The name of a loss, the size from which a residual counts as an outlier, and how many
    residuals at the end are those of priors, for which it is the loss of least squares."""

    name: str
    f_scale: float
    priors: int = 0

    @classmethod
    def checked(cls, name: Any, f_scale: Any) -> ResidualLoss:
        """The loss of this name, or a clear error."""
        if not isinstance(name, str) or name not in LOSSES:
            raise ValueError(f"loss is {name!r}; wanted one of {', '.join(map(repr, LOSSES))}")
        return cls(name, number("f_scale", f_scale, above=0.0))

    @property
    def is_linear(self) -> bool:
        """Whether this is the loss of least squares."""
        return self.name == "linear"

    def terms(self, xp: Any, residuals: Array) -> Array:
        """Half the loss of each residual; a fit minimises their sum."""
        if self.is_linear:
            return 0.5 * (residuals * residuals)
        if self.priors:
            data, rest = self._split(residuals)
            return xp.concat([self.of_data.terms(xp, data), 0.5 * (rest * rest)], axis=-1)
        scaled = residuals * (1.0 / self.f_scale)
        return (0.5 * self.f_scale * self.f_scale) * LOSSES[self.name](xp, scaled * scaled)[0]

    def weights(self, xp: Any, residuals: Array, least: float) -> tuple[Array, Array]:
        """Factors for the rows of the Jacobian and for the residuals.

        With J and r multiplied by them, J^T r is the gradient of the cost and J^T J its
        Gauss-Newton Hessian. The curvature in each row is rho' + 2 z rho'', which is negative for
        large residuals, but bounded below by `least` times rho' here.
        """
        if self.priors:
            data, rest = self._split(residuals)
            ones = xp.ones_like(rest)
            of_rows, of_residuals = self.of_data.weights(xp, data, least)
            return xp.concat([of_rows, ones], axis=-1), xp.concat([of_residuals, ones], axis=-1)
        scaled = residuals * (1.0 / self.f_scale)
        z = scaled * scaled
        _, slope, bend = LOSSES[self.name](xp, z)
        share = 1.0 + 2.0 * z * bend / slope
        share = xp.where(share > least, share, xp.full_like(share, least))
        return xp.sqrt(slope * share), xp.sqrt(slope / share)

    @property
    def of_data(self) -> ResidualLoss:
        """The loss of the residuals without those of priors."""
        return self._replace(priors=0)

    def _split(self, residuals: Array) -> tuple[Array, Array]:
        """The residuals of the data, and those of the priors."""
        m = residuals.shape[-1] - self.priors
        return residuals[..., :m], residuals[..., m:]

    def cost(self, space: Space, residuals: Array) -> Array:
        """The cost, which a fit minimises: (B, m) -> (B,)."""
        if self.is_linear:
            return 0.5 * space.dot(residuals, residuals)
        return space.sum(self.terms(space.xp, residuals))

    def decrease(self, space: Space, old: Array, new: Array) -> tuple[Array, Array]:
        """The cost of the new residuals, and by how much it is below the cost of the old ones.

        The differences are taken term by term, since a difference of sums would lose digits.
        """
        if self.is_linear:
            return self.cost(space, new), 0.5 * space.dot(old - new, old + new)
        before, after = (self.terms(space.xp, r) for r in (old, new))
        return space.sum(after), space.sum(before - after)
