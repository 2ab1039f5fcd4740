"""Rules that step by the sign: Lion and Rprop."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.elementary import where
from lbfgs_xp.first_order.base import FirstOrder


@dataclasses.dataclass(frozen=True)
class Lion(FirstOrder):
    """Lion (Chen et al. 2023, Algorithm 2), with the defaults of optax.

        x ← x - learning_rate (sign(beta1 m + (1 - beta1) g) + weight_decay x)
        m ← beta2 m + (1 - beta2) g

    Parameters
    ----------
    learning_rate : float or schedule
    betas : two floats in [0, 1)
    **settings
        Weight decay (by default decoupled, 1e-3), clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> opt = lx.Lion(0.5, weight_decay=0.0)
    >>> x = np.zeros(2)
    >>> opt.update(x, np.asarray([3.0, -0.1]), opt.init(x))[0]
    array([-0.5,  0.5])
    """

    learning_rate: Any = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = dataclasses.field(default=1e-3, kw_only=True)
    decoupled_weight_decay: bool = dataclasses.field(default=True, kw_only=True)

    def _check(self) -> None:
        self._pair("betas")

    def slots(self) -> dict[str, float]:
        return {"exp_avg": 0.0}

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate,), (m,) = numbers, slots
        beta1, beta2 = self.betas
        x = x - rate * fn.sign(beta1 * m + (1.0 - beta1) * g)
        return x, (beta2 * m + (1.0 - beta2) * g,)


@dataclasses.dataclass(frozen=True)
class Rprop(FirstOrder):
    """Resilient backpropagation (Riedmiller & Braun 1993), for full batches.

        η ← clip(η etas[1], step_sizes)    where g and the previous g have the same sign
        η ← clip(η etas[0], step_sizes)    where they have opposite signs; g then counts as 0
        x ← x - η sign(g)

    Parameters
    ----------
    learning_rate : float or schedule
        The initial η of every component; later values of a schedule are ignored.
    etas : two floats
        0 < etas[0] < 1 < etas[1].
    step_sizes : two floats
        The smallest and the largest η.
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> lx.Rprop(1e-2).etas
    (0.5, 1.2)
    """

    learning_rate: Any = 1e-2
    etas: tuple[float, float] = (0.5, 1.2)
    step_sizes: tuple[float, float] = (1e-6, 50.0)

    def _check(self) -> None:
        self._pair("etas", below=float("inf"))
        self._pair("step_sizes", below=float("inf"))
        if not 0.0 < self.etas[0] < 1.0 < self.etas[1]:
            raise ValueError(f"etas is {self.etas}; wanted 0 < etas[0] < 1 < etas[1]")
        if not self.step_sizes[0] <= self.step_sizes[1]:
            raise ValueError(f"step_sizes is {self.step_sizes}; wanted the smaller one first")

    def slots(self) -> dict[str, float]:
        return {"prev": 0.0, "step_size": 1.0}

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        # The slot starts at 1, so that the initial state does not depend on the learning rate.
        return (where(t == 1, rate, 1.0),), carried

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        (unit,), (before, size) = numbers, slots
        agreement = g * before
        turned = agreement < 0.0
        shorter, longer = self.etas[0] * size, self.etas[1] * size
        size = fn.where(turned, shorter, fn.where(agreement > 0.0, longer, unit * size))
        size = fn.clip(size, *self.step_sizes)
        g = fn.where(turned, 0.0, g)
        return x - size * fn.sign(g), (g, size)
