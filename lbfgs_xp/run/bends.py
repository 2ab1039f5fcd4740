"""Steps of differences among noise, over which the function bends by many times that noise (Moré &
Wild 2012, Estimating Derivatives of Noisy Simulations). The values of each difference show the
bend, so the steps follow it from point to point.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array

# The second difference over a step, in units of the noise; by which factor it may be off when the
# steps are first measured, and later; and by which factor a step may grow at a time.
_BEND, _BEND_OFF, _BEND_DRIFTS, _GROWS = 100.0, 10.0, 4.0, 10.0
# By how much it may shrink at a time: exponentials bend by far more than the square of a step.
_SHRINKS = 100.0
# The largest noise, relative to the value, that says how long the first steps are.
_MOST = 1e-2


class Bends(NamedTuple):
    """The steps among noise, (..., n) each.

    at, step, second : the last point, the steps there, and the second differences over them.
    following : the steps at the next point.
    """

    at: Array
    step: Array
    second: Array
    following: Array

    def step_at(self, xp: Any, x: Array) -> Array:
        """The steps at x: at the same point again, the same ones."""
        moved = xp.any(x != self.at, axis=-1)[..., None]
        return xp.where(moved, self.following, self.step)

    def after(
        self, xp: Any, x: Array, noise: Array, noisy: Array, second: Array, most: Any
    ) -> Bends:
        """The steps after these second differences at x. Those of `noisy` rows, (..., 1), follow
        the bend, unless `most`, the longest steps, is None.

        noise : (..., 1).
        """
        step = following = self.step_at(xp, x)
        if most is not None:
            factor = _factor(xp, noise, second, _BEND_DRIFTS, _BEND_DRIFTS)
            following = xp.where(noisy, xp.minimum(step * factor, most), step)
        return Bends(x, step, second, following)


def first_steps(xp: Any, size: Array, value: Array, noise: Array) -> Array:
    """The first steps among noise (..., 1): as if the function changed by its own value where a
    coordinate changes by its own size."""
    scale, one = xp.abs(value)[..., None], xp.ones_like(size)
    seen = xp.where(noise < _MOST * scale, scale, one)
    return size * xp.sqrt(xp.where(noise < _MOST * scale, noise / seen, _MOST * one))


def better_steps(xp: Any, noise: Array, second: Array, step: Array, most: Array) -> Array:
    """The steps to try after these second differences; unchanged where those are fine."""
    return xp.minimum(step * _factor(xp, noise, second, _BEND_OFF, _GROWS), most)


def _factor(xp: Any, noise: Array, second: Array, off: float, most: float) -> Array:
    """The factors by which to change steps with these second differences: 1 if they are not off by
    more than `off`; at most `most`."""
    one, bend = xp.ones_like(second), xp.where(second > noise, second, noise + 0.0 * second)
    usable = xp.isfinite(bend)
    ratio = _BEND * noise / xp.where(bend == 0.0, xp.inf * one, bend)
    fine = (ratio <= off) & (ratio * off >= 1.0)
    factor = xp.sqrt(xp.where(usable, ratio, one))
    factor = xp.where(factor > most, most * one, factor)
    factor = xp.where(factor * _SHRINKS < 1.0, one / _SHRINKS, factor)
    factor = xp.where(fine, one, factor)
    return xp.where(usable, factor, one / most)
