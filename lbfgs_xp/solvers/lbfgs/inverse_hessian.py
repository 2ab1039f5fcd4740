"""The inverse Hessian of L-BFGS, as an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import now
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.solvers.bounded import reduced
from lbfgs_xp.solvers.inverse_hessian import Operator
from lbfgs_xp.solvers.lbfgs import curvature
from lbfgs_xp.solvers.lbfgs.curvature import Pairs
from lbfgs_xp.solvers.two_loop import two_loop


class InverseHessian(Operator):
    """The inverse Hessian that L-BFGS has built up, formed as a matrix only on request.

    It holds only the curvature that the steps of the run have seen: with few pairs it is far from
    the inverse of the true Hessian in other directions, and without any it is a multiple of the
    identity. For standard errors, let the memory be several times n, and check them.

    Examples
    --------
    >>> import numpy as np
    >>> import lbfgs_xp as lx
    >>> a = np.asarray([1.0, 4.0])
    >>> res = lx.minimize(lambda x: (x @ (a * x) / 2, a * x), np.ones(2), jac=True)
    >>> bool(np.allclose(res.hess_inv.todense(), np.diag(1 / a), atol=1e-3))
    True
    """

    parts = ("_pairs", "_weights", "_free")

    def __init__(
        self, space: Space, pairs: Pairs, weights: Any, function: Callable | None, free: Any = None
    ):
        *batch, _, n = pairs.rows.shape
        super().__init__(space, (*batch, n, n))
        self._pairs = pairs
        self._weights = weights
        self._function = function
        self._free = free

    def __repr__(self) -> str:
        return f"InverseHessian(shape={self.shape}, pairs={self._pairs.count})"

    def _diagonal(self) -> Array:
        if self._function is not None:
            return super()._diagonal()
        rows, middle = self._middle()
        diagonal = self._space.xp.sum(rows * (middle @ rows), axis=-2) + self._gamma()
        diagonal = diagonal if self._weights is None else diagonal * self._weights**2
        return self._of_free(diagonal)

    def _dense(self) -> Array:
        xp, space = self._space.xp, self._space
        identity = xp.eye(
            self.shape[-1], dtype=space.backend.dtype, device=space.backend.creation_device
        )
        if self._function is not None:
            batch = self._pairs.rows.shape[:-2]
            rows = [
                self._apply(xp.broadcast_to(identity[i, :], (*batch, self.shape[-1])))
                for i in range(self.shape[-1])
            ]
            return xp.stack(rows, axis=-1)
        rows, middle = self._middle()
        if self._free is not None:
            rows = self._of_free(rows, (..., None, slice(None)))
            identity = self._of_free(identity, (..., None, slice(None)))
        matrix = xp.matrix_transpose(rows) @ (middle @ rows)
        matrix = matrix + self._gamma()[..., None] * identity
        if self._weights is None:
            return matrix
        return self._weights[..., :, None] * matrix * self._weights[..., None, :]

    def as_function(self) -> tuple[Callable, Any]:
        if self._function is not None:
            return super().as_function()
        pairs = self._pairs._replace(gamma=now(self._pairs.gamma))
        return _product, (pairs, self._weights)

    def _of_free(self, array: Array, at: Any = ...) -> Array:
        """The array, 0 for the variables that a bound holds."""
        return reduced(self._space, None if self._free is None else self._free[at], array)

    def _apply(self, vector: Array) -> Array:
        return self._of_free(self._whole(self._of_free(vector)))

    def _whole(self, vector: Array) -> Array:
        """H v for a vector of the free variables; the others of the result count as 0."""
        if self._function is not None:
            s, y = curvature.by_age(self._space, self._pairs)
            s, y = (self._of_free(part, (..., None, slice(None))) for part in (s, y))
            return two_loop(vector, s, y, self._function, dot=self._space.dot)
        if self._weights is None:
            return curvature.apply(self._space, self._pairs, vector)
        inner = curvature.apply(self._space, self._pairs, vector * self._weights)
        return inner * self._weights

    def _gamma(self) -> Array:
        """gamma as an array (..., 1)."""
        gamma = self._pairs.gamma
        if self._space.batched:
            return self._space.send(gamma)[..., None]
        return self._space.backend.full((1,), gamma)

    def _middle(self) -> tuple[Array, Array]:
        """W and the matrix M such that H = gamma I + W' M W."""
        space, m = self._space, self._pairs.diagonal.shape[-1]
        columns = []
        for j in range(2 * m):
            unit = space.small_zeros(self._pairs.rows.shape[:-1])
            places = space.small_arange(2 * m)
            unit = unit + space.small.astype(places == j, unit.dtype)
            columns.append(-curvature.coefficients(space, self._pairs, unit))
        return space.in_full(self._pairs.rows), space.send(space.small.stack(columns, axis=-1))


def _product(space: Space, arrays: tuple[Pairs, Any], vector: Array) -> Array:
    """H v for all variables."""
    pairs, weights = arrays
    if weights is not None:
        vector = vector * weights
    product = curvature.apply(space, pairs, vector)
    return product if weights is None else product * weights
