"""Argument types shared by several functions, so that type checkers know the names they accept.

Arrays are `Any`, because the type stubs of the libraries differ too much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict

if TYPE_CHECKING:
    from lbfgs_xp.distributed.team import Engine
    from lbfgs_xp.fits.result import FitRecord
    from lbfgs_xp.result import Record, State
    from lbfgs_xp.saving.checkpoint import Checkpoint
    from lbfgs_xp.solvers.contract import Solver
    from lbfgs_xp.solvers.method import Method as OwnMethod
    from lbfgs_xp.solvers.method import Phase

MethodName = Literal[
    "auto", "lbfgs", "bfgs", "ssbfgs", "ssbroyden", "newton", "newton-cg", "trust-ncg",
    "projected_gradient", "gradient_descent", "sgd", "adagrad", "rmsprop", "adadelta", "adam",
    "adamw", "adamax", "nadam", "radam", "yogi", "adabelief", "lion", "rprop", "asgd",
    "schedule_free_adamw", "adafactor", "muon", "soap",
]
LineSearchName = Literal[
    "fixed", "armijo", "bisection", "strong_wolfe", "more_thuente", "hager_zhang"
]
LossName = Literal["linear", "soft_l1", "huber", "cauchy", "arctan"]
Likelihood = Literal["gaussian", "poisson", "binomial"] | Callable[[Any, Any], Any]
Differences = Literal["2-point", "3-point"]
FitSolver = Literal["dense", "dual", "cg"]
OnError = type[Exception] | tuple[type[Exception], ...]
Jacobian = Callable[..., Any] | Literal[True, "2-point", "3-point"] | None


class ForeignSolver(Protocol):
    """A solver that derives from no class of this library; see `lbfgs_xp.solvers.contract`."""

    def init(self, space: Any, x: Any, value: Any, gradient: Any, /) -> Any: ...

    def step(
        self, space: Any, state: Any, value: Any, gradient: Any, active: Any, /
    ) -> Any: ...


# Strings, because the classes import this module.
Method: TypeAlias = "MethodName | OwnMethod | Solver | ForeignSolver"
PhasesOf: TypeAlias = "Method | Phase | Sequence[Method | Phase] | None"


class MinimizeSettings(TypedDict, total=False):
    """The keyword arguments of `lx.minimize`, except `batched`."""

    method: PhasesOf
    jac: Jacobian
    diff_step: float | None
    hess: Callable[..., Any] | None
    hessp: Callable[..., Any] | None
    has_aux: bool
    bounds: Any
    l1: Any
    x_scale: Any
    noise: float | tuple[float, float] | None
    gtol: float | None
    ftol: float
    xtol: float
    maxiter: int | None
    maxfun: int | None
    maxtime: float | None
    pass_rows: bool
    reproducible: bool
    on_error: OnError
    callback: Callable[[Record], Any] | None
    progress: bool
    state: State | None
    checkpoint: Checkpoint | None
    distributed: Engine | None
    differentiable: bool


class FitSettings(TypedDict, total=False):
    """The keyword arguments shared by `lx.curve_fit` and `lx.least_squares`."""

    jac: Callable[..., Any] | Differences | None
    diff_step: float | None
    bounds: Any
    x_scale: Any
    loss: LossName
    f_scale: float
    gtol: float | None
    ftol: float
    xtol: float
    maxiter: int | None
    maxfun: int | None
    maxtime: float | None
    factor: float
    compact: bool
    on_error: OnError
    differentiable: bool
    callback: Callable[[FitRecord], Any] | None
    progress: bool
    checkpoint: Checkpoint | None


class LeastSquaresSettings(FitSettings, total=False):
    """The keyword arguments of `lx.least_squares`, except `batched`."""

    solver: FitSolver
    weights: Any
    pointwise: bool


class CurveFitSettings(FitSettings, total=False):
    """The keyword arguments of `lx.curve_fit`, except `batched`."""

    sigma: Any
    absolute_sigma: bool
    fixed: Any
    ties: dict[Any, Callable[[Any], Any]] | None
    starts: Any
    priors: Any
    likelihood: Likelihood
    trials: Any
    method: Literal["lm", "lbfgs"]
    threads: int
    chunk_size: int | None
