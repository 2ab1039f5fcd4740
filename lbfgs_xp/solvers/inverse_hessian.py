"""The inverse Hessian at the end of a run, as an operator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, identity, is_array
from lbfgs_xp.arrays.space import Space


class Operator(ABC):
    """A symmetric matrix for each problem.

    It acts on the real vector of all variables: each array in row-major order, one leaf after the
    other (those of a dict by sorted keys), the real parts of a complex leaf before its imaginary
    parts. `unravel` gives a vector, such as the diagonal, the structure of x.

    Attributes
    ----------
    shape : (n, n), or (B, n, n) for a batch.
    dtype : the dtype of the vectors.
    unravel : function from a vector (..., n) to the structure of x.
    """

    parts: tuple[str, ...]
    """The attributes that hold arrays, for `Backend.keep_parts`."""

    def __init__(self, space: Space, shape: tuple[int, ...]):
        self._space = space
        self.shape = shape
        self.dtype = space.backend.dtype
        self.unravel: Callable = identity

    def todense(self) -> Array:
        """The matrix, (..., n, n)."""
        self._check_whole()
        with self._space.backend.current():
            return self._dense()

    def diagonal(self) -> Array:
        """The diagonal, (..., n)."""
        self._check_whole()
        with self._space.backend.current():
            return self._diagonal()

    def _check_whole(self) -> None:
        if self._space.sharded:
            raise TypeError(
                "hess_inv comes from a run with sharded=True, in which no process has all of it; "
                "wanted hess_inv @ v, with the piece of v in each process"
            )

    @abstractmethod
    def _dense(self) -> Array:
        """`todense` with the device current."""

    @abstractmethod
    def _apply(self, vector: Array) -> Array:
        """H v: (..., n) -> (..., n)."""

    def _diagonal(self) -> Array:
        return self._space.xp.linalg.diagonal(self._dense())

    def as_function(self) -> tuple[Callable, Any]:
        """A global function (space, arrays, v) -> H v, and the arrays: the operator in a form that
        can be compiled. If it has none, that of the identity."""
        return _identity, ()

    def named(self, unravel: Callable) -> Operator:
        """This operator, with `unravel` for the user's variables."""
        self.unravel = unravel
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._space.backend.to_host(self.todense()).astype(dtype or np.float64)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape})"

    def __matmul__(self, other: Array) -> Array:
        """H v for a vector (..., n), or for the columns of a matrix (n, k) of one problem."""
        with self._space.backend.current():
            return self._product(other)

    def _product(self, other: Array) -> Array:
        n = self.shape[-1]
        if not is_array(other):
            other = self._space.backend.from_host(np.asarray(other, dtype=float))
        if other.ndim == 2 and not self._space.batched and other.shape[0] == n:
            xp = self._space.xp
            columns = [self._apply(other[:, k]) for k in range(other.shape[1])]
            return xp.stack(columns, axis=-1)
        if tuple(other.shape) != self.shape[:-1]:
            raise ValueError(
                f"hess_inv of shape {self.shape} was multiplied by an array of shape "
                f"{tuple(other.shape)}; wanted {self.shape[:-1]}"
            )
        return self._apply(other)

    def __rmatmul__(self, other: Array) -> Array:
        """v H, which equals H v because H is symmetric."""
        return self @ other


def _identity(space: Space, arrays: Any, vector: Array) -> Array:
    return vector


def _dense_product(space: Space, matrix: Array, vector: Array) -> Array:
    return space.products(matrix, vector)


class DenseInverseHessian(Operator):
    """The inverse Hessian that BFGS has built up from the curvature along all its steps.

    Before any step it is the initial one.
    """

    parts = ("_matrix",)

    def __init__(self, space: Space, matrix: Array):
        super().__init__(space, tuple(matrix.shape))
        self._matrix = matrix

    def _dense(self) -> Array:
        return self._space.backend.copy(self._matrix)

    def _apply(self, vector: Array) -> Array:
        return self._space.products(self._matrix, vector)

    def as_function(self) -> tuple[Callable, Any]:
        return _dense_product, self._matrix


class ScaledInverseHessian(Operator):
    """S H S for the inverse Hessian H of the variables x / s, with S = diag(s): that of x.

    scale : s, (n,) or (B, n).
    """

    parts = ("_inner", "_scale")

    def __init__(self, space: Space, inner: Operator, scale: Array):
        super().__init__(space, inner.shape)
        self._inner, self._scale = inner, scale

    def _dense(self) -> Array:
        return self._inner._dense() * self._scale[..., None] * self._scale[..., None, :]

    def _diagonal(self) -> Array:
        return self._inner._diagonal() * self._scale * self._scale

    def _apply(self, vector: Array) -> Array:
        return self._scale * self._inner._apply(self._scale * vector)
