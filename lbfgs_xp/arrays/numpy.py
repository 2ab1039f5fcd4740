"""NumPy: arrays on the host, whose memory can be read and overwritten freely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lbfgs_xp.arrays import matrices
from lbfgs_xp.arrays.backend import Array, InPlaceBackend, Pairs

# How many elements of an array fit in the cache of one core, and how many to work on at a time.
_CACHED = 2**17
_PIECE = 2**14
# With rows shorter than this, operations run across many rows rather than along each.
_NARROW = 32


class NumPyBackend(InPlaceBackend):
    on_host = True
    reads_are_free = True

    @property
    def cache_size(self) -> int:
        return 2**20

    def holds(self, array: Array) -> bool:
        return True

    def from_host(self, values: np.ndarray, dtype: Any = None) -> Array:
        return np.asarray(values, dtype=self.dtype if dtype is None else dtype)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return np.zeros(shape, self.dtype)

    def own(self, array: Array) -> Array:
        """A copy; many short rows are copied to Fortran order, so that operations run across the
        rows rather than along each."""
        return array.copy("F" if _are_narrow(array) else "C")

    @staticmethod
    def take(array: Array, indices: Array) -> Array:
        if array.ndim > 1 and array.flags.f_contiguous:
            return array.T.take(indices, axis=-1).T
        # `take` would copy all of an array whose rows do not follow one another.
        return array.take(indices, axis=0) if array.flags.c_contiguous else array[indices]

    def subtract_scaled(self, u: Array, factor: Any, v: Array) -> Array:
        if u.ndim > 1 or u.size < _CACHED:
            return super().subtract_scaled(u, factor, v)
        # In pieces, so that the product stays in the cache.
        for i in range(0, u.shape[0], _PIECE):
            piece = u[i : i + _PIECE]
            np.subtract(piece, factor * v[i : i + _PIECE], out=piece)
        return u

    # --- reductions: for short rows, einsum is faster than one call per row --------------------

    def sum(self, array: Array) -> Array:
        return np.add.reduce(array, axis=-1)    # what np.sum calls in the end

    def max_abs(self, array: Array) -> Array:
        if array.ndim == 1:
            # This needs no temporary, argmax is faster than max, and both find a nan.
            high, low = abs(array[array.argmax()]), abs(array[array.argmin()])
            return low if low > high else high
        sizes = np.abs(array)
        return np.maximum.reduce(
            np.asfortranarray(sizes) if _are_narrow(array) else sizes, axis=-1
        )

    def are_finite(self, arrays: Sequence[Array]) -> bool:
        # One pass is enough unless the squares overflow.
        return all(math.isfinite(np.vdot(array, array)) for array in arrays) or (
            super().are_finite(arrays)
        )

    def dot(self, u: Array, v: Array) -> Array:
        if u.shape[-1] < _NARROW:
            return np.einsum("...n,...n->...", u, v)
        return super().dot(u, v)

    def products(self, rows: Array, vector: Array) -> Array:
        if rows.shape[-1] < _NARROW:
            return np.einsum("...kn,...n->...k", rows, vector)
        return super().products(rows, vector)

    def combine(self, coefficients: Array, rows: Array) -> Array:
        if rows.shape[-1] < _NARROW:
            return np.einsum("...k,...kn->...n", coefficients, rows)
        return super().combine(coefficients, rows)

    def gram(self, rows: Array) -> Array:
        # For such small matrices, half of the products, one by one, take half the time of all.
        product = np.zeros((*rows.shape[:-1], rows.shape[-2]), rows.dtype)
        for i in range(rows.shape[-2]):
            product[..., i, i:] = self.xp.vecdot(rows[..., i:, :], rows[..., i : i + 1, :])
        return product

    def add_outer(self, factor: Array, matrix: Array, u: Array, v: Array) -> Array:
        if u.shape[-1] >= _NARROW:
            return super().add_outer(factor, matrix, u, v)
        return _add_narrow(factor, matrix, ((u, v), (v, u)))

    def add_outer_to_one(self, factor: float, matrix: Array, u: Array, v: Array) -> Array:
        matrices.add_products(factor, matrix, ((u, v), (v, u)))
        return matrix

    def add_products(self, factor: Array, matrix: Array, pairs: Pairs) -> Array:
        if matrix.shape[-1] >= _NARROW:
            return super().add_products(factor, matrix, pairs)
        return _add_narrow(factor, matrix, pairs)

    def add_products_to_one(
        self, factor: float, matrix: Array, pairs: Pairs, as_written: bool
    ) -> Array:
        matrices.add_products(factor, matrix, pairs)
        return matrix

    def own_matrices(self, matrix: Array) -> Array:
        if matrix.ndim == 2:
            return np.array(matrix, order="C")
        return np.array(matrix, order="F") if matrix.shape[-1] < _NARROW else matrix

    # --- memory --------------------------------------------------------------------------------

    def memory_key(self, array: Array) -> Any:
        while isinstance(array.base, np.ndarray):
            array = array.base
        return id(array)

    def flat_view(self, array: Array) -> np.ndarray:
        array = array.reshape(-1)
        return array.view(self.dtype) if array.dtype.kind == "c" else array

    def has_flat_view(self, array: Array) -> bool:
        return array.flags.c_contiguous and array.flags.writeable

    def is_writable(self, array: Array) -> bool:
        return isinstance(array, np.ndarray) and array.flags.writeable


def _are_narrow(array: Array) -> bool:
    """Whether the array consists of many short rows."""
    return array.ndim == 2 and array.shape[1] < _NARROW and array.shape[1] < array.shape[0]


def _add_narrow(factor: Array, matrix: Array, pairs: Pairs) -> Array:
    """`add_products` in place, one row of all matrices at a time, so that the products stay in the
    cache."""
    (u, v), (w, z) = ((one.T, other.T) for one, other in pairs)
    one, other = np.empty_like(u), np.empty_like(u)
    for i, row in enumerate(matrix.T):
        # Row i of the memory is column i of the matrices.
        np.multiply(u, v[i], out=one)
        one += np.multiply(w, z[i], out=other)
        row *= factor
        row += one
    return matrix
