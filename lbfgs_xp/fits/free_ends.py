"""Ends of the intervals of free parameters: most by `boundary`, what it leaves by `end_search`."""

from __future__ import annotations

import numpy as np

from lbfgs_xp.fits.analysis import Analysis
from lbfgs_xp.fits.best import Base, Best, Found, Sides, is_lower, note, tangent_of
from lbfgs_xp.fits.boundary import Targets, ends_of
from lbfgs_xp.fits.end_search import Search
from lbfgs_xp.fits.intervals import IntervalStatus

_FOUND, _BOUND, _FIXED, _FAILED = map(int, (
    IntervalStatus.FOUND, IntervalStatus.BOUND, IntervalStatus.FIXED, IntervalStatus.FAILED,
))


def ends_by_profile(
    analysis: Analysis, best: Best, sides: Sides, rise: np.ndarray, base: Base | None = None
) -> Found:
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
        starts = x + tangent_of(best, sides) * np.sqrt(rise[numbers])[:, None]
    else:
        room = np.sqrt(np.maximum(rise[numbers] - base.delta, 0.0))
        starts = x + tangent_of(best, sides, base.held) * room[:, None]
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
        note(lowest, where, numbers, ends.lowest, ends.where)

    perfect = usable & (rises[numbers] == 0.0) & ~fixed
    values[perfect], status[perfect] = best.x[numbers, places][perfect], _FOUND
    left = usable & ~fixed & (status == _FAILED) & ~is_lower(best, lowest, rises)[numbers]
    if left.any():
        search = Search(analysis, best, sides, base, starts, rise)
        search.run(left)
        values[left], status[left] = search.values[left], search.status[left]
        x = np.where(left[:, None], search.x, x)
        note(lowest, where, numbers, search.lowest, search.where)
    values[fixed], status[fixed] = best.x[numbers, places][fixed], _FIXED
    return Found(values, status, x, lowest, where, rises)
