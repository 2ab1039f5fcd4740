"""BFGS: quasi-Newton steps with a dense inverse Hessian."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.checks import flag, setting
from lbfgs_xp.solvers.dense import DenseQuasiNewton, Scaling

# The ratio of predicted to actual curvature above which H grows, and the largest ratio used.
_EXCESS, _MOST = 1.5, 4.0


@dataclasses.dataclass(frozen=True)
class BFGS(DenseQuasiNewton):
    """BFGS with a dense inverse Hessian (Nocedal & Wright, Algorithm 6.1).

    The direction is -H g. Each step s, with the change of the gradient y, updates H by two outer
    products (eq. 6.17). Memory: n^2 numbers and a few vectors. For n up to about twenty, as in a
    batch of small fits, this is less work than the vectors of `lx.LBFGS`, and no pair is forgotten.

    Parameters
    ----------
    line_search : LineSearch or str
        A rule such as `lx.HagerZhang()`, or its name.
    initial_inverse_hessian : None, float, array (n,) or (n, n)
        H before any step: the identity, a multiple of it, a positive diagonal, or a symmetric
        positive definite matrix, over all variables end to end. The same for each problem of a
        batch.
    scale_initial : bool
        Whether H is multiplied by s . y / y . Hy before its first update (eq. 6.20 if H is the
        identity). If True and without `initial_inverse_hessian`, the first step is scaled too, as
        in `lx.LBFGS`.
    clip_norm, clip_value : float or None
        As for `lx.LBFGS`: a step whose gradient is clipped at either end does not update H.
    rescale : bool
        Whether H grows when a step has met far less curvature than H predicted: self-scaling
        (Oren & Luenberger 1974), but only upwards (Al-Baali 1998). If c = s . Bs / s . y, with B
        the inverse of H, is above 1.5, H is multiplied by the fourth root of min(c, 4) before its
        update. If the curvature changes along the way, this saves up to a third of the
        iterations; near the minimum c is near 1, and nothing happens.

    Raises
    ------
    ValueError, TypeError
        If a value is outside these ranges; the message says what was passed.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> a = np.asarray([1.0, 4.0])
    >>> res = lx.minimize(lambda x: (x @ (a * x) / 2, a * x), np.ones(2), jac=True, method="bfgs")
    >>> bool(np.allclose(res.x, 0.0))
    True
    >>> bool(np.allclose(res.hess_inv.todense(), np.diag(1 / a), atol=1e-3))
    True
    """

    rescale: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        setting(self, "rescale", flag)

    def scaling(self, n: int) -> Scaling | None:
        return _grown if self.rescale else None


def _grown(fn: Scalars, excess: Any, h: Any) -> tuple[Any, None]:
    larger = fn.sqrt(fn.sqrt(fn.minimum(excess, _MOST)))
    return fn.where(excess > _EXCESS, larger, fn.full(1.0, excess)), None
