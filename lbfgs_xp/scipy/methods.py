"""Methods for `scipy.optimize.minimize`.

`scipy.optimize.minimize` accepts a function as `method`. Those of this module take the arguments
and options of the methods of SciPy that they replace, with their defaults, and return results of
the same form. SciPy passes every start as a NumPy array; for other libraries use `lx.minimize`.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.line_search import MoreThuente, StrongWolfe
from lbfgs_xp.minimize import minimize as minimize_arrays
from lbfgs_xp.result import Record, Result, Status
from lbfgs_xp.scipy.evaluate import Evaluate, are_bounds, positive, sides, takes_result
from lbfgs_xp.scipy.hessian import second_derivatives
from lbfgs_xp.solvers.bfgs import BFGS
from lbfgs_xp.solvers.lbfgs import LBFGS
from lbfgs_xp.solvers.newton import Newton
from lbfgs_xp.solvers.newton_cg import NewtonCG
from lbfgs_xp.solvers.projected_gradient import ProjectedGradient
from lbfgs_xp.solvers.self_scaled import SSBFGS, SSBroyden

_DIFFERENCES = ("2-point", "3-point", "cs")


def minimize(
    fun: Callable[..., Any], x0: Any, args: Any = (), method: Any = "lbfgs", jac: Any = None,
    hess: Any = None, hessp: Any = None, bounds: Any = None, constraints: Any = (),
    tol: float | None = None, callback: Any = None, options: dict[str, Any] | None = None,
) -> Any:
    """`scipy.optimize.minimize` with the methods of this library, by name.

    Unlike `scipy.optimize.minimize(..., method=lbfgs)`, it also takes the finite differences that
    SciPy does not pass on to a method that is a function.

    Parameters
    ----------
    method : "lbfgs", "bfgs", "ssbfgs", "ssbroyden", "newton", "newton_cg", "projected_gradient",
        or one of these functions. "newton" and "newton_cg" take no bounds.
    jac : None, True, function, "2-point", "3-point" or "cs"
        "2-point" and "3-point" are the differences of `lx.minimize`; "cs" calls fun with complex x.
    everything else
        As in `scipy.optimize.minimize`.

    Returns
    -------
    OptimizeResult

    Raises
    ------
    ValueError, TypeError
        As the method, and for another method.

    Examples
    --------
    >>> import numpy as np
    >>> from lbfgs_xp.scipy import minimize
    >>> minimize(lambda x: np.sum((x - 3.0) ** 2), np.zeros(2), jac="cs").x
    array([3., 3.])
    """
    import scipy.optimize

    named = {
        function.__name__: function
        for function in (
            lbfgs, bfgs, ssbfgs, ssbroyden, newton, newton_cg, projected_gradient
        )
    }
    chosen = named.get(method, method) if isinstance(method, str) else method
    if chosen not in named.values():
        theirs = {"BFGS": "bfgs", "L-BFGS-B": "lbfgs", "NEWTON-CG": "newton_cg"}
        ours = theirs.get(str(method).upper())
        hint = f" (for {method!r}: {ours!r})" if ours else ""
        raise ValueError(f"method is {method!r}; wanted one of {', '.join(map(repr, named))}{hint}")
    if isinstance(jac, str):
        options, jac = {**(options or {}), "differences": jac}, None
    return scipy.optimize.minimize(
        fun, x0, args, chosen, jac, hess, hessp, bounds, constraints, tol, callback, options
    )


def lbfgs(
    fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), *, maxcor: int = 10,
    maxls: int = 20, **options: Any,
) -> Any:
    """L-BFGS, as a `method` for `scipy.optimize.minimize`, instead of "L-BFGS-B".

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
        Stop when the largest component of the gradient is at most this.
    ftol : float, 2.2e-9
        Stop when, in two consecutive iterations, the value changes by at most ftol |value|.
    tol : float
        The value of gtol and ftol if they are not passed.
    maxiter, maxfun : int, 15000
        The most iterations, and the most calls of fun, including those for finite differences.
    maxls : int
        The most trials of a line search.
    differences : None, "2-point", "3-point" or "cs"
        The finite differences if jac is None, because SciPy does not pass on a string as jac. None:
        forward differences with the steps eps.
    eps : float, or numbers (n,), 1e-8
        The step of the finite differences, for all variables or for each.
    disp : bool
        Whether to print how the run ended.

    Returns
    -------
    OptimizeResult
        x (the best point seen), fun, jac, nit, nfev, njev, success, message as in SciPy; reason,
        the message of `lx.minimize`; status: 0 for success, 1 for a spent budget, 99 for
        StopIteration, otherwise 2; and hess_inv, a `LinearOperator` that also has `todense`. With
        differences "2-point" and "3-point", njev is None.

    Raises
    ------
    ValueError
        For constraints. Otherwise, TypeError and ValueError as in `lx.minimize`.

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
    maxcor, maxls = checks.count("maxcor", maxcor, 1), checks.count("maxls", maxls, 1)
    solver = LBFGS(memory_size=maxcor, line_search=MoreThuente(max_evaluations=maxls))
    return _solve("lbfgs", _LBFGSB, solver, fun, x0, args, options)


def projected_gradient(
    fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), **options: Any
) -> Any:
    """`lx.ProjectedGradient`, as a `method` for `scipy.optimize.minimize`.

    It needs more evaluations than `lbfgs`, and less memory.

    Parameters
    ----------
    bounds : scipy.optimize.Bounds, or pairs (low, high) with None for no bound
        fun is only called within the bounds, also for finite differences.
    everything else
        As for `lbfgs`, except that there are neither maxcor and maxls nor hess_inv, and gtol
        applies to the projected gradient. The gradient by forward differences is nan for variables
        that the bounds fix.

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
    return _solve("projected_gradient", _LBFGSB, ProjectedGradient(), fun, x0, args, options)


def bfgs(
    fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), *, c1: float = 1e-4,
    c2: float = 0.9, hess_inv0: Any = None, **options: Any,
) -> Any:
    """`lx.BFGS`, as a `method` for `scipy.optimize.minimize`, instead of "BFGS".

    Parameters
    ----------
    fun, x0, args, jac, callback
        As for `lbfgs`, and so are bounds. Constraints are not supported.

    Options
    -------
    gtol, maxiter, eps, disp, tol, differences
        As for `lbfgs`; the defaults are SciPy's: maxiter is 200 n, eps 1.5e-8, and the value does
        not end a run.
    xrtol : float, 0
        Stop when, in two consecutive iterations, x changes by at most xrtol max(1, largest |x|).
    c1, c2 : float
        The constants of the line search, with 0 < c1 < c2 < 1.
    hess_inv0 : numbers (n, n)
        The first inverse Hessian, symmetric and positive definite; None: the identity, scaled.
    return_all : bool
        Whether the result has allvecs, a list of the start and all iterates.

    Returns
    -------
    OptimizeResult
        As for `lbfgs`, but hess_inv is an array (n, n), and status: 0 for success, 1 for a spent
        budget, 2 if no lower point is found, 3 for nan at the start, 99 for StopIteration.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.optimize
    >>> from lbfgs_xp.scipy import bfgs
    >>> def fun(x):
    ...     return np.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)
    >>> scipy.optimize.minimize(fun, np.zeros(2), jac=True, method=bfgs).x
    array([3., 3.])
    """
    rule = StrongWolfe(c1=c1, c2=c2)
    solver = BFGS(rule, _first_inverse(hess_inv0, x0))
    return _with_matrix(_solve("bfgs", _BFGS, solver, fun, x0, args, options))


def ssbfgs(
    fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), *, c1: float = 1e-4,
    c2: float = 0.9, hess_inv0: Any = None, **options: Any,
) -> Any:
    """`lx.SSBFGS`, self-scaled BFGS, as a `method` for `scipy.optimize.minimize`.

    Arguments, options and results are those of `bfgs`; the line search is `lx.MoreThuente`.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.optimize
    >>> from lbfgs_xp.scipy import ssbfgs
    >>> def fun(x):
    ...     return np.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)
    >>> scipy.optimize.minimize(fun, np.zeros(2), jac=True, method=ssbfgs).x
    array([3., 3.])
    """
    rule = MoreThuente(c1=c1, c2=c2)
    solver = SSBFGS(rule, _first_inverse(hess_inv0, x0))
    return _with_matrix(_solve("ssbfgs", _BFGS, solver, fun, x0, args, options))


def ssbroyden(
    fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), *, c1: float = 1e-4,
    c2: float = 0.9, hess_inv0: Any = None, **options: Any,
) -> Any:
    """`lx.SSBroyden`, self-scaled Broyden, as a `method` for `scipy.optimize.minimize`.

    Arguments, options and results are those of `bfgs`; the line search is `lx.MoreThuente`.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.optimize
    >>> from lbfgs_xp.scipy import ssbroyden
    >>> def fun(x):
    ...     return np.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)
    >>> scipy.optimize.minimize(fun, np.zeros(2), jac=True, method=ssbroyden).x
    array([3., 3.])
    """
    rule = MoreThuente(c1=c1, c2=c2)
    solver = SSBroyden(rule, _first_inverse(hess_inv0, x0))
    return _with_matrix(_solve("ssbroyden", _BFGS, solver, fun, x0, args, options))


def newton(
    fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), *, hess: Any = None,
    hessp: Any = None, **options: Any,
) -> Any:
    """`lx.Newton`, as a `method` for `scipy.optimize.minimize`, instead of "trust-exact".

    Each iteration forms the Hessian (n, n) and computes its eigenvalues.

    Parameters
    ----------
    fun, x0, args, callback
        As for `lbfgs`. Bounds and constraints are not supported.
    jac : True or function
        Required.
    hess, hessp
        hess(x, *args) -> (n, n), or hessp(x, p, *args) -> (n,), the Hessian times p, called n times
        for each Hessian. Without both, and for hess="2-point", "3-point" or "cs": differences of
        the gradient.

    Options
    -------
    xtol : float, 1e-5
        Stop when, in two consecutive iterations, x changes by at most xtol max(1, largest |x|).
    gtol, maxiter, eps, disp, tol, return_all
        As for `bfgs`, except that tol is the value of xtol, and that there is no gtol unless it is
        passed.

    Returns
    -------
    OptimizeResult
        As for `bfgs`, with nhev, the number of Hessians, instead of hess_inv.

    Raises
    ------
    ValueError
        Without jac, for bounds or constraints. Otherwise as `lbfgs`.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.optimize
    >>> from lbfgs_xp.scipy import newton
    >>> def fun(x):
    ...     return np.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)
    >>> scipy.optimize.minimize(fun, np.zeros(2), jac=True, method=newton).x
    array([3., 3.])
    """
    return _solve("newton", _NEWTON, Newton(), fun, x0, args, options, hess, hessp)


def newton_cg(
    fun: Callable[..., Any], x0: Any, args: tuple[Any, ...] = (), *, hess: Any = None,
    hessp: Any = None, **options: Any,
) -> Any:
    """`lx.NewtonCG`, as a `method` for `scipy.optimize.minimize`, instead of "Newton-CG".

    Parameters
    ----------
    fun, x0, args, callback, jac
        As for `newton`.
    hess, hessp
        As for `newton`, but with hessp the Hessian is never formed, and without both there is one
        difference of gradients for each product.

    Options, results and errors are those of `newton`; nhev is the number of products.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.optimize
    >>> from lbfgs_xp.scipy import newton_cg
    >>> def fun(x):
    ...     return np.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)
    >>> scipy.optimize.minimize(fun, np.zeros(2), jac=True, method=newton_cg,
    ...                         hessp=lambda x, p: 2.0 * p).x
    array([3., 3.])
    """
    return _solve("newton_cg", _NEWTON, NewtonCG(), fun, x0, args, options, hess, hessp)


@dataclasses.dataclass(frozen=True)
class _Style:
    """What a method of SciPy does in its own way.

    options : its options, with their defaults; None for one that depends on the problem.
    tolerances : the options to which tol applies.
    ends : status -> SciPy's code and message; None stands for all others, to whose message that of
        `lx.minimize` is appended.
    takes_hessian : whether hess and hessp are used.
    """

    options: dict[str, Any]
    tolerances: tuple[str, ...]
    ends: dict[Status | None, tuple[int, str]]
    takes_hessian: bool = False


_STOPPED = (99, "`callback` raised `StopIteration`.")
_LBFGSB = _Style(
    {"gtol": 1e-5, "ftol": 2.2e-9, "maxiter": 15_000, "maxfun": 15_000, "eps": 1e-8},
    ("gtol", "ftol"),
    {
        Status.GRADIENT: (0, "CONVERGENCE: NORM OF PROJECTED GRADIENT <= PGTOL"),
        Status.VALUE: (0, "CONVERGENCE: RELATIVE REDUCTION OF F <= FACTR*EPSMCH"),
        Status.PRECISION: (0, "CONVERGENCE: ROUNDING ERRORS PREVENT PROGRESS"),
        Status.ITERATIONS: (1, "STOP: TOTAL NO. OF ITERATIONS REACHED LIMIT"),
        Status.EVALUATIONS: (1, "STOP: TOTAL NO. OF F,G EVALUATIONS EXCEEDS LIMIT"),
        Status.CALLBACK: _STOPPED,
        None: (2, "ABNORMAL: "),
    },
)
_DENSE: dict[Status | None, tuple[int, str]] = {
    Status.GRADIENT: (0, "Optimization terminated successfully."),
    Status.STEP: (0, "Optimization terminated successfully."),
    Status.PRECISION: (0, "Optimization terminated successfully."),
    Status.ITERATIONS: (1, "Maximum number of iterations has been exceeded."),
    Status.LINE_SEARCH: (2, "Desired error not necessarily achieved due to precision loss."),
    Status.NOT_FINITE: (3, "NaN result encountered."),
    Status.CALLBACK: _STOPPED,
    None: (2, "Stopped: "),
}
_BFGS = _Style(
    {"gtol": 1e-5, "xrtol": 0.0, "maxiter": None, "eps": 1.5e-8, "return_all": False},
    ("gtol",), _DENSE,
)
_NEWTON = _Style(
    {"gtol": None, "xtol": 1e-5, "maxiter": None, "eps": 1.5e-8, "return_all": False},
    ("xtol",), _DENSE, takes_hessian=True,
)
# What SciPy passes to every method, besides fun, x0, args, hess and hessp; and our own option.
_COMMON = {
    "jac": None, "bounds": None, "constraints": (), "callback": None, "tol": None, "disp": False,
    "differences": None,
}


def _options_of(style: _Style, given: dict[str, Any]) -> dict[str, Any]:
    """All options with their values, with a warning about those that the method does not know."""
    from scipy.optimize import OptimizeWarning

    known = _COMMON | style.options
    if unknown := [name for name in given if name not in known]:
        # The caller of scipy.optimize.minimize is at level 5.
        message = f"Unknown solver options: {', '.join(unknown)}"
        warnings.warn(message, OptimizeWarning, stacklevel=5)
    options = known | {name: value for name, value in given.items() if name in known}
    if options["tol"] is not None:
        options |= {name: options["tol"] for name in style.tolerances if given.get(name) is None}
    return options


def _first_inverse(hess_inv0: Any, x0: Any) -> Any:
    """The option, checked."""
    if hess_inv0 is None:
        return None
    return _positive_definite("hess_inv0", hess_inv0, np.size(x0))


def _with_matrix(found: Any) -> Any:
    """The result, with hess_inv as an array."""
    found.hess_inv = found.hess_inv.todense()
    return found


def _solve(
    name: str, style: _Style, solver: Any, fun: Callable[..., Any], x0: Any, args: Any,
    given: dict[str, Any], hess: Any = None, hessp: Any = None,
) -> Any:
    """Run `lx.minimize` with the arguments of SciPy, and return a result in SciPy's form."""
    from scipy.optimize import OptimizeResult

    for unused in () if style.takes_hessian else ("hess", "hessp"):
        if given.pop(unused, None) is not None:
            warnings.warn(f"{unused} is not used by this method", RuntimeWarning, stacklevel=4)
    options = _options_of(style, given)
    _refuse_constraints(options["constraints"])
    if np.iscomplexobj(x0):
        raise ValueError("x0 is complex; wanted real numbers, or lx.minimize")
    start = np.atleast_1d(np.asarray(x0, dtype=np.float64))
    n = start.size
    lower, upper = sides(options["bounds"], n)
    bounded = are_bounds(lower, upper)
    if bounded and not getattr(solver, "supports_bounds", False):
        raise ValueError(
            f"bounds were passed to {name}, which takes none; wanted bounds=None, or "
            "method=lbfgs_xp.scipy.lbfgs"
        )
    jac, differences = options["jac"], options["differences"]
    if differences is not None and differences not in _DIFFERENCES:
        raise ValueError(
            f"differences is {differences!r}; wanted None or one of "
            f"{', '.join(map(repr, _DIFFERENCES))}"
        )
    args = args if isinstance(args, tuple) else (args,)
    by_jac = callable(jac)
    evaluate = Evaluate(
        fun, jac if by_jac else differences, args, positive("eps", options["eps"], n), lower, upper
    )
    ours = differences in ("2-point", "3-point") and not by_jac
    # Other differences take n further calls of fun for each gradient.
    calls = 1 if by_jac or ours else 1 + n
    second: dict[str, Any] = {}
    if style.takes_hessian:
        second = second_derivatives(hess, hessp, evaluate, solver.needs_products)
    watch = _Watch(options["callback"], OptimizeResult, options.get("return_all", False))
    res = minimize_arrays(
        evaluate.value if ours else evaluate, start, jac=differences if ours else True,
        method=solver, bounds=(lower, upper) if bounded else None,
        **second,
        gtol=options["gtol"], ftol=options.get("ftol") or 0.0,
        xtol=options.get("xtol", options.get("xrtol")) or 0.0,
        maxiter=_whole("maxiter", options["maxiter"], 200 * n if "maxfun" not in options else None),
        maxfun=_whole("maxfun", options.get("maxfun"), None, calls),
        callback=watch if watch.watches else None,
    )
    found = _in_the_form_of_scipy(res, style, evaluate, ours, OptimizeResult)
    fixed = lower == upper
    if not (by_jac or ours):
        found.jac = np.where(fixed, math.nan, found.jac)
    if fixed.all():
        found.message = "All independent variables were fixed by bounds."
    if watch.keeps:
        found.allvecs = [start, *watch.points]
    if options["disp"]:
        _tell(found, style)
    return found


def _tell(found: Any, style: _Style) -> None:
    """Print how a run ended; a failure is a warning for the methods that warn in SciPy."""
    from scipy.optimize import OptimizeWarning

    if style.ends is _DENSE and not found.success:
        warnings.warn(found.message, OptimizeWarning, stacklevel=5)
    else:
        print(found.message)
    print(f"    value {found.fun:.9g}, {found.nit} iterations, {found.nfev} evaluations")


def _in_the_form_of_scipy(
    res: Result, style: _Style, evaluate: Evaluate, by_values: bool, make: Callable
) -> Any:
    """The result for SciPy.

    by_values : whether fun gave only values, so that it is not known how often they served for a
        gradient.
    """
    code, message = style.ends.get(res.status) or style.ends[None]
    if res.status not in style.ends:
        message += res.message
    if res.success:
        code = 0
    found = make(
        x=res.x, fun=res.fun, jac=res.jac, nit=res.nit, nfev=evaluate.nfev,
        njev=None if by_values else evaluate.njev or res.nfev,
        success=res.success, status=code, message=message, reason=res.message,
    )
    if style.takes_hessian:
        found.nhev = res.nhev
    elif res.hess_inv is not None:
        found.hess_inv = _operator(res.hess_inv)
    return found


class _Watch:
    """A callback for SciPy as a callback for `lx.minimize`; `points` are the iterates, if kept."""

    def __init__(self, callback: Any, result: Callable, keeps: Any):
        checks.callback(callback)
        self.callback, self.result, self.keeps = callback, result, bool(keeps)
        self.points: list[np.ndarray] = []
        self.watches = callback is not None or self.keeps
        self.named = callback is not None and takes_result(callback)

    def __call__(self, record: Record) -> bool:
        if self.keeps:
            self.points.append(np.copy(record.x))
        if self.callback is None:
            return False
        try:
            if self.named:
                self.callback(intermediate_result=self.result(x=record.x, fun=record.fun))
            else:
                self.callback(record.x)
        except StopIteration:
            return True
        return False


def _refuse_constraints(constraints: Any) -> None:
    if constraints is None or (isinstance(constraints, (list, tuple)) and len(constraints) == 0):
        return
    raise ValueError(
        "constraints were passed to a method that takes none; wanted constraints=(), or "
        "lx.augmented_lagrangian, where inequalities are c(x) <= 0 (in SciPy, >= 0)"
    )


def _whole(name: str, value: Any, default: int | None, calls: int = 1) -> int | None:
    """A budget as SciPy takes it: any number, also negative or infinite; None for the default.

    calls : what each unit of the budget of `lx.minimize` takes of it.
    """
    if value is None:
        return default
    number = checks.real(value)
    if number is None or math.isnan(number):
        raise ValueError(f"{name} is {value!r}; wanted a number or None")
    if name == "maxfun":
        return None if number == math.inf else max(int(number // calls), 1)
    return None if number == math.inf else max(math.ceil(number), 0)


def _positive_definite(name: str, value: Any, n: int) -> np.ndarray:
    matrix = np.asarray(value, dtype=np.float64)
    if matrix.shape != (n, n) or not np.array_equal(matrix, matrix.T):
        raise ValueError(
            f"{name} is an array of shape {matrix.shape}; wanted a symmetric matrix {(n, n)}"
        )
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise ValueError(f"{name!r} matrix isn't positive definite.") from None
    return matrix


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
