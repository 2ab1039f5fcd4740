"""Fits of a curve to data, with the uncertainties of its parameters."""

from __future__ import annotations

import contextvars
import dataclasses
import difflib
import itertools
import math
from collections.abc import Callable
from concurrent import futures
from typing import Any, NoReturn

import numpy as np
from array_api_compat import array_namespace

from lbfgs_xp import robust
from lbfgs_xp.backend import Array, Backend, described, is_array
from lbfgs_xp.checks import called_here, count
from lbfgs_xp.least_squares import LeastSquaresResult, Plan, bounds_of, plan, run
from lbfgs_xp.levenberg_marquardt import FEW
from lbfgs_xp.linear_algebra import eliminate, normal_matrix, outer_sum, safe_pivot, svd
from lbfgs_xp.minimize import minimize
from lbfgs_xp.residuals import Calls, Residuals
from lbfgs_xp.result import Status, table
from lbfgs_xp.space import Space
from lbfgs_xp.tree import Layout, map_leaves

METHODS = ("lm", "lbfgs")
# The least rows of a piece of a batch: below, the calls from Python cost more than the memory.
_LEAST = 256


@dataclasses.dataclass(frozen=True)
class CurveFit:
    """The outcome of `lx.curve_fit`.

    For a batch of B fits the numbers are arrays (B,) of the library of y, and `status` holds the
    integers of `lx.Status`.

    Attributes
    ----------
    x : of the structure of p0
        The parameters.
    covariance : array (p, p), or (B, p, p)
        Their covariance, over all p numbers in the order of the leaves of p0. Where the data do not
        determine all parameters, of those directions that they do determine; infinite where there
        are no more data than parameters and absolute_sigma is False.
    stderr : of the structure of p0
        Their standard deviations, the square roots of the diagonal of `covariance`; infinite for
        parameters that the data do not determine.
    chi2 : float, or array (B,)
        The sum of ((y - model) / sigma)^2, or of the losses in place of the squares.
    reduced_chi2 : float, or array (B,)
        chi2 / (m - p), for m data and p parameters that are not fixed; nan where m <= p.
    r2 : float, or array (B,)
        1 - sum of squares / sum of squares of the best constant: 1 for a perfect fit.
    residuals : array (m,), or (B, m)
        y - model, in the unit of y.
    nit : int, or array (B,)
        Steps taken.
    nfev, njev : int
        Calls of the model (those for differences included), and of its Jacobian; of a batch in
        pieces, those of the piece with the most.
    success, status, message
        Whether and why the fit ended; see `lx.Status`.
    """

    x: Any
    covariance: Any = dataclasses.field(repr=False)
    stderr: Any
    chi2: Any
    reduced_chi2: Any
    r2: Any
    residuals: Any = dataclasses.field(repr=False)
    nit: Any
    nfev: int
    njev: int
    success: Any
    status: Any
    message: Any

    def __repr__(self) -> str:
        return table(self)

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "the result of curve_fit is one object, not a pair that can be unpacked; wanted "
            "fit = lx.curve_fit(...), then fit.x and fit.covariance"
        )


@called_here(
    **dict.fromkeys(("maxfev", "max_nfev"), "maxfun"),
    full_output="no more: the result holds all",
)
def curve_fit(
    model: Callable,
    x: Any,
    y: Any,
    p0: Any,
    *,
    sigma: Any = None,
    absolute_sigma: bool = False,
    bounds: Any = None,
    loss: str = "linear",
    f_scale: float = 1.0,
    method: str = "lm",
    jac: Any = None,
    gtol: float | None = None,
    ftol: float = 0.0,
    xtol: float = 0.0,
    maxiter: int | None = 10_000,
    maxfun: int | None = None,
    maxtime: float | None = None,
    damping: float = 1e-3,
    acceleration: bool = True,
    batched: bool = False,
    compact: bool = True,
    threads: int = 1,
) -> CurveFit:
    """Fit the parameters of a model to data by least squares.

    Parameters
    ----------
    model : function
        model(x, *params) -> (m,), like y. With a dict as p0, model(x, **params).
    x : array, list, or whatever the model takes
        Handed to the model; lists and NumPy arrays as arrays of the library of y.
    y : array (m,), or (B, m) for a batch
        The data. Their library, device and dtype are those of the whole fit.
    p0 : numbers (p,), or a dict (nested or not) of numbers and arrays
        The start. For a batch (B, p), or leaves (B, ...); (p,) and plain numbers serve all rows.
    sigma : None, or an array
        Standard deviations of y, of a shape that broadcasts to it; or for one fit the covariance
        (m, m) of the data. An infinite one leaves its point out, be y there nan; its residual is
        then nan.
    absolute_sigma : bool
        Whether sigma is meant as it is. Otherwise it tells relative weights only, and the
        covariance is scaled by reduced_chi2.
    bounds : None or (lower, upper)
        Each side is None, a number, an array that broadcasts to p0, or of the structure of p0. A
        parameter whose bounds are equal is fixed: its covariances are 0. A start outside is moved
        to the nearest point inside.
    loss, f_scale
        As in `lx.least_squares`, for residuals (y - model) / sigma.
    method : "lm" or "lbfgs"
        Levenberg-Marquardt, or `lx.minimize` on half of chi2 (without bounds), to compare with.
    jac : None, function, "2-point" or "3-point"
        None: automatic differentiation (PyTorch, JAX). A function: jac(x, *params) of the
        arguments of the model -> (m, p), for a batch (B, m, p), in the order of the leaves of p0
        (of a dict: of its sorted keys). Or finite differences.
    gtol, ftol, xtol, maxiter, maxfun, maxtime, damping, acceleration
        As in `lx.least_squares`; for "lbfgs" the first six as in `lx.minimize`.
    batched : bool
        y is (B, m): B independent fits. Each parameter then arrives at the model with the shape
        (B, 1), so that it broadcasts against x of shape (m,) or (B, m); a leaf (B, k) as (B, 1, k).
    compact : bool
        For a batch: whether the model may be called with some of its rows alone, in place of all B:
        a piece at a time, and without those whose fit has ended. Of x (or the arrays in it) it then
        gets those rows where there are two or more axes and the first counts B. False for a model
        that holds other data of each row.
    threads : int
        How many pieces of a large batch to fit at a time, each in a thread of its own, from which
        it calls the model. Worth it for NumPy, which runs on one core. An interrupt from the
        keyboard then goes through.

    Returns
    -------
    CurveFit

    Raises
    ------
    TypeError, ValueError
        for arguments outside these ranges: what was passed, what is wanted.
    Exception
        What model or jac raise goes through, with the best point so far attached as the attribute
        `result` of the exception: a `LeastSquaresResult`, of a batch that of a piece (by "lbfgs",
        a `Result`).

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> x = np.linspace(0.0, 4.0, 20)
    >>> y = 3.0 * np.exp(-0.5 * x) + 0.01 * np.cos(40.0 * x)
    >>> fit = lx.curve_fit(lambda x, a, k: a * np.exp(-k * x), x, y, [1.0, 1.0], jac="3-point")
    >>> fit.x.round(2), bool(fit.stderr[0] < 0.01)
    (array([3. , 0.5]), True)
    """
    if not callable(model):
        raise TypeError(f"model is a {type(model).__name__}; wanted a function of x and parameters")
    if method not in METHODS:
        near = difflib.get_close_matches(str(method).lower(), METHODS, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method is {method!r}; wanted one of 'lm', 'lbfgs'{hint}")
    threads = count("threads", threads, 1)
    y = _data(y, batched)
    backend = Backend(y, "y")
    if isinstance(x, (list, np.ndarray)):
        x = backend.adopt(x, "x")
    layout = Layout(_start(p0, backend, y.shape[:1] if batched else None), batched)
    weights = _weights(sigma, y, backend, batched)
    if weights is not None and not _correlated(weights, y):
        y = backend.xp.where(weights > 0.0, y, backend.xp.zeros_like(y))
    curve = _Curve(model, batched, backend if isinstance(jac, str) else None)
    slopes = _Slopes(jac, batched) if callable(jac) else jac
    objective = Residuals(
        curve, (x, y, weights), slopes, layout, backend.is_compiled(model),
        fresh=callable(jac) and batched and weights is not None,
    )
    how = plan(
        backend, loss, f_scale, gtol, ftol, xtol, maxiter, maxfun, maxtime, damping, acceleration,
        compact and batched,
    )
    box = bounds_of(bounds, layout)
    if method == "lm":
        def fit(rows: Any, how: Plan) -> CurveFit:
            """The fits of these rows; None for all."""
            part, inside = objective, box
            if rows is not None:
                # Counted apart, for maxfun holds for each piece.
                part = objective.take(rows, Calls())
                inside = Space(backend).take(box, rows)
            return _report(run(part, inside, how), part, inside, how.settings, absolute_sigma)

        if not how.compact:
            return fit(None, how)
        pieces = _pieces(backend, y.shape[0], y.shape[-1] * layout.size, threads)
        if len(pieces) > 1:
            backend.keep_memory()
        return _joined(
            _mapped(fit, pieces, how, threads, backend), Space(backend), y.shape[0]
        )
    if bounds is not None:
        raise ValueError('bounds were passed, but "lbfgs" takes none; wanted method="lm"')
    settings = dict(
        gtol=gtol, ftol=ftol, xtol=xtol, maxiter=maxiter, maxfun=maxfun, maxtime=maxtime
    )
    found = _by_minimize(objective, how, settings)
    return _report(found, objective, None, how.settings, absolute_sigma)


def _pieces(backend: Backend, rows: int, numbers: int, threads: int) -> list[Any]:
    """The rows of a batch in pieces of one size, each with as much of the Jacobian, of so many
    numbers for each row, as stays near the processor. [None] where one piece holds all."""
    most = max(min(backend.near // numbers, -(-rows // threads)), _LEAST)
    if rows <= most:
        return [None]
    size = -(-rows // -(-rows // most))
    # The last begins earlier, to be as large as the others.
    return [np.arange(size) + min(start, rows - size) for start in range(0, rows, size)]


def _mapped(
    fit: Callable, pieces: list[Any], how: Plan, threads: int, backend: Backend
) -> list[CurveFit]:
    """The fits of the pieces, in threads that see the context of the caller."""
    if threads == 1 or len(pieces) == 1:
        fits = []
        for rows in pieces:
            fits.append(fit(rows, how))
            if Status.INTERRUPTED.message in fits[-1].message:
                how = how._replace(end=Status.INTERRUPTED)
        return fits

    def fit_there(rows: Any) -> CurveFit:
        with backend.at_home():
            return fit(rows, how)

    pool = futures.ThreadPoolExecutor(threads)
    try:
        tasks = [pool.submit(contextvars.copy_context().run, fit_there, rows) for rows in pieces]
        return [task.result() for task in tasks]
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(fits: list[CurveFit], space: Space, rows: int) -> CurveFit:
    """The fits of the pieces of a batch as one."""
    if len(fits) == 1:
        return fits[0]
    size = len(fits[0].message)
    # Rows of the last piece that are those of the one before.
    over = size * len(fits) - rows

    def joined(*parts: Array) -> Array:
        return space.xp.concat([*parts[:-1], parts[-1][over:, ...]], axis=0)

    together: dict[str, Any] = {}
    for field in dataclasses.fields(CurveFit):
        parts = [getattr(fit, field.name) for fit in fits]
        if field.name in ("nfev", "njev"):
            together[field.name] = max(parts)
        elif field.name == "message":
            together[field.name] = [*itertools.chain(*parts[:-1]), *parts[-1][over:]]
        else:
            together[field.name] = map_leaves(joined, *parts)
    return CurveFit(**together)


def _apply(weights: Any, residuals: Array) -> Array:
    """Residuals in units of sigma; with correlated data, those of uncorrelated combinations."""
    if weights is None:
        return residuals
    return weights @ residuals if _correlated(weights, residuals) else weights * residuals


def _correlated(weights: Array, residuals: Array) -> bool:
    return bool(weights.ndim == 2 and residuals.ndim == 1)


@dataclasses.dataclass(frozen=True)
class _Curve:
    """The residuals of a model, as a function of parameters and data.

    precise : of the data, where the model must have as many digits.
    """

    model: Callable
    batched: bool
    precise: Backend | None = None

    def __call__(self, params: Any, x: Any, y: Array, weights: Any) -> Array:
        positional, named = _arguments(params, self.batched)
        found = self.model(x, *positional, **named)
        if not is_array(found) or tuple(found.shape) != tuple(y.shape):
            raise ValueError(f"model returned {described(found)}; wanted {tuple(y.shape)}, like y")
        if self.precise is not None:
            self.precise.check_precision(found, "model")
        with np.errstate(all="ignore"):
            return _apply(weights, found - y)


@dataclasses.dataclass(frozen=True)
class _Slopes:
    """The Jacobian of those residuals, from that of the model."""

    jac: Callable
    batched: bool

    def __call__(self, params: Any, x: Any, y: Array, weights: Any) -> Array:
        positional, named = _arguments(params, self.batched)
        found = self.jac(x, *positional, **named)
        if weights is None or not is_array(found) or found.ndim != y.ndim + 1:
            return found  # a wrong shape is told of where it is checked
        if _correlated(weights, y):
            return weights @ found
        # Column after column, as they are wanted.
        transpose = array_namespace(found).matrix_transpose
        return transpose(weights[..., None, :] * transpose(found))


def _arguments(params: Any, batched: bool) -> tuple[list[Any], dict[str, Any]]:
    """The parameters as the model takes them: positional, and by name."""
    if is_array(params):
        each = range(params.shape[-1])
        return [params[:, i, None] if batched else params[i] for i in each], {}
    if batched:
        params = map_leaves(lambda leaf: leaf[:, None, ...], params)
    return ([], params) if isinstance(params, dict) else (list(params), {})


def _by_minimize(
    objective: Residuals, how: Plan, settings: dict[str, Any]
) -> LeastSquaresResult:
    """The fit by `minimize`."""
    layout, xp = objective.layout, objective.layout.xp
    loss, f_scale = how.settings.loss, how.settings.f_scale
    space = Space(layout.backend, batched=True)

    # The rows in the batch, as numbers of the host; of all rows the last x.
    here: tuple[Any, Any, Residuals] = None, None, objective
    latest = xp.reshape(layout.start(), (-1, layout.size))

    def evaluate(x: Array, rows: Any) -> tuple[Array, Array]:
        """The residuals and their Jacobian in those rows."""
        nonlocal here, latest
        if rows is not here[0]:
            numbers = layout.backend.to_host(rows)
            if len(numbers) == layout.batch[0]:
                here = rows, None, objective
            else:
                here = rows, numbers, objective.take(numbers) if how.compact else objective
        _, numbers, part = here
        if numbers is None or how.compact:
            residuals = part(x)
            found = residuals, part.jacobian(x, residuals)
        else:
            latest = space.put(numbers, x, latest)
            residuals = part(latest)
            found = space.take((residuals, part.jacobian(latest, residuals)), numbers)
        return found

    def fun(vector: Array, rows: Any = None) -> tuple[Any, Array]:
        residuals, jacobian = evaluate(xp.reshape(vector, (-1, layout.size)), rows)
        with np.errstate(all="ignore"):    # far away they may overflow
            squares, others = robust.weights(xp, loss, f_scale, residuals, layout.backend.eps)
            value = space.sum(robust.cost(xp, loss, f_scale, residuals))
            columns = xp.matrix_transpose(jacobian)
            gradient = space.products(columns, squares * others * residuals)
        return (value, gradient) if layout.batched else (value[0], gradient[0, ...])

    batched = layout.batched
    res = minimize(
        fun, layout.start(), method="lbfgs", jac=True, batched=batched, pass_rows=batched,
        **settings,
    )
    x = xp.reshape(res.x, (-1, layout.size))
    residuals = objective(x)
    jacobian = objective.jacobian(x, residuals)
    return LeastSquaresResult(
        x=layout.to_tree(res.x),
        cost=res.fun,
        fun=residuals if layout.batched else residuals[0, ...],
        jac=jacobian if layout.batched else jacobian[0, ...],
        optimality=res.gradient_norm,
        nit=res.nit,
        nfev=objective.calls.nfev,
        njev=objective.calls.njev,
        success=res.success,
        status=res.status,
        message=res.message,
    )


# --- the report --------------------------------------------------------------------------------


@np.errstate(all="ignore")
def _report(
    found: LeastSquaresResult, objective: Residuals, box: Any, settings: Any, absolute_sigma: bool
) -> CurveFit:
    layout, (_, y, weights) = objective.layout, objective.args
    loss, f_scale = settings.loss, settings.f_scale
    m, p = found.jac.shape[-2:]
    weighted, jacobian = found.fun, found.jac
    residuals = _unweighted(weights, -weighted, layout.backend)
    backend: Backend = layout.backend
    send: Callable = _same
    fixed = None if box is None else box[0] == box[1]
    if not layout.batched:
        # On the host, as is all the algebra of one problem that is small.
        send, fetch = backend.from_host, backend.to_host
        y, weighted, jacobian = fetch(y), fetch(weighted), fetch(jacobian)
        weights = None if weights is None else fetch(weights)
        fixed = None if fixed is None else fetch(fixed)
        backend = Backend(y)
    xp, space = backend.xp, Space(backend, batched=True)
    weighted, jacobian = xp.reshape(weighted, (-1, m)), xp.reshape(jacobian, (-1, m, p))
    jacobian = backend.jit(_seen, loss, f_scale, space)(weighted, jacobian, fixed)
    covariance, loose = _covariance(space, jacobian)
    of_fit = backend.jit(_statistics, loss, f_scale, absolute_sigma, space)
    covariance, stderr, chi2, reduced, r2 = of_fit(weighted, y, weights, fixed, covariance, loose)

    def public(numbers: Array) -> Any:
        return numbers if layout.batched else float(backend.to_host(numbers)[0])

    def of_one(array: Array) -> Array:
        return send(array if layout.batched else array[0, ...])

    return CurveFit(
        x=found.x,
        covariance=of_one(covariance),
        stderr=layout.to_tree(of_one(stderr)),
        chi2=public(chi2),
        reduced_chi2=public(reduced),
        r2=public(r2),
        residuals=residuals,
        nit=found.nit,
        nfev=found.nfev,
        njev=found.njev,
        success=found.success,
        status=found.status,
        message=found.message,
    )


def _same(array: Array) -> Array:
    return array


def _seen(
    loss: str, f_scale: float, space: Space, weighted: Array, jacobian: Array, fixed: Any
) -> Array:
    """The Jacobian (B, m, p) with the weights that the loss gives to the residuals, and zeros for
    parameters that are fixed."""
    xp = space.xp
    if loss != "linear":
        rows, _ = robust.weights(xp, loss, f_scale, weighted, space.backend.eps)
        jacobian = jacobian * rows[..., None]
    if fixed is not None:
        jacobian = xp.where(fixed[:, None, :], xp.zeros_like(jacobian), jacobian)
    return jacobian


def _statistics(
    loss: str, f_scale: float, absolute_sigma: bool, space: Space, weighted: Array, y: Array,
    weights: Any, fixed: Any, covariance: Array, loose: Array,
) -> tuple[Array, Array, Array, Array, Array]:
    """covariance, stderr, chi2, reduced_chi2 and r2 of residuals (B, m), from (J^T J)^-1."""
    xp, (m, p) = space.xp, (weighted.shape[-1], covariance.shape[-1])
    free = xp.full_like(weighted[:, 0], p)
    if fixed is not None:
        loose = loose & xp.logical_not(fixed)
        free = free - space.sum(xp.astype(fixed, free.dtype))
    chi2 = 2.0 * space.sum(robust.cost(xp, loss, f_scale, weighted))
    over = m - free
    reduced = xp.where(over > 0.0, chi2 / over, xp.full_like(chi2, math.nan))
    if not absolute_sigma:
        unknown = xp.full_like(covariance, math.inf)
        known = (over > 0.0)[:, None, None]
        covariance = xp.where(known, covariance * reduced[:, None, None], unknown)
    one = xp.eye(p, dtype=xp.bool, device=space.backend.placement)
    variances = xp.max(xp.where(one, covariance, xp.full_like(covariance, -math.inf)), axis=-1)
    stderr = xp.where(loose, xp.full_like(variances, math.inf), xp.sqrt(variances))

    # The best constant, in the same weights.
    unit = xp.reshape(xp.broadcast_to(_apply(weights, xp.ones_like(y)), y.shape), (-1, m))
    data = xp.reshape(_apply(weights, y), (-1, m))
    level = space.dot(unit, data) / space.dot(unit, unit)
    rest = data - level[:, None] * unit
    r2 = 1.0 - space.dot(weighted, weighted) / space.dot(rest, rest)
    return covariance, stderr, chi2, reduced, r2


def _covariance(space: Space, jacobian: Array) -> tuple[Array, Array]:
    """(J^T J)^-1, or where that is singular the pseudo-inverse; and which parameters are loose."""
    if jacobian.shape[-1] > FEW:
        return _pseudo_inverse(space, jacobian)
    covariance, loose, sound = space.backend.jit(_inverse, space)(jacobian)
    rest = np.flatnonzero(~space.backend.to_host(sound))
    if rest.size == 0:
        return covariance, loose
    exact = _pseudo_inverse(space, space.take(jacobian, rest))
    return space.put(rest, exact, (covariance, loose))


def _inverse(space: Space, jacobian: Array) -> tuple[Array, Array, Array]:
    """(J^T J)^-1 by elimination, no loose parameters, and where this keeps enough digits."""
    xp, p = space.xp, jacobian.shape[-1]
    gram, norms, kept = normal_matrix(space, xp.matrix_transpose(jacobian))
    one = xp.eye(p, dtype=gram.dtype, device=space.backend.placement)
    rows, least = eliminate(space, xp.concat([gram, xp.broadcast_to(one, gram.shape)], axis=-1))
    covariance = outer_sum(space, rows[..., p:] / norms[:, None, :])
    sound = (least > safe_pivot(space)) & xp.all(kept, axis=-1)
    return covariance, xp.zeros_like(kept), sound


def _pseudo_inverse(space: Space, jacobian: Array) -> tuple[Array, Array]:
    """`_covariance` by singular values, in the scale of the columns, so that the units of the
    parameters do not matter."""
    xp, eps = space.xp, space.backend.eps
    finite = xp.all(xp.isfinite(jacobian), axis=(-2, -1))
    jacobian = xp.where(finite[:, None, None], jacobian, xp.zeros_like(jacobian))
    columns = xp.matrix_transpose(jacobian)
    norms = xp.sqrt(space.dot(columns, columns))
    norms = xp.where(norms > 0.0, norms, xp.ones_like(norms))
    values, rows = svd(space, jacobian / norms[:, None, :])
    kept = values > max(jacobian.shape[-2:]) * eps * values[:, :1]
    values = xp.where(kept, values, xp.ones_like(values))
    rows = xp.where(kept[..., None], rows, xp.zeros_like(rows))
    squares = xp.matrix_transpose(rows * rows)
    loose = 1.0 - space.sum(squares) > math.sqrt(eps)
    covariance = outer_sum(space, rows / values[..., None] / norms[:, None, :])
    return covariance, loose


# --- the arguments -----------------------------------------------------------------------------


def _data(y: Any, batched: bool) -> Array:
    if not is_array(y):
        y = np.asarray(y)
    if isinstance(y, np.ndarray) and y.dtype.kind in "iu":
        y = y.astype(np.float64)
    shape = tuple(y.shape)
    if len(shape) != 1 + batched or 0 in shape:
        hint = "; batched=True takes (B, m)" if len(shape) == 2 and not batched else ""
        wanted = "(B, m)" if batched else "(m,)"
        raise ValueError(f"y has shape {shape}; wanted {wanted}, not empty{hint}")
    if Backend(y, "y").complex:
        raise TypeError(f"y has dtype {y.dtype}; wanted real numbers")
    return y


def _start(p0: Any, backend: Backend, batch: tuple[int, ...] | None) -> Any:
    """p0 with arrays of the backend as leaves, one row for each problem."""

    def adopt(leaf: Any, least: int) -> Array:
        leaf = backend.adopt(leaf, "p0")
        if batch is None:
            return leaf
        if leaf.ndim < least:
            leaf = backend.xp.broadcast_to(leaf, (*batch, *leaf.shape))
        if tuple(leaf.shape[:1]) != tuple(batch):
            raise ValueError(
                f"p0 has an array of shape {tuple(leaf.shape)}; wanted the first axis {batch[0]}, "
                "like y"
            )
        return leaf

    if isinstance(p0, dict):
        return map_leaves(lambda leaf: adopt(leaf, 1), p0)
    if isinstance(p0, (list, tuple)) and any(is_array(leaf) and leaf.ndim > 0 for leaf in p0):
        return tuple(adopt(leaf, 1) for leaf in p0)
    leaf = adopt(p0, 2)
    if 0 in leaf.shape:
        raise ValueError(f"p0 has shape {tuple(leaf.shape)}; wanted at least one number")
    if leaf.ndim != (1 if batch is None else 2):
        wanted = "(p,)" if batch is None else "(p,) or (B, p)"
        raise ValueError(f"p0 has shape {tuple(leaf.shape)}; wanted numbers {wanted}, or a dict")
    return leaf


def _weights(sigma: Any, y: Array, backend: Backend, batched: bool) -> Any:
    """1 / sigma, broadcast to y; of a covariance (m, m) the inverse Cholesky factor; or None."""
    if sigma is None:
        return None
    sigma = backend.adopt(sigma, "sigma")
    xp, shape = backend.xp, tuple(y.shape)
    if not batched and tuple(sigma.shape) == (*shape, *shape):
        host = backend.to_host(sigma).astype(np.float64)
        if not np.allclose(host, host.T, rtol=1e-6, atol=0.0):
            raise ValueError(
                "sigma is a matrix that is not symmetric; wanted the covariance of the data"
            )
        try:
            factor = np.linalg.cholesky(host)
        except np.linalg.LinAlgError:
            raise ValueError(
                "sigma is a matrix that is not positive definite; wanted the covariance of the data"
            ) from None
        return backend.from_host(np.linalg.inv(factor))
    try:
        sigma = xp.broadcast_to(sigma, shape)
    except (ValueError, RuntimeError):
        wanted = f"one that broadcasts to {shape}, like y"
        if not batched:
            wanted += f", or the covariance {(*shape, *shape)}"
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; wanted {wanted}") from None
    if not np.all(backend.to_host(sigma) > 0.0):
        raise ValueError("sigma has entries that are not above 0; wanted standard deviations")
    with np.errstate(all="ignore"):
        weights = 1.0 / sigma
    if not np.all(np.isfinite(backend.to_host(weights))):
        raise ValueError(f"sigma has entries too small for {backend.dtype}: 1 / sigma overflows")
    return weights


def _unweighted(weights: Any, residuals: Array, backend: Backend) -> Array:
    if weights is None:
        return residuals
    if _correlated(weights, residuals):
        return backend.linalg("solve")(weights, residuals)
    return residuals / weights
