"""SOAP."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.checks import count, setting
from lbfgs_xp.elementary import where
from lbfgs_xp.first_order.adam import adam_numbers, moments
from lbfgs_xp.first_order.leaves import as_matrix, leaf_shape
from lbfgs_xp.first_order.whole_leaf import WholeLeaf


@dataclasses.dataclass(frozen=True)
class SOAP(WholeLeaf):
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, Algorithm 3).

        m ← beta1 m + (1 - beta1) g,  v ← beta2 v + (1 - beta2) (P' g Q)²
        x ← x - learning_rate P [P' m̂ Q / (√v̂ + eps)] Q'
        L ← beta2 L + (1 - beta2) g g',  R ← beta2 R + (1 - beta2) g' g
        every `basis_every` steps: P from the QR decomposition of L P, Q from that of R Q

    At the first step P and Q are the eigenvectors of the first g g' and g' g. A leaf with more than
    two axes is a matrix with its first axis as rows. One with fewer takes steps of `lx.AdamW`.

    Parameters
    ----------
    learning_rate : float or schedule
    betas : two floats in [0, 1)
    eps : float
    basis_every : int
        At least 1.
    max_side : int
        The basis of a longer side stays the identity. Memory: two matrices for each shorter one.
    **settings
        Weight decay, clipping and groups: see `lx.FirstOrder`.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> opt, x = lx.SOAP(0.05, weight_decay=0.0), np.ones((3, 2))
    >>> state = opt.init(x)
    >>> for _ in range(300):
    ...     x, state = opt.update(x, x - 3.0, state)
    >>> bool(np.allclose(x, 3.0, atol=0.1))
    True
    """

    learning_rate: Any = 3e-3
    betas: tuple[float, float] = (0.95, 0.95)
    eps: float = 1e-8
    basis_every: int = 10
    max_side: int = 10_000
    weight_decay: float = dataclasses.field(default=1e-2, kw_only=True)
    decoupled_weight_decay: bool = dataclasses.field(default=True, kw_only=True)

    def _check(self) -> None:
        self._pair("betas")
        self._number("eps")
        setting(self, "basis_every", count, least=1)
        setting(self, "max_side", count, least=0)

    def slots(self) -> dict[str, float]:
        return dict.fromkeys(("exp_avg", "exp_avg_sq", "left", "right", "rows", "columns"), 0.0)

    def slot_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        sides: list[tuple[int, ...]] = [(0,), (0,)]
        if len(shape) >= 2:
            lengths = shape[0], math.prod(shape[1:])
            sides = [(k, k) if k <= self.max_side else (0,) for k in lengths]
        return {
            "exp_avg": shape, "exp_avg_sq": shape, "left": sides[0], "right": sides[1],
            "rows": sides[0], "columns": sides[1],
        }

    def numbers(
        self, t: int, rate: float, carried: tuple[float, ...]
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        begins = where(t == 1, 1.0, 0.0)
        due = where((t > 1) & (t % self.basis_every == 0), 1.0, 0.0)
        return (*adam_numbers(t, rate, self.betas, self.eps), begins, due), carried

    def formula(
        self, fn: Any, x: Array, g: Array, slots: tuple[Array, ...], numbers: tuple[Any, ...],
        space: Any = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        (rate, eps, begins, due), (m, v, left, right, rows, columns) = numbers, slots
        if len(leaf_shape(space, x)) < 2:
            m, v = moments(g, m, v, self.betas)
            return x - rate * m / (space.sqrt(v) + eps), (m, v, *slots[2:])
        flat, share = as_matrix(space, g), 1.0 - self.betas[1]
        across = space.xp.matrix_transpose(flat)
        grams = []
        for old, side, other in ((left, flat, across), (right, across, flat)):
            known = old.shape[-1] > 0
            grams.append(old + share * (space.matmul(side, other) - old) if known else old)
        bases = [
            _when(space, begins, _eigenvectors, gram, basis)
            for gram, basis in zip(grams, (rows, columns), strict=True)
        ]
        m = m + (1.0 - self.betas[0]) * (g - m)
        turned = space.xp.reshape(_turned(space, bases, flat), x.shape)
        v = self.betas[1] * v + share * turned * turned
        mean = space.xp.reshape(_turned(space, bases, as_matrix(space, m)), x.shape)
        step = _turned_back(space, bases, as_matrix(space, mean / (space.sqrt(v) + eps)))
        bases = [
            _when(space, due, _refined, gram, basis)
            for gram, basis in zip(grams, bases, strict=True)
        ]
        return x - rate * space.xp.reshape(step, x.shape), (m, v, *grams, *bases)


def _when(space: Space, flag: Any, function: Callable, gram: Array, old: Array) -> Array:
    """`function(space, gram, old)` if the flag is 1 and there is a basis, else `old`."""
    if old.shape[-1] == 0:
        return old
    if isinstance(flag, float):
        return function(space, gram, old) if flag else old
    mask = space.xp.reshape(flag > 0.0, (1,))
    return space.backend.branch(mask, lambda _: function(space, gram, old), old)


def _refined(space: Space, gram: Array, basis: Array) -> Array:
    """One step of the power iteration for all eigenvectors."""
    return space.qr(space.matmul(gram, basis))


def _eigenvectors(space: Space, gram: Array, _: Array) -> Array:
    """The eigenvectors as columns, those of the largest eigenvalues first."""
    _, vectors = space.eigh(gram)
    backwards = space.xp.arange(gram.shape[-1] - 1, -1, -1, device=space.backend.creation_device)
    # A copy: products of a reversed view may round differently from those of a loaded state.
    return space.xp.take(space.xp.matrix_transpose(vectors), backwards, axis=-1)


def _turned(space: Space, bases: list[Array], matrix: Array) -> Array:
    """P' A Q."""
    rows, columns = bases
    if rows.shape[-1]:
        matrix = space.matmul(space.xp.matrix_transpose(rows), matrix)
    return space.matmul(matrix, columns) if columns.shape[-1] else matrix


def _turned_back(space: Space, bases: list[Array], matrix: Array) -> Array:
    """P A Q'."""
    rows, columns = bases
    if rows.shape[-1]:
        matrix = space.matmul(rows, matrix)
    if columns.shape[-1]:
        matrix = space.matmul(matrix, space.xp.matrix_transpose(columns))
    return matrix
