"""`least_squares` and `curve_fit` with the arguments and results of SciPy's functions."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.returned import described
from lbfgs_xp.fits import curve_fit as curves
from lbfgs_xp.fits import least_squares as squares
from lbfgs_xp.fits.losses import LOSSES
from lbfgs_xp.fits.result import FitRecord, LeastSquaresResult
from lbfgs_xp.result import Status
from lbfgs_xp.scipy.evaluate import are_bounds, complex_steps, limits, positive, takes_result
from lbfgs_xp.typing import LossName

_INFINITE = (-math.inf, math.inf)
# Our status -> SciPy's code and message; all others get -1 and the message of `lx.least_squares`.
_ENDS = {
    Status.GRADIENT: (1, "`gtol` termination condition is satisfied."),
    Status.VALUE: (2, "`ftol` termination condition is satisfied."),
    Status.PRECISION: (2, "`ftol` termination condition is satisfied."),
    Status.STEP: (3, "`xtol` termination condition is satisfied."),
    Status.EVALUATIONS: (0, "The maximum number of function evaluations is exceeded."),
    Status.CALLBACK: (
        -2, "Stopped because `callback` function raised `StopIteration` or returned `True`"
    ),
}


def least_squares(
    fun: Callable[..., Any], x0: Any, jac: Any = "2-point", bounds: Any = _INFINITE,
    method: str = "trf", ftol: float | None = 1e-8, xtol: float | None = 1e-8,
    gtol: float | None = 1e-8, x_scale: Any = None, loss: LossName = "linear", f_scale: float = 1.0,
    diff_step: float | None = None, tr_solver: Any = None, tr_options: Any = None,
    jac_sparsity: Any = None, max_nfev: int | None = None, verbose: int = 0, args: Any = (),
    kwargs: dict[str, Any] | None = None, callback: Any = None, workers: Any = None,
) -> Any:
    """`lx.least_squares` with the arguments and results of `scipy.optimize.least_squares`.

    Parameters
    ----------
    fun, x0, jac, args, kwargs
        As in SciPy; jac may be "2-point", "3-point", "cs" or a function that returns an array, a
        sparse matrix or a `LinearOperator`, which are made dense.
    bounds : (lower, upper) or scipy.optimize.Bounds
        Equal bounds fix a parameter.
    method : "trf", "dogbox" or "lm"
        All of them are the method of `lx.least_squares`, Levenberg-Marquardt, also within bounds;
        "lm" takes neither bounds nor another loss, as in SciPy.
    ftol, xtol : float or None
        As in `lx.least_squares`: in two consecutive steps.
    gtol : float or None
        As in `lx.least_squares`: relative to the residuals.
    x_scale : None, "jac", number or numbers (n,)
        As in `lx.least_squares`. None, as "jac": the columns of the Jacobian.
    loss, f_scale, diff_step
        As in `lx.least_squares`; loss may not be a function.
    tr_solver, tr_options, jac_sparsity, workers
        No effect, with a warning for jac_sparsity.
    max_nfev : int or None
        The most evaluations of fun, without those for finite differences; None: 100 n.
    verbose : 0, 1 or 2
        Whether to print how the run ended.
    callback : function
        callback(x) or callback(intermediate_result=...) after each iteration. StopIteration or the
        value True ends the run.

    Returns
    -------
    OptimizeResult
        x, cost, fun, jac, grad, optimality, active_mask, nfev (all calls, also those for finite
        differences), njev, status, message, success as in SciPy; nit; and reason, the message of
        `lx.least_squares`.

    Raises
    ------
    ValueError, TypeError
        For invalid arguments, for a start outside the bounds and for residuals that are not finite
        there.

    Examples
    --------
    >>> import numpy as np
    >>> from lbfgs_xp.scipy import least_squares
    >>> res = least_squares(lambda x: [10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]], [-1.2, 1.0])
    >>> bool(np.allclose(res.x, 1.0)), res.success
    (True, True)
    """
    from scipy.optimize import OptimizeResult

    _one_of("method", method, ("trf", "dogbox", "lm"))
    _one_of("tr_solver", tr_solver, (None, "exact", "lsmr"))
    _one_of("verbose", verbose, (0, 1, 2))
    _one_of("loss", loss, tuple(LOSSES))
    if not callable(jac):
        _one_of("jac", jac, ("2-point", "3-point", "cs", "a function"))
    if np.iscomplexobj(x0):
        raise ValueError("x0 is complex; wanted real numbers")
    start = np.atleast_1d(np.asarray(x0, dtype=np.float64))
    if start.ndim > 1:
        raise ValueError(f"x0 has shape {start.shape}; wanted at most one axis")
    n = start.size
    lower, upper = _sides(bounds, n)
    bounded = are_bounds(lower, upper)
    if method == "lm" and (bounded or loss != "linear"):
        raise ValueError(
            'method is "lm", which takes no bounds and only the linear loss; wanted "trf"'
        )
    _refuse_outside("x0", start, lower, upper)
    x_scale = _scale(x_scale, n)
    if ftol is None and xtol is None and gtol is None:
        raise ValueError("ftol, xtol and gtol are all None; wanted at least one number")
    if jac_sparsity is not None:
        warnings.warn(
            "jac_sparsity has no effect: the Jacobian is dense", RuntimeWarning, stacklevel=2
        )
    if not callable(fun):
        raise TypeError(f"fun is a {type(fun).__name__}; wanted a function of x")
    args = args if isinstance(args, tuple) else (args,)
    more = kwargs or {}
    model = _Model(
        lambda x: fun(x, *args, **more),
        (lambda x: jac(x, *args, **more)) if callable(jac) else jac,
    )
    model.try_at(start)
    if diff_step is None and model.eps > np.finfo(np.float64).eps:
        diff_step = model.eps ** (1 / 3 if jac == "3-point" else 1 / 2)
    count = checks.budget("max_nfev", max_nfev, 1) if max_nfev is not None else 100 * n
    res = squares.least_squares(
        model.residuals, start, jac=model.way, bounds=(lower, upper) if bounded else None,
        loss=loss, f_scale=f_scale, diff_step=diff_step, x_scale=x_scale,
        ftol=0.0 if ftol is None else ftol, xtol=0.0 if xtol is None else xtol,
        gtol=0.0 if gtol is None else gtol,
        maxiter=None, maxfun=None if count is None else count * model.calls(n),
        callback=_watch(callback, OptimizeResult),
    )
    if res.status is Status.NOT_FINITE:
        raise ValueError(f"fun or jac at x0 is not finite: {res.message}")
    found = _in_the_form_of_scipy(res, loss, f_scale, lower, upper, OptimizeResult)
    if verbose:
        print(
            f"{found.message}\nFunction evaluations {found.nfev}, final cost {found.cost:.4e}, "
            f"first-order optimality {found.optimality:.2e}."
        )
    return found


def curve_fit(
    f: Callable[..., Any], xdata: Any, ydata: Any, p0: Any = None, sigma: Any = None,
    absolute_sigma: bool = False, check_finite: bool | None = None, bounds: Any = _INFINITE,
    method: str | None = None, jac: Any = None, *, full_output: bool = False,
    nan_policy: str | None = None, **kwargs: Any,
) -> Any:
    """`lx.curve_fit` with the arguments and results of `scipy.optimize.curve_fit`.

    Parameters
    ----------
    f, xdata, ydata, sigma, absolute_sigma, bounds
        As in SciPy; ydata is (m,), and f returns (m,).
    p0 : numbers (p,), or None
        The start. None: as many parameters as f has, all 1, or the middle of finite bounds.
    check_finite : bool or None
        Whether nan and infinity in the data are refused; None: unless nan_policy is passed.
    method : None, "lm", "trf" or "dogbox"
        No effect: all of them are the method of `lx.curve_fit`.
    jac : None, function, "2-point", "3-point" or "cs"
        None: "2-point".
    full_output : bool
        Whether to return infodict, the message and the code, too.
    nan_policy : None, "raise" or "omit"
        "omit" leaves out points with nan.
    kwargs
        maxfev or max_nfev, ftol, xtol, gtol, loss, f_scale, diff_step, x_scale, as in
        `least_squares`.

    Returns
    -------
    popt, pcov : arrays (p,) and (p, p)
        pcov is infinite, with a warning, if the data do not determine all parameters.

    Raises
    ------
    RuntimeError
        If the fit does not succeed.
    ValueError, TypeError
        For invalid arguments, and for a start outside the bounds.

    Examples
    --------
    >>> import numpy as np
    >>> from lbfgs_xp.scipy import curve_fit
    >>> x = np.linspace(0.0, 4.0, 20)
    >>> y = 3.0 * np.exp(-0.5 * x) + 0.01 * np.cos(40.0 * x)
    >>> popt, pcov = curve_fit(lambda x, a, k: a * np.exp(-k * x), x, y)
    >>> popt.round(2)
    array([3. , 0.5])
    """
    from scipy.optimize import OptimizeWarning

    _one_of("method", method, (None, "lm", "trf", "dogbox"))
    _one_of("nan_policy", nan_policy, (None, "raise", "omit"))
    if not callable(f):
        raise TypeError(f"f is a {type(f).__name__}; wanted a function of x and parameters")
    start, (lower, upper) = _start(f, p0, bounds)
    bounded = are_bounds(lower, upper)
    if method == "lm" and bounded:
        raise ValueError('method is "lm", which takes no bounds; wanted "trf" or "dogbox"')
    _refuse_outside("p0", start, lower, upper)
    x, y, sigma = _data(xdata, ydata, sigma, check_finite, nan_policy)
    if y.size < start.size and method in (None, "lm") and not bounded:
        raise TypeError(
            f"f has {start.size} parameters; wanted at most as many as data, {y.size}"
        )
    model = _Model(lambda p: f(x, *p), None if jac is None else (
        (lambda p: jac(x, *p)) if callable(jac) else jac
    ))
    count = kwargs.pop("max_nfev", kwargs.pop("maxfev", None))
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    kwargs["x_scale"] = _scale(kwargs.get("x_scale"), start.size)
    known = {"ftol", "xtol", "gtol", "loss", "f_scale", "diff_step", "x_scale"}
    for name in kwargs.keys() - known:
        if name not in ("tr_solver", "tr_options", "verbose", "factor", "epsfcn"):
            raise TypeError(f"curve_fit got an unknown argument {name!r}")
        del kwargs[name]
    fit = curves.curve_fit(
        lambda _, *p: model.residuals(np.asarray(p)), y, y, start, sigma=sigma,
        absolute_sigma=bool(absolute_sigma), bounds=(lower, upper) if bounded else None,
        jac=(lambda _, *p: model.way(np.asarray(p))) if callable(model.way) else model.way,
        maxfun=None if count is None else count * model.calls(start.size), **kwargs,
    )
    code, message = _ENDS.get(fit.status, (-1, fit.message))
    if not fit.success:
        raise RuntimeError(f"Optimal parameters not found: {message}")
    covariance = fit.covariance
    if not np.all(np.isfinite(fit.stderr)):
        covariance = np.full_like(covariance, math.inf)
        warnings.warn(
            "Covariance of the parameters could not be estimated", OptimizeWarning, stacklevel=2
        )
    if not full_output:
        return fit.x, covariance
    return fit.x, covariance, {"nfev": fit.nfev, "fvec": -fit.residuals}, message, max(code, 1)


class _Model:
    """Residuals and their Jacobian in SciPy's conventions, as `lx.least_squares` takes them.

    way : its jac.
    eps : the precision of what fun returns, once `try_at` has called it.
    """

    def __init__(self, fun: Callable, jac: Any):
        self.fun = fun
        self.jac: Any = "2-point" if jac is None else jac
        self.way: Any = self.jac
        if callable(self.jac):
            self.way = self.jacobian
        elif self.jac == "cs":
            self.way = self.complex_differences
        elif self.jac not in ("2-point", "3-point"):
            _one_of("jac", self.jac, ("2-point", "3-point", "cs", "a function"))
        self._size = 0
        self.eps = 0.0
        self._known: tuple[np.ndarray, np.ndarray] | None = None

    def try_at(self, x: np.ndarray) -> None:
        """Call fun at the start. `residuals` does not call it there once more."""
        self._known = np.copy(x), self.residuals(x)

    def calls(self, n: int) -> int:
        """How many calls of fun a step with its Jacobian takes, of those that are counted."""
        return 1 + {"2-point": n, "3-point": 2 * n}.get(str(self.jac), 0)

    def residuals(self, x: np.ndarray) -> np.ndarray:
        if self._known is not None and np.array_equal(x, self._known[0]):
            return np.copy(self._known[1])
        found = self._array(self.fun(np.copy(x)))
        self.eps = float(np.finfo(found.dtype).eps) if found.dtype.kind == "f" else 0.0
        if np.iscomplexobj(found):
            raise ValueError("fun returned complex numbers; wanted real residuals (m,)")
        return found.astype(np.float64, copy=False)

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        found = self.jac(np.copy(x))
        if hasattr(found, "toarray"):
            found = found.toarray()
        elif hasattr(found, "matvec"):
            found = found @ np.eye(x.size)
        found = np.asarray(found, dtype=np.float64)
        if found.ndim < 2:
            found = np.reshape(found, (-1, x.size)) if x.size else found
        if found.shape != (self._size, x.size):
            raise ValueError(
                f"jac returned an array of shape {found.shape}; wanted {(self._size, x.size)}"
            )
        return found

    def complex_differences(self, x: np.ndarray) -> np.ndarray:
        columns = []
        for i, step in enumerate(complex_steps(x)):
            point = x.astype(np.complex128)
            point[i] += 1j * step
            found = self._array(self.fun(point))
            if not np.iscomplexobj(found):
                raise ValueError(
                    "fun returned real numbers for complex x; wanted complex numbers for "
                    'jac="cs", which needs a function that is analytic'
                )
            columns.append(found.imag / step)
        return np.stack(columns, axis=1)

    def _array(self, out: Any) -> np.ndarray:
        try:
            found = np.atleast_1d(np.asarray(out))
        except ValueError:
            raise ValueError(f"fun returned {described(out)}; wanted numbers (m,)") from None
        if found.ndim > 1 or found.dtype.kind not in "biufc":
            raise ValueError(f"fun returned {described(out)}; wanted numbers (m,)")
        self._size = found.size
        return found


def _watch(callback: Any, result: Callable) -> Callable[[FitRecord], bool] | None:
    """A callback for SciPy as a callback for `lx.least_squares`."""
    if checks.callback(callback) is None:
        return None
    named = takes_result(callback)

    def watch(record: FitRecord) -> bool:
        try:
            if not named:
                return bool(callback(record.x))
            return bool(callback(intermediate_result=result(
                x=record.x, fun=record.fun, cost=record.cost, nit=record.nit, nfev=record.nfev
            )))
        except StopIteration:
            return True

    return watch


def _in_the_form_of_scipy(
    res: LeastSquaresResult, loss: str, f_scale: float, lower: np.ndarray, upper: np.ndarray,
    make: Callable,
) -> Any:
    code, message = _ENDS.get(res.status, (-1, res.message))
    residuals, jacobian = res.fun, res.jac
    if loss != "linear":
        # As in SciPy, scaled so that J^T J approximates the Hessian of the cost and J^T f is its
        # gradient (Triggs et al. 2000).
        z = (residuals / f_scale) ** 2
        _, slope, bend = LOSSES[loss](np, z)
        root = np.sqrt(np.maximum(slope + 2.0 * z * bend, np.finfo(np.float64).eps))
        jacobian, residuals = root[:, None] * jacobian, residuals * slope / root
    gradient = jacobian.T @ residuals
    active = np.where(res.x <= lower, -1, np.where(res.x >= upper, 1, 0))
    free = active * gradient >= 0.0
    return make(
        x=res.x, cost=res.cost, fun=res.fun, jac=jacobian, grad=gradient,
        optimality=float(np.max(np.abs(gradient), initial=0.0, where=free)), active_mask=active,
        nfev=res.nfev, njev=res.njev, nit=res.nit, status=code, message=message,
        success=res.success, reason=res.message,
    )


def _one_of(name: str, value: Any, wanted: tuple[Any, ...]) -> None:
    if not any(value is one or (type(value) is type(one) and value == one) for one in wanted):
        raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(map(repr, wanted))}")


def _scale(x_scale: Any, n: int) -> Any:
    """x_scale as `lx.least_squares` takes it."""
    if x_scale is None or (isinstance(x_scale, str) and x_scale == "jac"):
        return "jac"
    return positive("x_scale", x_scale, n)


def _sides(bounds: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The bounds (n,), from the pair (lower, upper) or SciPy's `Bounds`."""
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        return limits(bounds.lb, bounds.ub, n)
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
        raise ValueError(
            f"bounds is {checks.shown(bounds)}; wanted the pair (lower, upper) or "
            "scipy.optimize.Bounds(...)"
        )
    return limits(bounds[0], bounds[1], n)


def _refuse_outside(name: str, start: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
    outside = (start < lower) | (start > upper)
    if outside.any():
        i = int(np.argmax(outside))
        raise ValueError(
            f"{name}[{i}] is {start[i]}; wanted a start within the bounds, from {lower[i]} to "
            f"{upper[i]}"
        )


def _start(f: Callable, p0: Any, bounds: Any) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The start and the bounds; without p0, from the parameters of f and the bounds."""
    if p0 is not None:
        start = np.atleast_1d(np.asarray(p0, dtype=np.float64))
        return start, _sides(bounds, start.size)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p for p in inspect.signature(f).parameters.values() if p.kind in kinds]
    if len(names) < 2:
        raise ValueError("p0 is None, and f names no parameters; wanted p0= numbers (p,)")
    lower, upper = _sides(bounds, len(names) - 1)
    low, high = np.isfinite(lower), np.isfinite(upper)
    with np.errstate(invalid="ignore"):
        start = np.where(low & high, 0.5 * (lower + upper), 1.0)
    start = np.where(low & ~high, lower + 1.0, start)
    return np.where(high & ~low, upper - 1.0, start), (lower, upper)


def _data(
    xdata: Any, ydata: Any, sigma: Any, check_finite: bool | None, nan_policy: str | None
) -> tuple[Any, np.ndarray, Any]:
    y = np.asarray(ydata, dtype=np.float64)
    x = np.asarray(xdata, np.float64) if isinstance(xdata, (list, tuple, np.ndarray)) else xdata
    if y.size == 0:
        raise ValueError("ydata is empty; wanted at least one number")
    sigma = None if sigma is None else np.asarray(sigma, dtype=np.float64)
    arrays = {"xdata": x, "ydata": y} if isinstance(x, np.ndarray) else {"ydata": y}
    if check_finite or (check_finite is None and nan_policy is None):
        for name, array in arrays.items():
            if not np.all(np.isfinite(array)):
                raise ValueError(f"{name} holds nan or infinity; wanted finite numbers")
    elif nan_policy is not None:
        missing = np.isnan(y)
        if isinstance(x, np.ndarray) and x.shape[-1:] == y.shape:
            missing = missing | np.isnan(x).any(axis=tuple(range(x.ndim - 1)))
        if missing.any() and nan_policy == "raise":
            raise ValueError('xdata or ydata holds nan; wanted none, or nan_policy="omit"')
        keep = ~missing
        x = x[..., keep] if isinstance(x, np.ndarray) and x.shape[-1:] == y.shape else x
        if sigma is not None and sigma.ndim == 2:
            sigma = sigma[np.ix_(keep, keep)]
        elif sigma is not None and sigma.shape == y.shape:
            sigma = sigma[keep]
        y = y[keep]
    return x, y, sigma
