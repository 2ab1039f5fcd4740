"""The linearised residuals near a point, and the damped minimum of their squares.

From the iterate x, with residuals r and their Jacobian J = Q R, the step s minimises

    |r + J s|^2 + mu |D s|^2,

a problem of size 2p x p once R and Q^T r are known. These come from the normal equations if those
keep enough digits (no column of J lies close to the span of the columns before it), and otherwise
from a QR decomposition of J and the singular values of R; the step then comes from a QR
decomposition. D holds the largest norm that each column of J has
had (More 1978, The Levenberg-Marquardt algorithm, section 6), so that the units of the parameters
do not matter; or it is given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.linear_algebra import (
    column_norms,
    divisor,
    eliminate,
    identity,
    norm,
    normal_matrix,
    qr,
    rank_cut,
    safe_pivot,
    solve_upper,
    substitute,
    svd,
    transposed_product,
)
from lbfgs_xp.fits.settings import FitSettings


class LinearModel(NamedTuple):
    """The linearised residuals near x, in parameters scaled by D: r + Q R D (step).

    R : (B, p, p), the factor of J / D with weighted rows; columns of frozen parameters are 0. It
        is triangular only if it comes from the normal equations.
    q : (B, p), Q^T r for the weighted residuals.
    scale : (B, p), D.
    norms : (B, p), of the columns of J that are not frozen.
    reach : (B,), the sum of |x_j| norms_j: eps times it is how far rounding x changes r.
    frozen : (B, p), whether a parameter is held at a bound by the gradient.
    optimality : (B,), the largest cosine of the angles between r and the columns of J.
    share : (B,), the norm of the part of r that the linearised residuals could remove, relative to
        the norm of r.
    finite : (B,), whether the residuals and their Jacobian are finite.
    hard : (B,), whether the normal equations lose too many digits.
    """

    R: Array
    q: Array
    scale: Array
    norms: Array
    reach: Array
    frozen: Array
    optimality: Array
    share: Array
    finite: Array
    hard: Array


def linearize(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array, box: Any,
    largest: Any,
) -> LinearModel:
    """Linearise the residuals at x by the normal equations; `largest` is D of the last iterate, or
    the given one.

    Problems flagged as `hard` need `decompose` instead.
    """
    xp, p = space.xp, x.shape[-1]
    weighted = residuals
    if not settings.loss.is_linear:
        of_rows, of_residuals = settings.weights(space, residuals)
        columns, weighted = columns * of_rows[..., None, :], residuals * of_residuals
    gram, norms, kept = normal_matrix(space, columns)
    slope = space.products(columns, weighted) / divisor(space, norms)
    frozen = frozen_at_bounds(space, x, slope, box)
    if box is not None:
        one = identity(space, p)
        out = frozen[..., None, :] | frozen[..., None]
        gram = xp.where(out, xp.broadcast_to(one, gram.shape), gram)
        slope = xp.where(frozen, xp.zeros_like(slope), slope)
    rows, least = eliminate(space, xp.concat([gram, slope[..., None]], axis=-1))
    R, q = rows[..., :p], rows[..., p]
    if box is not None:
        R = xp.where(frozen[..., None, :], xp.zeros_like(R), R)
    part = norm(space, q)
    sound, hard = space.scalars.fused(
        _sound, safe_pivot(space), least, xp.all(kept | frozen, axis=-1), part
    )
    return _linear(
        settings, space, x, residuals, R, q, slope, part, norms, largest, frozen, sound, hard
    )


def _sound(
    fn: Scalars, safe: float, least: Any, kept: Any, part: Any
) -> tuple[Any, Any]:
    """Whether the normal equations keep enough digits, and whether they do not."""
    sound = (least > safe) & kept & fn.isfinite(part)
    return sound, fn.logical_not(sound)


def decompose(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array, box: Any,
    largest: Any,
) -> LinearModel:
    """Linearise the residuals by a QR decomposition, which suits any Jacobian."""
    xp, backend = space.xp, space.backend
    finite = xp.all(xp.isfinite(columns), axis=(-2, -1)) & xp.all(xp.isfinite(residuals), axis=-1)
    # Numbers that are not finite must not reach the decomposition: they might spoil other problems.
    columns = xp.where(finite[..., None, None], columns, xp.zeros_like(columns))
    residuals = space.pick(finite, residuals, xp.zeros_like(residuals))
    of_rows, of_residuals = settings.weights(space, residuals)
    columns = columns * of_rows[..., None, :]
    weighted = residuals * of_residuals

    # Sums of squares may overflow even if the norms do not.
    unit = divisor(space, space.max_abs(columns))
    columns = columns / unit[..., None]
    norms = norm(space, columns)
    columns = columns / divisor(space, norms)[..., None]
    norms = norms * unit
    slope = space.products(columns, weighted)
    frozen = frozen_at_bounds(space, x, slope, box)
    columns = xp.where(frozen[..., None], xp.zeros_like(columns), columns)
    slope = xp.where(frozen, xp.zeros_like(slope), slope)

    p, m = columns.shape[-2:]
    if m < p:
        columns = xp.concat([columns, backend.zeros((*x.shape, p - m))], axis=-1)
        weighted = xp.concat([weighted, backend.zeros((*x.shape[:-1], p - m))], axis=-1)
    Q, R = qr(space, xp.matrix_transpose(columns))
    q = transposed_product(space, Q, weighted)
    # Directions that change nothing leave only rounding errors in R, wherever their columns stand.
    left, values, R = svd(space, R)
    q = transposed_product(space, left, q)
    seen = values > rank_cut(0.0, space, m, p) * values[..., :1]
    values = xp.where(seen, values, xp.zeros_like(values))
    R = values[..., None] * R
    q = xp.where(seen, q, xp.zeros_like(q))
    part = norm(space, q)
    hard = xp.ones_like(finite)
    return _linear(
        settings, space, x, residuals, R, q, slope, part, norms, largest, frozen, finite, hard
    )


def _linear(
    settings: FitSettings, space: Space, x: Array, residuals: Array, R: Array, q: Array,
    slope: Array, part: Array, norms: Array, largest: Any, frozen: Array, finite: Array,
    hard: Array,
) -> LinearModel:
    """The model, from R and slopes for columns of unit length and `part`, the norm of what matters
    in q."""
    xp = space.xp
    if settings.own_scale:
        scale = largest
    else:
        scale = divisor(space, norms if largest is None else xp.maximum(norms, largest))
    R = R * (norms / scale)[..., None, :]
    optimality, share = space.scalars.fused(
        _shares, settings.loss.cost(space, residuals), space.max_abs(slope), part
    )
    seen = column_norms(space, R) * scale
    return LinearModel(
        R, q, scale, seen, reach_of(space, seen, x), frozen, optimality, share, finite, hard
    )


def reach_of(space: Space, norms: Array, x: Array) -> Array:
    """The `reach` of a `LinearModel`, a float for one problem."""
    reach = space.sum(norms * space.xp.abs(x))
    return reach if space.batched else float(reach)


def _shares(fn: Scalars, cost: Any, steepest: Any, part: Any) -> tuple[Any, Any]:
    """The optimality and the share of a `LinearModel`."""
    whole = fn.sqrt(2.0 * cost)
    whole = fn.where(whole > 0.0, whole, 1.0)
    return steepest / whole, part / whole


def frozen_at_bounds(space: Space, x: Array, slope: Array, box: Any) -> Array:
    """A mask of the parameters that the slope holds at a bound."""
    if box is None:
        return space.xp.zeros(x.shape, dtype=space.xp.bool, device=space.backend.creation_device)
    return ((x <= box[0]) & (slope >= 0.0)) | ((x >= box[1]) & (slope <= 0.0))


def solve_damped(exact: bool, space: Space, R: Array, q: Array, mu: Array) -> tuple[Array, Array]:
    """The z that minimises |q + R z|^2 + mu |z|^2, and the factor R of that damped problem."""
    xp, p = space.xp, R.shape[-1]
    one = identity(space, p)
    if exact:
        stacked = xp.concat([R, xp.sqrt(mu)[..., None, None] * one], axis=-2)
        Q, factor = qr(space, stacked)
        return solve_upper(space, factor, -transposed_product(space, Q[..., :p, :], q)), factor
    transposed = xp.matrix_transpose(R)
    normal = space.matmul(transposed, R) + mu[..., None, None] * one
    right = space.products(transposed, -q)
    rows, _ = eliminate(space, xp.concat([normal, right[..., None]], axis=-1))
    return substitute(space, rows[..., :p], rows[..., p]), rows[..., :p]
