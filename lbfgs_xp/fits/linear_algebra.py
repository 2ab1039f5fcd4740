"""Linear algebra for fits: many small systems at once, or one on the host, by LAPACK.

Sums inside decompositions and matrix products are the library's own, whatever the space.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space

# The most parameters for which the normal equations are tried, because `eliminate` is unrolled.
FEW = 16
# Up to this many parameters, the algebra of one problem takes less time on floats than LAPACK.
FLOATS = 8


def identity(space: Space, p: int) -> Array:
    return space.backend.constant(_identity(p))


@functools.cache
def _identity(p: int) -> np.ndarray:
    return np.eye(p)


def qr(space: Space, matrix: Array) -> tuple[Array, Array]:
    """Factor matrices (..., m, p), m >= p, into Q (..., m, p) with orthonormal columns and upper
    triangular R (..., p, p)."""
    q, r = space.backend.linalg("qr")(matrix)
    return q, r


def solve_upper(space: Space, matrix: Array, vector: Array, transposed: bool = False) -> Array:
    """R^-1 v, or R^-T v, for upper triangular R (..., p, p) and v (..., p); a 0 on the diagonal
    counts as 1."""
    xp, p = space.xp, matrix.shape[-1]
    if not space.batched and p <= FLOATS:
        substituted = forward_substituted if transposed else back_substituted
        return np.asarray(substituted(matrix.tolist(), vector.tolist()), matrix.dtype)
    one = identity(space, p)
    matrix = xp.where((one > 0.0) & (matrix == 0.0), one, matrix)
    matrix = xp.matrix_transpose(matrix) if transposed else matrix
    return space.backend.linalg("solve")(matrix, vector[..., None])[..., 0]


def normal_matrix(space: Space, rows: Array) -> tuple[Array, Array, Array]:
    """A A^T for A (..., p, m) with its rows scaled to length 1; the lengths of the rows (..., p);
    and a mask of the lengths whose squares lose no digits. Elements below the diagonal may be left
    0."""
    product = space.backend.gram(rows) if space.batched else rows @ rows.T
    norms = space.xp.sqrt(space.xp.linalg.diagonal(product))
    unit = divisor(space, norms)
    limit = space.backend.largest**0.25
    kept = (norms > 1.0 / limit) & (norms < limit)
    return product / unit[..., None, :] / unit[..., None], norms, kept


def safe_pivot(space: Space) -> float:
    """The smallest pivot in `eliminate`, for a matrix with ones on its diagonal, with which the
    solution keeps two thirds of its digits."""
    return space.backend.eps ** (1 / 6)


def eliminate(space: Space, matrix: Array) -> tuple[Array, Array]:
    """Reduce symmetric matrices with columns beside them, [A, C] (..., p, p + k), to [R, R^-T C]
    with A = R^T R, R upper triangular; also return the smallest diagonal element of R, (...).
    Elements below the diagonal of A are ignored.

    If A is not positive definite, the smallest element is 0 and the rest arbitrary. Such a matrix
    does not affect the others of the batch, as it may in LAPACK.
    """
    p = matrix.shape[-2]
    if not space.batched:
        return _eliminate_one(matrix, p)
    xp, fn, rows = space.xp, space.scalars, []
    least: Any = None
    # The batch becomes the last axis, so that each operation runs over all problems in one pass.
    rest = space.backend.own(xp.moveaxis(matrix, 0, -1))
    for k in range(p):
        root, least = fn.fused(_root, rest[0, 0, :], least)
        row = rest[0, ...] / root
        rows.append(row if k == 0 else xp.concat(
            [space.backend.zeros((k, row.shape[-1])), row], axis=0
        ))
        if k < p - 1:
            rest = fn.fused(
                _less, rest[1:, 1:, :], row[1 : p - k, None, :], row[None, 1:, :]
            )
    return xp.moveaxis(xp.stack(rows, axis=0), -1, 0), least


def _eliminate_one(matrix: Array, p: int) -> tuple[Array, Array]:
    """`eliminate` for one matrix (p, p + k) on the host."""
    try:
        R = np.linalg.cholesky(matrix[:, :p], upper=True)
    except np.linalg.LinAlgError:
        return matrix, matrix.dtype.type(0.0)
    rest = np.linalg.solve(R.T, matrix[:, p:])
    return np.concatenate([R, rest], axis=1), R.diagonal().min()


def eliminated(rest: list[list[float]], p: int) -> tuple[list[list[float]], float]:
    """`eliminate` for one matrix of floats, given what is right of the diagonal of each row, which
    is overwritten."""
    rows, least = [], math.inf
    for k, row in enumerate(rest):
        root = math.sqrt(row[0]) if row[0] > 0.0 else 0.0
        least, root = min(least, root), root or 1.0
        row = [a / root for a in row]
        rows.append([0.0] * k + row)
        for i in range(1, p - k):
            factor = row[i]
            rest[k + i] = [
                a - factor * b for a, b in zip(rest[k + i], row[i:], strict=False)
            ]
    return rows, least


def back_substituted(rows: list[list[float]], vector: list[float]) -> list[float]:
    """The solution for one upper triangular matrix of floats; a 0 on the diagonal counts as 1."""
    solved = list(vector)
    for i in reversed(range(len(solved))):
        row, rest = rows[i], solved[i]
        for j in range(i + 1, len(solved)):
            rest -= row[j] * solved[j]
        solved[i] = rest / (row[i] or 1.0)
    return solved


def forward_substituted(rows: list[list[float]], vector: list[float]) -> list[float]:
    """The same for the transposed matrix."""
    solved: list[float] = []
    for i, rest in enumerate(vector):
        for j in range(i):
            rest -= rows[j][i] * solved[j]
        solved.append(rest / (rows[i][i] or 1.0))
    return solved


def _root(fn: Scalars, pivot: Any, least: Any) -> tuple[Any, Any]:
    """The square root of a pivot, with 1 instead of 0, and the smaller of it and `least`."""
    root = fn.sqrt(fn.where(pivot > 0.0, pivot, 0.0))
    least = root if least is None else fn.minimum(least, root)
    return fn.where(root > 0.0, root, 1.0), least


def _less(fn: Scalars, rest: Any, factor: Any, known: Any) -> Any:
    return rest - factor * known


def _quotient(fn: Scalars, rest: Any, pivot: Any) -> Any:
    return rest / fn.where(pivot == 0.0, 1.0, pivot)


def substitute(space: Space, matrix: Array, vector: Array) -> Array:
    """`solve_upper`, faster for many small R (B, p, p), v (B, p)."""
    if not space.batched:
        return solve_upper(space, matrix, vector)
    fn, p = space.scalars, matrix.shape[-1]
    solved: list[Array] = []
    for i in reversed(range(p)):
        rest = vector[:, i]
        for j, known in zip(range(p - 1, i, -1), solved, strict=True):
            rest = fn.fused(_less, rest, matrix[:, i, j], known)
        solved.append(fn.fused(_quotient, rest, matrix[:, i, i]))
    return space.xp.stack(solved[::-1], axis=-1)


def svd(space: Space, matrix: Array) -> tuple[Array, Array, Array]:
    """Left singular vectors (..., m, k) of matrices (..., m, p), singular values (..., k),
    descending, and right singular vectors as rows (..., k, p), with k = min(m, p)."""
    left, values, rows = space.backend.linalg("svd")(matrix, full_matrices=False)
    return left, values, rows


def rank_cut(accuracy: float, space: Space, m: int, p: int) -> float:
    """The singular values of a matrix (m, p), relative to the largest, that its errors explain.

    accuracy : its relative error, apart from rounding.
    """
    return max(max(m, p) * space.backend.eps, accuracy)


def outer_sum(space: Space, rows: Array) -> Array:
    """The sum over the rows of their outer products: (..., k, p) -> (..., p, p)."""
    return space.xp.matrix_transpose(rows) @ rows


def norm(space: Space, u: Array) -> Array:
    """The Euclidean norm over the last axis: (..., n) -> (...)."""
    return space.xp.sqrt(space.dot(u, u) if space.batched or u.ndim == 1 else np.vecdot(u, u))


def column_norms(space: Space, matrix: Array) -> Array:
    """The norms of the columns: (..., m, p) -> (..., p)."""
    return norm(space, space.xp.matrix_transpose(matrix))


def divisor(space: Space, u: Array) -> Array:
    """Sizes to divide by: u, with 1 instead of 0."""
    return space.scalars.fused(_divisor, u) if space.batched else np.where(u > 0.0, u, 1.0)


def _divisor(fn: Scalars, u: Any) -> Any:
    return fn.where(u > 0.0, u, 1.0)


def transposed_product(space: Space, matrix: Array, u: Array) -> Array:
    """A^T u: (..., m, p), (..., m) -> (..., p)."""
    return space.products(space.xp.matrix_transpose(matrix), u)
