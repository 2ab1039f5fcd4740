"""Fits with parameters held at values, and costs at points: what profiles are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.analysis import Analysis
from lbfgs_xp.fits.best import Best
from lbfgs_xp.fits.loop import run_fit
from lbfgs_xp.fits.settings import FitPlan
from lbfgs_xp.result import Status

# How far towards a straight line the others go.
_TOWARD = (1.0, 0.7, 0.4, 0.0)
_DONE = tuple(int(status) for status in Status if status.success)


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


def lowest_toward(
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
