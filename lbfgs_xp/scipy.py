"""Methods for `scipy.optimize.minimize`.

`scipy.optimize.minimize` accepts a function as `method`, such as `lbfgs` or `projected_gradient` of
this module. They take the arguments and options of SciPy's own "L-BFGS-B", with its defaults, and
return results of the same form. SciPy passes every start as a NumPy array; for other libraries use
`lx.minimize`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import numbers
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.arrays.returned import described
from lbfgs_xp.minimize import minimize
from lbfgs_xp.result import Record, Status
from lbfgs_xp.solvers.lbfgs import LBFGS
from lbfgs_xp.solvers.projected_gradient import ProjectedGradient

__all__ = ["lbfgs", "projected_gradient"]

# SciPy's codes for spent budgets and for StopIteration.
_CODES = {Status.ITERATIONS: 1, Status.EVALUATIONS: 1, Status.CALLBACK: 99}


def lbfgs(
    fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), *, maxcor: int = 10,
    **options: Any,
) -> Any:
    """L-BFGS, as a `method` for `scipy.optimize.minimize`.

    Parameters
    ----------
    fun, x0, args, jac, callback
        As in `scipy.optimize.minimize`. jac=None: SciPy's forward differences. callback takes x, or
        a single argument named intermediate_result; StopIteration ends the run.
    bounds : scipy.optimize.Bounds, or pairs (low, high) with None for no bound
        fun is only called within the bounds, also for finite differences.
    constraints
        Not supported by this method.

    Options
    -------
    maxcor : int
        The number of pairs (s, y) to keep.
    gtol : float, 1e-5
        Stop when the largest component of the gradient is at most this; within bounds, without
        the components of variables that a bound holds.
    ftol : float, 2.2e-9
        Stop when, in two consecutive iterations, the value changes by at most ftol |value|.
    tol : float
        The value of gtol and ftol if they are not passed.
    maxiter, maxfun : int, 15000
        The most iterations, and the most calls of fun, including those for finite differences.
    eps : float, or numbers (n,), 1e-8
        The step of the finite differences, for all variables or for each.
    disp : bool
        Whether to print how the run ended.

    Returns
    -------
    OptimizeResult
        x (the best point seen), fun, jac, nit, nfev, njev, success, message; status: 0 for success,
        1 for a spent budget, 99 for StopIteration, otherwise 2; and hess_inv, a `LinearOperator`
        that also has `todense`.

    Raises
    ------
    ValueError
        For bounds or constraints. Otherwise, TypeError and ValueError as in `lx.minimize`.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.optimize
    >>> from lbfgs_xp.scipy import lbfgs
    >>> def fun(x):
    ...     return np.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)
    >>> scipy.optimize.minimize(fun, np.zeros(2), jac=True, method=lbfgs, options={"maxcor": 5}).x
    array([3., 3.])
    """
    return _solve(LBFGS(memory_size=maxcor), fun, x0, args, options)


def projected_gradient(
    fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), **options: Any
) -> Any:
    """`lx.ProjectedGradient` as a `method` for `scipy.optimize.minimize`.

    It needs more evaluations than `lbfgs`, and less memory.

    Parameters
    ----------
    everything
        As for `lbfgs`, except that there is neither maxcor nor hess_inv, and that gtol applies to
        P(x - gradient) - x, where P is the projection.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.optimize
    >>> from lbfgs_xp.scipy import projected_gradient
    >>> def fun(x):
    ...     return np.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)
    >>> scipy.optimize.minimize(fun, np.zeros(2), jac=True, method=projected_gradient,
    ...                         bounds=[(0.0, 1.0), (None, 5.0)]).x
    array([1., 3.])
    """
    return _solve(ProjectedGradient(), fun, x0, args, options)


@dataclasses.dataclass(frozen=True)
class _Options:
    """What SciPy passes to a method besides fun, x0 and args, with its defaults."""

    jac: Any = None
    hess: Any = None
    hessp: Any = None
    bounds: Any = None
    constraints: Any = ()
    callback: Any = None
    gtol: float | None = None
    ftol: float | None = None
    tol: float | None = None
    maxiter: int | None = 15_000
    maxfun: int | None = 15_000
    eps: Any = 1e-8
    disp: bool = False

    @classmethod
    def of(cls, given: dict[str, Any]) -> _Options:
        """The options, with warnings about those that have no effect."""
        from scipy.optimize import OptimizeWarning

        # The caller of scipy.optimize.minimize is at level 5.
        if unknown := given.keys() - {field.name for field in dataclasses.fields(cls)}:
            names = ", ".join(name for name in given if name in unknown)
            warnings.warn(f"Unknown solver options: {names}", OptimizeWarning, stacklevel=5)
        options = cls(**{name: value for name, value in given.items() if name not in unknown})
        for name in ("hess", "hessp"):
            if getattr(options, name) is not None:
                warnings.warn(f"{name} is not used by this method", RuntimeWarning, stacklevel=5)
        return options

    def tolerance(self, own: float | None, default: float) -> float:
        """A tolerance if it was passed, else tol, else the default."""
        return next(t for t in (own, self.tol, default) if t is not None)


def _solve(
    solver: Any, fun: Callable[..., Any], x0: Any, args: Any, given: dict[str, Any]
) -> Any:
    """Run `lx.minimize` with the arguments of SciPy, and return a result in SciPy's form."""
    from scipy.optimize import OptimizeResult

    options = _Options.of(given)
    constraints = options.constraints
    if not (isinstance(constraints, (list, tuple)) and len(constraints) == 0):
        raise ValueError(
            "constraints were passed to a method that takes none; wanted constraints=(), or "
            "lx.augmented_lagrangian"
        )
    start = np.atleast_1d(np.asarray(x0, dtype=np.float64))
    lower, upper = _sides(options.bounds, start.size)
    bounded = bool(np.any(np.isfinite(lower)) or np.any(np.isfinite(upper)))
    args = args if isinstance(args, tuple) else (args,)
    evaluate = _Evaluate(fun, options.jac, args, _steps(options.eps, start.size), lower, upper)
    # Forward differences take n further calls for each gradient.
    calls = 1 if callable(options.jac) else 1 + start.size
    maxfun, callback = options.maxfun, options.callback
    res = minimize(
        evaluate, start, jac=True, method=solver,
        bounds=(lower, upper) if bounded else None,
        gtol=options.tolerance(options.gtol, 1e-5),
        ftol=options.tolerance(options.ftol, 2.2e-9),
        maxiter=options.maxiter,
        maxfun=None if maxfun is None else max(maxfun // calls, 1),
        callback=None if callback is None else _watch(callback, OptimizeResult),
    )
    if options.disp:
        print(
            f"{res.message}\n"
            f"    value {res.fun:.9g}, {res.nit} iterations, {evaluate.nfev} evaluations"
        )
    found = OptimizeResult(
        x=res.x, fun=res.fun, jac=res.jac, nit=res.nit, nfev=evaluate.nfev, njev=res.nfev,
        success=res.success, status=0 if res.success else _CODES.get(res.status, 2),
        message=res.message,
    )
    if res.hess_inv is not None:
        found.hess_inv = _operator(res.hess_inv)
    return found


class _Evaluate:
    """x -> (value, gradient), and how often fun was called."""

    def __init__(
        self, fun: Callable[..., Any], jac: Any, args: tuple[Any, ...], eps: np.ndarray,
        lower: np.ndarray, upper: np.ndarray,
    ):
        self.fun, self.jac, self.args = fun, jac, args
        self.eps, self.lower, self.upper = eps, lower, upper
        self.nfev = 0

    def __call__(self, x: np.ndarray) -> tuple[Any, np.ndarray]:
        value = self.value(x)
        if callable(self.jac):
            return value, np.atleast_1d(self.jac(np.copy(x), *self.args))
        return value, self.differences(x, value)

    def value(self, x: np.ndarray) -> Any:
        self.nfev += 1
        value = self.fun(np.copy(x), *self.args)
        value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
        if not isinstance(value, numbers.Real):
            raise TypeError(f"fun returned {described(value)}; wanted a real number")
        return value

    def differences(self, x: np.ndarray, value: Any) -> np.ndarray:
        """Forward differences, or backward ones if a bound is in the way; 0 for fixed variables.

        SciPy's own, with the absolute steps that its users know as eps.
        """
        from scipy.optimize import approx_fprime

        before, ahead = x - self.lower, self.upper - x
        steps = np.where(ahead >= np.minimum(before, self.eps), ahead, -before)
        steps = np.clip(steps, -self.eps, self.eps)
        free = steps != 0.0
        gradient = np.zeros_like(x)

        def value_at(part: np.ndarray) -> Any:
            point = np.copy(x)
            point[free] = part
            # SciPy also asks for the value at x itself, which is known.
            return value if np.array_equal(point, x) else self.value(
                np.clip(point, self.lower, self.upper)
            )

        if free.any():
            gradient[free] = approx_fprime(x[free], value_at, steps[free])
        return gradient


def _watch(callback: Callable, result: Callable) -> Callable[[Record], bool]:
    """A callback for SciPy as a callback for `lx.minimize`."""
    try:
        named = set(inspect.signature(callback).parameters) == {"intermediate_result"}
    except ValueError:    # a function in C
        named = False

    def watch(record: Record) -> bool:
        try:
            if named:
                callback(intermediate_result=result(x=record.x, fun=record.fun))
            else:
                callback(record.x)
        except StopIteration:
            return True
        return False

    return watch


def _steps(eps: Any, n: int) -> np.ndarray:
    """The steps of the finite differences, (n,)."""
    steps = None
    with contextlib.suppress(TypeError, ValueError):
        steps = np.broadcast_to(np.asarray(eps, dtype=np.float64), (n,))
    if steps is None or not np.all((steps > 0.0) & (steps < math.inf)):
        raise ValueError(
            f"eps is {eps!r}; wanted a number above 0, or {n} of them, one for each variable"
        )
    return steps


def _sides(bounds: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper bounds, from SciPy's `Bounds` or from n pairs."""
    if bounds is None:
        bounds = [(None, None)] * n
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        return np.asarray(bounds.lb, dtype=np.float64), np.asarray(bounds.ub, dtype=np.float64)
    pairs = list(bounds)
    if len(pairs) != n or any(np.shape(pair) != (2,) for pair in pairs):
        raise ValueError(
            f"bounds is {bounds!r}; wanted scipy.optimize.Bounds(...) or {n} pairs (low, high), "
            "one for each variable"
        )
    lower = [-math.inf if low is None else low for low, _ in pairs]
    upper = [math.inf if high is None else high for _, high in pairs]
    return np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)


def _operator(inverse: Any) -> Any:
    """`hess_inv` of a result as a SciPy operator."""
    from scipy.sparse.linalg import LinearOperator

    apply = _Product(inverse)
    operator = LinearOperator(inverse.shape, matvec=apply, rmatvec=apply, dtype=np.float64)
    operator.todense = inverse.todense
    return operator


class _Product:
    """v -> H v, as a class because a local function could not be pickled."""

    def __init__(self, inverse: Any):
        self.inverse = inverse

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        return self.inverse @ np.ravel(vector)
