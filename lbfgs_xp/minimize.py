"""`minimize`: its arguments, the loop, and what becomes of exceptions."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Literal, Unpack, overload

import numpy as np

from lbfgs_xp.arrays.backend import is_array
from lbfgs_xp.arrays.returned import is_true
from lbfgs_xp.arrays.rows import Rows
from lbfgs_xp.arrays.space import FixedOrderSpace, Space
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.checks import reject_foreign_keywords
from lbfgs_xp.result import BatchResult, Record, Result, State, Status, attach
from lbfgs_xp.run.loop import Run
from lbfgs_xp.run.objective import Objective
from lbfgs_xp.run.plan import plan_of
from lbfgs_xp.run.progress import Live
from lbfgs_xp.solvers.method import Limits
from lbfgs_xp.typing import Jacobian, MinimizeSettings, PhasesOf

# Numbers of x from which on the C library may fetch each temporary from the system.
_LARGE = 2**10


_OF_THE_METHOD = "a setting of the method, such as lx.LBFGS(memory_size=20) or lx.Adam(1e-2)"


@overload
def minimize(
    fun: Callable[..., Any], x0: Any, args: Any = (), *, batched: Literal[False] = False,
    **settings: Unpack[MinimizeSettings],
) -> Result: ...


@overload
def minimize(
    fun: Callable[..., Any], x0: Any, args: Any = (), *, batched: Literal[True],
    **settings: Unpack[MinimizeSettings],
) -> BatchResult: ...


@overload
def minimize(
    fun: Callable[..., Any], x0: Any, args: Any = (), *, batched: bool,
    **settings: Unpack[MinimizeSettings],
) -> Result | BatchResult: ...


@reject_foreign_keywords(
    tol="gtol (of the gradient), ftol (of the value) or xtol (of x)",
    options="each option as an argument of its own: maxiter=, gtol=, ...",
    **dict.fromkeys(("max_iter", "maxit", "n_iter", "steps", "iterations"), "maxiter"),
    **dict.fromkeys(("max_eval", "maxfev", "max_nfev"), "maxfun"),
    **dict.fromkeys(("disp", "verbose"), "progress=True"),
    **dict.fromkeys(("batch", "vmap"), "batched=True"),
    **dict.fromkeys(("value_and_grad", "value_and_gradient", "grad"), "jac"),
    **dict.fromkeys(
        ("lr", "learning_rate", "memory_size", "history_size", "maxcor", "line_search",
         "line_search_fn"),
        _OF_THE_METHOD,
    ),
    constraints="lx.augmented_lagrangian",
    hessp="hess",
)
def minimize(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    method: PhasesOf = None,
    jac: Jacobian = None,
    hess: Callable[..., Any] | None = None,
    has_aux: bool = False,
    bounds: Any = None,
    gtol: float | None = None,
    ftol: float = 0.0,
    xtol: float = 0.0,
    maxiter: int | None = 15_000,
    maxfun: int | None = None,
    maxtime: float | None = None,
    batched: bool = False,
    pass_rows: bool = False,
    reproducible: bool = False,
    callback: Callable[[Record], Any] | None = None,
    progress: bool = False,
    state: State | None = None,
) -> Result:
    """Minimise a function of arrays, for one problem or for many at once.

    Parameters
    ----------
    fun : function
        fun(x, *args) -> value: a real number or 0-d array; for a batch an array (B,). It must not
        change x in place.
    x0 : array of any shape, float or complex; or a nested dict, list, tuple or dataclass of them
        The start. Its library and device are those of the whole run.
    args : tuple
        Further arguments of fun (and jac).
    method : None, str, optimizer, solver, or a list of phases
        "lbfgs", "bfgs", "newton", "projected_gradient", "adam", ..., or an object such as
        `lx.LBFGS(memory_size=20)` or `lx.Adam(1e-2)`. "auto": BFGS for a batch of problems of at
        most 20 variables each, else L-BFGS. None: "auto" for a batch, else "lbfgs". A list of
        methods follow each other: `[lx.Adam(1e-3).until(maxiter=1000), lx.LBFGS()]`. Each begins
        at the best point so far and ends by limits of its own (`until`, `lx.Phase`), or by those
        below. Budgets below are those of the whole run.
    jac : None, True, function, "2-point" or "3-point"
        None: automatic differentiation (PyTorch, JAX). True: fun returns (value, gradient). A
        function: jac(x, *args) -> gradient, of the structure of x. For complex x the gradient is
        df/d(re) + i df/d(im). "3-point": central differences, 2n more evaluations each.
        "2-point": forward ones, n more each; and central ones from where a search has failed or
        needed 8 trials, for near a minimum the error of forward differences is larger than the
        gradient, and where a small gradient may be no more than that error.
    hess : None or function
        For methods that need the Hessian (`lx.Newton`) of real x. None: automatic differentiation
        (PyTorch, JAX). A function: hess(x, *args) -> (n, n), for a batch (B, n, n); where x is not
        one vector, over all its numbers in a row, n in all, in the order of its leaves.
    has_aux : bool
        Whether fun returns (value, aux) in place of value (with jac=True, ((value, aux),
        gradient)); `res.aux` is that of the best point.
    bounds : None or (lower, upper)
        For methods that take bounds, such as "projected_gradient"; L-BFGS takes none. Each side is
        None, a number, an array that broadcasts to x0, or of the structure of x0 with such leaves.
        Infinities are no bounds. A start outside is moved to the nearest point inside.
    gtol : float
        Stop where the largest component of the gradient is at most this; under constraints, of
        P(x - gradient) - x, with P the projection. Default: the square root of the dtype's eps,
        1.5e-8 for float64 and 3.5e-4 for float32.
    ftol, xtol : float
        Stop where in two iterations running the value changes by at most ftol |value|, or x by
        at most xtol max(1, largest |x|). With 0, the default, a run goes on until the gradient is
        small or the dtype cannot tell a better point.
    maxiter, maxfun, maxtime : int, int, float in seconds; None for no limit
        Budgets, for each problem of a batch. maxfun counts every call of fun, those of differences
        included, and is honoured inside the line search; only the start may exceed it, which is
        evaluated in any case. By differences a run ends before it where what is left does not
        allow a value with its gradient.
    batched : bool
        x0 is (B, ...) and fun maps it to (B,): B independent problems, each with its own memory,
        line search and status. Problems that are done leave the batch, so that fun is soon handed
        fewer rows than B. Arrays in args whose first axis is B belong to the rows: fun is handed
        the entries of its rows. (On JAX, which compiles for each shape, a batch shrinks to 1024,
        4096, 16384, ... rows only; some of those are done already.) All other functions of
        vectors, such as a projection, see the rows that are left as well.
    pass_rows : bool
        For a batch: fun (and jac, hess) are called as fun(x, rows, *args), with the numbers of the
        rows of x, an array (k,) of integers like x; and args are handed over as they are.
    reproducible : bool
        Every sum in a fixed order: the same bits on every library whose elementary operations
        round as IEEE 754 tells, if fun does its part (see `lx.fixed_sum`). Slower.
    callback : function
        callback(record) after each iteration (of a batch: each evaluation), with a `Record`;
        returning True (of Python or of an array library), or raising StopIteration, stops the run.
    progress : bool
        Show one live line in the terminal.
    state : State
        `res.state` of an earlier run, to go on from. With that run's x as x0 and the same fun, 30
        iterations and then 30 give the same iterates as 60, for one evaluation more. With another
        x0 or fun, the run starts there with the curvature gathered so far. A list of phases cannot
        go on; its last method can, with the state that the list ended with.

    Returns
    -------
    Result, or BatchResult with batched=True

    Raises
    ------
    TypeError, ValueError
        for arguments outside these ranges: what was passed, what is wanted.
    Exception
        What fun, jac or callback raise goes through, with the best point so far attached as the
        attribute `result` of the exception.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def fun(x):
    ...     return np.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)
    >>> res = lx.minimize(fun, np.zeros(2), jac=True)
    >>> res.x, res.status.name
    (array([3., 3.]), 'GRADIENT')
    """
    layout = Layout(x0, batched)
    limits = Limits(maxiter, maxfun, maxtime, gtol, ftol, xtol)
    plan = plan_of(method, limits, bounds, hess, layout)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is a {type(callback).__name__}; wanted a function or None")
    if state is not None and len(plan.stages) > 1:
        raise ValueError(
            f"state was passed with {len(plan.stages)} phases; wanted the one method to go on with"
        )
    space = (FixedOrderSpace if reproducible else Space)(layout.backend, batched)
    objective = Objective(fun, args, jac, has_aux, layout, pass_rows)
    if math.prod(layout.shape) >= _LARGE:
        layout.backend.keep_freed_memory()
    run = Run(plan, space, objective, hess)
    # Trials that overflow are ordinary, so NumPy's warnings are off; but not inside the user's
    # functions, which run in the context of the caller.
    with Live(progress) as live, np.errstate(all="ignore"):
        try:
            run.begin(layout.start(), state)
            _carry_on(run, callback, live)
        except KeyboardInterrupt:
            if run.standing is None:
                raise
            run.recover_from_interrupt()
            run.stop(Status.INTERRUPTED)
        except Exception as error:
            _explain_dtype(error, layout)
            if run.standing is not None:
                _explain_rows(error, run.rows, run.layout)
                result = run.result()
                value = "the values" if is_array(result.fun) else f"value {result.fun}"
                attach(error, result, f"the best point so far, with {value}")
            raise
    return run.result()


def _carry_on(run: Run, callback: Callable[[Record], Any] | None, live: Live) -> None:
    """Evaluate after evaluation until the run has ended, or the callback stops it."""
    watched = live.shown or callback is not None
    while run.goes_on():
        if time.perf_counter() >= run.deadline:
            run.end(Status.TIME)
            continue
        if not run.advance() or not watched:
            continue
        record = run.record()
        live.show(record)
        if callback is not None and _stops(run, callback, record):
            run.stop(Status.CALLBACK)
            return


def _stops(run: Run, callback: Callable, record: Record) -> bool:
    try:
        return is_true(run.in_caller_context(callback, record))
    except StopIteration:
        return True


def _explain_dtype(error: BaseException, layout: Layout) -> None:
    """Add the dtypes of x0, which other arrays of a function may not go together with."""
    with contextlib.suppress(Exception):
        if "dtype" in str(error) and "wanted" not in str(error):    # as our own checks say
            dtypes = sorted({str(leaf.dtype) for leaf in layout.leaves})
            error.add_note(f"lbfgs_xp: functions are passed {', '.join(dtypes)}, like x0")


def _explain_rows(error: BaseException, rows: Rows, layout: Layout) -> None:
    """Explain a possible mismatch of row counts."""
    if rows.here is None:
        return
    left, count = rows.here.shape[0], layout.batch[0]
    with contextlib.suppress(Exception):
        error.add_note(
            f"lbfgs_xp: functions were passed {left} of the {count} rows, because rows that are "
            "done leave the batch; pass data of the rows as args=, or take the indices of the rows "
            f"with pass_rows=True (arrays in args with first axis {count} count as data of the "
            "rows, but 1-d ones as shared where another axis of x0 is as long)"
        )
