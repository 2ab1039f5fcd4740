"""`least_squares`: its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack, overload

from lbfgs_xp import checks
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.fits.loop import box_of, run_fit
from lbfgs_xp.fits.residuals import Residuals
from lbfgs_xp.fits.result import BatchLeastSquaresResult, LeastSquaresResult
from lbfgs_xp.fits.settings import FitPlan
from lbfgs_xp.typing import Differences, FitSettings, LossName


@overload
def least_squares(
    residuals: Callable[..., Any], x0: Any, args: Any = (), *, batched: Literal[False] = False,
    **settings: Unpack[FitSettings],
) -> LeastSquaresResult: ...


@overload
def least_squares(
    residuals: Callable[..., Any], x0: Any, args: Any = (), *, batched: Literal[True],
    **settings: Unpack[FitSettings],
) -> BatchLeastSquaresResult: ...


@overload
def least_squares(
    residuals: Callable[..., Any], x0: Any, args: Any = (), *, batched: bool,
    **settings: Unpack[FitSettings],
) -> LeastSquaresResult | BatchLeastSquaresResult: ...


@checks.reject_foreign_keywords(
    **dict.fromkeys(("maxfev", "max_nfev"), "maxfun"),
    x_scale="nothing: parameters are scaled by their columns of the Jacobian",
)
def least_squares(
    residuals: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    jac: Callable[..., Any] | Differences | None = None,
    bounds: Any = None,
    loss: LossName = "linear",
    f_scale: float = 1.0,
    gtol: float | None = None,
    ftol: float = 0.0,
    xtol: float = 0.0,
    maxiter: int | None = 10_000,
    maxfun: int | None = None,
    maxtime: float | None = None,
    damping: float = 1e-3,
    acceleration: bool = True,
    batched: bool = False,
    compact: bool = False,
) -> LeastSquaresResult:
    """Minimise half the sum of the squares of residuals, for one problem or for many at once.

    By Levenberg and Marquardt's method; see `lbfgs_xp.fits.levenberg_marquardt`.

    Parameters
    ----------
    residuals : function
        residuals(x, *args) -> real array (m,); for a batch (B, m).
    x0 : array of any shape, float; or a nested dict, list, tuple or dataclass of them
        The start. Its library and device are those of the whole run.
    args : tuple
        Further arguments of residuals (and jac).
    jac : None, function, "2-point" or "3-point"
        None: automatic differentiation (PyTorch, JAX). A function: jac(x, *args) -> (m, p), for a
        batch (B, m, p), over all p numbers of x in the order of its leaves. "2-point", "3-point":
        finite differences, p or 2p more evaluations each.
    bounds : None or (lower, upper)
        Each side is None, a number, an array that broadcasts to x0, or of the structure of x0 with
        such leaves. Infinities are no bounds. A start outside is moved to the nearest point inside.
    loss : "linear", "soft_l1", "huber" or "cauchy"
        What a residual r costs: with z = (r / f_scale)^2, half f_scale^2 times z,
        2 (sqrt(1 + z) - 1), z up to 1 and 2 sqrt(z) - 1 from there, or log(1 + z).
    f_scale : float
        From what size on a residual is an outlier, in the unit of the residuals.
    gtol : float
        Stop where `optimality` of the result is at most this: the step that is left is then, for
        each parameter, at most gtol sqrt(m - p) of its standard error. Default: eps^0.6 of
        the dtype, 4e-10 for float64.
    ftol, xtol : float
        Stop where in two steps running the cost falls by at most ftol cost, or x, in the scale of
        its parameters, moves by at most xtol |x|. With 0, the default, a run goes on until the
        gradient is small or the dtype cannot tell a better point.
    maxiter, maxfun, maxtime : int, int, float in seconds; None for no limit
        Budgets; maxfun and maxtime for a batch as a whole (in `curve_fit` maxfun for each piece).
        maxfun counts every call, those of differences included; only the start may exceed it, which
        is evaluated in any case.
    damping : float
        The damping at the start, relative to the squared norms of the columns of the Jacobian.
        Larger: shorter first steps.
    acceleration : bool
        Whether steps follow the curvature of the residuals, for one more evaluation each, after a
        step that their slopes told badly. Along narrow curved valleys that saves most of the steps.
    batched : bool
        x0 is (B, ...) and residuals maps it to (B, m): B independent problems, each with its own
        damping and status.
    compact : bool
        For a batch: whether residuals and jac may be called with some of the rows alone, in place
        of all B, so that those that have ended cost nothing more. Of `args` they then get those
        rows of arrays with two or more axes whose first counts B.

    Returns
    -------
    LeastSquaresResult, or BatchLeastSquaresResult with batched=True

    Raises
    ------
    TypeError, ValueError
        for arguments outside these ranges: what was passed, what is wanted.
    Exception
        What residuals or jac raise goes through, with the best point so far attached as the
        attribute `result` of the exception.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def rosenbrock(x):
    ...     return np.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])
    >>> res = lx.least_squares(rosenbrock, np.asarray([-1.2, 1.0]), jac="3-point")
    >>> bool(np.allclose(res.x, 1.0)), res.success
    (True, True)
    """
    if not isinstance(args, tuple):
        args = (args,)
    layout = Layout(x0, batched)
    objective = Residuals(residuals, args, jac, layout, layout.backend.is_compiled(residuals))
    plan = FitPlan.checked(
        layout.backend, loss=loss, f_scale=f_scale, gtol=gtol, ftol=ftol, xtol=xtol,
        maxiter=maxiter, maxfun=maxfun, maxtime=maxtime, damping=damping,
        acceleration=acceleration, compact=compact,
    )
    return run_fit(objective, box_of(bounds, layout), plan)
