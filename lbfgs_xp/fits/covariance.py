"""The covariance of parameters, from the Jacobian of the residuals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.linear_algebra import (
    FEW,
    FLOATS,
    column_norms,
    divisor,
    eliminate,
    eliminated,
    identity,
    norm,
    normal_matrix,
    outer_sum,
    rank_cut,
    safe_pivot,
    svd,
)


def inverse_of_squares(
    accuracy: float, space: Space, jacobian: Array, fixed: Any = None, slopes: Any = None
) -> tuple[Array, Array]:
    """(J^T J)^-1 (B, p, p), or its pseudo-inverse if J^T J is singular; and a mask (B, q) of the
    parameters, or of the functions of them, that are loose: J does not determine them.

    accuracy : the relative error of J (B, m, p), apart from rounding.
    fixed : None, or a mask (B, p) of parameters that are known; their columns of J are 0.
    slopes : None for the parameters themselves, or the derivatives (B, q, p) of functions of them,
        which may depend only on combinations of parameters that J determines.
    """
    xp, (count, _, p) = space.xp, jacobian.shape
    few = p <= FEW
    if few:
        if count == 1 and space.backend.on_host and p <= FLOATS:
            covariance, sound = _inverse_of_one(space, jacobian)
        else:
            covariance, sound = space.backend.jit(_inverse, space)(jacobian)
        shape = (count, p if slopes is None else slopes.shape[-2])
        loose = xp.zeros(shape, dtype=xp.bool, device=space.backend.creation_device)
        traced = space.backend.is_traced(sound)
        rest = None if traced else np.flatnonzero(~space.backend.to_host(sound))
        if rest is not None and rest.size == 0:
            return covariance, loose
    if slopes is None:
        slopes = xp.broadcast_to(identity(space, p), (count, p, p))
    if fixed is not None:
        slopes = xp.where(fixed[:, None, :], xp.zeros_like(slopes), slopes)
    if not few:
        return _pseudo_inverse(accuracy, space, jacobian, slopes)
    if rest is None:
        found = covariance, loose

        def pseudo(rows: Array) -> tuple[Array, Array]:
            return space.merge(rows, _pseudo_inverse(accuracy, space, jacobian, slopes), found)

        return space.backend.branch(xp.logical_not(sound), pseudo, found)
    exact = _pseudo_inverse(accuracy, space, *space.take((jacobian, slopes), rest))
    return space.put(rest, exact, (covariance, loose))


def difference_of_squares(
    accuracy: float, space: Space, jacobian: Array, negative: np.ndarray
) -> Array:
    """R (B, p, p) with R^T R = J^T S J, where S has -1 for the rows of J (B, m, p) that `negative`
    (B, m) marks, and 1 for the others; R is 0 in directions in which that is not positive.

    accuracy : as in `inverse_of_squares`.
    """
    rows = space.backend.to_host(jacobian).astype(np.float64)
    rows = np.where(np.isfinite(rows).all(axis=(-2, -1), keepdims=True), rows, 0.0)
    norms = np.sqrt(np.square(rows).sum(axis=-2, keepdims=True))
    rows = rows / np.where(norms > 0.0, norms, 1.0)
    signed = np.where(negative[..., None], -rows, rows)
    values, vectors = np.linalg.eigh(signed.swapaxes(-1, -2) @ rows)
    # A square is known to twice the error of its root, and to the rounding of the sum.
    cut = rank_cut(accuracy, space, *rows.shape[-2:])
    least = max(cut * cut, rows.shape[-2] * space.backend.eps)
    values = np.where(values > least * values[..., -1:], values, 0.0)
    root = np.sqrt(values)[..., None] * vectors.swapaxes(-1, -2) * norms
    return space.backend.from_host(root)


def deviations(space: Space, covariance: Array, loose: Array) -> Array:
    """The standard deviations (B, p) of a covariance (B, p, p); infinite for loose parameters."""
    xp, p = space.xp, covariance.shape[-1]
    one = identity(space, p) > 0.0
    variances = xp.max(xp.where(one, covariance, xp.full_like(covariance, -math.inf)), axis=-1)
    return xp.where(loose, xp.full_like(variances, math.inf), xp.sqrt(variances))


def _inverse(space: Space, jacobian: Array) -> tuple[Array, Array]:
    """(J^T J)^-1 by elimination, and whether it keeps enough digits and nothing is loose."""
    xp, p = space.xp, jacobian.shape[-1]
    gram, norms, kept = normal_matrix(space, xp.matrix_transpose(jacobian))
    one = identity(space, p)
    rows, least = eliminate(space, xp.concat([gram, xp.broadcast_to(one, gram.shape)], axis=-1))
    covariance = outer_sum(space, rows[..., p:] / norms[:, None, :])
    sound = (least > safe_pivot(space)) & xp.all(kept, axis=-1)
    return covariance, sound


def _inverse_of_one(space: Space, jacobian: Array) -> tuple[Array, Array]:
    """`_inverse` for one Jacobian (1, m, p) on the host, on floats."""
    gram = (jacobian[0].T @ jacobian[0]).tolist()
    p, limit = len(gram), space.backend.largest**0.25
    norms = [math.sqrt(gram[i][i]) for i in range(p)]
    sound = all(1.0 / limit < each < limit for each in norms)
    covariance = np.zeros_like(jacobian, shape=(1, p, p))
    if sound:
        one = np.eye(p).tolist()
        rows, least = eliminated([
            [gram[i][j] / norms[i] / norms[j] for j in range(i, p)] + one[i] for i in range(p)
        ], p)
        root = np.asarray([row[p:] for row in rows], jacobian.dtype) / norms
        sound, covariance[0] = least > safe_pivot(space), root.T @ root
    return covariance, np.asarray([sound])


def _pseudo_inverse(
    accuracy: float, space: Space, jacobian: Array, slopes: Array
) -> tuple[Array, Array]:
    """`inverse_of_squares` by singular values of the Jacobian with its columns scaled to length 1,
    so that the units of the parameters do not matter."""
    xp, eps = space.xp, space.backend.eps
    finite = xp.all(xp.isfinite(jacobian), axis=(-2, -1))
    jacobian = xp.where(finite[:, None, None], jacobian, xp.zeros_like(jacobian))
    norms = divisor(space, column_norms(space, jacobian))
    _, values, rows = svd(space, jacobian / norms[:, None, :])
    kept = values > rank_cut(accuracy, space, *jacobian.shape[-2:]) * values[:, :1]
    values = xp.where(kept, values, xp.ones_like(values))
    rows = xp.where(kept[..., None], rows, xp.zeros_like(rows))
    # The part of the slopes along the directions that are known.
    slopes = slopes / norms[:, None, :]
    length = divisor(space, norm(space, slopes))
    slopes = slopes / length[..., None]
    along = xp.matmul(slopes, xp.matrix_transpose(rows))
    loose = space.dot(slopes, slopes) - space.dot(along, along) > math.sqrt(eps)
    covariance = outer_sum(space, rows / values[..., None] / norms[:, None, :])
    return covariance, loose
