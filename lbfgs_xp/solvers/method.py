"""What every method object can do, and the limits that a phase of a run may have."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import TYPE_CHECKING, Any, Self

from lbfgs_xp.arrays.keyed import Keyed, key_of
from lbfgs_xp.checks import (
    Settings,
    budget,
    optional,
    reject_foreign_keywords,
    seconds,
    setting,
    tolerance,
)
from lbfgs_xp.schedules import Constant


@dataclasses.dataclass(frozen=True)
class Limits:
    """Budgets and tolerances, as in `lx.minimize`; None for no limit.

    Parameters
    ----------
    maxiter, maxfun : int
        Iterations, at least 0; evaluations, at least 1.
    maxtime : float
        Seconds, at least 0.
    gtol, ftol, xtol : float
        At least 0.

    Raises
    ------
    ValueError
        If a value is outside these ranges; the message says what was passed.
    """

    maxiter: int | None = None
    maxfun: int | None = None
    maxtime: float | None = None
    gtol: float | None = None
    ftol: float | None = None
    xtol: float | None = None

    def __post_init__(self) -> None:
        setting(self, "maxiter", budget, least=0)
        setting(self, "maxfun", budget, least=1)
        setting(self, "maxtime", optional(seconds))
        for name in ("gtol", "ftol", "xtol"):
            setting(self, name, optional(tolerance))


@dataclasses.dataclass(frozen=True)
class Phase:
    """A method of `lx.minimize` and the limits of its part of a run.

    Parameters
    ----------
    method : str, optimizer or solver
    limits : Limits
        Budgets count from the start of the phase. Limits that are None are left to the arguments
        of `lx.minimize`.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> phase = lx.LBFGS().until(maxiter=100, ftol=1e-9)
    >>> phase == lx.Phase(lx.LBFGS(), lx.Limits(maxiter=100, ftol=1e-9))
    True
    """

    method: Any
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if isinstance(self.method, (Phase, list, tuple)):
            raise TypeError(f"method is {self.method!r}; wanted one method, without limits")
        if not isinstance(self.limits, Limits):
            raise TypeError(f"limits is {self.limits!r}; wanted lx.Limits(...)")


# Names of settings in other libraries.
_FOREIGN = {
    "lr": ("learning_rate",),
    **dict.fromkeys(("history_size", "maxcor", "m", "memory"), ("memory_size",)),
    **dict.fromkeys(("line_search_fn", "linesearch"), ("line_search",)),
    **dict.fromkeys(
        ("c1", "c2", "maxls", "max_linesearch_steps", "max_evaluations"),
        ("line_search, such as lx.StrongWolfe(max_evaluations=20, c1=1e-4, c2=0.9)",),
    ),
    **dict.fromkeys(("b1", "b2", "beta1", "beta2"), ("betas",)),
    "epsilon": ("eps",),
    **dict.fromkeys(("decay", "decay_rate"), ("alpha",)),
    **dict.fromkeys(("max_grad_norm", "max_norm", "clipnorm"), ("clip_norm",)),
    "clipvalue": ("clip_value",),
    "initial_trust_radius": ("initial_radius",),
}
# Limits of a run and of a phase, by their names here and in other libraries.
_LIMITS = {
    **dict.fromkeys(("maxiter", "max_iter", "maxit"), "maxiter"),
    **dict.fromkeys(("maxfun", "max_eval"), "maxfun"),
    **dict.fromkeys(("gtol", "tolerance_grad", "pgtol"), "gtol"),
    **dict.fromkeys(("xtol", "tolerance_change"), "xtol"),
    **{name: name for name in ("ftol", "maxtime")},
}
# What else belongs to a run.
_OF_THE_RUN = {
    **{name: name for name in ("jac", "bounds", "l1", "callback", "progress")},
    **dict.fromkeys(("disp", "verbose", "iprint"), "progress=True"),
    **dict.fromkeys(("diff_step", "eps", "finite_diff_rel_step"), "diff_step"),
}


class Method(Settings, Keyed):
    """What every method object can do; a subclass is a frozen dataclass of settings."""

    foreign = _FOREIGN

    if not TYPE_CHECKING:

        def __new__(cls, *args: Any, **settings: Any) -> Self:
            made = super().__new__(cls, *args, **settings)
            for name in settings.keys() & (_LIMITS.keys() | _OF_THE_RUN.keys()):
                if name in inspect.signature(cls.__init__).parameters:
                    continue
                of_the_run = f"{name} was passed to {cls.__name__}; wanted"
                if name in _LIMITS:
                    raise TypeError(
                        f"{of_the_run} {_LIMITS[name]}, an argument of lx.minimize and of "
                        f"{cls.__name__}().until"
                    )
                raise TypeError(f"{of_the_run} {_OF_THE_RUN[name]}, an argument of lx.minimize")
            return made

    @reject_foreign_keywords(
        **{name: ours for name, ours in _LIMITS.items() if name != ours}
    )
    def until(
        self,
        *,
        maxiter: int | None = None,
        maxfun: int | None = None,
        maxtime: float | None = None,
        gtol: float | None = None,
        ftol: float | None = None,
        xtol: float | None = None,
    ) -> Phase:
        """This method as a phase of a run, with its own budgets and tolerances.

        See `lx.minimize` for their meaning, and `lx.Phase`.

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> problem = lx.problems.rosenbrock(2)
        >>> res = lx.minimize(problem.value_and_gradient, problem.x0, jac=True,
        ...                   method=[lx.Adam(0.1).until(maxiter=50), lx.LBFGS()])
        >>> [phase.status.name for phase in res.phases]
        ['ITERATIONS', 'GRADIENT']
        """
        return Phase(self, Limits(maxiter, maxfun, maxtime, gtol, ftol, xtol))

    @staticmethod
    def _as_given(value: Any) -> Any:
        return value.learning_rate if isinstance(value, Constant) else value

    @functools.cached_property
    def _key(self) -> tuple[Any, ...]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return tuple(key_of(getattr(self, field.name)) for field in fields if field.compare)
