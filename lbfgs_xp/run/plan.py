"""The plan of a run: `method` of `lx.minimize` as stages with limits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lbfgs_xp import checks
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.projections import Box
from lbfgs_xp.result import Status
from lbfgs_xp.run.methods import method_named
from lbfgs_xp.run.stopping import Criteria
from lbfgs_xp.solvers.contract import Solver, completed
from lbfgs_xp.solvers.method import Limits, Phase
from lbfgs_xp.solvers.orthant import L1

# Counts in a batch are 32-bit integers.
_UNLIMITED = 2**31 - 1
# Iterations without meaningful progress after which the precision floor counts as reached.
_PATIENCE = 8
# By which factor it is larger if noise is given: many steps by slopes are needed until the value
# falls visibly.
_PATIENT = 4
# Up to this many variables, twice the memory of L-BFGS, a matrix is less work than the pairs.
_DENSE = 20
# See `Criteria.lost`.
_LOST = 16.0


class Stage(NamedTuple):
    """A phase, ready to run. Its budgets, including maxtime, count from its start."""

    name: str    # of the method, as the user knows it
    solver: Solver
    criteria: Criteria
    maxtime: float


class Noise(NamedTuple):
    """How large the errors of fun are, as far as the user has said so.

    apart : how far apart two values may be through them; None if they are to be measured.
    of_gradient : the errors of the components of the gradient; None if they are to be measured.
    """

    apart: float | None = None
    of_gradient: float | None = None


class Plan(NamedTuple):
    """The stages of a run, at least one, the budgets of the whole run, and its noise."""

    stages: list[Stage]
    maxiter: int
    maxfun: int
    maxtime: float
    noise: Noise


def refuse_phases(state: Any, plan: Plan) -> None:
    """Refuse the state of an earlier run with a list of phases."""
    if state is not None and len(plan.stages) > 1:
        raise ValueError(
            f"state was passed with {len(plan.stages)} phases; wanted the single method to resume"
        )


def plan_of(
    method: Any, limits: Limits, bounds: Any, l1: Any, noise: Any, hess: Any, hessp: Any,
    layout: Layout,
) -> Plan:
    """The plan of a run, from the arguments of `lx.minimize`."""
    weights = layout.weights(l1)
    penalty = None if weights is None else L1(weights)
    stages = [_stage(phase, limits, bounds, penalty, layout) for phase in _phases(method)]
    errors = checks.noise(noise)
    if errors is not None:
        stages = [_told(stage, errors[1]) for stage in stages]
        if not any(stage.solver.takes_noise for stage in stages):
            names = " and ".join(stage.name for stage in stages)
            raise ValueError(
                f"noise was passed, but {names} does not compare values; wanted noise=None, or a "
                'method with a line search, such as "lbfgs"'
            )
    by_products = any(stage.solver.needs_products for stage in stages)
    by_matrix = by_products or any(stage.solver.needs_hessian for stage in stages)
    for name, of, given, used in (
        ("hess", "x", hess, by_matrix), ("hessp", "x and a vector", hessp, by_products),
    ):
        if not (given is None or callable(given)):
            raise TypeError(
                f"{name} is a {type(given).__name__}; wanted a function of {of}, or None"
            )
        if given is not None and not used:
            names = " and ".join(stage.name for stage in stages)
            need = "needs" if len(stages) == 1 else "need"
            raise ValueError(f"{name} was passed, but {names} {need} none; wanted {name}=None")
    return Plan(
        stages,
        _smaller(None, limits.maxiter),
        _smaller(None, limits.maxfun),
        _first_given(None, limits.maxtime, math.inf),
        # Each of two values may be off by the noise.
        Noise() if errors is None else Noise(2.0 * errors[0], errors[1]),
    )


def _told(stage: Stage, error: float | None) -> Stage:
    """The stage, for values with noise and gradients whose components have errors of up to this
    size."""
    solver, criteria = stage.solver, stage.criteria
    if not solver.takes_noise:
        return stage
    if error:
        solver = solver.with_gradient_error(error)
    return stage._replace(
        solver=solver, criteria=criteria._replace(patience=_PATIENT * criteria.patience)
    )


def _phases(method: Any) -> list[Phase]:
    """`method` of `lx.minimize`, a single method or a list, as phases."""
    methods = method if isinstance(method, (list, tuple)) else [method]
    if not methods:
        raise ValueError(f"method is {method!r}; wanted at least one method")
    return [each if isinstance(each, Phase) else Phase(each) for each in methods]


def _stage(phase: Phase, whole: Limits, bounds: Any, l1: L1 | None, layout: Layout) -> Stage:
    name, solver = _solver(phase.method, bounds, l1, layout)
    own, backend = phase.limits, layout.backend
    criteria = Criteria(
        gtol=_first_given(own.gtol, whole.gtol, 0.0),
        relative=relative_tolerance(backend.eps) if own.gtol is whole.gtol is None else 0.0,
        ftol=_first_given(own.ftol, whole.ftol, 0.0),
        xtol=_first_given(own.xtol, whole.xtol, 0.0),
        maxiter=_smaller(own.maxiter, whole.maxiter),
        maxfun=_smaller(own.maxfun, whole.maxfun),
        # 4 eps of float64. In float32, 4 eps can be seen, but not the rounding of a sum of squares.
        part=max(4.0 * backend.eps * backend.eps, 2.0**-50),
        eps=backend.eps,
        noise=backend.noise,
        largest=backend.largest,
        patience=_PATIENCE if solver.patience is None else solver.patience,
        # Only a method with searches confirms its end by a look.
        lost=_LOST if solver.searches else 0.0,
        failure=int(Status.LINE_SEARCH if solver.searches else Status.DIVERGED),
        calls_per_trial=1,
        trials=_UNLIMITED,
        forward=False,
        error=backend.eps,
    )
    return Stage(name, solver, criteria, _first_given(own.maxtime, None, math.inf))


def relative_tolerance(eps: float) -> float:
    """The default tolerance of the gradient, relative to the first gradients of the run.

    The decrease that is left is about the square of the gradient, so in float64 it is far below
    what matters. float32 has no digits to spare: a run ends where rounding ends it.
    """
    return eps**0.5 if eps < 1e-10 else 8.0 * eps


def _first_given(own: float | None, whole: float | None, default: float) -> float:
    value = whole if own is None else own
    return default if value is None else value


def _smaller(own: int | None, whole: int | None) -> int:
    """The smaller of the given limits."""
    most = _UNLIMITED if whole is None else min(whole, _UNLIMITED)
    return most if own is None else min(own, most)


def _solver(method: Any, bounds: Any, l1: L1 | None, layout: Layout) -> tuple[str, Solver]:
    """The name of a method, and its solver, with the penalty and restricted to the bounds."""
    if method is None or (isinstance(method, str) and method == "auto"):
        dense = layout.batch and layout.size <= _DENSE and l1 is None
        method = "bfgs" if dense else "lbfgs"
    method = method_named(method, more=("auto",))
    name = type(method).__name__
    # An optimizer of nested parameters is not a solver yet, but makes one.
    solver = completed(method.solver(layout) if hasattr(method, "solver") else method)
    if bounds is None:
        if layout.scale is not None and solver.projects:
            raise ValueError(
                f"x_scale was passed with the projection of {name}, which holds for unscaled x; "
                "wanted x_scale=None, or bounds"
            )
    else:
        checks.bounds(bounds)
        if not solver.supports_bounds:
            raise ValueError(
                f"bounds were passed, but {name} takes none; wanted bounds=None, or "
                'a method that takes them, such as "lbfgs"'
            )
        solver = solver.with_bounds(Box(*layout.sides(bounds)))
    if l1 is not None:
        if not solver.supports_l1:
            raise ValueError(
                f'l1 was passed, but {name} takes no penalty; wanted l1=None, or method="lbfgs"'
            )
        solver = solver.with_l1(l1)
    return name, solver
