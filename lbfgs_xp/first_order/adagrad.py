"""Adagrad and its descendants RMSProp and Adadelta."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.first_order.base import FirstOrder


@dataclasses.dataclass(frozen=True)
class Adagrad(FirstOrder):
    """Adagrad (Duchi, Hazan & Singer 2011).

        a ← a + g²
        x ← x - learning_rate / (1 + (t - 1) lr_decay) g / (√a + eps)

    Parameters
    ----------
    learning_rate : float or schedule
    lr_decay : float
    initial_accumulator_value : float
        The initial a.
    eps : float
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> res = lx.minimize(lambda x: (x @ x, 2 * x), np.ones(2), jac=True, method=lx.Adagrad(0.5))
    >>> res.success
    True
    """

    learning_rate: Any = 1e-2
    lr_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def _check(self) -> None:
        for name in ("lr_decay", "initial_accumulator_value", "eps"):
            self._number(name)

    def slots(self) -> dict[str, float]:
        return {"sum": self.initial_accumulator_value}

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (rate / (1.0 + (t - 1) * self.lr_decay),), carried

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate,), (a,) = numbers, slots
        a = a + g * g
        return x - rate * g / (fn.sqrt(a) + self.eps), (a,)


@dataclasses.dataclass(frozen=True)
class RMSProp(FirstOrder):
    """RMSProp (Tieleman & Hinton 2012; centered: Graves 2013, with eps outside the root).

        v ← alpha v + (1 - alpha) g²
        m ← alpha m + (1 - alpha) g             (centered: v - m² instead of v below)
        b ← momentum b + g / (√v + eps)
        x ← x - learning_rate b

    Parameters
    ----------
    learning_rate : float or schedule
    alpha : float in [0, 1)
    eps : float
    momentum : float in [0, 1)
    centered : bool
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> list(lx.RMSProp(momentum=0.9, centered=True).slots())
    ['square_avg', 'grad_avg', 'momentum_buffer']
    """

    learning_rate: Any = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    def _check(self) -> None:
        self._number("alpha", below=1.0)
        self._number("eps")
        self._number("momentum", below=1.0)
        self._flag("centered")

    def slots(self) -> dict[str, float]:
        names = ["square_avg"]
        names += ["grad_avg"] * self.centered + ["momentum_buffer"] * (self.momentum > 0.0)
        return dict.fromkeys(names, 0.0)

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate,), (v, *others) = numbers, slots
        v = self.alpha * v + (1.0 - self.alpha) * g * g
        spread, kept = v, [v]
        if self.centered:
            m = others[0]
            m = m + (1.0 - self.alpha) * (g - m)
            # Rounding may make a variance of 0 negative.
            spread = fn.maximum(v - m * m, 0.0)
            kept.append(m)
        step = g / (fn.sqrt(spread) + self.eps)
        if self.momentum:
            step = self.momentum * others[-1] + step
            kept.append(step)
        return x - rate * step, tuple(kept)


@dataclasses.dataclass(frozen=True)
class Adadelta(FirstOrder):
    """Adadelta (Zeiler 2012, Algorithm 1).

        v ← rho v + (1 - rho) g²
        d = √(u + eps) / √(v + eps) g
        u ← rho u + (1 - rho) d²
        x ← x - learning_rate d

    Parameters
    ----------
    learning_rate : float or schedule
    rho : float in [0, 1)
    eps : float
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> lx.Adadelta(rho=0.95).rho
    0.95
    """

    learning_rate: Any = 1.0
    rho: float = 0.9
    eps: float = 1e-6

    def _check(self) -> None:
        self._number("rho", below=1.0)
        self._number("eps")

    def slots(self) -> dict[str, float]:
        return {"square_avg": 0.0, "acc_delta": 0.0}

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate,), (v, u) = numbers, slots
        v = self.rho * v + (1.0 - self.rho) * g * g
        d = fn.sqrt(u + self.eps) / fn.sqrt(v + self.eps) * g
        u = self.rho * u + (1.0 - self.rho) * d * d
        return x - rate * d, (v, u)
