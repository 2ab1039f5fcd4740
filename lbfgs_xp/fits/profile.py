"""Profile likelihood: intervals, profiles and contours, by batches of fits with one parameter held.

`boundary` finds most ends of intervals at once. What it leaves, and points of a profile, are fits
whose bounds hold the parameter at a value; an end is the root of sqrt(delta) - z.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import map_leaves
from lbfgs_xp.fits.analysis import Analysis
from lbfgs_xp.fits.boundary import Targets, ends_of
from lbfgs_xp.fits.distributions import rise_of
from lbfgs_xp.fits.intervals import Intervals, IntervalStatus, Profile
from lbfgs_xp.fits.linear_algebra import transposed_product
from lbfgs_xp.fits.loop import run_fit
from lbfgs_xp.fits.names import place_of
from lbfgs_xp.fits.settings import FitPlan
from lbfgs_xp.minimize import minimize
from lbfgs_xp.result import Status

_FOUND, _BOUND, _OPEN, _FIXED, _LOWER, _FAILED = map(int, IntervalStatus)
# A cost that is lower than that of the fit by this share of the rise to the limit is another
# minimum; by less than this multiple of eps of the cost, it is rounding.
_LOWER_BY, _ROUNDED = 1e-2, 1e3
# The search for an end: how many times it goes on, how many times as far as the last step before
# the end is behind it, how far in standard errors, and what is near enough, in the same unit.
_ROUNDS, _FARTHER, _FARTHEST, _NEAR = 60, 2.0, 1e4, 2e-5
# How far towards a straight line the others go, and where on a step the cost is looked at, in case
# of a barrier, unless the step is shorter than this share of the whole way.
_TOWARD, _BETWEEN, _STEP = (1.0, 0.7, 0.4, 0.0), (0.12, 0.31, 0.47, 0.68, 0.89), 0.02
# The weights of the barrier around the region in which a tied parameter is farthest, the iterations
# for each, how little the last one may change, and which share of the rise is left within.
_BARRIERS, _INSIDE, _SETTLED, _ROOM = (1e-1, 1e-3, 1e-5), 100, 5e-3, 1e-2
# A number that says nothing of the unit of a parameter.
_NOTHING = 1e-150
# How far fits with a parameter held may be from their minimum, in standard errors; chi2 is then
# above it by the square of this.
_CLOSE = 1e-4
# How many standard errors a profile shows on both sides.
_REACH = 3.0
_DONE = tuple(int(status) for status in Status if status.success)


class Best(NamedTuple):
    """A fit and its surroundings, on the host: the free numbers, in the order of the vector.

    x, stderr : (B, p); stderr is 0 where bounds are equal.
    covariance : (B, p, p).
    cost, scale : (B,), half of what the fit has minimised (chi2, or the deviance, with priors), and
        the chi2 by which a rise is measured: 1 with absolute deviations, otherwise reduced_chi2.
    dof : (B,), the degrees of freedom from which the scale was estimated; inf if it was not.
    usable : (B,), whether the fit has succeeded and has a scale.
    noise : (B,), by how much a cost may be lower because of rounding.
    low, high : (B, p), the bounds.
    gtol : of fits with a parameter held.
    """

    x: np.ndarray
    stderr: np.ndarray
    covariance: np.ndarray
    cost: np.ndarray
    scale: np.ndarray
    dof: np.ndarray
    usable: np.ndarray
    noise: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gtol: float

    @classmethod
    def of(cls, fit: Any, analysis: Analysis) -> Best:
        def on_host(value: Any) -> np.ndarray:
            batched = analysis.layout.batched
            return np.asarray(
                analysis.layout.backend.to_host(value) if batched else [value]
            )

        backend, free = analysis.layout.backend, analysis.free
        x = np.array(analysis.backend.to_host(analysis.vector(fit.x)), dtype=np.float64)
        stderr = analysis.whole_vector(fit.stderr)[:, free].astype(np.float64)
        root = np.asarray(backend.to_host(fit._root), dtype=np.float64)
        root = root.reshape(-1, *root.shape[-2:])[..., np.argsort(analysis.order)[free]]
        covariance = root.swapaxes(-1, -2) @ root
        chi2 = (on_host(fit.deviance) + on_host(fit.chi2_priors)).astype(np.float64)
        scale = np.ones_like(chi2) if fit.absolute_sigma else on_host(fit.reduced_chi2)
        low, high = np.full_like(x, -np.inf), np.full_like(x, np.inf)
        if analysis.box is not None:
            low, high = (
                np.asarray(analysis.layout.backend.to_host(side), dtype=np.float64)
                for side in analysis.box
            )
        usable = on_host(fit.success).astype(bool) & np.isfinite(scale)
        # What rounding of the data, and of predictions of their size, does to chi2.
        eps = _ROUNDED * analysis.layout.backend.eps
        away = np.sqrt(chi2) + eps * analysis.size_of_data
        noise = eps * chi2 + (away * away - chi2)
        scale = scale.astype(np.float64)
        dof = fit._dof_of_scale.reshape(-1)
        gtol = max(analysis.settings.gtol, _CLOSE / math.sqrt(float(np.max(on_host(fit.n_data)))))
        return cls(x, stderr, covariance, 0.5 * chi2, scale, dof, usable, noise, low, high, gtol)

    def conditional_stderr(self) -> np.ndarray:
        """The standard errors (B, p) that parameters would have if the others were known: over
        these, the residuals change about as much as they scatter. nan where there is no telling."""
        unit, nothing = self.stderr, np.full_like(self.stderr, np.nan)
        with np.errstate(all="ignore"):
            correlation = self.covariance / unit[:, :, None] / unit[:, None, :]
            known = np.isfinite(correlation).all(axis=(1, 2))[:, None]
            correlation = np.where(known[..., None], correlation, np.eye(unit.shape[-1]))
            try:
                precision = np.linalg.inv(correlation)
            except np.linalg.LinAlgError:
                return nothing
            found = unit / np.sqrt(np.diagonal(precision, axis1=1, axis2=2))
        return np.where(known, found, nothing)


class Sides(NamedTuple):
    """Ends to be looked for, R of them, on the host.

    numbers, places, signs : (R,), the fit, the parameter, and the side, -1 or 1.
    """

    numbers: np.ndarray
    places: np.ndarray
    signs: np.ndarray

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, int):
            return tuple.__getitem__(self, rows)
        return Sides(*(array[rows] for array in tuple(self)))


# --- intervals -----------------------------------------------------------------------------------


def intervals(fit: Any, analysis: Analysis, level: float) -> Intervals:
    """See `CurveFit.intervals`."""
    level = checks.number("level", level, above=0.0, below=1.0)
    best = Best.of(fit, analysis)
    (count, p), rise = best.x.shape, rise_of(level, best.dof)
    found = [_ends(analysis, best, _sides(np.arange(p), count), rise)]
    if analysis.tied.size:
        found.append(_tied_ends(analysis, best, _sides(analysis.tied, count), rise, found[0]))
    whole = analysis.whole_vector(fit.x)
    values = np.stack([whole, whole], axis=-1).astype(np.float64)
    status = np.full(values.shape, _FIXED)
    for places, ends in zip((analysis.free, analysis.tied), found, strict=False):
        for target, source in ((values, ends.values), (status, ends.status)):
            target[:, places] = source.reshape(2, -1, count).transpose(2, 1, 0)

    lowest, where = best.cost.copy(), best.x.copy()
    for each in found:
        _note(lowest, where, np.arange(count), each.lowest, each.where)
    lower = _is_lower(best, lowest, found[0].rises)
    hidden = lower[:, None, None] & (status != _FIXED)
    values, status = np.where(hidden, np.nan, values), np.where(hidden, _LOWER, status)
    success: Any = np.all(status < _LOWER, axis=(1, 2))
    backend, batched = analysis.layout.backend, analysis.layout.batched
    low, high = (analysis.whole_tree(values[:, :, side]) for side in (0, 1))
    below, above = (analysis.whole_tree(status[:, :, side].astype(np.int32)) for side in (0, 1))
    return Intervals(
        low, high, below, above, level,
        backend.from_host(success, backend.xp.bool) if batched else bool(success[0]),
        analysis.tree(where) if lower.any() else None,
    )


def _sides(places: np.ndarray, count: int) -> Sides:
    """Both ends of these parameters, first the lower ones: for each in turn, those of all fits."""
    signs = np.repeat([-1.0, 1.0], places.size)
    return Sides(
        np.tile(np.arange(count), signs.size), np.repeat(np.tile(places, 2), count),
        np.repeat(signs, count),
    )


def _tied_ends(
    analysis: Analysis, best: Best, sides: Sides, rise: np.ndarray, free: _Found
) -> _Found:
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
        _note(lowest, where, numbers, ends.lowest, ends.where)
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
    return _Found(values, status, x, lowest, where, rises)


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


class _Found(NamedTuple):
    """Ends (R,), what they are, all parameters there (R, p); and for each fit the lowest cost seen
    (B,) and its point (B, p)."""

    values: np.ndarray
    status: np.ndarray
    x: np.ndarray
    lowest: np.ndarray
    where: np.ndarray
    rises: np.ndarray


class Base(NamedTuple):
    """Where to look for ends from, if not from the best point.

    held : the parameter that keeps its value.
    x, delta : (R, p) and (R,), the best points with that value, and how far chi2 has risen there.
    """

    held: int
    x: np.ndarray
    delta: np.ndarray


def _ends(
    analysis: Analysis, best: Best, sides: Sides, rise: np.ndarray, base: Base | None = None
) -> _Found:
    """Look for the ends at which chi2 has risen by `rise` (B,)."""
    size, each = sides.numbers.size, np.arange(sides.numbers.size)
    numbers, places, signs = tuple(sides)
    unit = best.stderr[numbers, places]
    rises = 0.5 * rise * best.scale
    x = best.x[numbers] if base is None else base.x
    held = None
    fixed = best.low[numbers, places] == best.high[numbers, places]
    usable = best.usable[numbers]
    known = usable & np.isfinite(unit) & (unit > 0.0) & ~fixed
    if base is None:
        starts = x + _tangent(best, sides) * np.sqrt(rise[numbers])[:, None]
    else:
        room = np.sqrt(np.maximum(rise[numbers] - base.delta, 0.0))
        starts = x + _tangent(best, sides, base.held) * room[:, None]
        held = np.zeros(x.shape, dtype=bool)
        held[:, base.held] = True
    starts = np.where(known[:, None], starts, x)
    values, status = np.full(size, np.nan), np.full(size, _FAILED)
    lowest, where = best.cost.copy(), best.x.copy()

    if known.any():
        directions = np.zeros_like(x)
        directions[each, places] = signs
        send, xp = analysis.backend.from_host, analysis.backend.xp
        limits = np.maximum(rises, np.finfo(np.float64).tiny)[numbers]
        ends = ends_of(analysis, Targets(
            numbers, send(x), send(directions), None if held is None else send(held, xp.bool),
            send(starts), send(best.cost[numbers]), send(limits),
        ), best.conditional_stderr(), bool(signs[0] != signs[-1]))
        done = ends.found & known
        x = np.where(done[:, None], ends.x, x)
        values[done] = ends.x[each, places][done]
        status[done] = np.where(ends.pressed[done], _BOUND, _FOUND)
        _note(lowest, where, numbers, ends.lowest, ends.where)

    perfect = usable & (rises[numbers] == 0.0) & ~fixed
    values[perfect], status[perfect] = best.x[numbers, places][perfect], _FOUND
    left = usable & ~fixed & (status == _FAILED) & ~_is_lower(best, lowest, rises)[numbers]
    if left.any():
        search = _Search(analysis, best, sides, base, starts, rise)
        search.run(left)
        values[left], status[left] = search.values[left], search.status[left]
        x = np.where(left[:, None], search.x, x)
        _note(lowest, where, numbers, search.lowest, search.where)
    values[fixed], status[fixed] = best.x[numbers, places][fixed], _FIXED
    return _Found(values, status, x, lowest, where, rises)


def _is_lower(best: Best, lowest: np.ndarray, rises: np.ndarray) -> np.ndarray:
    """A mask (B,) of the fits with a lower cost elsewhere."""
    return best.usable & (lowest < best.cost - _LOWER_BY * rises - best.noise)


def _note(
    lowest: np.ndarray, where: np.ndarray, numbers: np.ndarray, costs: np.ndarray, x: np.ndarray
) -> None:
    """Keep the lowest cost of each fit, and its point."""
    order = np.argsort(-costs, kind="stable")
    order = order[costs[order] < lowest[numbers[order]]]
    # The last one of each fit is the lowest.
    lowest[numbers[order]], where[numbers[order]] = costs[order], x[order]


def _tangent(best: Best, sides: Sides, held: int | None = None) -> np.ndarray:
    """How all parameters move, (R, p), with one that moves by a standard error; if another one is
    held, by the error that is then left."""
    numbers, places, signs = tuple(sides)
    columns = best.covariance[numbers, :, places]
    unit = best.stderr[numbers, places]
    if held is not None:
        # The covariance under the condition that this parameter has its value.
        other = best.covariance[numbers, :, held]
        columns = columns - other * (columns[:, held] / other[:, held])[:, None]
        unit = np.sqrt(columns[np.arange(numbers.size), places])
    with np.errstate(all="ignore"):
        tangent = signs[:, None] * columns / unit[:, None]
    return np.where(np.isfinite(tangent), tangent, 0.0)


class _Search:
    """The slow and safe search for ends: roots of sqrt(delta) - z, by fits with the parameter held
    at a value.

    Ends, statuses and points are as in `_Found`; t is the distance from the best point in standard
    errors, or in units of the parameter where these are not known.
    """

    def __init__(
        self, analysis: Analysis, best: Best, sides: Sides, base: Base | None, starts: np.ndarray,
        rise: np.ndarray,
    ):
        self.analysis, self.best, self.sides = analysis, best, sides
        size = sides.numbers.size
        numbers, places, signs = tuple(sides)
        self.from_ = best.x[numbers] if base is None else base.x
        self.held = np.zeros(self.from_.shape, dtype=bool)
        if base is not None:
            self.held[:, base.held] = True
        self.middle = self.from_[np.arange(size), places]
        own = np.abs(self.middle)
        own = np.where(own > _NOTHING, own, 0.0)
        unit = best.stderr[numbers, places]
        self.unit = np.where(
            np.isfinite(unit) & (unit > 0.0), unit, 0.1 * np.where(own > 0.0, own, 1.0)
        )
        self.z, self.starts = np.sqrt(rise[numbers]), starts
        self.values, self.status = np.full(size, np.nan), np.full(size, _FAILED)
        self.x = self.from_.copy()
        self.lowest, self.where = best.cost[numbers].copy(), best.x[numbers].copy()
        self.scale = np.where(best.scale[numbers] > 0.0, best.scale[numbers], 1.0)
        # The distances between which the end is, and sqrt(delta) - z there, which `_narrow` halves.
        self.inner, self.outer = np.zeros(size), np.full(size, np.inf)
        self.root = np.zeros(size) if base is None else np.sqrt(np.maximum(base.delta, 0.0))
        self.below, self.above = self.root - self.z, np.full(size, np.nan)
        # A distance before `inner` and the point there: at first, just behind the best point.
        ahead = 1e-2 * (starts - self.from_)
        self.before = -np.abs(ahead[np.arange(size), places]) / self.unit, self.from_ - ahead
        # The last step before the end, how fast sqrt(delta) has risen over it, and on which side of
        # the end the last point was.
        self.step, self.rate, self.side = np.full(size, np.inf), np.zeros(size), np.zeros(size)
        self.edge = np.where(signs > 0.0, best.high[numbers, places], best.low[numbers, places])
        self.most = np.abs(self.edge - self.middle) / self.unit
        # Far in the tails of Student's t, an end may lie farther.
        self.farthest = np.maximum(_FARTHEST, 10.0 * self.z)

    def run(self, wanted: np.ndarray) -> None:
        wanted, signs = wanted.copy(), self.sides.signs
        # Closer than the end should be, because beyond a barrier there may be other valleys.
        t = np.minimum(0.5 * self.z, self.most)
        for _ in range(_ROUNDS):
            if not wanted.any():
                return
            at_most = t >= self.most
            value = np.where(at_most, self.edge, self.middle + signs * t * self.unit)
            x, root, good = self._held_at(value, wanted)
            f = root - self.z

            near = wanted & (np.abs(f) <= _NEAR)
            below = wanted & (f < 0.0)
            # Behind a barrier; over a short step there is none.
            apart = (near | below) & (t - self.inner > _STEP * t)
            apart &= ~self._connected(x, t, apart)
            below, above = below & ~apart, wanted & ~below & ~apart
            width = np.where(above, t - self.inner, self.outer - t)
            done = wanted & good & ~apart & (near | (width <= _NEAR * t))
            # The model is not finite beyond.
            domain = done & ~near & np.isinf(self.above)
            bound = domain | (below & at_most & good & ~done)
            far = below & (t >= self.farthest) & ~done & ~bound
            for rows, status, numbers_ in (
                (done, _FOUND, value), (bound, _BOUND, value), (far, _OPEN, signs * np.inf),
            ):
                self.status[rows], self.values[rows] = status, numbers_[rows]
            ended = done | bound | far
            keep = below & np.isfinite(x).all(axis=-1)
            wanted &= ~ended & ~(width <= 1e-3 * _NEAR * t)
            self._narrow(t, root, below, above)
            self.x = np.where((keep | ended)[:, None], x, self.x)
            t = np.where(apart, 0.5 * (self.inner + t), self._next())

    def _narrow(
        self, t: np.ndarray, root: np.ndarray, below: np.ndarray, above: np.ndarray
    ) -> None:
        """Take note of points before the end and behind it."""
        with np.errstate(all="ignore"):
            rate = (root - self.root) / (t - self.inner)
        self.rate = np.where(below, rate, self.rate)
        old = np.where(below, self.inner, self.before[0])
        self.before = old, np.where(below[:, None], self.x, self.before[1])
        self.step = np.where(below, t - self.inner, self.step)
        # Or else a line between them creeps to the end (Illinois; Dowell & Jarratt 1971).
        self.above[below & (self.side < 0.0)] *= 0.5
        self.below[above & (self.side > 0.0)] *= 0.5
        self.side = np.where(below, -1.0, np.where(above, 1.0, self.side))
        self.inner, self.root = np.where(below, t, self.inner), np.where(below, root, self.root)
        self.outer = np.where(above, t, self.outer)
        self.below = np.where(below, root - self.z, self.below)
        self.above = np.where(above, root - self.z, self.above)

    def _next(self) -> np.ndarray:
        """The next distance: where the line through two points is at the level, kept well between
        them if it is."""
        t = self.inner
        with np.errstate(all="ignore"):
            grow = np.where(self.rate > 0.0, t - 1.05 * self.below / self.rate, np.inf)
            # Far below the level, chi2 may be about to settle.
            least = np.where(self.below > -0.5 * self.z, 1.05, 2.0)
            grow = np.clip(grow, least * t, t + _FARTHER * self.step)
            share = -self.below / (self.above - self.below)
        known = np.isfinite(self.above) & np.isfinite(share)
        share = np.where(known, np.clip(share, 0.02, 0.98), 0.5)
        inside = t + share * (self.outer - t)
        t = np.where(np.isfinite(self.outer), inside, grow)
        return np.minimum(np.minimum(t, self.farthest), self.most)

    def _held_at(
        self, value: np.ndarray, wanted: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fits with the parameter at these values: all parameters (R, p), sqrt(delta), and whether
        they succeeded."""
        numbers, places, _ = tuple(self.sides)
        each = np.arange(numbers.size)
        # On the straight line through the point from which it began and the last one.
        first = self.inner == 0.0
        toward = np.where(first[:, None], self.starts, self.x)
        with np.errstate(all="ignore"):
            share = (value - self.middle) / (toward[each, places] - self.middle)
        share = np.where(np.isfinite(share), share, 0.0)[:, None]
        straight = self.from_ + share * (toward - self.from_)
        held = self.held.copy()
        held[each, places] = True
        straight = np.where(self.held, self.from_, straight)
        straight[each, places] = value
        start = _lowest_toward(self.analysis, self.best, numbers, self.x, straight, held, wanted)
        x, cost, good = held_fits(self.analysis, self.best, numbers, start, held, wanted)
        lower = wanted & (cost < self.lowest)
        self.lowest[lower], self.where[lower] = cost[lower], x[lower]
        return x, self._root_of(cost), good

    def _root_of(self, cost: np.ndarray) -> np.ndarray:
        """sqrt(delta), with its sign; inf where the cost is not finite."""
        with np.errstate(all="ignore"):
            delta = 2.0 * (cost - self.best.cost[self.sides.numbers]) / self.scale
        return np.where(np.isfinite(delta), np.sign(delta) * np.sqrt(np.abs(delta)), np.inf)

    def _connected(self, x: np.ndarray, t: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Where the cost stays below the level on the way from the last point before the end to x,
        (R, p): a mask (R,). The way is a parabola through the point before that, or a line."""
        before, point = self.before
        with np.errstate(all="ignore"):
            back = ((before - self.inner) / (t - self.inner))[:, None]
            bend = (point - self.x - back * (x - self.x)) / (back * (back - 1.0))
        bend = np.where(np.isfinite(bend), bend, 0.0)
        connected = np.zeros(t.size, bool)
        for bent in (bend, 0.0 * bend):
            inside = wanted & ~connected
            for part in _BETWEEN:
                if not inside.any():
                    break
                way = self.x + part * (x - self.x) + part * (part - 1.0) * bent
                cost = costs_at(self.analysis, self.best, self.sides.numbers, way, inside)
                inside &= self._root_of(cost) <= self.z + _NEAR
            connected |= inside
        return connected


# --- profiles and contours -----------------------------------------------------------------------


def profile(fit: Any, analysis: Analysis, parameter: Any, values: Any, size: int) -> Profile:
    """See `CurveFit.profile`."""
    listed = place_of(fit.names, parameter)
    place = _free_place(fit, analysis, parameter)
    best = Best.of(fit, analysis)
    count = best.x.shape[0]
    if values is None:
        size = checks.count("size", size, 2)
        reach = _REACH * best.stderr[:, place, None]
        grid = best.x[:, place, None] + reach * np.linspace(-1.0, 1.0, size)
        grid = np.clip(grid, best.low[:, place, None], best.high[:, place, None])
    else:
        grid = _grid(analysis, values, count)
    x, delta = _profile(analysis, best, place, grid)
    outer, batched = analysis.layout.backend, analysis.layout.batched
    # The axis of the values comes last in the computation.
    trees = [analysis.tree(x[:, k, :]) for k in range(grid.shape[1])]
    axis = 1 if batched else 0
    shown, rise = (outer.from_host(array if batched else array[0]) for array in (grid, delta))
    return Profile(
        fit.names[listed], shown, rise,
        map_leaves(lambda *leaves: outer.xp.stack(leaves, axis=axis), *trees),
    )


def _free_place(fit: Any, analysis: Analysis, parameter: Any) -> int:
    """The place of a parameter among the free ones."""
    place = analysis.order[place_of(fit.names, parameter)]
    found = np.flatnonzero(analysis.free == place)
    if found.size == 0:
        raise ValueError(f"parameter is {parameter!r}, which is fixed or tied; wanted a free one")
    return int(found[0])


def _grid(analysis: Analysis, values: Any, count: int) -> np.ndarray:
    """The values of a profile, (B, n)."""
    backend = analysis.layout.backend
    host = np.asarray(backend.to_host(backend.adopt(values, "values")), dtype=np.float64)
    many = (count,) if analysis.layout.batched else ()
    if host.ndim not in (1, 1 + len(many)) or host.shape[:-1] not in ((), many) or not host.size:
        wanted = f"(n,) or ({count}, n)" if many else "(n,)"
        raise ValueError(f"values has shape {host.shape}; wanted {wanted}, not empty")
    return np.array(np.broadcast_to(host, (count, host.shape[-1])))


def _profile(
    analysis: Analysis, best: Best, place: int, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best points (B, n, p) with a parameter at these values (B, n), and the rise of chi2."""
    count, size = grid.shape
    # All fits for each value in turn.
    numbers, each = np.tile(np.arange(count), size), np.arange(count * size)
    values = grid.T.reshape(-1)
    sides = Sides(numbers, np.full(each.size, place), np.ones(each.size))
    ahead = (values - best.x[numbers, place]) / best.stderr[numbers, place]
    ahead = np.where(np.isfinite(ahead), ahead, 0.0)
    start = best.x[numbers] + ahead[:, None] * _tangent(best, sides)
    held = np.zeros(start.shape, dtype=bool)
    held[:, place] = True
    usable = best.usable[numbers] & np.isfinite(values)
    start = np.where(usable[:, None], start, best.x[numbers])
    start[usable, place] = values[usable]
    start = _lowest_toward(analysis, best, numbers, best.x[numbers], start, held, usable)
    x, cost, good = held_fits(analysis, best, numbers, start, held, usable)
    # Once more from the neighbours that are nearer to the best point, in case of another valley.
    x, cost = x.reshape(size, count, -1), np.where(good, cost, np.inf).reshape(size, count)
    inner = np.argmin(np.where(np.isfinite(cost), cost, np.inf), axis=0)
    step = np.sign(inner - np.arange(size)[:, None])
    neighbour = x[np.arange(size)[:, None] + step, np.arange(count)].reshape(start.shape)
    again = np.where(held, start, neighbour)
    other, lower, good = held_fits(analysis, best, numbers, again, held, usable)
    cost = cost.reshape(-1)
    better = good & (lower < cost)
    x = np.where(better[:, None], other, x.reshape(start.shape))
    cost = np.where(better, lower, cost)
    scale = best.scale[numbers]
    delta = 2.0 * (cost - best.cost[numbers]) / np.where(scale > 0.0, scale, np.nan)
    delta = np.where(usable & np.isfinite(delta), delta, np.nan)
    return x.reshape(size, count, -1).swapaxes(0, 1), delta.reshape(size, count).T


def contour(
    fit: Any, analysis: Analysis, one: Any, other: Any, level: float, size: int
) -> Array:
    """See `CurveFit.contour`."""
    level = checks.number("level", level, above=0.0, below=1.0)
    steps = checks.count("size", size, 8) // 2
    first, second = (_free_place(fit, analysis, name) for name in (one, other))
    if first == second:
        raise ValueError(f"other is {other!r}, like the first parameter; wanted two parameters")
    best = Best.of(fit, analysis)
    count, rise = best.x.shape[0], rise_of(level, best.dof, 2)
    # The range of the first parameter, and both sides of the second one at values between.
    numbers = np.arange(count)
    ends = [
        _ends(analysis, best, Sides(numbers, np.full(count, first), np.full(count, sign)), rise)
        for sign in (-1.0, 1.0)
    ]
    low, high = (end.values for end in ends)
    angles = np.linspace(0.0, math.pi, steps)
    grid = 0.5 * (low + high)[:, None] + 0.5 * (high - low)[:, None] * np.cos(angles)
    x, delta = _profile(analysis, best, first, grid)
    rows = [array.swapaxes(0, 1).reshape(count * steps, -1) for array in (x, delta[..., None])]
    base = Base(first, np.concatenate([rows[0]] * 2), np.concatenate([rows[1][:, 0]] * 2))
    total = count * steps
    sides = Sides(
        np.tile(numbers, 2 * steps), np.full(2 * total, second),
        np.repeat(np.asarray([1.0, -1.0]), total),
    )
    usable = best.usable & np.isfinite(low) & np.isfinite(high)
    found = _ends(analysis, best._replace(usable=usable), sides, rise, base)
    # At its own ends, the first parameter leaves no range for the second one.
    no_range = base.delta >= rise[sides.numbers] * (1.0 - 1e-3)
    points = np.where(no_range, base.x[:, second], found.values)
    points = points.reshape(2, steps, count)
    upper, lower = points[0].T, points[1].T[:, ::-1]
    border = np.stack([
        np.concatenate([grid, grid[:, ::-1]], axis=1), np.concatenate([upper, lower], axis=1)
    ], axis=-1)
    border = np.where(np.isfinite(border).all(axis=-1, keepdims=True), border, np.nan)
    return analysis.layout.backend.from_host(border if analysis.layout.batched else border[0])


def held_fits(
    analysis: Analysis, best: Best, numbers: np.ndarray, start: np.ndarray, held: np.ndarray,
    wanted: Any = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits with parameters held: x (R, p), the costs (R,), and whether they succeeded (R,).

    numbers : (R,), the fits whose data they have.
    start, held : (R, p), the starts, and a mask of the parameters that stay there.
    """
    x, cost = start.copy(), np.full(numbers.size, np.nan)
    good = np.zeros(numbers.size, dtype=bool)
    settings = analysis.settings._replace(own_scale=False, gtol=best.gtol)
    outer = analysis.layout.backend
    for group in analysis.groups(numbers, wanted):
        low, high = (
            np.where(held[group], start[group], side[numbers[group]])
            for side in (best.low, best.high)
        )
        begin = np.clip(start[group], low, high)
        part = analysis.rows(numbers[group], analysis.backend.from_host(begin)).residuals
        part.jac = analysis.objective.jac if isinstance(part.jac, str) else part.jac
        box = tuple(outer.from_host(side) for side in (low, high))
        found = analysis.call(run_fit, part, box, FitPlan(
            settings, None, 2**31 - 1, math.inf, on_host=analysis.on_host,
            compact=analysis.may_shrink and outer is analysis.backend, live=analysis.line,
        ))
        x[group] = outer.to_host(part.layout.to_vector(found.x, "x"))
        fetch: Any = outer.to_host if part.layout.batched else np.asarray
        cost[group], good[group] = fetch(found.cost), np.isin(fetch(found.status), _DONE)
    return x, cost, good


def costs_at(
    analysis: Analysis, best: Best, numbers: np.ndarray, x: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """The costs (R,) at x (R, p), moved within the bounds, of the fits with these numbers; nan for
    rows that are not wanted, a mask (R,)."""
    space, send = Space(analysis.backend, batched=True), analysis.backend.from_host
    costs = np.full(numbers.size, np.nan)
    for group in analysis.groups(numbers, wanted):
        low, high = (side[numbers[group]] for side in (best.low, best.high))
        at = send(np.clip(x[group], low, high))
        residuals = analysis.rows(numbers[group], at)(at)
        costs[group] = analysis.backend.to_host(analysis.settings.loss.cost(space, residuals))
    return np.where(wanted, costs, np.nan)


def _lowest_toward(
    analysis: Analysis, best: Best, numbers: np.ndarray, last: np.ndarray, straight: np.ndarray,
    held: np.ndarray, wanted: np.ndarray,
) -> np.ndarray:
    """Where to start fits with parameters held as in `straight`, (R, p): the others are as far from
    the last point towards it as the cost says, because beyond a bend of the valley there may be
    another one."""
    start, least = straight, np.full(numbers.size, np.inf)
    for part in _TOWARD:
        point = np.where(held, straight, last + part * (straight - last))
        cost = costs_at(analysis, best, numbers, point, wanted)
        lower = cost < least
        start, least = np.where(lower[:, None], point, start), np.where(lower, cost, least)
    return start
