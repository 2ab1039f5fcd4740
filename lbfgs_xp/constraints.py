"""Minimisation under constraints, as a sequence of unconstrained problems.

fun(x) is minimised subject to inequality(x) <= 0 and equality(x) = 0. With multipliers mu >= 0 and
lambda, the Lagrangian is

    L(x) = fun(x) + mu . inequality(x) + lambda . equality(x),

so that at a solution grad fun + J_inequality^T mu + J_equality^T lambda = 0, and mu = 0 for every
inactive inequality. Nocedal & Wright (2006), chapter 17, use c(x) >= 0 and the opposite sign.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from lbfgs_xp import checks
from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import copy_of, is_array, is_tracing
from lbfgs_xp.arrays.current import on_device_of
from lbfgs_xp.arrays.tree import map_leaves
from lbfgs_xp.minimize import minimize
from lbfgs_xp.result import Reason, Result, Status, attach, table
from lbfgs_xp.run import implicit
from lbfgs_xp.run.penalised import Multipliers, PenalisedProblem
from lbfgs_xp.typing import Jacobian, PhasesOf

# The penalty grows unless the violation has fallen to this fraction.
_ENOUGH = 0.25


class ConstrainedStatus(Reason):
    """The reason why a minimisation under constraints stopped; `status.message` is a sentence."""

    RUNNING = -1, False, "still running"
    CONVERGED = 0, True, "converged: the constraints hold to ctol, and the inner solve succeeded"
    INFEASIBLE = (
        1,
        False,
        "the violation does not fall, however large the penalty: the constraints contradict each "
        "other, cannot be satisfied nearby, or are scaled very differently from fun",
    )
    ITERATIONS = 2, False, "the budget of outer iterations (maxiter) is spent"
    EVALUATIONS = 3, False, "the evaluation budget (maxfun) is spent"
    TIME = 4, False, "the time budget (maxtime) is spent"
    INNER = (
        5,
        False,
        "the inner solve failed: see `inner` of the result",
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


@dataclasses.dataclass(frozen=True)
class ConstrainedResult:
    """The outcome of `lx.quadratic_penalty` and `lx.augmented_lagrangian`.

    Attributes
    ----------
    x : with the structure, library, device and dtype of x0
        The solution, if the run converged. Otherwise, among the points at which inner solves
        ended, the one with the lowest value that satisfies the constraints to ctol or, if none
        does, the one with the smallest violation.
    fun : float
        The value of fun there, without the penalty.
    violation : float
        The largest of max(0, inequality(x)) and |equality(x)|.
    multipliers : Multipliers
        Estimates of the Lagrange multipliers there.
    penalty : float
        The penalty parameter with which x was found.
    nit, nfev : int
        Outer iterations; evaluations of fun in total.
    success, status, message
        Whether the run succeeded, and why it stopped; see `lx.ConstrainedStatus`.
    inner : Result
        The result of the inner solve that ended at x, with the value and the gradient of the
        penalised function.
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


_FOREIGN = {
    **checks.OF_THE_METHOD,
    "tol": "ctol (for the constraints) and gtol (for the inner solves)",
    "constraints": (
        "inequality= and equality=, functions of x; inequality(x) <= 0 holds, where SciPy has >= 0"
    ),
    **dict.fromkeys(("ineq", "inequalities", "c_ineq"), "inequality"),
    **dict.fromkeys(("eq", "equalities", "c_eq"), "equality"),
    **dict.fromkeys(("rho", "mu", "penalty_parameter"), "penalty"),
    **dict.fromkeys(("ftol", "xtol"), "a limit of the method, such as lx.LBFGS().until(ftol=1e-9)"),
    **dict.fromkeys(("disp", "verbose", "progress"), "callback"),
    "batched": f"{checks.NO_SUCH}: the function solves one problem at a time",
}


@checks.reject_foreign_keywords(**_FOREIGN)
@on_device_of("x0")
def quadratic_penalty(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    inequality: Callable[..., Any] | None = None,
    equality: Callable[..., Any] | None = None,
    jac: Jacobian = None,
    inequality_jac: Callable[..., Any] | None = None,
    equality_jac: Callable[..., Any] | None = None,
    method: PhasesOf = "lbfgs",
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

    Each outer iteration minimises, from the last solution,

        fun + rho/2 (|max(0, inequality)|^2 + |equality|^2)

    for a growing penalty parameter rho (Nocedal & Wright 2006, Framework 17.1). The
    constraints are approached from outside: the solution violates them by about (multiplier / rho),
    and the larger rho, the worse conditioned the problem. `lx.augmented_lagrangian` avoids both.

    The parameters are the same as for `lx.augmented_lagrangian`, except that the penalty grows in
    every outer iteration, and `ctol` defaults to eps^(1/3): 6e-6 in float64, 5e-3 in float32.

    Examples
    --------
    >>> import torch
    >>> import lbfgs_xp as lx
    >>> x0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
    >>> res = lx.quadratic_penalty(lambda x: x.sum(), x0, equality=lambda x: x @ x - 2.0)
    >>> res.success, [round(t, 4) for t in res.x.tolist()]
    (True, [-1.0, -1.0])
    """
    problem = PenalisedProblem(
        fun, x0, inequality, equality, jac, inequality_jac, equality_jac,
        checks.flag("reproducible", reproducible),
    )
    settings = _Settings.checked(
        problem, False, method=method, bounds=bounds, penalty=penalty, growth=growth, ctol=ctol,
        gtol=gtol, maxiter=maxiter, maxiter_inner=maxiter_inner, maxfun=maxfun, maxtime=maxtime,
    )
    return _ConstrainedRun(problem, x0, args, callback, settings).go()


@checks.reject_foreign_keywords(**_FOREIGN)
@on_device_of("x0")
def augmented_lagrangian(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    *,
    inequality: Callable[..., Any] | None = None,
    equality: Callable[..., Any] | None = None,
    jac: Jacobian = None,
    inequality_jac: Callable[..., Any] | None = None,
    equality_jac: Callable[..., Any] | None = None,
    method: PhasesOf = "lbfgs",
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

    Each outer iteration minimises, from the last solution,

        fun + (|max(0, mu + rho inequality)|^2 - |mu|^2 + |lambda + rho equality|^2 - |lambda|^2)
              / (2 rho)

    and takes max(0, mu + rho inequality) and lambda + rho equality as the next multipliers
    (Hestenes 1969, Powell 1969, Rockafellar 1973; Nocedal & Wright 2006, Framework 17.3 and section
    17.4). The penalty parameter rho grows only if the violation has not fallen to a quarter of its
    last value.

    One problem at a time; there is no `batched`. On JAX, if all the functions passed are compiled,
    the function that is minimised is compiled as a whole.

    Parameters
    ----------
    fun : function
        fun(x, *args) -> value, as in `lx.minimize`.
    x0 : array, or nested parameters
        The start, which may violate the constraints.
    args : tuple
        Further arguments of fun, jac, the constraints and their Jacobians.
    inequality, equality : function, at least one
        inequality(x, *args) -> array (m,), or a number: at most 0 where the constraints hold.
        Likewise equality(x, *args): 0 where they hold.
    jac : None, True, function, "2-point" or "3-point"
        As in `lx.minimize`. With None, "2-point" or "3-point" the constraints are differentiated
        in the same way as fun; with True or a function they need Jacobians.
    inequality_jac, equality_jac : function
        inequality_jac(x, *args) -> array (m, n), where n counts the variables, nested parameters
        end to end.
    method, bounds
        The method for the inner problems: any method of `lx.minimize`, with its bounds.
    penalty, growth : float
        The first rho, above 0, and the factor by which it grows, above 1.
    ctol : float
        How far the constraints may be violated. Default: the square root of the dtype's eps,
        1.5e-8 for float64 and 3.5e-4 for float32. With jac="2-point", whose gradients are not
        accurate enough for that, ctol and gtol default to eps^(1/3): 6e-6 and 5e-3.
    gtol, maxiter_inner : float, int or None
        `gtol` and `maxiter` of the inner solves. One that reaches its last iteration is continued
        in the next outer iteration.
    maxiter, maxfun, maxtime : int, int, float in seconds; None for no limit
        Budgets of the whole run: outer iterations, evaluations of fun, time.
    reproducible : bool
        As in `lx.minimize`.
    callback : function
        callback(result) after each outer iteration, with the `ConstrainedResult` so far; returning
        a true value stops the run.

    Returns
    -------
    ConstrainedResult

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; the message says what was passed and what is wanted.
    Exception
        Whatever the functions raise is passed on, with the `ConstrainedResult` so far, if any,
        attached to the exception as its attribute `result`.

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
    problem = PenalisedProblem(
        fun, x0, inequality, equality, jac, inequality_jac, equality_jac,
        checks.flag("reproducible", reproducible),
    )
    settings = _Settings.checked(
        problem, True, method=method, bounds=bounds, penalty=penalty, growth=growth, ctol=ctol,
        gtol=gtol, maxiter=maxiter, maxiter_inner=maxiter_inner, maxfun=maxfun, maxtime=maxtime,
    )
    return _ConstrainedRun(problem, x0, args, callback, settings).go()


class _Settings(NamedTuple):
    """The settings of `lx.augmented_lagrangian`, checked."""

    has_multipliers: bool
    method: Any
    bounds: Any
    penalty: float
    growth: float
    ctol: float
    gtol: float | None
    maxiter: float
    maxiter_inner: int | None
    maxfun: int | None
    maxtime: float | None

    @classmethod
    def checked(
        cls, problem: PenalisedProblem, has_multipliers: bool, *, ctol: Any, gtol: Any, **given: Any
    ) -> _Settings:
        eps = problem.backend.eps
        rough = problem.jac == "2-point"
        if ctol is None:
            ctol = eps ** (1 / 2 if has_multipliers and not rough else 1 / 3)
        if gtol is None:
            # Not relative to the first gradient, as in `minimize`: inner solves start close to
            # their minimum.
            gtol = eps ** (1 / 3 if rough else 1 / 2)
        maxiter = checks.budget("maxiter", given["maxiter"], 1)
        return cls(
            has_multipliers,
            given["method"],
            given["bounds"],
            checks.number("penalty", given["penalty"], above=0.0),
            checks.number("growth", given["growth"], above=1.0),
            checks.tolerance("ctol", ctol),
            gtol,
            math.inf if maxiter is None else maxiter,
            checks.budget("maxiter_inner", given["maxiter_inner"], 1),
            checks.budget("maxfun", given["maxfun"], 1),
            checks.optional(checks.seconds)("maxtime", given["maxtime"]),
        )


class _ConstrainedRun:
    """One call of `quadratic_penalty` or `augmented_lagrangian` in progress.

    x, multipliers, penalty : the start of the next inner solve, and the function it minimises.
    best : the best result so far; None before the first inner solve has ended.
    """

    def __init__(
        self, problem: PenalisedProblem, x0: Any, args: Any, callback: Callable | None,
        settings: _Settings,
    ):
        if callback is not None and not callable(callback):
            raise TypeError(f"callback is a {type(callback).__name__}; wanted a function or None")
        if is_tracing((x0, args)) or implicit.is_wanted(False, x0):
            raise TypeError(
                "a constrained problem was passed inside a function that JAX transforms (jit, "
                "vmap, grad, ...); wanted it outside, because its penalties are chosen in Python"
            )
        self.problem, self.settings, self.callback = problem, settings, callback
        self.args = args if isinstance(args, tuple) else (args,)
        self.start = time.perf_counter()
        self.x, self.penalty = x0, settings.penalty
        self.multipliers = Multipliers(0.0, 0.0)  # for any number of constraints
        self.best: ConstrainedResult | None = None
        self.nit = self.nfev = 0
        # The largest change of a multiplier in the last outer iteration, divided by the penalty.
        self._change = math.inf
        # The violation when it last fell by half, and the penalty at that time.
        self._milestone, self._since = math.inf, self.penalty

    def go(self) -> ConstrainedResult:
        """Run outer iterations until one ends the run."""
        try:
            while True:
                if (end := self._iterate()) is not None:
                    return end
        except KeyboardInterrupt:
            if self.best is None:
                raise
            return _ended(self.best, ConstrainedStatus.INTERRUPTED)
        except Exception as error:
            reached = getattr(error, "result", None)
            if isinstance(reached, Result):
                self.best = self._better(self._measured(reached)[0])
            if self.best is not None:
                attach(error, self.best, "the best point so far")
            raise

    def _iterate(self) -> ConstrainedResult | None:
        """Run one outer iteration; return the result if it is the last."""
        s = self.settings
        self.nit += 1
        inner = self._solve_inner()
        new, change = self._measured(inner)
        self.nfev = new.nfev
        if inner.status is Status.NOT_FINITE and self.best is not None:
            # The previous inner solve ran off to where a larger penalty overflows.
            return _ended(self.best, ConstrainedStatus.UNBOUNDED)
        converged = inner.success and change <= s.ctol
        self.best = new if converged else self._better(new)
        stopped = self.callback is not None and returned.is_true(self.callback(_apart(self.best)))
        if converged:
            return _ended(new, ConstrainedStatus.CONVERGED)
        if inner.status in _ENDS:
            return _ended(self.best, _ENDS[inner.status])
        if stopped:
            return _ended(self.best, ConstrainedStatus.CALLBACK)
        if inner.status is Status.LINE_SEARCH and change <= s.ctol:
            return _ended(self.best, ConstrainedStatus.INNER)
        if self.nit >= s.maxiter:
            return _ended(self.best, ConstrainedStatus.ITERATIONS)
        if s.maxfun is not None and self.nfev >= s.maxfun:
            return _ended(self.best, ConstrainedStatus.EVALUATIONS)
        if inner.status is Status.ITERATIONS:
            # Multipliers and violation are not meaningful yet.
            self.x = inner.x
            return None
        self._learn(inner, new, change)
        return self._lost_in_penalty(inner)

    def _solve_inner(self) -> Result:
        s, problem = self.settings, self.problem
        maxtime = s.maxtime
        if maxtime is not None:
            maxtime = max(0.0, maxtime - (time.perf_counter() - self.start))
        return minimize(
            problem.merit, self.x, (self.multipliers, self.penalty, *self.args), method=s.method,
            jac=problem.jac, has_aux=True, bounds=s.bounds, gtol=s.gtol, maxiter=s.maxiter_inner,
            maxfun=None if s.maxfun is None else s.maxfun - self.nfev, maxtime=maxtime,
            reproducible=problem.space.reproducible,
        )

    def _learn(self, inner: Result, new: ConstrainedResult, change: float) -> None:
        """Choose the start, multipliers and penalty of the next inner solve."""
        s = self.settings
        grows = not s.has_multipliers or change > _ENOUGH * self._change
        if inner.status is Status.UNBOUNDED:
            # A larger penalty may create a minimum; look for it from the last start instead.
            grows = True
        else:
            self.x, self._change = inner.x, change
            if s.has_multipliers:
                self.multipliers = new.multipliers
            if new.violation <= max(s.ctol, 0.5 * self._milestone):
                self._milestone, self._since = new.violation, self.penalty
        if grows:
            self.penalty *= s.growth

    def _lost_in_penalty(self, inner: Result) -> ConstrainedResult | None:
        """The result, if the penalty is so large that rounding hides fun."""
        eps, best = self.problem.backend.eps, self.best
        assert best is not None
        if self.penalty <= self._since / math.sqrt(eps):
            return None
        if inner.status is Status.UNBOUNDED:
            return _ended(best, ConstrainedStatus.UNBOUNDED)
        # If hardly any violation is left, it is the inner solves that fail.
        solved = best.violation <= eps ** (1 / 3)
        return _ended(best, ConstrainedStatus.INNER if solved else ConstrainedStatus.INFEASIBLE)

    def _measured(self, inner: Result) -> tuple[ConstrainedResult, float]:
        """The result of an inner solve, and the largest multiplier change over the penalty."""
        value, violation, change, after = self.problem.measure(
            inner.aux, self.multipliers, self.penalty
        )
        running = ConstrainedStatus.RUNNING
        result = ConstrainedResult(
            inner.x, value, violation, after, self.penalty, self.nit, self.nfev + inner.nfev,
            False, running, running.message, inner,
        )
        return result, change

    def _better(self, new: ConstrainedResult) -> ConstrainedResult:
        """The better of the best result and a new one, with the new one's counts."""
        old, ctol = self.best, self.settings.ctol
        if old is None or not math.isfinite(old.violation):
            return new
        first = min((old, new), key=lambda r: (max(r.violation, ctol), r.fun))
        return dataclasses.replace(first, nit=new.nit, nfev=new.nfev)


def _ended(result: ConstrainedResult, status: ConstrainedStatus) -> ConstrainedResult:
    return dataclasses.replace(
        result, success=status.success, status=status, message=status.message
    )


def _apart(result: ConstrainedResult) -> ConstrainedResult:
    """A copy of the result, whose arrays the receiver may change."""
    x, multipliers = map_leaves(
        lambda leaf: copy_of(leaf) if is_array(leaf) else leaf,
        (result.x, tuple(result.multipliers)),
    )
    return dataclasses.replace(result, x=x, multipliers=Multipliers(*multipliers))
