"""`least_squares`, and the checks of its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Unpack, overload

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import is_tracing
from lbfgs_xp.arrays.current import on_device_of
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.fits.blocks import Blocks, JacobianOfBlocks
from lbfgs_xp.fits.by_products import ByProducts
from lbfgs_xp.fits.implicit import found_of_fit
from lbfgs_xp.fits.keeping import described_fit, kept
from lbfgs_xp.fits.loop import box_of, run_fit
from lbfgs_xp.fits.progress import FitLine
from lbfgs_xp.fits.residuals import Residuals
from lbfgs_xp.fits.result import BatchLeastSquaresResult, FitRecord, LeastSquaresResult
from lbfgs_xp.fits.settings import FitPlan
from lbfgs_xp.fits.traced import refuse_settings, run_traced
from lbfgs_xp.run import implicit
from lbfgs_xp.run.objective import warn_of_foreign
from lbfgs_xp.saving.checkpoint import Checkpoint
from lbfgs_xp.typing import Differences, FitSolver, LeastSquaresSettings, LossName, OnError


@overload
def least_squares(
    residuals: Callable[..., Any], x0: Any, args: Any = (), *, batched: Literal[False] = False,
    **settings: Unpack[LeastSquaresSettings],
) -> LeastSquaresResult: ...


@overload
def least_squares(
    residuals: Callable[..., Any], x0: Any, args: Any = (), *, batched: Literal[True],
    **settings: Unpack[LeastSquaresSettings],
) -> BatchLeastSquaresResult: ...


@overload
def least_squares(
    residuals: Callable[..., Any], x0: Any, args: Any = (), *, batched: bool,
    **settings: Unpack[LeastSquaresSettings],
) -> LeastSquaresResult | BatchLeastSquaresResult: ...


@checks.reject_foreign_keywords(
    tol="gtol (for the gradient), ftol (for the cost) or xtol (for x)",
    fun="residuals",
    kwargs="args=, or residuals that hold them, such as functools.partial",
    method=f"{checks.NO_SUCH}: the method is Levenberg-Marquardt, within bounds, too",
)
@on_device_of("x0")
def least_squares(
    residuals: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    solver: FitSolver = "dense",
    weights: Any = None,
    pointwise: bool = False,
    jac: Callable[..., Any] | Differences | None = None,
    diff_step: float | None = None,
    bounds: Any = None,
    x_scale: Any = "jac",
    loss: LossName = "linear",
    f_scale: float = 1.0,
    gtol: float | None = None,
    ftol: float = 0.0,
    xtol: float = 0.0,
    maxiter: int | None = 10_000,
    maxfun: int | None = None,
    maxtime: float | None = None,
    factor: float = 0.3,
    batched: bool = False,
    compact: bool = False,
    on_error: OnError = (),
    callback: Callable[[FitRecord], Any] | None = None,
    differentiable: bool = False,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> LeastSquaresResult:
    """Minimise half the sum of squared residuals, for one problem or many at once.

    Uses the Levenberg-Marquardt method; see `lbfgs_xp.fits.levenberg_marquardt`. With many
    parameters, as in networks, it can do without the array of the Jacobian; see `solver`.

    Parameters
    ----------
    residuals : function
        residuals(x, *args) -> array (m,); for a batch (B, m). Complex residuals count as 2 m real
        ones, as `fun` of the result lists them: all real parts, then all imaginary ones. With
        `weights`, also a nested dict, list, tuple or dataclass of such arrays: blocks of
        residuals, (m_k,) each.
    x0 : float array of any shape; or a nested dict, list, tuple or dataclass of them
        The start. Its library and device are used throughout the run.
    args : tuple
        Further arguments of residuals and jac.
    solver : "dense", "dual" or "cg"
        How a step is found. "dense": from the Jacobian (m, p) as an array, by decompositions that
        keep all digits. "dual" and "cg" use products with the Jacobian J and its transpose, by
        automatic differentiation or from jac; for one problem without bounds. "dual": from Cholesky
        factors of J J^T (m, m), or of J^T J (p, p) if that is smaller, formed in blocks of rows;
        what lies in directions with singular values below eps^0.5 of the largest is lost in
        rounding. "cg": from conjugate gradients, in the memory of vectors.
        See `lbfgs_xp.fits.matrix_free`.
    weights : None, or numbers of at least 0
        A weight for each block of residuals, nested like what residuals returns, or one number for
        all: the factor of its squares in the cost. The result then has `costs`, and its `fun` and
        `jac` hold the blocks one after another, times the roots of their weights. residuals is
        called once more to find the blocks.
    pointwise : bool
        With solver="dual": whether each residual depends on args only through its own row of the
        arrays whose first axis is as long as its block, such as points and data. The rows of J then
        cost about as much as one gradient, instead of one for each; a few are checked at the start.
    jac : None, function, "2-point" or "3-point"
        None: automatic differentiation (PyTorch, JAX), elsewhere "2-point". A function:
        jac(x, *args) -> (m, p), for a batch (B, m, p), for all p numbers of x in the order of its
        leaves (those of a dict by sorted keys); for "dual" and "cg" also a sparse matrix, or an
        operator with matvec(v) -> J v and rmatvec(u) -> J^T u, as SciPy's LinearOperator.
        "2-point", "3-point": finite differences, with p or 2p further evaluations per Jacobian;
        "2-point" changes to "3-point" when its error may have ended a fit.
    diff_step : None or float
        The step of the finite differences, relative to each parameter (to 1 if it is 0), for
        residuals with more noise than rounding. None: measured, for each parameter.
    bounds : None or (lower, upper)
        Each side is None, a number, an array that broadcasts to x0, or such leaves in the structure
        of x0; infinite means no bound. A start outside is moved to the nearest point inside.
    x_scale : "jac", number, array, or the structure of x0
        The size of a typical change of each parameter, above 0: the trust region is a ball of the
        parameters x / x_scale, in which xtol and factor are measured. An array that broadcasts to
        x0, or nested like x0, where a dict may name only some (the others have 1); rounded to
        powers of 2. "jac": the inverse of the largest norm that each column of the Jacobian has
        had, so that units do not matter.
    loss : "linear", "soft_l1", "huber", "cauchy" or "arctan"
        The cost of a residual r. With z = (r / f_scale)^2, it is half f_scale^2 times: z;
        2 (sqrt(1 + z) - 1); z up to 1 and 2 sqrt(z) - 1 beyond; log(1 + z); or arctan(z).
    f_scale : float
        The size from which a residual counts as an outlier, in the unit of the residuals.
    gtol : float
        Stop when the linearised residuals could lose at most this share of their norm: the
        remaining step is then, for each parameter, at most gtol sqrt(m - p) of its standard error.
        Stop also when rounding hides all further progress and the `optimality` of the result is at
        most this. Default: eps^0.5 of the dtype, 1.5e-8 for float64.
    ftol, xtol : float
        Stop when, in two consecutive steps, the cost falls by at most ftol cost, or x, in the scale
        of its parameters, moves by at most xtol |x|. With 0, the default, a run continues until the
        gradient is small or the precision floor is reached.
    maxiter, maxfun, maxtime : int, int, float in seconds; None for no limit
        Budgets; maxfun and maxtime for a batch as a whole (in `curve_fit`, maxfun per piece).
        maxfun counts every call, including those for finite differences; only the start, which is
        always evaluated, may exceed it.
    factor : float
        The longest first step, relative to the size of x in the scale of its parameters or, for
        x = 0, to the size of the residuals (to 1 if x_scale is given). A start that is far off
        allows a longer step in the parameters in which the residuals are linear.
    batched : bool
        x0 is (B, ...) and residuals maps it to (B, m): B independent problems, each with its own
        trust region and status.
    compact : bool
        For a batch: whether residuals and jac may be called with only some of the rows instead of
        all B, so that rows that have ended cost nothing more. Arrays in `args` whose first axis has
        length B are then reduced to the same rows (not 1-d arrays if B is also the number of
        residuals or of parameters).
    on_error : class of exceptions, or tuple of them
        An exception of these classes, such as `numpy.linalg.LinAlgError`, counts as nan: the trial
        was too far, and a shorter step follows. At the start it is raised. Not for a batch.
    callback : function
        callback(record) after each accepted step, with an `lx.FitRecord`. Returning a true value or
        raising StopIteration stops the run.
    differentiable : bool
        As in `lx.minimize`: whether `x` and `cost` of the result are differentiable functions of
        args, and of what residuals holds. By the Hessian of the cost, not by J^T J. The other
        fields are constants. Inside `jax.jit` and `jax.vmap` nothing has to be passed.
    progress : bool
        Whether to show a live status line.
    checkpoint : None or Checkpoint
        Where the fit saves itself from time to time, `lx.Checkpoint("fit.npz")`. If there is such
        a file, the fit goes on from it, instead of x0.

    Returns
    -------
    LeastSquaresResult, or BatchLeastSquaresResult with batched=True

    Raises
    ------
    TypeError, ValueError
        For invalid arguments; the message says what was passed and what is wanted.
    Exception
        Exceptions of residuals or jac propagate, with the best point so far attached as the
        attribute `result`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def rosenbrock(x):
    ...     return np.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])
    >>> res = lx.least_squares(rosenbrock, np.asarray([-1.2, 1.0]))
    >>> bool(np.allclose(res.x, 1.0)), res.success
    (True, True)
    """
    batched, differentiable, progress = checks.flags(
        batched=batched, differentiable=differentiable, progress=progress
    )
    if not isinstance(args, tuple):
        args = (args,)
    settings = dict(
        solver=solver, weights=weights, pointwise=pointwise, diff_step=diff_step, bounds=bounds,
        x_scale=x_scale, loss=loss, f_scale=f_scale, gtol=gtol, ftol=ftol, xtol=xtol,
        maxiter=maxiter, maxfun=maxfun, maxtime=maxtime, factor=factor, batched=batched,
        compact=compact, on_error=on_error, callback=callback, progress=progress,
        checkpoint=checkpoint,
    )
    if not implicit.is_wanted(differentiable, x0):
        return _fit(residuals, x0, args, jac=jac, **settings)[0]

    def find(functions: dict[str, Any], x0: Any, args: tuple) -> implicit.Found:
        result, objective, box, plan = _fit(x0=x0, args=args, **functions, **settings)
        return found_of_fit(
            result, objective, box, plan.settings.loss, objective.fun, 1.0, "cost"
        )

    if solver != "dense" and not is_tracing((x0, args)):
        raise ValueError(
            f'solver is {solver!r}; wanted "dense" for a differentiable solution, whose units are '
            "the norms of the columns of the Jacobian"
        )

    functions = {"residuals": residuals, "jac": jac}
    return implicit.solved(find, functions, x0, args, bounds=bounds, x_scale=x_scale)


def _fit(
    residuals: Callable[..., Any], x0: Any, args: tuple, *, solver: Any, weights: Any,
    pointwise: Any, jac: Any, diff_step: Any, bounds: Any, batched: bool, progress: bool,
    checkpoint: Any, **settings: Any,
) -> tuple[LeastSquaresResult, Residuals, Any, FitPlan]:
    """The result of a fit, its residuals, its box and its plan."""
    inside = is_tracing((x0, args))
    if inside:
        refuse_settings(
            jac, solver, weights=weights, pointwise=pointwise, diff_step=diff_step,
            maxtime=settings["maxtime"], on_error=settings["on_error"],
            callback=settings["callback"], progress=progress, checkpoint=checkpoint,
        )
    layout = Layout(x0, batched, traced=inside)
    warn_of_foreign(layout.backend, args, 6)
    compiled, blocks = not inside and layout.backend.is_compiled(residuals), None
    pointwise = _checked_solver(solver, pointwise, batched, bounds)
    if weights is not None or pointwise:
        blocks = Blocks.of(residuals, layout, args, 1.0 if weights is None else weights)
        residuals, jac = blocks, JacobianOfBlocks(jac, blocks) if callable(jac) else jac
    if solver == "dense":
        objective = Residuals(residuals, args, jac, layout, compiled)
    else:
        lengths = blocks.lengths if blocks is not None and pointwise else None
        objective = ByProducts(residuals, args, jac, layout, compiled, lengths)
    objective.calls.nfev += int(blocks is not None)
    objective.differences.step = checks.optional(checks.number)("diff_step", diff_step, above=0.0)
    with layout.backend.at_once():
        plan = FitPlan.checked(layout, accuracy=objective.accuracy, **settings)
        box = box_of(bounds, layout)
    if inside:
        return run_traced(objective, box, plan), objective, box, plan

    def describe() -> dict[str, Any]:
        budgets = "maxiter", "maxfun", "maxtime", "callback", "on_error"
        return described_fit(
            "least_squares", layout, {"args": args},
            dict(
                solver=solver, weights=weights, pointwise=pointwise, bounds=bounds,
                jac="a function" if callable(jac) else jac, diff_step=diff_step, batched=batched,
                **{name: value for name, value in settings.items() if name not in budgets},
            ),
        )

    budgets = plan.settings.maxiter, plan.maxfun
    with (
        FitLine(progress, layout.batch[0] if batched else 1) as live,
        kept(checkpoint, describe, layout, "residuals", budgets) as saves,
    ):
        plan = plan._replace(live=live, solver=solver).kept_by(saves)
        result = run_fit(objective, box, plan)
    if weights is not None and blocks is not None:
        costs = blocks.costs(plan.settings.loss, Space(layout.backend, batched), result.fun)
        result = dataclasses.replace(result, costs=costs, _left_out=blocks.left_out)
    layout.keep_frozen(result.x)
    return result, objective, box, plan


def _checked_solver(solver: Any, pointwise: Any, batched: bool, bounds: Any) -> bool:
    """`pointwise`, if it can be used with this solver, and the solver for such a problem."""
    if solver not in ("dense", "dual", "cg"):
        raise ValueError(f'solver is {checks.shown(solver)}; wanted "dense", "dual" or "cg"')
    pointwise = checks.flag("pointwise", pointwise)
    if solver != "dense" and batched:
        raise ValueError(f'solver is {solver!r} with batched=True; wanted "dense" for a batch')
    if solver != "dense" and bounds is not None:
        raise ValueError(f'solver is {solver!r} with bounds; wanted "dense" for bounds')
    if pointwise and solver != "dual":
        raise ValueError(
            f'pointwise is True with solver={solver!r}; wanted solver="dual", which uses rows of '
            "the Jacobian"
        )
    return pointwise
