"""The covariance of parameters, from the Jacobian of the residuals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.linear_algebra import (
    FEW,
    column_norms,
    divisor,
    eliminate,
    identity,
    norm,
    normal_matrix,
    outer_sum,
    rank_cut,
    safe_pivot,
    svd,
)


def root_of_inverse(
    accuracy: float, space: Space, jacobian: Array, fixed: Any = None, slopes: Any = None
) -> tuple[Array, Array]:
    """R (B, p, p) with R^T R = (J^T J)^-1, or its pseudo-inverse if J^T J is singular; and a mask
    (B, q) of the parameters, or of the functions of them, that are loose: J does not determine
    them. Unlike the inverse, R is in the units of the parameters, and does not underflow before
    they do.

    accuracy : the relative error of J (B, m, p), apart from rounding.
    fixed : None, or a mask (B, p) of parameters that are known; their columns of J are 0.
    slopes : None for the parameters themselves, or the derivatives (B, q, p) of functions of them,
        which may depend only on combinations of parameters that J determines.
    """
    xp, (count, _, p) = space.xp, jacobian.shape
    few = p <= FEW
    if few:
        if count == 1 and space.backend.on_host:
            root, sound = (each[None, ...] for each in _root(Space(space.backend), jacobian[0]))
        else:
            root, sound = space.backend.jit(_root, space)(jacobian)
        shape = (count, p if slopes is None else slopes.shape[-2])
        loose = xp.zeros(shape, dtype=xp.bool, device=space.backend.creation_device)
        traced = space.backend.is_traced(sound)
        rest = None if traced else np.flatnonzero(~space.backend.to_host(sound))
        if rest is not None and rest.size == 0:
            return root, loose
    if slopes is None:
        slopes = xp.broadcast_to(identity(space, p), (count, p, p))
    if fixed is not None:
        slopes = xp.where(fixed[:, None, :], xp.zeros_like(slopes), slopes)
    if not few:
        return _root_of_pseudo_inverse(accuracy, space, jacobian, slopes)
    if rest is None:
        found = root, loose

        def pseudo(rows: Array) -> tuple[Array, Array]:
            exact = _root_of_pseudo_inverse(accuracy, space, jacobian, slopes)
            return space.merge(rows, exact, found)

        return space.backend.branch(xp.logical_not(sound), pseudo, found)
    exact = _root_of_pseudo_inverse(accuracy, space, *space.take((jacobian, slopes), rest))
    return space.put(rest, exact, (root, loose))


def difference_of_squares(
    accuracy: float, space: Space, jacobian: Array, negative: np.ndarray
) -> Array:
    """R (B, p, p) with R^T R = J^T S J, where S has -1 for the rows of J (B, m, p) that `negative`
    (B, m) marks, and 1 for the others; R is 0 in directions in which that is not positive.

    accuracy : as in `root_of_inverse`.
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


def deviations(space: Space, root: Array, loose: Array) -> Array:
    """The standard deviations (..., p) of a covariance R^T R, from R (..., p, p); infinite for
    loose parameters."""
    return space.xp.where(loose, math.inf, safe_norms(space, root))


def square(space: Space, root: Array) -> Array:
    """R^T R (..., p, p), with zeros for the columns of R (..., p, p) that are 0."""
    used = _used(space, root)
    both = used[..., :, None] & used[..., None, :]
    product = outer_sum(space, root)
    return space.xp.where(both, product, space.xp.zeros_like(product))


def scaled_root(space: Space, root: Array, reduced: Array) -> Array:
    """R (..., p, p) in units of the scatter of the data, whose square is reduced (...); infinite
    if that is not known, except for fixed parameters, whose columns are 0."""
    xp, scale = space.xp, space.xp.sqrt(reduced)
    unknown, scaled = xp.isnan(scale), root * scale[..., None, None]
    if space.none(unknown):
        return scaled
    infinite = xp.full_like(root, math.inf)
    infinite = xp.where(_used(space, root)[..., None, :], infinite, xp.zeros_like(root))
    return xp.where(unknown[..., None, None], infinite, scaled)


def _used(space: Space, root: Array) -> Array:
    return space.xp.any(root != 0.0, axis=-2)


def safe_norms(space: Space, matrix: Array) -> Array:
    """The norms of the columns: (..., m, p) -> (..., p); their squares may be beyond all
    numbers."""
    xp = space.xp
    size = xp.max(xp.abs(matrix), axis=-2)
    size = xp.where((size > 0.0) & xp.isfinite(size), size, xp.ones_like(size))
    return size * column_norms(space, matrix / size[..., None, :])


def _root(space: Space, jacobian: Array) -> tuple[Array, Array]:
    """R with R^T R = (J^T J)^-1 by elimination, and whether it keeps enough digits and nothing is
    loose."""
    xp, p = space.xp, jacobian.shape[-1]
    gram, norms, kept = normal_matrix(space, xp.matrix_transpose(jacobian))
    one = identity(space, p)
    rows, least = eliminate(space, xp.concat([gram, xp.broadcast_to(one, gram.shape)], axis=-1))
    sound = (least > safe_pivot(space)) & xp.all(kept, axis=-1)
    return rows[..., p:] / norms[..., None, :], sound


def _root_of_pseudo_inverse(
    accuracy: float, space: Space, jacobian: Array, slopes: Array
) -> tuple[Array, Array]:
    """`root_of_inverse` by singular values of the Jacobian with its columns scaled to length 1,
    so that the units of the parameters do not matter."""
    xp, eps = space.xp, space.backend.eps
    finite = xp.all(xp.isfinite(jacobian), axis=(-2, -1))
    jacobian = xp.where(finite[:, None, None], jacobian, xp.zeros_like(jacobian))
    norms = divisor(space, safe_norms(space, jacobian))
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
    root = rows / values[..., None] / norms[:, None, :]
    missing = root.shape[-1] - root.shape[-2]    # as many rows as columns
    if missing > 0:
        none = xp.zeros_like(root[:, :1, :])
        root = xp.concat([root, *[none] * missing], axis=-2)
    return root, loose


def inverse_factor(covariance: np.ndarray, what: str, of: str = "") -> np.ndarray:
    """The inverse Cholesky factors (..., q, q) of covariances that a user has passed, on the host,
    or a clear error.

    what, of : how the error begins, and of what the covariance is.
    """
    wanted = f"wanted a covariance{of}"
    if not np.isfinite(covariance).all():
        raise ValueError(f"{what} a matrix with entries that are not finite; {wanted}")
    if not np.allclose(covariance, np.swapaxes(covariance, -1, -2), rtol=1e-6, atol=0.0):
        raise ValueError(f"{what} a matrix that is not symmetric; {wanted}")
    try:
        return np.linalg.inv(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        raise ValueError(f"{what} a matrix that is not positive definite; {wanted}") from None
