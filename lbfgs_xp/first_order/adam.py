"""Adam and its variants, which keep running means of the gradient and its square."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.elementary import either, one_minus_power, power, sqrt, where
from lbfgs_xp.first_order.base import FirstOrder


def adam_numbers(
    t: int, rate: float, betas: tuple[float, float], eps: float
) -> tuple[float, float]:
    """Learning rate and eps for uncorrected m and v: the corrections are moved out of the
    elementwise part, as in section 2 of Kingma & Ba (2015)."""
    root = sqrt(one_minus_power(betas[1], t))
    return rate * root / one_minus_power(betas[0], t), eps * root


def moments(g: Array, m: Array, v: Array, betas: tuple[float, float]) -> tuple[Array, Array]:
    """m ← beta1 m + (1 - beta1) g, v ← beta2 v + (1 - beta2) g²."""
    beta1, beta2 = betas
    return m + (1.0 - beta1) * (g - m), beta2 * v + (1.0 - beta2) * g * g


@dataclasses.dataclass(frozen=True)
class _Moments(FirstOrder):
    """The base of Adam and its variants."""

    learning_rate: Any = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def _check(self) -> None:
        self._pair("betas")
        self._number("eps")

    def slots(self) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def corrections(self, t: int) -> tuple[float, float]:
        """1 - beta^t for both: the bias corrections of means that start at 0 (Kingma & Ba 2015,
        section 3)."""
        return one_minus_power(self.betas[0], t), one_minus_power(self.betas[1], t)

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return adam_numbers(t, rate, self.betas, self.eps), carried


@dataclasses.dataclass(frozen=True)
class Adam(_Moments):
    """Adam (Kingma & Ba 2015, Algorithm 1; amsgrad: Reddi, Kale & Kumar 2018).

        m ← beta1 m + (1 - beta1) g
        v ← beta2 v + (1 - beta2) g²
        x ← x - learning_rate m̂ / (√v̂ + eps),  m̂ = m / (1 - beta1^t),  v̂ = v / (1 - beta2^t)

    amsgrad uses the largest v so far instead of v.

    Parameters
    ----------
    learning_rate : float or schedule
    betas : two floats in [0, 1)
    eps : float
    amsgrad : bool
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> def fun(x):
    ...     return np.sum((x - 3.0) ** 2), 2.0 * (x - 3.0)
    >>> res = lx.minimize(fun, np.zeros(2), jac=True, method=lx.Adam(0.1), maxiter=1000)
    >>> bool(np.allclose(res.x, 3.0, atol=1e-6))
    True
    """

    amsgrad: bool = False

    def _check(self) -> None:
        super()._check()
        self._flag("amsgrad")

    def slots(self) -> dict[str, float]:
        return super().slots() | ({"max_exp_avg_sq": 0.0} if self.amsgrad else {})

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate, eps), (m, v, *top) = numbers, slots
        m, v = moments(g, m, v, self.betas)
        if not self.amsgrad:
            return x - rate * m / (fn.sqrt(v) + eps), (m, v)
        largest = fn.maximum(top[0], v)
        return x - rate * m / (fn.sqrt(largest) + eps), (m, v, largest)


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2).

    `lx.Adam` with `decoupled_weight_decay=True` and `weight_decay=0.01`.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> lx.AdamW().weight_decay
    0.01
    """

    weight_decay: float = dataclasses.field(default=1e-2, kw_only=True)
    decoupled_weight_decay: bool = dataclasses.field(default=True, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Adamax(_Moments):
    """Adamax, Adam in the infinity norm (Kingma & Ba 2015, Algorithm 2).

        m ← beta1 m + (1 - beta1) g
        u ← max(beta2 u, |g| + eps)
        x ← x - learning_rate / (1 - beta1^t) m / u

    Parameters
    ----------
    learning_rate : float or schedule
    betas : two floats in [0, 1)
    eps : float
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> list(lx.Adamax().slots())
    ['exp_avg', 'exp_inf']
    """

    learning_rate: Any = 2e-3

    def slots(self) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_inf": 0.0}

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (rate / self.corrections(t)[0],), carried

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate,), (m, u) = numbers, slots
        beta1, beta2 = self.betas
        m = m + (1.0 - beta1) * (g - m)
        u = fn.maximum(beta2 * u, fn.abs(g) + self.eps)
        return x - rate * m / u, (m, u)


@dataclasses.dataclass(frozen=True)
class NAdam(_Moments):
    """Adam with Nesterov momentum (Dozat 2016), with the momentum schedule of torch.

        μ_t = beta1 (1 - 0.96^(t momentum_decay) / 2),  M_t = μ_1 μ_2 ... μ_t
        m ← beta1 m + (1 - beta1) g
        v ← beta2 v + (1 - beta2) g²
        x ← x - learning_rate (μ_{t+1} m / (1 - M_{t+1}) + (1 - μ_t) g / (1 - M_t)) / (√v̂ + eps)

    Parameters
    ----------
    learning_rate : float or schedule
    betas : two floats in [0, 1)
    eps : float
    momentum_decay : float
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> lx.NAdam().learning_rate(0)
    0.002
    """

    learning_rate: Any = 2e-3
    momentum_decay: float = 4e-3

    def _check(self) -> None:
        super()._check()
        self._number("momentum_decay")

    def carried(self) -> tuple[float, ...]:
        return (1.0,)  # M_0

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        now, following = (
            self.betas[0] * (1.0 - 0.5 * power(0.96, k * self.momentum_decay)) for k in (t, t + 1)
        )
        product = carried[0] * now
        root = sqrt(self.corrections(t)[1])
        of_gradient = rate * root * (1.0 - now) / (1.0 - product)
        of_mean = rate * root * following / (1.0 - product * following)
        return (of_gradient, of_mean, self.eps * root), (product,)

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        of_gradient, of_mean, eps = numbers
        m, v = moments(g, slots[0], slots[1], self.betas)
        return x - (of_gradient * g + of_mean * m) / (fn.sqrt(v) + eps), (m, v)


@dataclasses.dataclass(frozen=True)
class RAdam(_Moments):
    """Rectified Adam (Liu et al. 2020, Algorithm 2).

        m, v as in Adam;  ρ_∞ = 2 / (1 - beta2) - 1,  ρ_t = ρ_∞ - 2 t beta2^t / (1 - beta2^t)
        x ← x - learning_rate r_t m̂ / (√v̂ + eps)    if ρ_t > 5
        x ← x - learning_rate m̂                     otherwise

    r_t² = (ρ_t - 4) (ρ_t - 2) ρ_∞ / ((ρ_∞ - 4) (ρ_∞ - 2) ρ_t). As in torch, eps is added before v
    is corrected, and the threshold is 5 instead of the paper's 4.

    Parameters
    ----------
    learning_rate : float or schedule
    betas : two floats in [0, 1)
    eps : float
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> lx.RAdam(betas=(0.9, 0.99)).betas
    (0.9, 0.99)
    """

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        first, second = self.corrections(t)
        limit = 2.0 / (1.0 - self.betas[1]) - 1.0
        length = limit - 2.0 * t * power(self.betas[1], t) / second

        rectifies = length > 5.0
        # A program computes the root in any case, and differentiates it.
        length = where(rectifies, length, 6.0)

        def rectified() -> float:
            squared = (length - 4.0) * (length - 2.0) * limit
            squared /= (limit - 4.0) * (limit - 2.0) * length
            return rate / first * sqrt(second) * sqrt(squared)

        plain = where(rectifies, 0.0, rate / first)
        return (plain, either(rectifies, rectified, lambda: 0.0)), carried

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        # One of the two rates is 0.
        plain, rectified = numbers
        m, v = moments(g, slots[0], slots[1], self.betas)
        return x - m * (plain + rectified / (fn.sqrt(v) + self.eps)), (m, v)


@dataclasses.dataclass(frozen=True)
class Yogi(_Moments):
    """Yogi (Zaheer et al. 2018, Algorithm 2), with the defaults of optax.

        m ← beta1 m + (1 - beta1) g
        v ← v - (1 - beta2) sign(v - g²) g²
        x ← x - learning_rate m̂ / (√v̂ + eps)

    Parameters
    ----------
    learning_rate : float or schedule
    betas : two floats in [0, 1)
    eps : float
    initial_accumulator_value : float
        The initial m and v.
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> lx.Yogi(1e-2).eps
    0.001
    """

    learning_rate: Any = 1e-2
    eps: float = 1e-3
    initial_accumulator_value: float = 1e-6

    def _check(self) -> None:
        super()._check()
        self._number("initial_accumulator_value")

    def slots(self) -> dict[str, float]:
        return dict.fromkeys(super().slots(), self.initial_accumulator_value)

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate, eps), (m, v) = numbers, slots
        beta1, beta2 = self.betas
        squared = g * g
        m = m + (1.0 - beta1) * (g - m)
        v = v - (1.0 - beta2) * (fn.sign(v - squared) * squared)
        return x - rate * m / (fn.sqrt(v) + eps), (m, v)


@dataclasses.dataclass(frozen=True)
class AdaBelief(_Moments):
    """AdaBelief (Zhuang et al. 2020), as in optax.

        m ← beta1 m + (1 - beta1) g
        v ← beta2 v + (1 - beta2) (g - m)² + eps_root
        x ← x - learning_rate m̂ / (√v̂ + eps)

    Parameters
    ----------
    learning_rate : float or schedule
    betas : two floats in [0, 1)
    eps, eps_root : float
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import lbfgs_xp as lx
    >>> lx.AdaBelief(1e-3).eps_root
    1e-16
    """

    eps: float = 1e-16
    eps_root: float = 1e-16

    def _check(self) -> None:
        super()._check()
        self._number("eps_root")

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate, eps), (m, v) = numbers, slots
        beta1, beta2 = self.betas
        m = m + (1.0 - beta1) * (g - m)
        surprise = g - m
        v = beta2 * v + (1.0 - beta2) * surprise * surprise + self.eps_root
        return x - rate * m / (fn.sqrt(v) + eps), (m, v)
