"""Newton's method, with the Hessian made positive definite."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import number, optional, setting
from lbfgs_xp.line_search import Armijo, Fixed, LineSearch
from lbfgs_xp.solvers.descent import Aim, Descent, Iterate, steepest_descent
from lbfgs_xp.typing import LineSearchName

_MODIFY = ("absolute", "shift", None)


@dataclasses.dataclass(frozen=True)
class Newton(Descent):
    """Newton's method with a line search (Nocedal & Wright, Algorithm 3.2 and section 3.4).

    The direction is -V (V'g / m), where V holds the eigenvectors of the Hessian and m its
    eigenvalues l, modified so that all are at least d = `floor` times the largest |l|. Each
    iteration takes one Hessian and its eigenvalues, about n^3 operations: suitable for up to a few
    hundred variables. A batch recomputes all its Hessians after each evaluation.

    With `reproducible=True` the eigenvalues are computed by NumPy, on the host, for every library:
    the same bits on one machine if fun and hess do their part. Otherwise a batch agrees with its
    rows run alone, and one library with another, to rounding.

    `lx.minimize(..., hess=)` determines where the Hessian comes from: automatic differentiation or
    a function. If it is not finite or gives no descent direction, -g is used instead, and also
    after a search along the modified direction has found no lower point.

    Parameters
    ----------
    line_search : LineSearch or str
        A rule, or its name. The first trial is the full step, 1. `lx.Fixed(0.5)` takes half of
        each step (damped Newton).
    modify : "absolute", "shift" or None
        "absolute": m = max(|l|, d). Negative curvature repels as positive curvature attracts
        (Dauphin et al. 2014, Identifying and attacking the saddle point problem).
        "shift": m = l + t, which adds a multiple of the identity (Nocedal & Wright, section 3.4),
        where t makes the least eigenvalue the same as "absolute" does: t = 0 if all l >= d.
        None: m = l. If this gives no descent direction, -g is used instead; but with `lx.Fixed`
        the step is taken as it is. This pure Newton method converges to the nearest stationary
        point, even if it is a saddle or a maximum.
    floor : float or None
        At least 0 and below 1; None: eps^(2/3) of the dtype, 4e-11 for float64 and 2e-5 for
        float32.
    clip_norm, clip_value : float or None
        As for `lx.LBFGS`.

    Raises
    ------
    ValueError, TypeError
        If a value is outside these ranges; the message says what was passed.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def fun(x):                       # a saddle at 0, minima at (0, 1) and (0, -1)
    ...     return x[0]**2 - 2*x[1]**2 + x[1]**4, np.stack([2*x[0], -4*x[1] + 4*x[1]**3])
    >>> def hess(x):
    ...     return np.diag([2.0, -4.0 + 12.0 * x[1]**2])
    >>> x0 = np.asarray([1.0, 0.1])
    >>> res = lx.minimize(fun, x0, jac=True, hess=hess, method=lx.Newton())
    >>> bool(np.allclose(res.x, [0.0, 1.0]))
    True
    >>> pure = lx.Newton(line_search=lx.Fixed(1.0), modify=None)
    >>> lx.minimize(fun, x0, jac=True, hess=hess, method=pure).status.name
    'HIGHER'
    """

    line_search: LineSearch | LineSearchName = Armijo()
    modify: Literal["absolute", "shift"] | None = "absolute"
    floor: float | None = None

    needs_hessian = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.modify not in _MODIFY:
            raise ValueError(f"modify is {self.modify!r}; wanted 'absolute', 'shift' or None")
        setting(self, "floor", optional(number), least=0.0, below=1.0)

    def aim(
        self, space: Space, point: Iterate, secant: Any, steepest: Any,
        hessian: Callable[[Array], Array] | None = None, **more: Any,
    ) -> Aim:
        if hessian is None:
            raise TypeError(
                "Newton was given no Hessian; wanted hessian= a function from x (..., n) to "
                "(..., n, n) in init and step"
            )
        fn, gradient = space.scalars, point.gradient
        eigenvalues, rows = space.eigh(hessian(point.x))
        modified = self._modified(space, eigenvalues)
        # A singular Hessian gives nan, without a warning.
        modified = space.small.where(modified == 0.0, math.nan * modified, modified)

        def descent(vector: Array) -> Array:
            along = space.fetch(space.products(rows, vector))
            return space.combine(space.send(-along / modified), rows)

        direction = descent(gradient)
        slope = space.read_one(space.dot(gradient, direction))
        clip = self.clipped(space, gradient, point.norm)
        direction, slope = self.aimed(space, clip, gradient, direction, slope, descent)
        downhill = slope < 0.0
        known = downhill if clip is None else downhill & (clip.factor >= 1.0)
        share = fn.where(known, 0.5, fn.full(math.inf, slope))
        usable = fn.isfinite(slope) & fn.logical_not(steepest)
        if self.modify is None and isinstance(self.line_search, Fixed):
            # The rule ignores the slope, but a search only begins if it is negative.
            slope = fn.where(downhill, slope, -1.0)
        else:
            usable = usable & downhill
        if fn.every(fn.logical_not(usable)):
            return steepest_descent(space, point, clip)
        newton = Aim(
            direction, slope, fn.full(1.0, slope), share, fn.full(False, slope)
        )
        if fn.every(usable):
            return newton
        return space.merge(usable, newton, steepest_descent(space, point, clip))

    def _modified(self, space: Space, eigenvalues: Array) -> Array:
        """The eigenvalues (..., n), ascending, modified for the direction."""
        if self.modify is None:
            return eigenvalues
        xp, eps = space.small, space.backend.eps
        least, largest = eigenvalues[..., :1], eigenvalues[..., -1:]
        floor = eps ** (2 / 3) if self.floor is None else self.floor
        floor = floor * xp.maximum(xp.abs(least), xp.abs(largest))
        if self.modify == "absolute":
            return xp.maximum(xp.abs(eigenvalues), floor)
        # If the least eigenvalue became almost 0, the step would be long and useless.
        return eigenvalues + (xp.maximum(xp.abs(least), floor) - least)
