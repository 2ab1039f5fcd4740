"""Self-scaled quasi-Newton methods: BFGS and Broyden's family."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.solvers.dense import DenseQuasiNewton, Scaling

# Binary digits of an exponent beyond its leading one.
_DIGITS = 30


@dataclasses.dataclass(frozen=True)
class SSBFGS(DenseQuasiNewton):
    """Self-scaled BFGS (Al-Baali 1998): H is divided by tau = min(1, 1/b) before each update.

    With s the step, y the change of the gradient, B the inverse of H, b = s.Bs / s.y, and
    v = s / s.y - Hy / y.Hy, the family of updates is

        H <- (H - Hy (Hy)' / y.Hy + phi y.Hy v v') / tau + s s' / s.y.

    BFGS has tau = phi = 1, SSBFGS tau = min(1, 1/b) and phi = 1; see `lx.SSBroyden` for both
    chosen. If H predicted more curvature than the step has met, b > 1, all of H grows by that
    ratio. (`lx.BFGS` grows by at most its fourth root.) Where the function is badly conditioned
    and its curvature changes, as in physics-informed networks, this takes errors orders of
    magnitude lower (Urban, Stefanou & Pons 2025, J. Comput. Phys. 523, 113656).

    Full steps are often too long right after H has grown, so each search first tries the square
    root of the length of the last step, or 1 if that was at least 0.9: about 1.2 evaluations for
    each iteration, not 1.5. A step costs two products of H with a vector and one pass over H. Use
    float64: what sets these methods apart shows where float32 has no digits left.

    Parameters
    ----------
    line_search, initial_inverse_hessian, scale_initial, clip_norm, clip_value
        As for `lx.BFGS`. The first update of a scaled H is that of BFGS.

    Raises
    ------
    ValueError, TypeError
        If a value is outside these ranges; the message says what was passed.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> p = lx.problems.rosenbrock(10)
    >>> res = lx.minimize(p.value_and_gradient, p.x0, jac=True, method=lx.SSBFGS())
    >>> bool(np.allclose(res.x, 1.0))
    True
    """

    follows_steps = True

    def scaling(self, n: int) -> Scaling:
        return _self_scaled


@dataclasses.dataclass(frozen=True)
class SSBroyden(DenseQuasiNewton):
    """Self-scaled Broyden (Al-Baali 1998; Urban, Stefanou & Pons 2025): tau and phi are chosen.

    With s the step, y the change of the gradient, B the inverse of H, and
    v = s / s.y - Hy / y.Hy, the update is

        H <- (H - Hy (Hy)' / y.Hy + phi y.Hy v v') / tau + s s' / s.y,

    where, for n variables,

        b = s.Bs / s.y,  h = y.Hy / s.y,  a = b h - 1,  c = sqrt(a / (a + 1)),
        low = min(1, h (1 - c)),
        theta = max((low - 1) / a, min(1 / low, (1 - b) / b)),
        sigma = 1 + a theta,  phi = (1 - theta) / sigma,
        tau = min(1, 1/b) min(sigma^(-1 / (n - 1)), 1 / theta)   if theta > 0,
              min(min(1, 1/b) sigma^(-1 / (n - 1)), sigma)       else.

    phi = 1 is BFGS and phi = 0 is DFP. H stays positive definite. On physics-informed networks in
    float64 it takes errors orders of magnitude lower than BFGS in the same number of evaluations
    (Urban, Stefanou & Pons 2025, J. Comput. Phys. 523, 113656); float32 has no digits left there.

    The first trials are those of `lx.SSBFGS`. A step costs two products of H with a vector and one
    pass over H.

    Parameters
    ----------
    line_search, initial_inverse_hessian, scale_initial, clip_norm, clip_value
        As for `lx.BFGS`. The first update of a scaled H is that of BFGS.

    Raises
    ------
    ValueError, TypeError
        If a value is outside these ranges; the message says what was passed.

    Examples
    --------
    H is kept if the function changes, such as by new collocation points, and the gradient is
    evaluated anew:

    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def fun(x, target):
    ...     r = x - target
    ...     return np.sum(r**4 + r**2), 4.0 * r**3 + 2.0 * r
    >>> first = lx.minimize(fun, np.zeros(3), (np.asarray([1.0, 2.0, 3.0]),), jac=True,
    ...                     method=lx.SSBroyden())
    >>> res = lx.minimize(fun, first.x, (np.asarray([1.1, 2.0, 2.9]),), jac=True,
    ...                   method=lx.SSBroyden(), state=first.state)
    >>> bool(np.allclose(res.x, [1.1, 2.0, 2.9])), res.nfev < first.nfev
    (True, True)
    """

    follows_steps = True

    def scaling(self, n: int) -> Scaling:
        return _Broyden(max(1, n - 1))


def _self_scaled(fn: Scalars, b: Any, h: Any) -> tuple[Any, Any]:
    one = fn.full(1.0, b)
    return fn.maximum(one, b), one


@dataclasses.dataclass(frozen=True)
class _Broyden:
    """`SSBroyden`, where sigma has the exponent -1 / k."""

    k: int

    def __call__(self, fn: Scalars, b: Any, h: Any) -> tuple[Any, Any]:
        one, zero = fn.full(1.0, b), fn.full(0.0, b)
        # At least 0 by Cauchy and Schwarz; at 0, phi has no effect.
        a = fn.maximum(zero, b * h - 1.0)
        c = fn.sqrt(fn.divide(a, a + 1.0))
        # h (1 - c), without its cancellation.
        low = fn.minimum(one, fn.divide(1.0, b * (1.0 + c)))
        least = fn.where(a > 0.0, fn.divide(low - 1.0, a), zero)
        theta = fn.maximum(least, fn.minimum(fn.divide(1.0, low), fn.divide(1.0 - b, b)))
        sigma = 1.0 + a * theta
        root = _root(fn, sigma, self.k)
        most = fn.maximum(one, b)
        factor = fn.where(
            theta > 0.0, most * fn.maximum(root, theta),
            fn.maximum(most * root, fn.divide(1.0, sigma)),
        )
        return factor, fn.divide(1.0 - theta, sigma)


def _root(fn: Scalars, x: Any, k: int) -> Any:
    """x^(1/k) by square roots and products, which every library rounds alike."""
    result, share = fn.full(1.0, x), 1.0 / k
    for _ in range(math.ceil(math.log2(k)) + _DIGITS):
        if share >= 1.0:
            result, share = result * x, share - 1.0
        x, share = fn.sqrt(x), 2.0 * share
    return result
