"""What every method object can do, and the limits that a phase of a run may have."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import TYPE_CHECKING, Any, Self

from lbfgs_xp.arrays.keyed import Keyed, key_of
from lbfgs_xp.checks import (
    OwnSignature,
    Settings,
    budget,
    optional,
    refuse_foreign_settings,
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


# Names of these settings in other libraries.
_OURS = {
    "lr": ("learning_rate",),
    **dict.fromkeys(("history_size", "maxcor", "m", "memory"), ("memory_size",)),
    "line_search_fn": ("line_search",),
    **dict.fromkeys(("b1", "b2", "beta1", "beta2"), ("betas",)),
}
# Names, here and in other libraries, of what belongs to a run.
_OF_THE_RUN = {
    **dict.fromkeys(("maxiter", "max_iter", "maxit"), "maxiter"),
    **dict.fromkeys(("maxfun", "max_eval"), "maxfun"),
    **dict.fromkeys(("gtol", "tolerance_grad", "pgtol"), "gtol"),
    **dict.fromkeys(("xtol", "tolerance_change"), "xtol"),
    **{name: name for name in ("ftol", "maxtime")},
}


class Method(Settings, Keyed):
    """What every method object can do; a subclass is a frozen dataclass of settings."""

    __signature__ = OwnSignature()

    if not TYPE_CHECKING:

        def __new__(cls, *args: Any, **settings: Any) -> Self:
            refuse_foreign_settings(cls, settings, _OURS)
            for name in settings.keys() & _OF_THE_RUN.keys():
                if name not in inspect.signature(cls.__init__).parameters:
                    ours = _OF_THE_RUN[name]
                    raise TypeError(
                        f"{name} was passed to {cls.__name__}; wanted {ours}, an argument of "
                        f"lx.minimize and of {cls.__name__}().until"
                    )
            return super().__new__(cls)

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
