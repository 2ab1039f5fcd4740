"""A Jacobian at a point: its columns as an array (..., p, m), or only its products with vectors.

Products are for one problem whose Jacobian is too large to be kept, or has no array at all. The
algebra of such a fit runs on the host, and what costs time, the products and the matrices formed of
rows, runs where the arrays of the user are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend, identity
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.linear_algebra import norm

# The most numbers in a block of rows, and in the pieces that it is made of.
BLOCK, _PIECE = 2**24, 2**21
# Rows of a function that does not say which rows it needs: each takes a pass over all residuals.
_FEW_ROWS = 32
# Random vectors that estimate the norms of columns.
_PROBES = 16


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where products come from, in arrays of the user's library.

    push, pull : v (p,) -> J v (m,) and u (m,) -> J^T u (p,); also of many vectors (k, ...).
    rows : None, or (start, stop) -> the rows (k, p) of J, for less than pulls of unit vectors cost.
    matrix : None, or J (m, p) itself.
    """

    push: Callable[[Array], Array]
    pull: Callable[[Array], Array]
    rows: Callable[[int, int], Array] | None = None
    matrix: Any = None


class Products:
    """The Jacobian (m, p) of the residuals at a point, as an operator.

    Attributes
    ----------
    shape : (m, p)
    norms : the norms of the columns (p,), on the host; estimates unless the rows are at hand.
    send, fetch : transfer vectors from the host to the user's library, and back.

    Methods
    -------
    matvec(v), rmatvec(u) : J v (m,) and J^T u (p,), for arrays of the user's library.
    """

    def __init__(
        self, backend: Backend, shape: tuple[int, int], sources: Sources, weights: Any = None
    ):
        self.backend, self.shape = backend, shape
        self._sources, self._weights = sources, weights
        self._whole: Any = None
        self.send: Callable = identity if backend.on_host else backend.from_host
        self.fetch: Callable = identity if backend.on_host else backend.to_host

    def __repr__(self) -> str:
        return f"<Jacobian {self.shape} by products>"

    def matvec(self, vector: Array) -> Array:
        """J v, for v (p,)."""
        if self._whole is not None:
            return self._whole @ vector
        found = self._sources.push(vector)
        return found if self._weights is None else self._weights * found

    def rmatvec(self, vector: Array) -> Array:
        """J^T u, for u (m,)."""
        if self._whole is not None:
            return vector @ self._whole
        return self._sources.pull(vector if self._weights is None else self._weights * vector)

    def push(self, vector: Array) -> Array:
        """`matvec` for arrays of the host."""
        return self.fetch(self.matvec(self.send(vector)))

    def pull(self, vector: Array) -> Array:
        """`rmatvec` for arrays of the host."""
        return self.fetch(self.rmatvec(self.send(vector)))

    def weighted(self, weights: Array) -> Products:
        """The Jacobian with its rows multiplied by weights (m,) of the host."""
        return Products(self.backend, self.shape, self._sources, self.send(weights))

    # --- matrices made of rows -------------------------------------------------------------------

    def form(self) -> None:
        """Keep J (m, p) from now on, in the user's library, if it fits into one block."""
        m, p = self.shape
        if self._whole is None and m * p <= BLOCK:
            self._whole = self._block(0, m)

    @functools.cached_property
    def norms(self) -> np.ndarray:
        xp, backend = self.backend.xp, self.backend
        if self._whole is not None:
            squares = xp.sum(self._whole * self._whole, axis=0)
        elif self._sources.rows is not None:
            squares = backend.zeros((self.shape[1],))
            for start, stop in self._spans(_PIECE):
                rows = self._rows(start, stop)
                squares = squares + xp.sum(rows * rows, axis=0)
        else:
            # E (J^T u)_j^2 = |J_j|^2 for independent signs u (Hutchinson 1990).
            rng, squares = np.random.default_rng(0), backend.zeros((self.shape[1],))
            for _ in range(_PROBES):
                signs = rng.choice([-1.0, 1.0], self.shape[0]).astype(self._host_dtype)
                squares = squares + self.rmatvec(backend.from_host(signs)) ** 2 / _PROBES
        return np.sqrt(backend.to_host(squares))

    def gram(self, scale: np.ndarray) -> tuple[Array, bool]:
        """The smaller of (J / D) (J / D)^T (m, m) and (J / D)^T (J / D) (p, p), in the user's
        library, and whether it is the first. scale : D, on the host."""
        xp, (m, p) = self.backend.xp, self.shape
        scale, dual = self.send(scale), m <= p
        if self._whole is not None:
            rows = self._whole / scale
            transposed = xp.matrix_transpose(rows)
            return (rows @ transposed if dual else transposed @ rows), dual
        if not dual:
            found: Any = 0.0
            for span in self._spans(_PIECE):
                rows = self._rows(*span) / scale
                found = found + xp.matrix_transpose(rows) @ rows
            return found, dual
        if self._sources.rows is not None:
            return self._of_pairs(scale), dual
        strips = []
        for span in self._spans(_PIECE):
            images = self._sources.push(self._rows(*span) / (scale * scale))
            strips.append(images if self._weights is None else self._weights * images)
        found = xp.concat(strips)
        return 0.5 * (found + xp.matrix_transpose(found)), dual

    def _of_pairs(self, scale: Array) -> Array:
        """(J / D) (J / D)^T from a block of rows and one piece at a time, each formed again for
        every block after it."""
        transpose, backend, m = self.backend.xp.matrix_transpose, self.backend, self.shape[0]
        found, write = self._written((m, m))
        for start, stop in self._spans(BLOCK):
            block = self._block(start, stop, scale)
            write(found, start, start, block @ transpose(block))
            for begin, end in self._spans(_PIECE, stop):
                products = block @ transpose(self._rows(begin, end) / scale)
                write(found, start, begin, products)
                write(found, begin, start, transpose(products))
        return found if backend.mutable else backend.from_host(found)

    def _block(self, start: int, stop: int, scale: Any = None) -> Array:
        """These rows (k, p), weighted, in units of a scale if there is one, from pieces."""
        spans = list(self._spans(_PIECE, start, stop))
        if len(spans) == 1 or self._sources.matrix is not None:
            rows = self._rows(start, stop)
            return rows if scale is None else rows / scale
        found, write = self._written((stop - start, self.shape[1]))
        for begin, end in spans:
            rows = self._rows(begin, end)
            write(found, begin - start, 0, rows if scale is None else rows / scale)
        return found if self.backend.mutable else self.backend.from_host(found)

    def _written(self, shape: tuple[int, int]) -> tuple[Array, Callable]:
        """A matrix to be filled, on the host if the library has no arrays that can be; and
        (matrix, row, column, part) -> None, which writes a part."""
        backend = self.backend

        def write(matrix: Array, row: int, column: int, part: Array) -> None:
            part = part if backend.mutable else backend.to_host(part)
            matrix[row : row + part.shape[0], column : column + part.shape[1]] = part

        if backend.mutable:
            return backend.zeros(shape), write
        return np.zeros(shape, self._host_dtype), write

    def _rows(self, start: int, stop: int) -> Array:
        sources, backend = self._sources, self.backend
        if sources.matrix is not None:
            rows = sources.matrix[start:stop, ...]
        elif sources.rows is not None:
            rows = sources.rows(start, stop)
        else:
            units = np.zeros((stop - start, self.shape[0]), self._host_dtype)
            units[np.arange(stop - start), np.arange(start, stop)] = 1.0
            rows = sources.pull(backend.from_host(units))
        return rows if self._weights is None else self._weights[start:stop, None] * rows

    def _spans(self, numbers: int, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """Ranges of rows with at most so many numbers."""
        m, p = self.shape
        stop = m if stop is None else stop
        size = max(numbers // p, 1)
        if self._sources.rows is None and self._sources.matrix is None:
            size = min(size, _FEW_ROWS)
        for begin in range(start, stop, size):
            yield begin, min(begin + size, stop)

    @functools.cached_property
    def _host_dtype(self) -> Any:
        return self.backend.to_host(self.backend.zeros((0,))).dtype


# --- what the loop of a fit asks of a Jacobian ---------------------------------------------------


def pull(space: Space, columns: Any, vector: Array, scale: Any = None) -> Array:
    """J^T u, divided by a scale (..., p) if there is one: (..., m) -> (..., p)."""
    if isinstance(columns, Products):
        found = columns.pull(vector)
        return found if scale is None else found / scale
    return space.products(columns if scale is None else columns / scale[..., None], vector)


def push(space: Space, columns: Any, vector: Array) -> Array:
    """J v: (..., p) -> (..., m)."""
    if isinstance(columns, Products):
        return columns.push(vector)
    return space.products(space.xp.matrix_transpose(columns), vector)


def norms(space: Space, columns: Any) -> Array:
    """The norms of the columns (..., p)."""
    return columns.norms if isinstance(columns, Products) else norm(space, columns)


def largest(space: Space, columns: Any) -> Array:
    """The largest component of each column (..., p); for products, as if all were alike."""
    if isinstance(columns, Products):
        return columns.norms / columns.shape[0] ** 0.5
    return space.max_abs(columns)


def weighted(columns: Any, weights: Array) -> Any:
    """The Jacobian with its rows multiplied by weights (..., m)."""
    if isinstance(columns, Products):
        return columns.weighted(weights)
    return columns * weights[..., None, :]
