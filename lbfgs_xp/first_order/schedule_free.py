"""Schedule-free AdamW."""

from __future__ import annotations

import dataclasses
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.tree import unflatten
from lbfgs_xp.elementary import either, maximum
from lbfgs_xp.first_order import update
from lbfgs_xp.first_order.adam import _Moments
from lbfgs_xp.first_order.state import OptimizerState


@dataclasses.dataclass(frozen=True)
class ScheduleFreeAdamW(_Moments):
    """Schedule-free AdamW (Defazio et al. 2024, The road less scheduled, Algorithm 1).

        v ← beta2 v + (1 - beta2) g²,   v̂ = v / (1 - beta2^t)
        z ← z - η (g / (√v̂ + eps) + weight_decay y)
        x ← (1 - c) x + c z,            c = w_t / (w_1 + ... + w_t)
        y ← (1 - beta1) z + beta1 x

    Gradients are taken at y, which are the parameters of `update`. The average x is what is
    evaluated and kept in the end: `averages(params, state)`. It takes the place of a decaying
    learning rate; only a warm-up, as by `lx.schedules.Warmup`, is of use. The weights w_t are the
    `weight_power`-th power of the largest η so far.

    Parameters
    ----------
    learning_rate : float or schedule
    betas : two floats in [0, 1), the first above 0
    eps : float
    weight_power : float
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> opt, x = lx.ScheduleFreeAdamW(0.1), np.ones(3)
    >>> state = opt.init(x)
    >>> for _ in range(1000):
    ...     x, state = opt.update(x, x - 3.0, state)
    >>> bool(np.allclose(opt.averages(x, state), 3.0, atol=1e-3))
    True
    """

    learning_rate: Any = 2.5e-3
    weight_power: float = 2.0
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)
    decoupled_weight_decay: bool = dataclasses.field(default=True, kw_only=True)

    def _check(self) -> None:
        super()._check()
        self._number("weight_power")
        if self.betas[0] == 0.0:
            raise ValueError(
                f"betas is {self.betas!r}; wanted the first above 0, so that the parameters hold "
                "the average"
            )

    def slots(self) -> dict[str, float]:
        return {"offset": 0.0, "exp_avg_sq": 0.0}    # z - y, and v

    def carried(self) -> tuple[float, ...]:
        return (-1.0, 0.0)    # the largest rate so far, if there was any, and the sum of weights

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        largest = maximum(carried[0], rate)
        weight = largest**self.weight_power
        total = carried[1] + weight
        share = either(total > 0.0, lambda: weight / total, lambda: 0.0)
        root = self.corrections(t)[1] ** 0.5
        return (rate * root, self.eps * root, share), (largest, total)

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        return self.decayed(fn, x, g, slots, numbers, 0.0)

    def decayed(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...],
        shrinkage: Any, **more: Any,
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate, eps, share), (offset, v) = numbers, slots
        beta1, beta2 = self.betas
        v = beta2 * v + (1.0 - beta2) * g * g
        step = rate * g / (fn.sqrt(v) + eps) + shrinkage * x
        # The steps of y and of z - y, from those of z and x.
        kept = beta1 * (1.0 - share)
        return (
            x + share * offset - (1.0 - kept) * step, ((1.0 - share) * offset - kept * step, v)
        )

    def averages(self, params: Any, state: OptimizerState) -> Any:
        """The averaged parameters x, given those of the last `update` and its state."""
        spec = update.checked_spec(self, state)
        leaves, ratio = update.checked_leaves(params, spec, "params"), []
        for variant in spec.variants:
            own: Any = self.variants[variant]
            beta = own.betas[0]
            ratio.append((1.0 - beta) / beta)
        averaged = [
            leaf - each * space.backend.from_real(slots[0], leaf.dtype)
            for leaf, each, space, slots in zip(
                leaves, ratio, spec.spaces, state.slots, strict=True
            )
        ]
        return unflatten(update.structure_in(spec, params), averaged)
