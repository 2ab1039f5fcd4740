"""Profile likelihood: intervals, profiles and contours, by batches of fits with one parameter held.

An end is where the profile has risen as far as the level says (`free_ends`, `tied_ends`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.tree import map_leaves
from lbfgs_xp.fits.analysis import Analysis
from lbfgs_xp.fits.best import Base, Best, Sides, both_sides, is_lower, note, tangent_of
from lbfgs_xp.fits.distributions import rise_of
from lbfgs_xp.fits.free_ends import ends_by_profile
from lbfgs_xp.fits.held import held_fits, lowest_toward
from lbfgs_xp.fits.intervals import Intervals, IntervalStatus, Profile
from lbfgs_xp.fits.names import place_of
from lbfgs_xp.fits.tied_ends import ends_of_ties

_OPEN, _FIXED, _LOWER = map(int, (
    IntervalStatus.OPEN, IntervalStatus.FIXED, IntervalStatus.LOWER,
))
# How many standard errors a profile shows on both sides.
_REACH = 3.0


def intervals(fit: Any, analysis: Analysis, level: float) -> Intervals:
    """See `CurveFit.intervals`."""
    level = checks.number("level", level, above=0.0, below=1.0)
    best = Best.of(fit, analysis)
    (count, p), rise = best.x.shape, rise_of(level, best.dof)
    found = [ends_by_profile(analysis, best, both_sides(np.arange(p), count), rise)]
    if analysis.tied.size:
        found.append(ends_of_ties(analysis, best, both_sides(analysis.tied, count), rise, found[0]))
    whole = analysis.whole_vector(fit.x)
    values = np.stack([whole, whole], axis=-1).astype(np.float64)
    status = np.full(values.shape, _FIXED)
    for places, ends in zip((analysis.free, analysis.tied), found, strict=False):
        for target, source in ((values, ends.values), (status, ends.status)):
            target[:, places] = source.reshape(2, -1, count).transpose(2, 1, 0)

    lowest, where = best.cost.copy(), best.x.copy()
    for each in found:
        note(lowest, where, np.arange(count), each.lowest, each.where)
    lower = is_lower(best, lowest, found[0].rises)
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


def profile(fit: Any, analysis: Analysis, parameter: Any, values: Any, size: int) -> Profile:
    """See `CurveFit.profile`."""
    listed = place_of(fit.names, parameter)
    place = free_place(fit, analysis, parameter)
    best = Best.of(fit, analysis)
    count = best.x.shape[0]
    if values is None:
        size = checks.count("size", size, 2)
        reach = _REACH * best.stderr[:, place, None]
        grid = best.x[:, place, None] + reach * np.linspace(-1.0, 1.0, size)
        grid = np.clip(grid, best.low[:, place, None], best.high[:, place, None])
    else:
        grid = _grid(analysis, values, count)
    x, delta = profiles(analysis, best, place, grid)
    outer, batched = analysis.layout.backend, analysis.layout.batched
    # The axis of the values comes last in the computation.
    trees = [analysis.tree(x[:, k, :]) for k in range(grid.shape[1])]
    axis = 1 if batched else 0
    shown, rise = (outer.from_host(array if batched else array[0]) for array in (grid, delta))
    return Profile(
        fit.names[listed], shown, rise,
        map_leaves(lambda *leaves: outer.xp.stack(leaves, axis=axis), *trees),
    )


def free_place(fit: Any, analysis: Analysis, parameter: Any) -> int:
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


def profiles(
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
    start = best.x[numbers] + ahead[:, None] * tangent_of(best, sides)
    held = np.zeros(start.shape, dtype=bool)
    held[:, place] = True
    usable = best.usable[numbers] & np.isfinite(values)
    start = np.where(usable[:, None], start, best.x[numbers])
    start[usable, place] = values[usable]
    start = lowest_toward(analysis, best, numbers, best.x[numbers], start, held, usable)
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
    first, second = (free_place(fit, analysis, name) for name in (one, other))
    if first == second:
        raise ValueError(f"other is {other!r}, like the first parameter; wanted two parameters")
    best = Best.of(fit, analysis)
    count, rise = best.x.shape[0], rise_of(level, best.dof, 2)
    # The range of the first parameter, and both sides of the second one at values between.
    numbers = np.arange(count)
    ends = [
        ends_by_profile(
            analysis, best, Sides(numbers, np.full(count, first), np.full(count, sign)), rise
        )
        for sign in (-1.0, 1.0)
    ]
    low, high = (end.values for end in ends)
    angles = np.linspace(0.0, math.pi, steps)
    grid = 0.5 * (low + high)[:, None] + 0.5 * (high - low)[:, None] * np.cos(angles)
    x, delta = profiles(analysis, best, first, grid)
    rows = [array.swapaxes(0, 1).reshape(count * steps, -1) for array in (x, delta[..., None])]
    base = Base(first, np.concatenate([rows[0]] * 2), np.concatenate([rows[1][:, 0]] * 2))
    total = count * steps
    sides = Sides(
        np.tile(numbers, 2 * steps), np.full(2 * total, second),
        np.repeat(np.asarray([1.0, -1.0]), total),
    )
    usable = best.usable & np.isfinite(low) & np.isfinite(high)
    found = ends_by_profile(analysis, best._replace(usable=usable), sides, rise, base)
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
