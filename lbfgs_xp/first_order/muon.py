"""Muon."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from lbfgs_xp.arrays.backend import Array, identity
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import count, setting
from lbfgs_xp.first_order.adam import adam_numbers, moments
from lbfgs_xp.first_order.leaves import as_matrix, leaf_shape
from lbfgs_xp.first_order.whole_leaf import WholeLeaf, norm

# Of the quintic polynomial, chosen for its slope at 0 (Jordan et al. 2024).
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)


@dataclasses.dataclass(frozen=True)
class Muon(WholeLeaf):
    """Muon: momentum, orthogonalised by Newton–Schulz iterations (Jordan et al. 2024).

        b ← momentum b + (1 - momentum) g
        u = momentum b + (1 - momentum) g       (nesterov; else u = b)
        X ← u / |u|,  then ns_steps times  A = X X',  X ← 3.4445 X + (2.0315 A A - 4.7750 A) X
        x ← x - scale learning_rate X

    so that all singular values of X are near 1. |u| is the Frobenius norm. A leaf with more than
    two axes is a matrix with its first axis as rows, such as a convolution's. One with fewer takes
    steps of `lx.AdamW` with the same learning rate; `groups` can give those leaves another.

    Parameters
    ----------
    learning_rate : float or schedule
    momentum : float in [0, 1)
    nesterov : bool
    ns_steps : int
        At least 1.
    scale : "original" or "match_rms_adamw"
        √max(1, rows / columns); or 0.2 √max(rows, columns), for which learning rates and weight
        decay of AdamW serve (Liu et al. 2025).
    betas : two floats in [0, 1)
        Of AdamW, for leaves that are not matrices.
    eps : float
        The smallest |u| to divide by.
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> x, g = np.zeros((2, 3)), np.asarray([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])
    >>> opt = lx.Muon(1.0, weight_decay=0.0)
    >>> x, _ = opt.update(x, g, opt.init(x))
    >>> np.linalg.svd(x, compute_uv=False).round(1)
    array([1. , 0.7])
    """

    learning_rate: Any = 1e-3
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    scale: Literal["original", "match_rms_adamw"] = "original"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-7
    weight_decay: float = dataclasses.field(default=0.1, kw_only=True)
    decoupled_weight_decay: bool = dataclasses.field(default=True, kw_only=True)

    def _check(self) -> None:
        self._number("momentum", below=1.0)
        self._number("eps")
        self._flag("nesterov")
        self._pair("betas")
        setting(self, "ns_steps", count, least=1)
        if self.scale not in ("original", "match_rms_adamw"):
            raise ValueError(
                f"scale is {self.scale!r}; wanted 'original' or 'match_rms_adamw'"
            )

    def slots(self) -> dict[str, float]:
        return {"momentum_buffer": 0.0, "exp_avg_sq": 0.0}

    def slot_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"momentum_buffer": shape, "exp_avg_sq": shape if len(shape) < 2 else (0,)}

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (rate, *adam_numbers(t, rate, self.betas, 1e-8)), carried

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...],
        space: Any = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate, of_adam, eps), (b, v) = numbers, slots
        if len(leaf_shape(space, x)) < 2:
            b, v = moments(g, b, v, self.betas)
            return x - of_adam * b / (space.sqrt(v) + eps), (b, v)
        b = b + (1.0 - self.momentum) * (g - b)
        u = as_matrix(space, g + self.momentum * (b - g) if self.nesterov else b)
        m, n = u.shape[-2:]
        if self.scale == "original":
            factor = math.sqrt(max(1.0, m / n))
        else:
            factor = 0.2 * math.sqrt(max(m, n))
        step = space.xp.reshape(self._orthogonal(space, fn, u), x.shape)
        return x - (rate * factor) * step, (b, v)

    def _orthogonal(self, space: Space, fn: Any, matrix: Array) -> Array:
        a, b, c = _POLYNOMIAL
        tall = matrix.shape[-2] > matrix.shape[-1]
        turn = space.xp.matrix_transpose if tall else identity
        # A division of an array by a number rounds differently in some libraries.
        x = turn((1.0 / fn.maximum(norm(space, matrix), self.eps)) * matrix)
        for _ in range(self.ns_steps):
            gram = space.matmul(x, space.xp.matrix_transpose(x))
            x = a * x + space.matmul(b * gram + c * space.matmul(gram, gram), x)
        return turn(x)
