"""The slow and safe search for ends of intervals: roots of sqrt(delta) - z."""

from __future__ import annotations

import numpy as np

from lbfgs_xp.fits.analysis import Analysis
from lbfgs_xp.fits.best import Base, Best, Sides
from lbfgs_xp.fits.held import costs_at, held_fits, lowest_toward
from lbfgs_xp.fits.intervals import IntervalStatus

_FOUND, _BOUND, _OPEN, _FAILED = map(int, (
    IntervalStatus.FOUND, IntervalStatus.BOUND, IntervalStatus.OPEN, IntervalStatus.FAILED,
))
# How many times the search goes on, how many times as far as the last step before the end is behind
# it, how far in standard errors, and what is near enough, in the same unit.
_ROUNDS, _FARTHER, _FARTHEST, _NEAR = 60, 2.0, 1e4, 2e-5
# Where on a step the cost is looked at, in case of a barrier, unless the step is shorter than this
# share of the whole way.
_BETWEEN, _STEP = (0.12, 0.31, 0.47, 0.68, 0.89), 0.02
# A number that says nothing of the unit of a parameter.
_NOTHING = 1e-150


class Search:
    """The slow and safe search for ends: roots of sqrt(delta) - z, by fits with the parameter held
    at a value.

    Ends, statuses and points are as in `Found`; t is the distance from the best point in standard
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
        start = lowest_toward(self.analysis, self.best, numbers, self.x, straight, held, wanted)
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
