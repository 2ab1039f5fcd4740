"""Minima at which the Jacobian vanishes but the residuals do not, such as that of x^4 + 1.

The trapezoidal rule, by which claims are looked at, holds at no distance from the minimum of a
power: for x^4 it is off by a factor of 2. Simpson's rule, with one more point half way, holds for
it. Differences have no correct digit there, or are 0 as if nothing responded to the parameter; then
the cost itself is looked at, to both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.fits import levenberg_marquardt as lm
from lbfgs_xp.result import CLAIMED, Status

if TYPE_CHECKING:
    from lbfgs_xp.fits.loop import Fit

# The optimality above which a Jacobian vanishes, rather than its product with the residuals.
_VANISHES = 0.1
# How far to look to both sides, relative to the lengths over which the residuals bend.
_FAR = (1e-4, 1e-2, 1.0)
# At a part of that distance, the rise of a smooth cost is at most a smaller part of its rise there;
# that at a kink is as large a part.
_PART, _SMOOTH = 1 / 8, 1 / 14


def confirm(fit: Fit) -> None:
    """Confirm open claims at points from which the slope promises nothing and the cost rises."""
    space, known, objective = fit.space, fit.known, fit.objective
    if objective.in_chunks or not fit.affords(2 * (1 + objective.calls_per_jacobian)):
        return
    here = known.x, known.residuals, known.columns, known.noise
    shortest = lm.lengths(space.backend.eps)[-1]
    if objective.calls_per_jacobian:
        way = fit.steps.ahead(*here, known.scale, fit.box, shortest) - known.x
        found = _are_lowest(fit, fit.confirmed == CLAIMED, way)
    else:
        looks = []
        for point in fit.steps.aside(*here, known.scale, fit.box, shortest):
            residuals = fit.ask(objective, point)
            looks.append((point, residuals, fit.ask(objective.columns, point, residuals)))
        found = fit.of_rows(fit.steps.rises(*here, *looks))
    found &= fit.confirmed == CLAIMED
    fit.stationary, fit.confirmed[found] = found, int(Status.PRECISION)


def doubt(fit: Fit) -> None:
    """Refute claims of a given Jacobian that vanishes next to residuals that do not, if residuals
    and Jacobian disagree over a short look: a term that is missing may matter little over a long
    one."""
    objective = fit.objective
    if objective.derivatives != "given" or objective.in_chunks or not fit.affords(1):
        return
    doubtful = (fit.confirmed == int(Status.PRECISION)) & ~fit.stationary
    doubtful &= fit.of_rows(fit.known.optimality) > _VANISHES
    if not doubtful.any():
        return
    rows = np.flatnonzero(doubtful)
    agrees, _, _ = fit.looked(lm.lengths(fit.space.backend.eps)[-1], rows)
    fit.confirmed[rows[~agrees]] = int(Status.LINE_SEARCH)


def refute_silence(fit: Fit) -> None:
    """End fits by differences that find no response to any parameter without success, unless the
    cost rises to both sides, whether two parameters change alike or oppositely: products of
    parameters have no slope at 0."""
    known, silent = fit.known, (fit.confirmed == int(Status.GRADIENT)) & fit.silence.everywhere
    if not fit.objective.calls_per_jacobian or not silent.any():
        return
    silent &= fit.of_rows(known.value) > 0.0
    if silent.any():
        found = silent
        for signs in _signs(known.x.shape[-1]):
            way = fit.space.backend.from_host(signs) + fit.space.xp.zeros_like(known.x)
            found = found & _are_lowest(fit, found, way)
        fit.stationary = fit.stationary | found
        fit.confirmed[silent & ~found] = int(Status.LINE_SEARCH)


def _signs(size: int) -> Iterator[np.ndarray]:
    """Signs of so many parameters: all alike, then such that any two differ at least once."""
    yield np.ones(size)
    for bit in range((size - 1).bit_length()):
        yield 1.0 - 2.0 * (np.arange(size) >> bit & 1)


def _are_lowest(fit: Fit, rows: np.ndarray, way: Array) -> np.ndarray:
    """Which of these problems have a cost that rises smoothly to both sides along `way`, or to the
    only side within the bounds, at the first distance at which their residuals respond; a mask on
    the host."""
    objective, known, space = fit.objective, fit.known, fit.space
    lowest, lengths = np.zeros_like(rows), objective.differences.known.lengths
    size = space.xp.abs(known.x)
    reach = space.xp.where(size > 0.0, size, space.xp.ones_like(size))
    if lengths is not None and objective.directions is None:
        reach = fit.fetch(lengths.length)
    size = space.max_abs(way / reach)
    way = way / space.per_problem(space.scalars.where(size > 0.0, size, 1.0))

    def changes(far: float) -> tuple[Any, Any, Any]:
        """By how much the cost rises to both sides, and where residuals differ visibly. A side that
        the bounds end before the residuals respond is like the other one."""
        rises: list[Any] = []
        closed: list[Any] = []
        seen: Any = False
        for step in (far * way, -far * way):
            wanted = known.x + step
            point = lm.within(space, wanted, fit.box)
            there = fit.ask(objective, point)
            rise, differ = map(fit.of_rows, fit.steps.change(known.residuals, there))
            rises, seen = [*rises, rise], seen | differ
            if fit.box is not None:
                closed.append((fit.of_rows(space.max_abs(point - wanted)) > 0.0) & ~differ)
        if closed:
            rises = [np.where(closed[k], rises[1 - k], rises[k]) for k in (0, 1)]
        return *rises, seen

    open_ = rows.copy()
    for far in _FAR:
        if not open_.any() or not fit.affords(4):
            break
        up, down, seen = changes(far)
        responds = open_ & seen
        if responds.any():
            near_up, near_down, _ = changes(_PART * far)
            rises = (up > 0.0) & (down > 0.0) & np.isfinite(up + down)
            lowest |= responds & rises & (near_up + near_down <= _SMOOTH * (up + down))
        open_ &= ~responds
    return lowest
