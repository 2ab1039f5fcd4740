"""`curve_fit`, and the checks of its arguments."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, Unpack, overload

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import is_array, is_tracing
from lbfgs_xp.arrays.current import on_device_of
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import flatten
from lbfgs_xp.fits.answers import Answers
from lbfgs_xp.fits.answers_of_chunks import ChunkAnswers
from lbfgs_xp.fits.by_minimize import fit_by_minimize
from lbfgs_xp.fits.chunks import Chunks, report_of_chunks, source_of
from lbfgs_xp.fits.complex_data import is_complex
from lbfgs_xp.fits.curve_result import BatchCurveFit, CurveFit
from lbfgs_xp.fits.data import residuals_of
from lbfgs_xp.fits.implicit import FromData, found_of_fit, refuse_masks
from lbfgs_xp.fits.keeping import KeptFits, described_fit, kept
from lbfgs_xp.fits.likelihoods import check_name
from lbfgs_xp.fits.loop import box_of, run_fit
from lbfgs_xp.fits.pieces import fit_pieces
from lbfgs_xp.fits.progress import FitLine
from lbfgs_xp.fits.report import report
from lbfgs_xp.fits.residuals import Calls, Residuals
from lbfgs_xp.fits.result import FitRecord
from lbfgs_xp.fits.settings import FitPlan
from lbfgs_xp.fits.starts import Starts, fit_starts, starts_of
from lbfgs_xp.fits.traced import keep_report, refuse_settings, run_traced
from lbfgs_xp.run import implicit
from lbfgs_xp.saving.checkpoint import Checkpoint
from lbfgs_xp.typing import CurveFitSettings, Differences, Likelihood, LossName, OnError

METHODS = ("lm", "lbfgs")


@overload
def curve_fit(
    model: Callable[..., Any], x: Any, y: Any, p0: Any, *, batched: Literal[False] = False,
    **settings: Unpack[CurveFitSettings],
) -> CurveFit: ...


@overload
def curve_fit(
    model: Callable[..., Any], x: Any, y: Any, p0: Any, *, batched: Literal[True],
    **settings: Unpack[CurveFitSettings],
) -> BatchCurveFit: ...


@overload
def curve_fit(
    model: Callable[..., Any], x: Any, y: Any, p0: Any, *, batched: bool,
    **settings: Unpack[CurveFitSettings],
) -> CurveFit | BatchCurveFit: ...


@checks.reject_foreign_keywords(
    tol="gtol (for the gradient), ftol (for the cost) or xtol (for x)",
    f="model",
    xdata="x",
    ydata="y",
    full_output=f"{checks.NO_SUCH}: the result is always complete",
    **dict.fromkeys(("args", "kwargs"), "a model that holds them, such as functools.partial"),
    **dict.fromkeys(
        ("check_finite", "nan_policy"),
        f"{checks.NO_SUCH}: data that are not finite are left out by an infinite sigma",
    ),
)
@on_device_of("y")
def curve_fit(
    model: Callable[..., Any],
    x: Any,
    y: Any,
    p0: Any,
    *,
    sigma: Any = None,
    absolute_sigma: bool = False,
    bounds: Any = None,
    fixed: Any = None,
    ties: dict[Any, Callable[[Any], Any]] | None = None,
    starts: Any = None,
    priors: Any = None,
    likelihood: Likelihood = "gaussian",
    trials: Any = None,
    x_scale: Any = "jac",
    loss: LossName = "linear",
    f_scale: float = 1.0,
    method: Literal["lm", "lbfgs"] = "lm",
    jac: Callable[..., Any] | Differences | None = None,
    diff_step: float | None = None,
    gtol: float | None = None,
    ftol: float = 0.0,
    xtol: float = 0.0,
    maxiter: int | None = 10_000,
    maxfun: int | None = None,
    maxtime: float | None = None,
    factor: float = 0.3,
    batched: bool = False,
    compact: bool = True,
    on_error: OnError = (),
    threads: int = 1,
    differentiable: bool = False,
    chunk_size: int | None = None,
    callback: Callable[[FitRecord], Any] | None = None,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
) -> CurveFit:
    """Fit the parameters of a model to data by least squares.

    Parameters
    ----------
    model : function
        model(x, *params) -> (m,), like y. If p0 is a dict, model(x, **params).
    x : array, list, or whatever the model takes
        Passed to the model; lists, NumPy arrays and columns of data frames are first converted to
        the library of y, and must hold numbers (of dates, the days since the first one). In a dict
        or a tuple, what holds no numbers reaches the model as it is. For a batch, an array (B, ...)
        holds data of each row, unless the model shows at the start that all rows need all of it:
        coordinates (k, m) beside k rows.
    y : array (m,), or (B, m) for a batch
        The data. Their library, device and dtype are used throughout the fit. Points that are
        masked in a masked array (y, x or sigma) are left out, as by an infinite sigma. Complex
        data, as of an impedance, are fitted by a complex model with real parameters: both parts of
        each count as data.
    p0 : one number, numbers (p,), or a dict (nested or not) of numbers and arrays
        The start. For a batch (B, p), or leaves (B, ...); (p,) and plain numbers apply to all rows.
    sigma : None, an array, or a pair of arrays
        Standard deviations of y, with a shape that broadcasts to it; a tuple (low, high) of them,
        for predictions below and above y, as in y -low +high; or, for a single fit, the covariance
        (m, m) of the data. An infinite entry leaves its point out, even if y is nan there; the
        residual of that point is nan. For complex data: real deviations of both parts alike,
        complex ones with a part for each, or a covariance (2 m, 2 m) of all real parts followed by
        all imaginary ones.
    absolute_sigma : bool
        Whether sigma is in absolute units. If not, sigma only gives relative weights, and the
        covariance is scaled by reduced_chi2.
    bounds : None or (lower, upper)
        Each side is None, a number, an array that broadcasts to p0, or has the structure of p0,
        where a dict may name only some parameters. A parameter whose bounds are equal is fixed. A
        start outside is moved to the nearest point inside.
    fixed : None, or a tuple of names or positions
        Parameters that keep their values in p0, of which in a batch each row may have its own. The
        names are those of `lx.CurveFit.names`: "k", "peak.width", "heights[0]", also "peak" for all
        that is inside, and the names of the model's arguments if p0 has none. Their covariances are
        0.
    ties : None, or a dict
        Parameters that are functions of the others, by name or position: {"b": f} sets b = f(p),
        where p is like the `x` of the result (a tuple of numbers if p0 is a plain list or array),
        in a batch with all its rows. Ties are computed in their order; those that follow are None
        in p, or nan in an array with other numbers. What p0 holds for a tied parameter is not used.
        The result has its value and its error, from the derivative of f: automatic, or with NumPy
        by differences.
    starts : None, an array (S, p), a dict, or a sampler
        Further starts beside p0: all are fitted as one batch, the fit goes on from the one that has
        led to the lowest cost, and `starts` of the result tells of the others. An array has the
        parameters in the order of p0, for a batch also (B, S, p); a dict has leaves (S, ...); and a
        sampler, such as scipy.stats.qmc.Sobol(p), or a pair (sampler, S), gives points within the
        bounds of the free parameters, which must be finite; without S, at least 8 p.
    priors : None, a dict, or a function
        What is known of parameters besides the data. {"k": (mean, sd)} for normal priors, by name
        or position; in a batch, one mean for all or one for each row. {("a", "k"): (means,
        covariance)} for correlated ones. Or a function of the parameters (as for ties) that returns
        residuals (k,), for a batch (B, k), half the sum of whose squares is the negative logarithm
        of the prior. Priors need absolute_sigma=True, or a likelihood that is not "gaussian", and
        are not subject to `loss`. The covariance of the result contains them. One of parameters
        alone that are fixed, also by equal bounds, is an error: it would count as a datum.
    likelihood : "gaussian", "poisson", "binomial", or a function
        How the data scatter around the model. "poisson": y counts events, whose mean is the model;
        "binomial": y counts successes among `trials`, whose probability is the model. Both are
        exact for few counts and for none, and take no sigma; a trial with a mean below 0, or with a
        probability outside 0 to 1, counts as too far. A function nll(y, prediction) returns an
        array like y, the negative log likelihood of each datum, which should have one minimum as a
        function of the prediction. Errors come from the expected information, for a function from
        the observed one.
    trials : None (for 1), a number or an array that broadcasts to y
        For likelihood="binomial".
    x_scale
        As in `lx.least_squares`; for "lbfgs" as in `lx.minimize`, and "jac" is 1.
    loss, f_scale
        As in `lx.least_squares`, for residuals (y - model) / sigma.
    method : "lm" or "lbfgs"
        Levenberg-Marquardt; or, for comparison, `lx.minimize` on half of chi2.
    jac : None, function, "2-point" or "3-point"
        None: automatic differentiation (PyTorch, JAX), elsewhere "2-point". A function with the
        arguments of the model: jac(x, *params) -> (m, p), for a batch (B, m, p), like y and in the
        order in which p0 lists the parameters. "2-point" or "3-point": finite differences.
    diff_step, gtol, ftol, xtol, maxiter, maxfun, maxtime, factor
        As in `lx.least_squares`; for "lbfgs" gtol to maxtime as in `lx.minimize`.
    batched : bool
        y is (B, m): B independent fits. Each parameter is then passed to the model with shape
        (B, 1), so that it broadcasts against x of shape (m,) or (B, m); a leaf (B, k) as (B, 1, k).
    compact : bool
        For a batch: whether the model may be called with only some of the rows instead of all B:
        one piece at a time, and without rows whose fit has ended. Arrays in x whose first axis has
        length B are then reduced to the same rows (not 1-d arrays if B is also the number of data
        or of parameters). Use False for a model that holds other data for each row.
    on_error
        As in `lx.least_squares`, for exceptions of the model and of jac.
    threads : int
        How many pieces of a large batch to fit at a time, each in its own thread, from which the
        model is called. Useful for NumPy, which runs on one core. A keyboard interrupt then
        propagates to the caller.
    differentiable : bool
        As in `lx.least_squares`: whether `x` and `chi2` of the result are differentiable functions
        of x, y and sigma (in PyTorch, also of what the model holds).
    chunk_size : None or int
        Fit one set of data in chunks of this many points, of which only sums are kept: neither a
        Jacobian nor residuals of all data are ever in memory. The result has no `residuals`, and
        refuses what needs the data side by side (`bootstrap`, `plot`, `jacobian`).
        Of x, arrays whose last axis is as long as y are cut; arrays may be mapped to files. None:
        in chunks if the Jacobian would have more than 2^24 numbers (2^28 on a GPU). Or x is a
        function, and y is None: x() returns a new iterator over chunks (x, y) or (x, y, sigma),
        the same ones in each call. For normal errors, without priors.
    callback : function
        callback(record) after each accepted step, with an `lx.FitRecord`, as in `lx.least_squares`.
        A batch is then fitted as a whole, not in pieces or threads. For "lbfgs" as in
        `lx.minimize`.
    progress : bool
        Whether to show a live status line.
    checkpoint : None or Checkpoint
        Where the fit saves itself from time to time, `lx.Checkpoint("fit.npz")`: between the pieces
        of a batch and, unless they are fitted in threads, between the trials in each. If there is
        such a file, the fit goes on from it, instead of p0. Fits from several `starts` are saved
        once all of them have ended.

    Returns
    -------
    CurveFit, or BatchCurveFit with batched=True

    Raises
    ------
    TypeError, ValueError
        For invalid arguments; the message says what was passed and what is wanted.
    Exception
        Exceptions of model or jac propagate, with the best point so far attached as the attribute
        `result`: a `LeastSquaresResult`, for a batch that of one piece (with "lbfgs", a `Result`).

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> x = np.linspace(0.0, 4.0, 20)
    >>> y = 3.0 * np.exp(-0.5 * x) + 0.01 * np.cos(40.0 * x)
    >>> fit = lx.curve_fit(lambda x, a, k: a * np.exp(-k * x), x, y, [1.0, 1.0])
    >>> fit.x.round(2), bool(fit.stderr[0] < 0.01)
    (array([3. , 0.5]), True)
    """
    absolute_sigma, batched, compact, differentiable, progress = checks.flags(
        absolute_sigma=absolute_sigma, batched=batched, compact=compact,
        differentiable=differentiable, progress=progress,
    )
    settings = dict(
        absolute_sigma=absolute_sigma, bounds=bounds, x_scale=x_scale, loss=loss, f_scale=f_scale,
        method=method, jac=jac, diff_step=diff_step, gtol=gtol, ftol=ftol, xtol=xtol,
        maxiter=maxiter, maxfun=maxfun, maxtime=maxtime, factor=factor, batched=batched,
        compact=compact, on_error=on_error, threads=threads, fixed=fixed, ties=ties, starts=starts,
        priors=priors, likelihood=likelihood, trials=trials, chunk_size=chunk_size,
        callback=callback, progress=progress, checkpoint=checkpoint,
    )
    if is_tracing((x, y, sigma, p0)):
        refuse_settings(
            jac, method=None if method == "lm" else method, diff_step=diff_step, maxtime=maxtime,
            on_error=on_error, fixed=fixed, ties=ties, starts=starts, priors=priors,
            likelihood=None if likelihood == "gaussian" else likelihood, trials=trials,
            chunk_size=chunk_size, callback=callback, progress=progress, checkpoint=checkpoint,
            threads=None if threads == 1 else threads,
        )
    if not implicit.is_wanted(differentiable, y):
        return _fit(model, x, y, sigma, p0, **settings)[0]
    refuse_masks(x, y, sigma)
    if is_complex(y):
        raise TypeError(
            "y is complex; wanted real data for a fit that is differentiated, such as an array of "
            "both parts"
        )
    _refuse_indifferentiable(
        fixed=fixed, ties=ties, priors=priors, chunk_size=chunk_size,
        likelihood=None if likelihood == "gaussian" else likelihood,
    )

    def find(functions: dict[str, Any], p0: Any, data: tuple) -> implicit.Found:
        x, y, sigma = data
        result, objective, box, plan = _fit(model, x, y, sigma, p0, **settings)
        curve: Any = objective.fun
        residuals = FromData(curve)
        return found_of_fit(result, objective, box, plan.settings.loss, residuals, 2.0, "chi2")

    return implicit.solved(
        find, {}, p0, (x, y, sigma), like=y, bounds=bounds, x_scale=x_scale
    )


def _fit(
    model: Callable[..., Any], x: Any, y: Any, sigma: Any, p0: Any, *, absolute_sigma: bool,
    bounds: Any, x_scale: Any, loss: Any, f_scale: float, method: str, jac: Any, diff_step: Any,
    gtol: Any, ftol: float, xtol: float, maxiter: Any, maxfun: Any, maxtime: Any, factor: float,
    batched: bool, compact: bool, on_error: Any, threads: int, fixed: Any, ties: Any, starts: Any,
    priors: Any, likelihood: Any, trials: Any, chunk_size: Any, callback: Any, progress: bool,
    checkpoint: Any,
) -> tuple[CurveFit, Any, Any, FitPlan]:
    """The result of a fit, its residuals, its box and its plan."""
    _check_method(method)
    traced = is_tracing((x, y, sigma, p0))
    threads = checks.count("threads", threads, 1)
    check_name(likelihood, sigma, trials, loss)
    data = functools.partial(
        residuals_of, model, p0=p0, jac=jac, batched=batched, compact=compact and not traced,
        fixed=fixed, ties=ties, likelihood=likelihood, trials=trials, priors=priors, traced=traced,
    )
    normal = loss == "linear" and likelihood == "gaussian" and priors is starts is None
    source = None if traced else source_of(
        x, y, sigma, lambda: _size(p0), chunk_size, method == "lm" and normal and not batched
    )
    objective: Any = (
        data(x=x, y=y, sigma=sigma) if source is None
        else Chunks(source, lambda x, y, sigma: data(x=x, y=y, sigma=sigma))
    )
    if objective.priors and likelihood == "gaussian" and not absolute_sigma:
        raise ValueError(
            "priors were passed with absolute_sigma=False; wanted sigma in the unit of y and "
            "absolute_sigma=True, because priors count relative to the errors of the data"
        )
    objective.differences.step = checks.optional(checks.number)("diff_step", diff_step, above=0.0)
    limits = dict(gtol=gtol, ftol=ftol, xtol=xtol, maxiter=maxiter, maxfun=maxfun, maxtime=maxtime)
    with objective.layout.backend.at_once():
        plan = FitPlan.checked(
            objective.layout, x_scale=x_scale, loss=loss, f_scale=f_scale, factor=factor,
            accuracy=objective.accuracy,
            compact=compact and batched, on_error=on_error, callback=callback, **limits,
        )
        box = box_of(bounds, objective.layout)
        if objective.priors:
            plan = plan.with_priors(objective.priors.count)
            objective.priors.check_box(objective.layout, box)
    if traced:
        found = run_traced(objective, box, plan)
        result = report(found, objective, box, plan.settings, absolute_sigma, False)
        keep_report(objective.backend, type(result))
        return result, objective, box, plan
    if source is not None and starts is not None:
        raise ValueError("starts were passed for data in chunks; wanted one start, p0")
    if method == "lbfgs":
        if starts is not None:
            raise ValueError("starts were passed with method='lbfgs'; wanted method='lm'")
        if checkpoint is not None:
            raise ValueError("checkpoint was passed with method='lbfgs'; wanted method='lm'")
        sides = None if bounds is None else objective.layout.sides(bounds)
        found = fit_by_minimize(
            objective, box, plan,
            {**limits, "bounds": sides, "callback": callback, "progress": progress},
        )
        result = report(found, objective, box, plan.settings, absolute_sigma, compact and batched)
        return result, objective, box, plan

    def describe() -> dict[str, Any]:
        named = (x, y, sigma) if source is not None else objective.args
        return described_fit(
            "curve_fit", objective.layout,
            {**dict(zip(("x", "y", "sigma"), named, strict=True)), "trials": trials},
            dict(
                likelihood=likelihood, sigma_is_absolute=absolute_sigma, bounds=bounds, fixed=fixed,
                ties=ties, priors=priors, starts=starts, x_scale=x_scale, loss=loss,
                f_scale=f_scale, jac="a function" if callable(jac) else jac, diff_step=diff_step,
                gtol=gtol, ftol=ftol, xtol=xtol, factor=factor, batched=batched, compact=compact,
                chunk_size=chunk_size,
            ),
        )

    def fit(rows: Any, plan: FitPlan) -> CurveFit:
        """Fit these rows; None for all."""
        part, inside = objective, box
        if rows is not None:
            # Counted separately, because maxfun applies to each piece.
            part = objective.take(rows, Calls())
            inside, scale = Space(objective.backend).take((box, plan.scale), rows)
            plan = plan._replace(scale=scale)
        found = run_fit(part, inside, plan)
        live.count(part.layout.batch[0] if batched else 1)
        return report(found, part, inside, plan.settings, absolute_sigma, plan.compact)

    budgets = plan.settings.maxiter, plan.maxfun
    with (
        FitLine(progress, objective.layout.batch[0] if batched else 1) as live,
        kept(checkpoint, describe, objective.layout, "the model", budgets) as saves,
    ):
        if source is not None:
            found = run_fit(objective, box, plan.kept_by(saves))
            answers = ChunkAnswers(objective, box, plan.settings, False)
            result = report_of_chunks(found, objective, box, plan.settings, absolute_sigma)
            result = dataclasses.replace(result, _analysis=answers)
            return result, objective, box, plan
        others, calls = None, 0
        if starts is not None:
            others, best, calls = _best_of(starts, objective, box, plan, saves)
            objective.layout = objective.layout.starting_at(best)
        plan = plan._replace(live=live)
        in_pieces = plan.compact and callback is None
        fits = fit_pieces(fit, objective, plan, threads, saves) if in_pieces else (
            fit(None, plan.kept_by(saves))
        )
    if in_pieces or others is not None:
        # Of all rows, because each piece knows only its own.
        analysis, nfev = Answers(objective, box, plan.settings, plan.compact), fits.nfev + calls
        fits = dataclasses.replace(fits, nfev=nfev, starts=others, _analysis=analysis)
    return fits, objective, box, plan


def _best_of(
    starts: Any, objective: Residuals, box: Any, plan: FitPlan, saves: KeptFits | None
) -> tuple[Starts, Any, int]:
    """What `fit_starts` returns, or has returned in a run that goes on."""
    if saves is not None and saves.starts is not None:
        return saves.starts
    every = starts_of(starts, objective.layout, box)
    found = fit_starts(Answers(objective, box, plan.settings, plan.compact), every, plan)
    if saves is not None:
        saves.note_starts(*found)
        saves.visit()
    return found


def _refuse_indifferentiable(**settings: Any) -> None:
    """Refuse settings for which fitted parameters are not differentiated."""
    for name, value in settings.items():
        if value is not None:
            raise ValueError(
                f"{name} is {checks.shown(value)} for a fit that is differentiated; wanted it "
                "unset there"
            )


def _size(p0: Any) -> int:
    """About how many parameters there are."""
    leaves = flatten(p0)[0]
    return sum(math.prod(leaf.shape) if is_array(leaf) else np.size(leaf) for leaf in leaves)


def _check_method(method: Any) -> None:
    if method not in METHODS:
        near = difflib.get_close_matches(str(method).lower(), METHODS, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method is {method!r}; wanted one of 'lm', 'lbfgs'{hint}")
