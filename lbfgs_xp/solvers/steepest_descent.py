"""Steepest descent with a line search."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.arrays.space import Space
from lbfgs_xp.line_search import Bisection, LineSearch
from lbfgs_xp.solvers.descent import Aim, Descent, Iterate, downhill, steepest_descent
from lbfgs_xp.typing import LineSearchName


@dataclasses.dataclass(frozen=True)
class SteepestDescent(Descent):
    """Steps along the negative gradient with a line search (Nocedal & Wright, section 3.3).

    The first trial of the first search is scaled as in L-BFGS; from then on it is the step of
    Barzilai & Borwein (1988, Two-point step size gradient methods, eq. 5), s . s / s . y, which for
    steepest descent is where the slopes of the last search place the minimum of its line. A lax
    rule usually takes this step as it is. A strict one, such as `lx.MoreThuente(c2=0.01)`, goes to
    the minimum of each line: the classical method, whose values fall by a factor of
    ((k - 1) / (k + 1))^2 per iteration if the Hessian has condition number k.

    Products g . g must be within the range of the dtype, and steps alpha, with x - alpha g, below
    `alpha_max` of the line search, here 1e30. If x is of the order of 1e14 or more in its units
    and f is not, scale the variables or, in float64, pass a rule with a larger limit.

    Parameters
    ----------
    line_search : LineSearch or str
        A rule such as `lx.HagerZhang()`, or its name. With `lx.Fixed(0.1)` each step is -0.1 g.

    clip_norm, clip_value : float or None
        As for `lx.LBFGS`. The step of Barzilai & Borwein is taken only where no gradient was
        clipped.

    Raises
    ------
    ValueError, TypeError
        If a value is none of these; the message says what was passed.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> from lbfgs_xp.solvers.steepest_descent import SteepestDescent
    >>> scales = np.asarray([1.0, 10.0])
    >>> def fun(x):
    ...     return 0.5 * (x @ (scales * x)), scales * x
    >>> res = lx.minimize(fun, np.ones(2), jac=True, method=SteepestDescent())
    >>> res.success, bool(np.allclose(res.x, 0.0, atol=1e-7))
    (True, True)
    """

    line_search: LineSearch | LineSearchName = Bisection(alpha_max=1e30)

    shards = True

    def aim(self, space: Space, point: Iterate, secant: Any, steepest: Any, **more: Any) -> Aim:
        fn, clip = space.scalars, self.clipped(space, point.gradient, point.norm)
        known = fn.isfinite(secant) & (secant > 0.0)
        if fn.every(known):
            return downhill(space, point, clip)._replace(first=secant, share=0.5 * secant)
        aim = steepest_descent(space, point, clip)
        return aim._replace(
            first=fn.where(known, secant, aim.first),
            share=fn.where(known, 0.5 * secant, aim.share),
        )
