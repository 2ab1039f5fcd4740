"""Adafactor."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.checks import number, optional, setting
from lbfgs_xp.elementary import minimum, sqrt
from lbfgs_xp.first_order.leaves import leaf_shape
from lbfgs_xp.first_order.whole_leaf import WholeLeaf, mean_square, norm


@dataclasses.dataclass(frozen=True)
class Adafactor(WholeLeaf):
    """Adafactor (Shazeer & Stern 2018, Algorithms 4 and 5), as in torch.

        β = 1 - t^decay,  ρ = min(learning_rate, 1 / √t),  α = max(eps[1], RMS(x)) ρ
        r ← β r + (1 - β) row means of g²,  c ← β c + (1 - β) column means of g²
        v = r c / mean(r)                   (vectors: v ← β v + (1 - β) g²)
        u = g / max(√v, eps[0])
        x ← x - α u / max(1, RMS(u) / threshold)

    RMS is the root of the mean square of a leaf. Of a matrix with m rows and n columns it keeps
    m + n numbers; a leaf with more axes counts as a stack of matrices.

    Parameters
    ----------
    learning_rate : float or schedule
        The largest ρ.
    decay : float below 0
    eps : (float or None, float)
        None: the machine epsilon of the dtype.
    threshold : float above 0
    **settings
        Weight decay, which is decoupled here, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> state = lx.Adafactor().init(np.ones((300, 200)))
    >>> [slot.shape for slot in state.slots[0]]
    [(300, 1), (1, 200), (0,)]
    """

    learning_rate: Any = 1e-2
    decay: float = -0.8
    eps: tuple[float | None, float] = (None, 1e-3)
    threshold: float = 1.0
    decoupled_weight_decay: bool = dataclasses.field(default=True, kw_only=True)

    def _check(self) -> None:
        setting(self, "decay", number, below=0.0)
        setting(self, "threshold", number, above=0.0)
        if not isinstance(self.eps, (tuple, list)) or len(self.eps) != 2:
            raise ValueError(f"eps is {self.eps!r}; wanted two numbers, of which the first may be "
                             "None")
        first, second = self.eps
        first = optional(number)("eps[0]", first, least=0.0)
        object.__setattr__(self, "eps", (first, number("eps[1]", second, least=0.0)))

    def slots(self) -> dict[str, float]:
        return {"row_var": 0.0, "col_var": 0.0, "variance": 0.0}

    def slot_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if len(shape) < 2:
            return {"row_var": (0,), "col_var": (0,), "variance": shape}
        *stack, m, n = shape
        return {"row_var": (*stack, m, 1), "col_var": (*stack, 1, n), "variance": (0,)}

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (minimum(rate, 1.0 / sqrt(t)), t**self.decay), carried

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...],
        space: Any = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate, share), (row, column, v) = numbers, slots
        eps = space.backend.eps if self.eps[0] is None else self.eps[0]
        if len(leaf_shape(space, x)) < 2:
            v = v + share * (g * g - v)
            spread = v
        else:
            xp = space.xp
            row = row + share * (mean_square(space, g, -1) - row)
            column = column + share * (mean_square(space, g, -2) - column)
            rows = row[..., 0]
            mean = space.sum(rows) * (1.0 / rows.shape[-1])
            mean = fn.maximum(mean, xp.full_like(mean, eps))[..., None, None]
            spread = row * column * (1.0 / mean)
        u = g / space.sqrt(fn.maximum(spread, space.xp.full_like(spread, eps * eps)))
        root = 1.0 / math.sqrt(max(1, math.prod(leaf_shape(space, x))))
        size = fn.maximum(norm(space, x) * root, self.eps[1])
        excess = fn.maximum(norm(space, u) * (root / self.threshold), 1.0)
        return x - (size * rate * (1.0 / excess)) * u, (row, column, v)

    def decayed(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...],
        shrinkage: Any, **more: Any,
    ) -> tuple[Array, tuple[Array, ...]]:
        # RMS(x) is taken before the decay.
        new, slots = self.formula(fn, x, g, slots, numbers, **more)
        return new - shrinkage * x, slots
