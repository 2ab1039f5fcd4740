"""Ends of the intervals of tied parameters: how far a function of the free ones reaches."""

from __future__ import annotations

import functools

import numpy as np

from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.analysis import Analysis
from lbfgs_xp.fits.best import Best, Found, Sides, note
from lbfgs_xp.fits.boundary import Targets, ends_of
from lbfgs_xp.fits.held import costs_at
from lbfgs_xp.fits.intervals import IntervalStatus
from lbfgs_xp.fits.linear_algebra import transposed_product
from lbfgs_xp.minimize import minimize

_FOUND, _BOUND, _OPEN, _FIXED, _FAILED = map(int, (
    IntervalStatus.FOUND, IntervalStatus.BOUND, IntervalStatus.OPEN,
    IntervalStatus.FIXED, IntervalStatus.FAILED,
))
# What is near enough to the farthest point known, in units of the way to it.
_NEAR = 2e-5
# The weights of the barrier around the region in which a tied parameter is farthest, the iterations
# for each, how little the last one may change, and which share of the rise is left within.
_BARRIERS, _INSIDE, _SETTLED, _ROOM = (1e-1, 1e-3, 1e-5), 100, 5e-3, 1e-2


def ends_of_ties(
    analysis: Analysis, best: Best, sides: Sides, rise: np.ndarray, free: Found
) -> Found:
    """The ends of tied parameters, whose places are those in the vector of all of them.

    free : the ends of the free ones.
    """
    numbers, places, signs = tuple(sides)
    send, each = analysis.backend.from_host, np.arange(numbers.size)
    rises, x = 0.5 * rise * best.scale, best.x[numbers]
    rows = analysis.rows(numbers, send(x))
    slopes = np.asarray(
        analysis.backend.to_host(analysis.directions(rows, send(x), places, signs))
    )
    along = np.matmul(best.covariance[numbers], slopes[..., None])[..., 0]
    spread = np.sqrt(np.sum(slopes * along, axis=-1))
    usable, limits = best.usable[numbers], np.maximum(rises, np.finfo(np.float64).tiny)[numbers]

    def height(points: np.ndarray) -> np.ndarray:
        """How far the tied parameters are on their side, (R,), at points (R, p)."""
        return signs * _numbers_of(analysis, points)[each, places]

    # Points of the region: the ends of the free parameters, and others halfway.
    ended = (free.status < _OPEN)[:, None]
    middle = np.tile(best.x, (free.x.shape[0] // best.x.shape[0], 1))
    corners = np.where(ended, free.x, middle)
    of_fits = np.tile(np.arange(best.cost.size), middle.shape[0] // best.cost.size)
    halfway = 0.5 * (middle + corners)
    cost = costs_at(analysis, best, of_fits, halfway, best.usable[of_fits])
    halfway = np.where((cost - best.cost[of_fits] <= rises[of_fits])[:, None], halfway, middle)
    corners = np.concatenate([best.x, corners, halfway]).reshape(-1, *best.x.shape)
    heights = np.stack([height(corner[numbers]) for corner in corners])
    highest = np.argmax(heights, axis=0)
    corner, top, here = corners[highest, numbers], heights[highest, each], heights[0]

    sloping = usable & (spread > 0.0) & np.isfinite(spread)
    # A function that depends on fixed parameters alone has one value.
    still = usable & (spread == 0.0) & (np.ptp(heights, axis=0) == 0.0)
    starts = x + (np.sqrt(rise[numbers]) / spread)[:, None] * along
    starts = np.where(sloping[:, None], starts, corner)
    values, status = np.where(still, signs * here, np.nan), np.where(still, _FIXED, _FAILED)
    lowest, where = best.cost.copy(), best.x.copy()
    for begin in (starts, corner):
        left = usable & (status == _FAILED)
        if not left.any():
            break
        ends = ends_of(analysis, Targets(
            numbers, send(best.x[numbers]), send(slopes), None,
            send(np.where(left[:, None], begin, best.x[numbers])), send(best.cost[numbers]),
            send(limits), (places, signs),
        ), best.conditional_stderr(), paired=begin is starts)
        note(lowest, where, numbers, ends.lowest, ends.where)
        reached = height(np.where(ends.found[:, None], ends.x, x))
        done = left & ends.found & (reached >= top - _NEAR * np.abs(top - here))
        x = np.where(done[:, None], ends.x, x)
        values = np.where(done, signs * reached, values)
        status = np.where(done, np.where(ends.pressed, _BOUND, _FOUND), status)
    left = usable & (status == _FAILED)
    if left.any():
        size = np.maximum(np.abs(top - here), np.where(sloping, spread, 0.0))
        inside, room = _extremes(
            analysis, best, sides, corner, limits, size, left & (size > 0.0)
        )
        reached = height(np.where(np.isfinite(room)[:, None], inside, x))
        done = left & (reached >= top - _NEAR * size) & np.isfinite(room)
        x, values = np.where(done[:, None], inside, x), np.where(done, signs * reached, values)
        status = np.where(done, np.where(room > _ROOM, _BOUND, _FOUND), status)
    return Found(values, status, x, lowest, where, rises)


def _extremes(
    analysis: Analysis, best: Best, sides: Sides, corner: np.ndarray, limits: np.ndarray,
    size: np.ndarray, wanted: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The points (R, p) of the region where tied parameters are farthest on their side, by a
    logarithmic barrier (Nocedal & Wright 2006, section 19.6), and which share of the rise to the
    limit is left there, (R,); nan where there are none.

    corner : points of the region (R, p), to start near them.
    size : what counts as a large change of each tied parameter, (R,).
    """
    numbers, places, signs = tuple(sides)
    space, send, loss = (
        Space(analysis.backend, batched=True), analysis.backend.from_host, analysis.settings.loss
    )
    unit, each = np.where(best.stderr > 0.0, best.stderr, 1.0)[numbers], np.arange(numbers.size)
    start = best.x[numbers]
    near = start + 0.9 * (corner - start)
    lower = costs_at(analysis, best, numbers, near, wanted) < best.cost[numbers] + 0.95 * limits
    start = np.where(lower[:, None], near, start)
    rows = analysis.rows(numbers, send(start))

    def values(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        room = 1.0 - (costs_at(analysis, best, numbers, x, wanted) - best.cost[numbers]) / limits
        return signs * _numbers_of(analysis, x)[each, places] / size, room

    def falling(
        x: np.ndarray, some: np.ndarray, weight: float
    ) -> tuple[np.ndarray, np.ndarray]:
        whole = start.copy()
        whole[some] = x
        at = send(whole)
        height, room = values(whole)
        value = -height - weight * np.log(np.where(room > 0.0, room, np.nan))
        residuals = rows(at)
        jacobian = rows.jacobian(at, residuals)
        if not loss.is_linear:
            of_rows, of_residuals = loss.weights(space.xp, residuals, analysis.backend.eps)
            jacobian, residuals = jacobian * of_rows[..., None], residuals * of_residuals
        slopes, rising = (np.asarray(analysis.backend.to_host(array)) for array in (
            analysis.directions(rows, at, places, signs),
            transposed_product(space, jacobian, residuals),
        ))
        gradient = -slopes / size[:, None] + rising * (weight / (limits * room))[:, None]
        value, gradient = np.where(wanted, value, 0.0), np.where(wanted[:, None], gradient, 0.0)
        return value[some], gradient[some]

    x, heights = start, []
    for weight in _BARRIERS:
        x = minimize(
            functools.partial(falling, weight=weight), x, jac=True, batched=True, pass_rows=True,
            x_scale=unit, bounds=(best.low[numbers], best.high[numbers]), maxiter=_INSIDE,
        ).x
        heights.append(values(x)[0])
    settled = np.abs(heights[-1] - heights[-2]) <= _SETTLED
    return x, np.where(wanted & settled, values(x)[1], np.nan)


def _numbers_of(analysis: Analysis, x: np.ndarray) -> np.ndarray:
    """All numbers (R, all) for the free ones (R, p) of all fits in turn, several times."""
    each = x.reshape(-1, analysis.layout.batch[0] if analysis.layout.batched else 1, x.shape[-1])
    return np.concatenate(
        [analysis.whole_vector(analysis.tree(part)) for part in each]
    ).astype(np.float64)
