"""What `method` of `lx.minimize` stands for: solvers, and what the run of each is limited by."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from lbfgs_xp import checks, first_order, line_search
from lbfgs_xp.phases import Limits, Method, Phase, phases_of
from lbfgs_xp.projections import Box
from lbfgs_xp.result import Status
from lbfgs_xp.solvers.bfgs import BFGS
from lbfgs_xp.solvers.lbfgs import LBFGS
from lbfgs_xp.solvers.newton import Newton
from lbfgs_xp.solvers.projected_gradient import ProjectedGradient
from lbfgs_xp.stopping import Criteria
from lbfgs_xp.tree import Layout

# Counts of a batch are 32-bit integers.
_UNLIMITED = 2**31 - 1
# Iterations without a change that tells something, before the floor is taken as reached.
_PATIENCE = 8

# Up to so many variables, twice the memory of L-BFGS, one matrix is less work than the pairs.
_DENSE = 20

METHODS: dict[str, Callable[[], Any]] = {
    "lbfgs": LBFGS,
    "bfgs": BFGS,
    "newton": Newton,
    "projected_gradient": ProjectedGradient,
    **first_order.NAMES,
}


# Methods of SciPy that have other names here, or none.
_OF_SCIPY = {
    ("l-bfgs-b", "tnc"): 'with bounds take "projected_gradient", without them "lbfgs"',
    ("cg",): '"lbfgs" needs about as little memory',
    ("newton-cg", "dogleg", "trust-ncg", "trust-exact", "trust-krylov"): 'take "newton"',
    ("slsqp", "cobyla", "cobyqa", "trust-constr"): (
        "for constraints there is lx.augmented_lagrangian"
    ),
    ("lm", "trf", "dogbox"): "for fits there are lx.curve_fit and lx.least_squares",
    ("nelder-mead", "powell"): 'all methods need gradients, of jac="3-point" if need be',
}


class Stage(NamedTuple):
    """A phase, ready to run. Its budgets, seconds among them, count from where it begins."""

    name: str    # of the method, as its user knows it
    solver: Any
    criteria: Criteria
    maxtime: float


class Plan(NamedTuple):
    """The phases of a run, at least one, and the budgets of the whole."""

    stages: list[Stage]
    maxiter: int
    maxfun: int
    maxtime: float


def plan_of(method: Any, limits: Limits, bounds: Any, hess: Any, layout: Layout) -> Plan:
    """The plan of a run, from the arguments of `lx.minimize`."""
    stages = [_stage(phase, limits, bounds, layout) for phase in phases_of(method)]
    if hess is not None and not any(getattr(s.solver, "needs_hessian", False) for s in stages):
        names = " and ".join(stage.name for stage in stages)
        need = "needs" if len(stages) == 1 else "need"
        raise ValueError(f"hess was passed, but {names} {need} none; wanted hess=None")
    if not (hess is None or callable(hess)):
        raise TypeError(f"hess is a {type(hess).__name__}; wanted a function of x, or None")
    return Plan(
        stages,
        _least(None, limits.maxiter),
        _least(None, limits.maxfun),
        _or(None, limits.maxtime, math.inf),
    )


def _stage(phase: Phase, whole: Limits, bounds: Any, layout: Layout) -> Stage:
    name, solver = _solver(phase.method, bounds, layout)
    own, backend = phase.limits, layout.backend
    searches = getattr(solver, "searches", True)
    criteria = Criteria(
        gtol=_or(own.gtol, whole.gtol, math.sqrt(backend.eps)),
        ftol=_or(own.ftol, whole.ftol, 0.0),
        xtol=_or(own.xtol, whole.xtol, 0.0),
        maxiter=_least(own.maxiter, whole.maxiter),
        maxfun=_least(own.maxfun, whole.maxfun),
        noise=backend.noise,
        largest=backend.largest,
        patience=getattr(solver, "patience", _PATIENCE),
        failure=int(Status.LINE_SEARCH if searches else Status.DIVERGED),
        calls_per_trial=1,
        trials=_UNLIMITED,
        forward=False,
        error=backend.eps,
    )
    return Stage(name, solver, criteria, _or(own.maxtime, None, math.inf))


def _or(own: float | None, whole: float | None, default: float) -> float:
    """The first that is given."""
    value = whole if own is None else own
    return default if value is None else value


def _least(own: int | None, whole: int | None) -> int:
    """The smaller one, of those that are given."""
    most = _UNLIMITED if whole is None else min(whole, _UNLIMITED)
    return most if own is None else min(own, most)


def _solver(method: Any, bounds: Any, layout: Layout) -> tuple[str, Any]:
    """The name of a method, and the solver that it stands for, within the bounds."""
    if method is None or (isinstance(method, str) and method == "auto"):
        method = "bfgs" if layout.batch and layout.size <= _DENSE else "lbfgs"
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(
                f"method is {method!r}; wanted one of {', '.join(map(repr, [*METHODS, 'auto']))} "
                f"or a solver object{hint(method)}"
            )
        method = METHODS[method]()
    name = type(method).__name__
    # An optimizer of nested parameters is no solver yet, but makes one.
    if hasattr(method, "solver") and not isinstance(method, type):
        method = method.solver(layout)
    if isinstance(method, type) or not all(hasattr(method, name) for name in ("init", "step")):
        raise TypeError(
            f"method is {checks.shown(method)}; wanted a name, or a solver object such as "
            "lx.LBFGS()"
            + hint(method)
        )
    if bounds is not None and not getattr(method, "supports_bounds", False):
        raise ValueError(
            f"bounds were passed, but {name} takes none; wanted bounds=None, or "
            'a method that takes them, such as "projected_gradient"'
        )
    return name, method if bounds is None else _bounded(method, bounds, layout)


def hint(method: Any) -> str:
    """What an error adds where the name of a method is nearly right, or where a method of SciPy, a
    line search or a class was passed for a method; else nothing."""
    if isinstance(method, str):
        name = method.lower()
        for names, here in _OF_SCIPY.items():
            if name in names:
                return f"; {here}"
        if rule := line_search.NAMES.get(name.replace("-", "_")):
            return _of_line_search(rule)
        near = difflib.get_close_matches(name.replace("-", ""), METHODS, 1, 0.6)
        return f"; did you mean {near[0]!r}?" if near else ""
    kind = method if isinstance(method, type) else type(method)
    if issubclass(kind, line_search.LineSearch) and not inspect.isabstract(kind):
        return _of_line_search(kind)
    if kind is method and issubclass(kind, Method):
        return f"; this is the class, and an object is {kind.__name__}()"
    return ""


def _of_line_search(rule: type) -> str:
    method = f"lx.LBFGS(line_search=lx.{rule.__name__}())"
    return f"; a line search is a setting of a method: method={method}"


def _bounded(solver: Any, bounds: Any, layout: Layout) -> Any:
    """The solver within the bounds, which now are vectors."""
    lower, upper = checks.bounds(bounds)
    if any(layout.complex):
        raise TypeError("bounds were passed, but x0 is complex; complex numbers have no order")
    lower = layout.spread(lower, "the lower bound", -math.inf)
    return solver.with_bounds(Box(lower, layout.spread(upper, "the upper bound", math.inf)))
