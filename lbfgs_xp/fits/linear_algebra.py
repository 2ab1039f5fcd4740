"""Linear algebra for fits: many small systems at once.

Sums inside decompositions and matrix products are the library's own, whatever the space.
"""

from __future__ import annotations

from typing import Any

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space

# The most parameters for which the normal equations are tried, because `eliminate` is unrolled.
FEW = 16


def qr(space: Space, matrix: Array) -> tuple[Array, Array]:
    """Factor matrices (..., m, p), m >= p, into Q (..., m, p) with orthonormal columns and upper
    triangular R (..., p, p)."""
    q, r = space.backend.linalg("qr")(matrix)
    return q, r


def solve_upper(space: Space, matrix: Array, vector: Array, transposed: bool = False) -> Array:
    """R^-1 v, or R^-T v, for upper triangular R (..., p, p) and v (..., p); a 0 on the diagonal
    counts as 1."""
    xp = space.xp
    one = xp.eye(matrix.shape[-1], dtype=xp.bool, device=space.backend.creation_device)
    matrix = xp.where(one & (matrix == 0.0), xp.ones_like(matrix), matrix)
    matrix = xp.matrix_transpose(matrix) if transposed else matrix
    return space.backend.linalg("solve")(matrix, vector[..., None])[..., 0]


def normal_matrix(space: Space, rows: Array) -> tuple[Array, Array, Array]:
    """A A^T for A (..., p, m) with its rows scaled to length 1; the lengths of the rows (..., p);
    and a mask of the lengths whose squares lose no digits. Elements below the diagonal may be left
    0."""
    xp = space.xp
    product = space.backend.gram(rows)
    one = xp.eye(rows.shape[-2], dtype=product.dtype, device=space.backend.creation_device)
    norms = xp.sqrt(space.sum(product * one))
    unit = xp.where(norms > 0.0, norms, xp.ones_like(norms))
    limit = space.backend.largest**0.25
    kept = (norms > 1.0 / limit) & (norms < limit)
    return product / unit[..., None, :] / unit[..., None], norms, kept


def safe_pivot(space: Space) -> float:
    """The smallest pivot in `eliminate`, for a matrix with ones on its diagonal, with which the
    solution keeps two thirds of its digits."""
    return space.backend.eps ** (1 / 6)


def eliminate(space: Space, matrix: Array) -> tuple[Array, Array]:
    """Reduce symmetric matrices with columns beside them, [A, C] (B, p, p + k), to [R, R^-T C] with
    A = R^T R, R upper triangular; also return the smallest diagonal element of R, (B,). Elements
    below the diagonal of A are ignored.

    If A is not positive definite, the smallest element is 0 and the rest arbitrary. Such a matrix
    does not affect the others of the batch, as it may in LAPACK.
    """
    xp, fn, rows = space.xp, space.scalars, []
    least: Any = None
    p = matrix.shape[-2]
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
    """`solve_upper` for many small R (B, p, p), v (B, p)."""
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
    return space.xp.sqrt(space.dot(u, u))


def column_norms(space: Space, matrix: Array) -> Array:
    """The norms of the columns: (..., m, p) -> (..., p)."""
    return norm(space, space.xp.matrix_transpose(matrix))


def divisor(space: Space, u: Array) -> Array:
    """Sizes to divide by: u, with 1 instead of 0."""
    return space.scalars.fused(_divisor, u)


def _divisor(fn: Scalars, u: Any) -> Any:
    return fn.where(u > 0.0, u, 1.0)


def transposed_product(space: Space, matrix: Array, u: Array) -> Array:
    """A^T u: (..., m, p), (..., m) -> (..., p)."""
    return space.products(space.xp.matrix_transpose(matrix), u)
