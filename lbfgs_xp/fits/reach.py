"""Parameters whose size their start does not tell.

At 0, differences step by a part of 1. Beside data of 1e12 that changes no digit, as if the
residuals did not respond to a background. Therefore such a parameter is moved farther, until the
residuals change. If they change in proportion, only the step was too short. If not, the parameter
is far from where it matters, and its derivative is 0 indeed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.fits import levenberg_marquardt as lm
from lbfgs_xp.fits.linear_algebra import norm

if TYPE_CHECKING:
    from lbfgs_xp.fits.loop import Fit

# How far to move a parameter, relative to its size or to 1.
_FACTORS = tuple(10.0**power for power in (2, 4, 8, 16, 32, 64))
# A change counts if it is this many times what rounding hides. It is in proportion if half the way
# changes the residuals by half as much, up to this share.
_CLEAR, _EVEN = 30.0, 0.1


def lengths(fit: Fit, rows: np.ndarray) -> Array | None:
    """The lengths (B, p) over which these problems, a mask (B,) on the host, bend, once parameters
    without response have been moved farther; 0: to be measured. None if that changes nothing."""
    space, state, backend = fit.space, fit.state, fit.space.backend
    x = backend.to_host(state.x).reshape(rows.size, -1)
    silent = backend.to_host(space.max_abs(state.columns) == 0.0).reshape(x.shape) & rows[:, None]
    size, way, room = np.maximum(np.abs(x), 1.0), np.ones_like(x), np.full_like(x, np.inf)
    if fit.box_here is not None:
        low, high = (backend.to_host(side).reshape(x.shape) for side in fit.box_here)
        way = np.where(high - x >= x - low, way, -way)
        room = np.maximum(high - x, x - low)
    hidden = fit.of_rows(
        lm.hidden_change(space, state.x, state.residuals, state.columns, state.noise)
    )
    found = np.zeros_like(x)

    def change(step: np.ndarray) -> Array:
        point = state.x + backend.from_host(step.reshape(state.x.shape), state.x.dtype)
        return fit.residuals(lm.within(space, point, fit.box_here)) - state.residuals

    for i in np.flatnonzero(silent.any(axis=0)):
        left = silent[:, i]
        for factor in _FACTORS:
            if not left.any() or not fit.affords(2) or factor > backend.largest**0.5:
                break
            step, longest = np.zeros_like(x), np.minimum(factor * size, room)
            step[left, i] = (way * longest)[left, i]
            there = change(step)
            seen = left & ~(fit.of_rows(norm(space, there)) <= _CLEAR * hidden)
            if seen.any():
                off = fit.of_rows(norm(space, there - 2.0 * change(0.5 * step)))
                even = seen & (off <= _EVEN * fit.of_rows(norm(space, there)))
                found[even, i] = longest[even, i]
            left = left & ~seen
    if not found.any():
        return None
    # Forward differences then step about as far.
    length, known = found / backend.eps**0.5, fit.here.differences.known.lengths
    if known is not None:
        before = backend.to_host(fit.fetch(known.length)).reshape(x.shape)
        length = np.where(found > 0.0, length, before)
    return backend.from_host(length.reshape(state.x.shape), state.x.dtype)
