"""A randomised Nyström preconditioner for conjugate gradients (Frangella, Tropp & Udell 2023).

A sketch of the Hessian H by its products with k random vectors approximates its largest
eigenvalues L, and their eigenvectors U. With the smallest of these eigenvalues, l, the
preconditioner P = U (L / l) U' + (I - U U') leaves the eigenvalues of P^-1 H at about l and below.
Its inverse is kept as I - W'W, with rows W = sqrt(1 - l / L) U'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space


class Sketch(NamedTuple):
    """A preconditioner for one problem.

    rows : W, (k, n).
    age : for how many steps it has been used.
    number : how many have been drawn before it.
    """

    rows: Array
    age: int = 0
    number: int = 0

    def solve(self, space: Space, vector: Array) -> Array:
        """P^-1 vector, for (n,)."""
        return vector - space.combine(space.products(self.rows, vector), self.rows)


def drawn(
    space: Space, product: Callable[[Array], Array], rank: int, n: int, seed: int, number: int
) -> Sketch:
    """A sketch from `rank` products with H, n by n (from n if rank is larger).

    The random numbers depend on seed, number, rank and n alone, not on the library. A shift makes
    the sketched matrix positive definite: by rounding (as in the paper, whose H is positive
    semidefinite), and by twice the most negative curvature that the random vectors meet.
    """
    backend = space.backend
    random = np.random.default_rng([seed, number]).standard_normal((min(rank, n), n))
    test = _orthonormal(space, backend.from_host(random))
    image = backend.xp.stack([product(test[i, :]) for i in range(test.shape[0])])
    core = _on_host(space, space.matmul(test, backend.xp.matrix_transpose(image)))
    nothing = Sketch(0.0 * test, 0, number)
    if not np.isfinite(core).all():
        return nothing
    curvatures = np.linalg.eigvalsh(0.5 * (core + core.T))
    lowest, highest = float(curvatures[0]), float(abs(curvatures).max())
    shift = n**0.5 * backend.eps * highest + 2.0 * max(0.0, -lowest)
    if shift == 0.0:
        return nothing
    image = image + shift * test
    core = 0.5 * (core + core.T) + shift * np.eye(len(core))
    found, rows = _eigenrows(space, _inverse_root(core), image)
    values = found - shift
    # Vectors of smaller eigenvalues are mostly rounding.
    kept = values > backend.eps**0.5 * abs(found).max()
    if not kept.any():
        return nothing
    # As orthonormal as rounding allows: I - W'W is then positive definite.
    units = _orthonormal(space, _combined(space, np.eye(len(kept))[kept], rows))
    weights = np.sqrt(1.0 - values[kept].min() / values[kept])
    return Sketch(_combined(space, np.diag(weights), units), 0, number)


def _eigenrows(space: Space, factor: np.ndarray, image: Array) -> tuple[np.ndarray, Array]:
    """The eigenvalues and eigenvectors (as rows) of B'B, for B = factor image, (k, n)."""
    rows = _combined(space, factor, image)
    values, vectors = np.linalg.eigh(_on_host(space, space.gram(rows)))
    values = np.maximum(values, 0.0)
    scale = np.divide(1.0, np.sqrt(values), out=np.zeros_like(values), where=values > 0.0)
    return values, _combined(space, scale[:, None] * vectors.T, rows)


def _orthonormal(space: Space, rows: Array) -> Array:
    """The orthonormal rows that are closest to these; twice, because once loses digits."""
    for _ in range(2):
        rows = _combined(space, _inverse_root(_on_host(space, space.gram(rows))), rows)
    return rows


def _inverse_root(matrix: np.ndarray) -> np.ndarray:
    """The inverse square root of a symmetric positive definite matrix (k, k)."""
    values, vectors = np.linalg.eigh(matrix)
    least = len(values) * np.finfo(np.float64).eps * values[-1]
    return (vectors / np.sqrt(np.maximum(values, least))) @ vectors.T


def _combined(space: Space, coefficients: np.ndarray, rows: Array) -> Array:
    """coefficients rows: (j, k), (k, n) -> (j, n)."""
    return space.matmul(space.backend.from_host(coefficients), rows)


def _on_host(space: Space, matrix: Array) -> Any:
    return np.asarray(space.backend.to_host(matrix), dtype=np.float64)
