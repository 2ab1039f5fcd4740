"""Systems of small matrices, many at once: what fits need.

The sums within are the libraries' own, in any space.
"""

from __future__ import annotations

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space


def qr(space: Space, matrix: Array) -> tuple[Array, Array]:
    """Matrices (..., m, p), m >= p, as Q (..., m, p), orthonormal columns, times R (..., p, p),
    upper triangular."""
    q, r = space.backend.linalg("qr")(matrix)
    return q, r


def solve_upper(space: Space, matrix: Array, vector: Array, transposed: bool = False) -> Array:
    """R^-1 v, or R^-T v, of upper triangular R (..., p, p), v (..., p); a 0 on the diagonal
    counts as 1."""
    xp = space.xp
    one = xp.eye(matrix.shape[-1], dtype=xp.bool, device=space.backend.creation_device)
    matrix = xp.where(one & (matrix == 0.0), xp.ones_like(matrix), matrix)
    matrix = xp.matrix_transpose(matrix) if transposed else matrix
    return space.backend.linalg("solve")(matrix, vector[..., None])[..., 0]


def normal_matrix(space: Space, rows: Array) -> tuple[Array, Array, Array]:
    """A A^T for A (..., p, m) with its rows scaled to the length 1; their lengths (..., p), and
    which of these lie so that no digits are lost in squares. Below the diagonal there may be
    zeros."""
    xp = space.xp
    product = space.backend.gram(rows)
    one = xp.eye(rows.shape[-2], dtype=product.dtype, device=space.backend.creation_device)
    norms = xp.sqrt(space.sum(product * one))
    unit = xp.where(norms > 0.0, norms, xp.ones_like(norms))
    limit = space.backend.largest**0.25
    kept = (norms > 1.0 / limit) & (norms < limit)
    return product / unit[..., None, :] / unit[..., None], norms, kept


def safe_pivot(space: Space) -> float:
    """The least pivot of `eliminate`, of a matrix with ones on its diagonal, that leaves two
    thirds of the digits to what is solved for."""
    return space.backend.eps ** (1 / 6)


def eliminate(space: Space, matrix: Array) -> tuple[Array, Array]:
    """Symmetric matrices and columns beside them, [A, C] (B, p, p + k), as [R, R^-T C] with
    A = R^T R, R upper triangular; and the least diagonal element of R, (B,). What is below the
    diagonal of A does not count.

    That is 0 where A is not positive definite, and the rest arbitrary there; no matrix harms
    another, as in LAPACK it may.
    """
    xp, rows, least = space.xp, [], None
    p = matrix.shape[-2]
    # The problems along the last axis: there, one operation runs over all of them.
    rest = space.backend.own(xp.moveaxis(matrix, 0, -1))
    for k in range(p):
        pivot = rest[0, 0, :]
        root = xp.sqrt(xp.where(pivot > 0.0, pivot, xp.zeros_like(pivot)))
        least = root if least is None else xp.minimum(least, root)
        row = rest[0, ...] / xp.where(root > 0.0, root, xp.ones_like(root))
        rows.append(xp.concat([space.backend.zeros((k, row.shape[-1])), row], axis=0))
        if k < p - 1:
            rest = rest[1:, 1:, :] - row[1 : p - k, None, :] * row[None, 1:, :]
    return xp.moveaxis(xp.stack(rows, axis=0), -1, 0), least


def substitute(space: Space, matrix: Array, vector: Array) -> Array:
    """`solve_upper` for many small R (B, p, p), v (B, p)."""
    xp, p = space.xp, matrix.shape[-1]
    solved: list[Array] = []
    for i in reversed(range(p)):
        rest = vector[:, i]
        for j, known in zip(range(p - 1, i, -1), solved, strict=True):
            rest = rest - matrix[:, i, j] * known
        pivot = matrix[:, i, i]
        solved.append(rest / xp.where(pivot == 0.0, xp.ones_like(pivot), pivot))
    return xp.stack(solved[::-1], axis=-1)


def svd(space: Space, matrix: Array) -> tuple[Array, Array]:
    """Matrices (..., m, p): singular values (..., k), descending, and right singular vectors as
    rows (..., k, p), k = min(m, p)."""
    _, values, rows = space.backend.linalg("svd")(matrix, full_matrices=False)
    return values, rows


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
    """Sizes to divide by: 1 in place of 0."""
    return space.xp.where(u > 0.0, u, space.xp.ones_like(u))


def transposed_product(space: Space, matrix: Array, u: Array) -> Array:
    """A^T u: (..., m, p), (..., m) -> (..., p)."""
    return space.products(space.xp.matrix_transpose(matrix), u)
