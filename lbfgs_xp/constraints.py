"""Minimisation under constraints, by a sequence of unconstrained problems.

fun(x) is minimised subject to inequality(x) <= 0 and equality(x) = 0. With multipliers mu >= 0 and
lambda the Lagrangian is

    L(x) = fun(x) + mu . inequality(x) + lambda . equality(x),

so that at a solution grad fun + J_inequality^T mu + J_equality^T lambda = 0, and mu = 0 where
an inequality is not active. Nocedal & Wright (2006), chapter 17, has c(x) >= 0 and the other sign.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.backend import Array, Backend, described, is_array, is_true
from lbfgs_xp.minimize import minimize
from lbfgs_xp.result import Reason, Result, Status, attach, table
from lbfgs_xp.scalars import FLOATS
from lbfgs_xp.space import FixedOrderSpace, Space
from lbfgs_xp.tree import Layout, map_leaves

# The penalty grows where the violation has not fallen to this share.
_ENOUGH = 0.25


class ConstrainedStatus(Reason):
    """Why a minimisation under constraints stopped; `str(status)` is the sentence."""

    RUNNING = -1, False, "still running"
    CONVERGED = 0, True, "converged: the constraints hold to ctol, and the inner solve succeeded"
    INFEASIBLE = (
        1,
        False,
        "the violation does not fall however large the penalty: the constraints contradict each "
        "other, hold nowhere near, or have a scale far from that of fun",
    )
    ITERATIONS = 2, False, "the budget of outer iterations (maxiter) is spent"
    EVALUATIONS = 3, False, "the budget of evaluations (maxfun) is spent"
    TIME = 4, False, "the budget of seconds (maxtime) is spent"
    INNER = (
        5,
        False,
        "the inner solve failed: `inner` of the result tells why",
    )
    UNBOUNDED = 6, False, "the value falls without bound, however large the penalty"
    NOT_FINITE = 7, False, "the value, a constraint or a gradient at the start is not finite"
    CALLBACK = 8, False, "stopped by the callback"
    INTERRUPTED = 9, False, "interrupted from the keyboard"


_ENDS = {
    Status.EVALUATIONS: ConstrainedStatus.EVALUATIONS,
    Status.TIME: ConstrainedStatus.TIME,
    Status.NOT_FINITE: ConstrainedStatus.NOT_FINITE,
    Status.INTERRUPTED: ConstrainedStatus.INTERRUPTED,
    Status.DIVERGED: ConstrainedStatus.INNER,
}


class Multipliers(NamedTuple):
    """Lagrange multipliers: arrays (m,), or None where there are no such constraints.

    inequality : at least 0, and 0 where the constraint is not active.
    equality : of either sign.
    """

    inequality: Any
    equality: Any


@dataclasses.dataclass(frozen=True)
class ConstrainedResult:
    """The outcome of `lx.quadratic_penalty` and `lx.augmented_lagrangian`.

    Attributes
    ----------
    x : of the structure, library, device and dtype of x0
        Where the run converged; else, of the ends of the inner solves, the one with the lowest
        value among those that satisfy the constraints to ctol, or with the smallest violation.
    fun : float
        The value of fun there, without penalty.
    violation : float
        The largest of max(0, inequality(x)) and |equality(x)|.
    multipliers : Multipliers
        Estimates of the Lagrange multipliers there.
    penalty : float
        The penalty parameter with which x was found.
    nit, nfev : int
        Outer iterations; evaluations of fun in all.
    success, status, message
        Whether and why the run ended; see `lx.ConstrainedStatus`.
    inner : Result
        What the inner solve that ended at x gave back: value and gradient of the penalised
        function.
    """

    x: Any
    fun: float
    violation: float
    multipliers: Multipliers
    penalty: float
    nit: int
    nfev: int
    success: bool
    status: ConstrainedStatus
    message: str
    inner: Result = dataclasses.field(repr=False)

    def __repr__(self) -> str:
        return table(self)


def quadratic_penalty(
    fun: Callable,
    x0: Any,
    args: tuple = (),
    *,
    inequality: Callable | None = None,
    equality: Callable | None = None,
    jac: Any = None,
    inequality_jac: Callable | None = None,
    equality_jac: Callable | None = None,
    method: Any = "lbfgs",
    bounds: Any = None,
    penalty: float = 10.0,
    growth: float = 10.0,
    ctol: float | None = None,
    gtol: float | None = None,
    maxiter: int | None = 50,
    maxiter_inner: int | None = 15_000,
    maxfun: int | None = None,
    maxtime: float | None = None,
    reproducible: bool = False,
    callback: Callable[[ConstrainedResult], Any] | None = None,
) -> ConstrainedResult:
    """Minimise fun(x) subject to inequality(x) <= 0 and equality(x) = 0, by quadratic penalties.

    Minimises fun + rho/2 (|max(0, inequality)|^2 + |equality|^2) for a growing penalty parameter
    rho, each time from the last solution (Nocedal & Wright 2006, Framework 17.1). The constraints
    are approached from outside: at the end they are violated by about (multiplier / rho), and the
    larger rho is, the worse conditioned the problem. `lx.augmented_lagrangian` has neither flaw.

    The parameters are those of `lx.augmented_lagrangian`; but the penalty grows every time, and
    `ctol` is by default eps^(1/3): 6e-6 in float64, 5e-3 in float32.

    Examples
    --------
    >>> import torch
    >>> import lbfgs_xp as lx
    >>> x0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
    >>> res = lx.quadratic_penalty(lambda x: x.sum(), x0, equality=lambda x: x @ x - 2.0)
    >>> res.success, [round(t, 4) for t in res.x.tolist()]
    (True, [-1.0, -1.0])
    """
    problem = _Problem(
        fun, x0, inequality, equality, jac, inequality_jac, equality_jac, reproducible
    )
    return _solve(
        problem, x0, args, False, method, bounds, penalty, growth, ctol, gtol, maxiter,
        maxiter_inner, maxfun, maxtime, callback,
    )


def augmented_lagrangian(
    fun: Callable,
    x0: Any,
    args: tuple = (),
    *,
    inequality: Callable | None = None,
    equality: Callable | None = None,
    jac: Any = None,
    inequality_jac: Callable | None = None,
    equality_jac: Callable | None = None,
    method: Any = "lbfgs",
    bounds: Any = None,
    penalty: float = 10.0,
    growth: float = 10.0,
    ctol: float | None = None,
    gtol: float | None = None,
    maxiter: int | None = 50,
    maxiter_inner: int | None = 15_000,
    maxfun: int | None = None,
    maxtime: float | None = None,
    reproducible: bool = False,
    callback: Callable[[ConstrainedResult], Any] | None = None,
) -> ConstrainedResult:
    """Minimise fun(x) subject to inequality(x) <= 0 and equality(x) = 0, by multipliers.

    Minimises, each time from the last solution,

        fun + (|max(0, mu + rho inequality)|^2 - |mu|^2 + |lambda + rho equality|^2 - |lambda|^2)
              / (2 rho)

    and takes max(0, mu + rho inequality) and lambda + rho equality as the next multipliers
    (Hestenes 1969, Powell 1969, Rockafellar 1973; Nocedal & Wright 2006, Framework 17.3 and section
    17.4). The penalty parameter rho grows only where the violation has not fallen to a quarter.

    One problem at a time; there is no `batched`. On JAX hand over functions that are compiled, all
    of them, and what is minimised is compiled as a whole.

    Parameters
    ----------
    fun : function
        fun(x, *args) -> value, as in `lx.minimize`.
    x0 : array, or nested parameters
        The start, which may violate the constraints.
    args : tuple
        Further arguments of fun, jac, the constraints and their Jacobians.
    inequality, equality : function, at least one
        inequality(x, *args) -> array (m,), or a number: at most 0 where the constraints hold; and
        equality(x, *args) likewise: 0 where they hold.
    jac : None, True, function, "2-point" or "3-point"
        As in `lx.minimize`. With None, "2-point" and "3-point" the constraints are differentiated
        in the same way as fun; with True or a function they need Jacobians.
    inequality_jac, equality_jac : function
        inequality_jac(x, *args) -> array (m, n), where n counts the variables of nested parameters
        end to end.
    method, bounds
        What solves the inner problems: any method of `lx.minimize`, with its bounds.
    penalty, growth : float
        The first rho, above 0; and the factor by which it grows, above 1.
    ctol : float
        How far the constraints may be violated. Default: the square root of the dtype's eps,
        1.5e-8 for float64 and 3.5e-4 for float32; with jac="2-point", whose gradients are not
        good enough for that, eps^(1/3) in its place and for gtol: 6e-6 and 5e-3.
    gtol, maxiter_inner : float, int or None
        `gtol` and `maxiter` of the inner solves. One that ends at its last iteration is taken up
        again in the next outer iteration.
    maxiter, maxfun, maxtime : int, int, float in seconds; None for no limit
        Budgets of the whole: outer iterations, evaluations of fun, time.
    reproducible : bool
        As in `lx.minimize`.
    callback : function
        callback(result) after each outer iteration, with the `ConstrainedResult` so far; returning
        True stops the run.

    Returns
    -------
    ConstrainedResult

    Raises
    ------
    TypeError, ValueError
        for arguments outside these ranges: what was passed, what is wanted.
    Exception
        What the functions raise goes through, with the `ConstrainedResult` so far, where there is
        any, attached as the attribute `result`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> res = lx.augmented_lagrangian(
    ...     lambda x: np.sum(x), np.asarray([2.0, 0.0]), jac=lambda x: np.ones(2),
    ...     inequality=lambda x: x @ x - 2.0, inequality_jac=lambda x: 2.0 * x,
    ... )
    >>> res.status.name, res.x.round(6), res.multipliers.inequality.round(6)
    ('CONVERGED', array([-1., -1.]), array([0.5]))
    """
    problem = _Problem(
        fun, x0, inequality, equality, jac, inequality_jac, equality_jac, reproducible
    )
    return _solve(
        problem, x0, args, True, method, bounds, penalty, growth, ctol, gtol, maxiter,
        maxiter_inner, maxfun, maxtime, callback,
    )


class _Problem:
    """fun with the terms of its constraints, as a function for `minimize`."""

    def __init__(
        self, fun: Callable, x0: Any, inequality: Any, equality: Any, jac: Any,
        inequality_jac: Any, equality_jac: Any, reproducible: bool,
    ):
        functions = {"inequality": inequality, "equality": equality}
        jacobians = {"inequality_jac": inequality_jac, "equality_jac": equality_jac}
        for name, value in {"fun": fun, **functions, **jacobians}.items():
            if not callable(value) and (value is not None or name == "fun"):
                raise TypeError(f"{name} is a {type(value).__name__}; wanted a function of x")
        if inequality is None and equality is None:
            raise ValueError("no constraints were passed; wanted inequality=, equality= or both")
        explicit = jac is True or callable(jac)
        for name, function in functions.items():
            jacobian = jacobians[f"{name}_jac"]
            if jacobian is None and explicit and function is not None:
                raise ValueError(
                    f"{name}_jac is missing; wanted the Jacobian of {name}, since jac is "
                    f"{'True' if jac is True else 'a function'}"
                )
            if jacobian is not None and not (explicit and function is not None):
                why = "jac is neither True nor a function" if function else f"{name} was not"
                raise ValueError(f"{name}_jac was passed, but {why}; wanted both or none")
        self.layout = Layout(x0, batched=False)
        self.backend = self.layout.backend
        self.space = (FixedOrderSpace if reproducible else Space)(self.backend)
        self.fun = fun
        self.fun_jac = jac
        self.jac = True if explicit else jac
        self.functions = (inequality, equality)
        self.jacobians = (inequality_jac, equality_jac)
        self.merit: Callable = self.evaluate
        given = [f for f in (fun, inequality, equality) if f is not None]
        if jac is None and all(map(self.backend.is_compiled, given)):
            self.merit = self.backend.jit(self.merit)

    def evaluate(self, x: Any, multipliers: Multipliers, penalty: float, *args: Any) -> Any:
        """((value, (value of fun, constraints)), gradient), or without the gradient."""
        f, gradient = self.fun(x, *args), None
        if self.fun_jac is True:
            f, gradient = self._pair(f)
        elif callable(self.fun_jac):
            gradient = self.fun_jac(x, *args)
        if not is_array(f) and not isinstance(f, numbers.Real):
            raise TypeError(f"fun returned {described(f)}; wanted a real number")
        if gradient is not None:
            gradient = self.layout.to_vector(gradient, "the gradient")
        value: Any = f
        found: list[Any] = []
        for name, function, jacobian, multiplier in zip(
            Multipliers._fields, self.functions, self.jacobians, multipliers, strict=True
        ):
            if function is None:
                found.append(None)
                continue
            c = self._numbers(function(x, *args), name)
            matrix = None if jacobian is None else jacobian(x, *args)
            found.append(c)
            # Trials that overflow are ordinary.
            with np.errstate(all="ignore"):
                change = self.change(name, c, multiplier, penalty)
                weights = multiplier + change
                terms = self.space.dot(change, multiplier + weights)
                value = value + (0.5 / penalty) * terms
                if matrix is not None:
                    matrix = self._matrix(matrix, c, f"{name}_jac")
                    gradient = gradient + self.space.combine(weights, matrix)
        out = value, (f, *found)
        return out if gradient is None else (out, self.layout.to_tree(gradient))

    def change(self, name: str, c: Array, multiplier: Any, penalty: float) -> Array:
        """By how much the next multipliers differ from these: rho c; or for an inequality, whose
        multiplier stays positive, max(0, multiplier + rho c) - multiplier.

        Divided by rho that is 0 just where c = 0; or where c <= 0, multiplier >= 0 and one of the
        two is 0.
        """
        change = penalty * c
        if name == "equality":
            return change
        return self.space.xp.maximum(change, self.space.xp.zeros_like(change) - multiplier)

    def measure(
        self, aux: tuple, multipliers: Multipliers, penalty: float
    ) -> tuple[float, float, float, Multipliers]:
        """The value of fun; the violation; the largest change of a multiplier, divided by rho; and
        the next multipliers."""
        f, *found = aux
        xp, max_abs = self.space.xp, self.space.max_abs
        sizes: list[Any] = []
        after: list[Any] = []
        for name, c, multiplier in zip(Multipliers._fields, found, multipliers, strict=True):
            if c is None:
                sizes += [0.0, 0.0]
                after.append(None)
                continue
            change = self.change(name, c, multiplier, penalty)
            beyond = xp.maximum(c, xp.zeros_like(c)) if name == "inequality" else c
            sizes += [max_abs(beyond), max_abs(change)]
            after.append(multiplier + change)
        value, *sizes = self.space.read(f, *sizes)
        violation = FLOATS.maximum(*sizes[::2])  # where one is nan, nan
        change = FLOATS.maximum(*sizes[1::2]) / penalty
        return value, violation, change, Multipliers(*after)

    @staticmethod
    def _pair(out: Any) -> tuple[Any, Any]:
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise TypeError(
                f"fun returned {described(out)}; wanted, with jac=True, the pair (value, gradient)"
            )
        return out[0], out[1]

    def _numbers(self, out: Any, name: str) -> Array:
        """What a constraint function returned, as an array (m,)."""
        if not is_array(out):
            out = self.backend.adopt(out, name)
        self._check_library(out, name)
        if out.ndim > 1 or 0 in out.shape:
            raise ValueError(
                f"{name} returned an array of shape {tuple(out.shape)}; wanted (m,), or one number"
            )
        xp = self.space.xp
        return xp.reshape(xp.astype(out, self.backend.dtype, copy=False), (-1,))

    def _matrix(self, out: Any, c: Array, name: str) -> Array:
        """What a Jacobian returned, as an array (m, n)."""
        if not is_array(out):
            out = self.backend.adopt(out, name)
        self._check_library(out, name)
        wanted = (c.shape[0], self.layout.size)
        if tuple(out.shape) != wanted and (wanted[0] != 1 or tuple(out.shape) != wanted[1:]):
            raise ValueError(
                f"{name} returned an array of shape {tuple(out.shape)}; wanted {wanted}"
            )
        xp = self.space.xp
        return xp.reshape(xp.astype(out, self.backend.dtype, copy=False), wanted)

    def _check_library(self, out: Array, name: str) -> None:
        if (library := self.backend.name_of(out)) != self.backend.name:
            raise TypeError(
                f"{name} returned an array of {library}; wanted one of {self.backend.name}, like x0"
            )


def _solve(
    problem: _Problem, x0: Any, args: Any, has_multipliers: bool, method: Any, bounds: Any,
    penalty: float, growth: float, ctol: float | None, gtol: float | None, maxiter: int | None,
    maxiter_inner: int | None, maxfun: int | None, maxtime: float | None,
    callback: Callable[[ConstrainedResult], Any] | None,
) -> ConstrainedResult:
    eps = problem.backend.eps
    rough = problem.jac == "2-point"
    if ctol is None:
        ctol = eps ** (1 / 2 if has_multipliers and not rough else 1 / 3)
    if gtol is None and rough:
        gtol = eps ** (1 / 3)
    penalty = checks.number("penalty", penalty, above=0.0)
    growth = checks.number("growth", growth, above=1.0)
    ctol = checks.tolerance("ctol", ctol)
    maxiter = checks.budget("maxiter", maxiter, 1)
    maxiter_inner = checks.budget("maxiter_inner", maxiter_inner, 1)
    maxfun = checks.budget("maxfun", maxfun, 1)
    maxtime = checks.optional(checks.seconds)("maxtime", maxtime)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is a {type(callback).__name__}; wanted a function or None")
    if not isinstance(args, tuple):
        args = (args,)
    start = time.perf_counter()
    best: ConstrainedResult | None = None
    x, nfev, previous = x0, 0, math.inf
    # The violation when it last fell by half, and the penalty then.
    milestone, since = math.inf, penalty
    multipliers = Multipliers(0.0, 0.0)  # of any number of constraints

    def measured(inner: Result) -> tuple[ConstrainedResult, float]:
        value, violation, change, after = problem.measure(inner.aux, multipliers, penalty)
        running = ConstrainedStatus.RUNNING
        result = ConstrainedResult(
            inner.x, value, violation, after, penalty, nit, nfev + inner.nfev, False, running,
            running.message, inner,
        )
        return result, change

    def better(old: ConstrainedResult | None, new: ConstrainedResult) -> ConstrainedResult:
        if old is None or not math.isfinite(old.violation):
            return new
        first = min((old, new), key=lambda r: (max(r.violation, ctol), r.fun))
        return dataclasses.replace(first, nit=new.nit, nfev=new.nfev)

    def end(result: ConstrainedResult, status: ConstrainedStatus) -> ConstrainedResult:
        return dataclasses.replace(
            result, success=status.success, status=status, message=status.message
        )

    nit = 0
    try:
        while True:
            nit += 1
            inner = minimize(
                problem.merit, x, (multipliers, penalty, *args), method=method, jac=problem.jac,
                has_aux=True, bounds=bounds, gtol=gtol, maxiter=maxiter_inner,
                maxfun=None if maxfun is None else maxfun - nfev,
                maxtime=None if maxtime is None else max(
                    0.0, maxtime - (time.perf_counter() - start)
                ),
                reproducible=problem.space.reproducible,
            )
            new, change = measured(inner)
            nfev = new.nfev
            if inner.success and change <= ctol:
                return end(new, ConstrainedStatus.CONVERGED)
            if inner.status is Status.NOT_FINITE and best is not None:
                # The last inner solve has run off to where a larger penalty overflows.
                return end(best, ConstrainedStatus.UNBOUNDED)
            best = better(best, new)
            if inner.status in _ENDS:
                return end(best, _ENDS[inner.status])
            if callback is not None and is_true(callback(_apart(best))):
                return end(best, ConstrainedStatus.CALLBACK)
            if inner.status is Status.LINE_SEARCH and change <= ctol:
                return end(best, ConstrainedStatus.INNER)
            if maxiter is not None and nit >= maxiter:
                return end(best, ConstrainedStatus.ITERATIONS)
            if maxfun is not None and nfev >= maxfun:
                return end(best, ConstrainedStatus.EVALUATIONS)

            if inner.status is Status.ITERATIONS:
                # Not yet where multipliers and violation tell something.
                x = inner.x
                continue
            grows = not has_multipliers or change > _ENOUGH * previous
            if inner.status is Status.UNBOUNDED:
                # With a larger penalty there may be a minimum; not from out there.
                grows = True
            else:
                x, previous = inner.x, change
                if has_multipliers:
                    multipliers = new.multipliers
                if new.violation <= max(ctol, 0.5 * milestone):
                    milestone, since = new.violation, penalty
            if grows:
                penalty *= growth
            # In a larger penalty fun is lost by rounding.
            if penalty > since / math.sqrt(eps):
                if inner.status is Status.UNBOUNDED:
                    return end(best, ConstrainedStatus.UNBOUNDED)
                # Where next to nothing is left of it, the inner solves are what fails.
                solved = best.violation <= eps ** (1 / 3)
                return end(
                    best, ConstrainedStatus.INNER if solved else ConstrainedStatus.INFEASIBLE
                )
    except KeyboardInterrupt:
        if best is None:
            raise
        return end(best, ConstrainedStatus.INTERRUPTED)
    except Exception as error:
        reached = getattr(error, "result", None)
        if isinstance(reached, Result):
            best = better(best, measured(reached)[0])
        if best is not None:
            attach(error, best, "the best point so far")
        raise


def _apart(result: ConstrainedResult) -> ConstrainedResult:
    """A result whose arrays the receiver may change."""
    x, multipliers = map_leaves(
        lambda leaf: Backend.copy(leaf) if is_array(leaf) else leaf,
        (result.x, tuple(result.multipliers)),
    )
    return dataclasses.replace(result, x=x, multipliers=Multipliers(*multipliers))
