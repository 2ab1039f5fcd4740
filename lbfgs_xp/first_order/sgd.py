"""Gradient descent, with and without momentum."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.backend import Array
from lbfgs_xp.first_order.base import FirstOrder


@dataclasses.dataclass(frozen=True)
class SGD(FirstOrder):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, in torch's form).

        b ← momentum b + (1 - dampening) g      (b = g at the first step)
        x ← x - learning_rate b                 (nesterov: g + momentum b in place of b)

    Parameters
    ----------
    learning_rate : float or schedule
    momentum, dampening : float in [0, 1)
    nesterov : bool
        Wants momentum > 0 and no dampening.
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

    def numbers(self, t: int, rate: float, carried: tuple) -> tuple[tuple, tuple]:
        return (rate, 1.0 if t == 1 else 1.0 - self.dampening), carried

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple, numbers: tuple
    ) -> tuple[Array, tuple]:
        rate, share = numbers
        if not self.momentum:
            return x - rate * g, ()
        (b,) = slots
        b = self.momentum * b + (share * g if self.dampening else g)
        return x - rate * (g + self.momentum * b if self.nesterov else b), (b,)
