"""Averaged stochastic gradient descent."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.elementary import maximum, where
from lbfgs_xp.first_order.base import FirstOrder


@dataclasses.dataclass(frozen=True)
class ASGD(FirstOrder):
    """Averaged stochastic gradient descent (Polyak & Juditsky 1992; Bottou 2010 for the rates).

        x ← (1 - lambd η) x - η g,   η = learning_rate / (1 + lambd learning_rate t)^alpha
        a ← a + μ (x - a),           μ = 1 / max(1, t - t0)

    where t in η and μ is that of the previous step. The average a is the slot "ax" in
    `state.slots`.

    Parameters
    ----------
    learning_rate : float or schedule
    lambd, alpha, t0 : float of at least 0
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> lx.ASGD().t0
    1000000.0
    """

    learning_rate: Any = 1e-2
    lambd: float = 1e-4
    alpha: float = 0.75
    t0: float = 1e6

    def _check(self) -> None:
        for name in ("lambd", "alpha", "t0"):
            self._number(name)

    def slots(self) -> dict[str, float]:
        return {"ax": 0.0}

    def carried(self) -> tuple[float, ...]:
        return (-1.0, 1.0)  # η of the next step, negative if that is the learning rate; μ

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        eta, mu = carried
        eta = where(eta < 0.0, rate, eta)
        after = rate / (1.0 + self.lambd * rate * t) ** self.alpha
        return (1.0 - self.lambd * eta, eta, mu), (after, 1.0 / maximum(1.0, t - self.t0))

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        (shrinkage, eta, mu), (a,) = numbers, slots
        x = shrinkage * x - eta * g
        return x, (a + mu * (x - a),)
