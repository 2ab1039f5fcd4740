"""Gradient descent, with and without momentum."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.tree import Layout
from lbfgs_xp.elementary import where
from lbfgs_xp.first_order.base import FirstOrder
from lbfgs_xp.first_order.state import OptimizerState
from lbfgs_xp.line_search import LineSearch, rule_of
from lbfgs_xp.solvers.steepest_descent import SteepestDescent
from lbfgs_xp.typing import LineSearchName


@dataclasses.dataclass(frozen=True)
class GradientDescent(FirstOrder):
    """Gradient descent: with a learning rate, or with a line search.

        x ← x - learning_rate g

    Parameters
    ----------
    learning_rate : float or schedule
    line_search : LineSearch or str
        A rule such as `lx.Bisection()`, or its name, instead of a learning rate; only for
        `lx.minimize`. The first trial of a search is the step of Barzilai & Borwein (1988). If
        neither is passed: `lx.Bisection(alpha_max=1e30)`, because steps are in units of -g.
    **settings
        With a learning rate: weight decay, clipping and groups; see `lx.FirstOrder`. With a line
        search: clip_norm and clip_value, as for `lx.LBFGS`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def fun(x):
    ...     return x[0] ** 2 + 5.0 * x[1] ** 2, np.asarray([2.0, 10.0]) * x
    >>> steepest = lx.GradientDescent(line_search=lx.Bisection())
    >>> lx.minimize(fun, np.ones(2), jac=True, method=steepest).success
    True
    >>> res = lx.minimize(fun, np.ones(2), jac=True, method=lx.GradientDescent(0.1))
    >>> res.success
    True
    """

    learning_rate: Any = None
    line_search: LineSearch | LineSearchName | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # the dataclass is frozen
        if self.learning_rate is not None:
            if self.line_search is not None:
                raise ValueError(
                    f"learning_rate is {self.learning_rate!r} and line_search is "
                    f"{self.line_search!r}; wanted only one of the two"
                )
            super().__post_init__()
            if any(variant.learning_rate is None for variant in self.variants):
                raise ValueError("learning_rate of a group is None; wanted a number or a schedule")
            return
        given = self.line_search
        rule = rule_of(SteepestDescent.line_search if given is None else given)
        set_(self, "line_search", rule)
        _ = self._steepest    # checks its settings
        for field in dataclasses.fields(FirstOrder):
            if field.name in ("clip_norm", "clip_value"):
                continue
            given, default = getattr(self, field.name), field.default
            if given != default or type(given) is not type(default):
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)!r}; it needs a learning rate, "
                    f"wanted {field.default!r} with a line search"
                )

    def init(self, params: Any) -> OptimizerState:
        if self.learning_rate is None:
            raise TypeError(
                "GradientDescent with a line search cannot update on its own, since it evaluates "
                "the function; wanted lx.minimize(..., method=this), or a learning rate"
            )
        return super().init(params)

    def solver(self, layout: Layout) -> Any:
        if self.line_search is not None:
            return self._steepest
        return super().solver(layout)

    @property
    def _steepest(self) -> SteepestDescent:
        assert self.line_search is not None
        return SteepestDescent(
            self.line_search, clip_norm=self.clip_norm, clip_value=self.clip_value
        )

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate,) = numbers
        return x - rate * g, ()


@dataclasses.dataclass(frozen=True)
class SGD(FirstOrder):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, in torch's form).

        b ← momentum b + (1 - dampening) g      (b = g at the first step)
        x ← x - learning_rate b                 (nesterov: g + momentum b instead of b)

    Parameters
    ----------
    learning_rate : float or schedule
    momentum, dampening : float in [0, 1)
    nesterov : bool
        Requires momentum > 0 and no dampening.
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> opt = lx.SGD(0.1)
    >>> x = np.asarray([1.0, -1.0])
    >>> x, state = opt.update(x, 2 * x, opt.init(x))
    >>> x
    array([ 0.8, -0.8])
    """

    learning_rate: Any = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def _check(self) -> None:
        self._number("momentum", below=1.0)
        self._number("dampening", below=1.0)
        self._flag("nesterov")
        if self.nesterov and (self.momentum == 0.0 or self.dampening > 0.0):
            raise ValueError(
                f"nesterov=True with momentum={self.momentum} and dampening={self.dampening}; "
                "wanted momentum > 0 and dampening = 0"
            )

    def slots(self) -> dict[str, float]:
        return {"momentum_buffer": 0.0} if self.momentum else {}

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (rate, where(t == 1, 1.0, 1.0 - self.dampening)), carried

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        rate, share = numbers
        if not self.momentum:
            return x - rate * g, ()
        (b,) = slots
        b = self.momentum * b + (share * g if self.dampening else g)
        return x - rate * (g + self.momentum * b if self.nesterov else b), (b,)
