"""`linear_model` and the steps of `levenberg_marquardt` for one problem with few parameters on the
host: the same formulas on floats, which cost less than calls of a library for arrays so small."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.levenberg_marquardt import LONGER, REFINED, LMState
from lbfgs_xp.fits.linear_algebra import (
    FLOATS,
    back_substituted,
    eliminated,
    forward_substituted,
    identity,
    safe_pivot,
)
from lbfgs_xp.fits.linear_model import LinearModel, frozen_at_bounds
from lbfgs_xp.fits.settings import FitSettings


def fits(space: Space, p: int) -> bool:
    """Whether these functions are for problems in this space."""
    return not space.batched and p <= FLOATS


def linearize(
    settings: FitSettings, space: Space, x: Array, residuals: Array, columns: Array, box: Any,
    largest: Any,
) -> LinearModel | None:
    """As in `linear_model`; None if the normal equations lose too many digits."""
    weighted = residuals
    if not settings.loss.is_linear:
        of_rows, of_residuals = settings.weights(space, residuals)
        columns, weighted = columns * of_rows, residuals * of_residuals
    gram = columns @ columns.T
    norms = np.sqrt(gram.diagonal())
    lengths, limit = norms.tolist(), space.backend.largest**0.25
    unit = norms if min(lengths) > 0.0 else np.where(norms > 0.0, norms, 1.0)
    slope = (columns @ weighted) / unit
    gram = gram / unit / unit[:, None]
    frozen = np.zeros(norms.shape, dtype=bool)
    held = False
    if box is not None:
        frozen = frozen_at_bounds(space, x, slope, box)
        held = bool(frozen.any())
    if held:
        gram = np.where(frozen | frozen[:, None], identity(space, norms.size), gram)
        slope, norms = np.where(frozen, 0.0, slope), np.where(frozen, 0.0, norms)
        lengths = [1.0 if out else size for out, size in zip(frozen, lengths, strict=True)]
    if not (1.0 / limit < min(lengths) and max(lengths) < limit):    # what is nan fails below
        return None
    try:
        R = np.linalg.cholesky(gram, upper=True)
    except np.linalg.LinAlgError:
        return None
    rows, slopes = R.tolist(), slope.tolist()
    q = forward_substituted(rows, slopes)
    part = math.hypot(*q)
    if not (min([rows[i][i] for i in range(len(q))]) > safe_pivot(space) and math.isfinite(part)):
        return None
    if settings.own_scale:
        scale = largest
    else:
        scale = norms if largest is None else np.maximum(norms, largest)
        scale = np.where(scale > 0.0, scale, 1.0) if held else scale
    whole = math.sqrt(2.0 * float(settings.loss.cost(space, residuals)))
    whole = whole if whole > 0.0 else 1.0
    # The columns of R have length 1.
    return LinearModel(
        R * (norms / scale), np.asarray(q, columns.dtype), scale, norms,
        float(norms @ abs(x)), frozen, max(map(abs, slopes)) / whole, part / whole, True, False,
    )


def aim(space: Space, state: LMState) -> LMState:
    """As in `levenberg_marquardt`, for a linear model from normal equations, and without bounds."""
    linear, eps = state.linear, space.backend.eps
    R, q, scale = linear.R.tolist(), linear.q.tolist(), linear.scale.tolist()
    # In units of the residuals, whose squares may overflow; a power of 2, which rounds nothing.
    p, unit = len(q), math.ldexp(1.0, math.frexp(max(map(abs, q)))[1])
    radius, right = float(state.radius) / unit, [-a / unit for a in q]
    lengths = [math.hypot(*column) for column in zip(*R, strict=True)]
    least = eps * min([length if length > 0.0 else 1.0 for length in lengths])
    mu = max(least * least, 4.0 / space.backend.largest)
    # So little damping does not matter yet.
    z, factor = back_substituted(R, right), R
    for _ in range(REFINED):
        length = math.hypot(*z)
        if not length > LONGER * radius:
            break
        slope = math.hypot(*forward_substituted(factor, z))
        part = length / (slope if slope > 0.0 else 1.0)
        mu += part * part * (length - radius) / (radius if radius > 0.0 else 1.0)
        z, factor = _damped(R, right, mu)
    z = [a * unit for a in z]
    step = np.asarray([a / size for a, size in zip(z, scale, strict=True)], state.x.dtype)
    predicted = 0.0
    for i in range(p):
        change = sum([a * b for a, b in zip(R[i][i:], z[i:], strict=True)])
        predicted -= change * (q[i] + 0.5 * change)
    return state._replace(mu=mu, step=step, trial=state.x + step, predicted=predicted)


def _damped(
    R: list[list[float]], right: list[float], mu: float
) -> tuple[list[float], list[list[float]]]:
    """`linear_model.solve_damped`, for triangular R and -q."""
    p, rest = len(right), []
    columns = list(zip(*R, strict=True))
    for i in range(p):
        left = columns[i][: i + 1]
        row = [
            sum([a * b for a, b in zip(left, columns[j], strict=False)]) for j in range(i, p)
        ]
        row[0] += mu
        rest.append([*row, sum([a * b for a, b in zip(left, right, strict=False)])])
    rows, _ = eliminated(rest, p)
    return back_substituted(rows, [row[p] for row in rows]), rows
