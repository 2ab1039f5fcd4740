"""Bracketing and zoom for the strong Wolfe conditions, after Nocedal and Wright."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from lbfgs_xp.arrays.scalars import Mask, Scalar, Scalars
from lbfgs_xp.checks import number, require, setting
from lbfgs_xp.line_search.base import LineSearch, Point, Search
from lbfgs_xp.line_search.interpolation import cubic

# A trial stays this share of the bracket away from both ends, so that every trial is informative.
MARGIN = 0.1
# A bracket wider than this share of its width two trials ago is halved.
SHRINK = 0.66


class Zoom(NamedTuple):
    """low: the lowest point with sufficient decrease; high: the other end, at infinity until a
    bracket is found."""

    low: Point
    high: Point
    width: Scalar
    older_width: Scalar


@dataclass(frozen=True, kw_only=True)
class StrongWolfe(LineSearch):
    """Expand until a bracket is found, then zoom in on it with cubics.

        phi(alpha) <= phi(0) + c1 alpha phi'(0)
        |phi'(alpha)| <= c2 |phi'(0)|

    c1, c2: 0 < c1 < c2 < 1.
    growth: until a bracket is found, a step is at most this many times the last; growth >= 2.
    max_evaluations, alpha_max: see `LineSearch`.

    Source: Nocedal & Wright (2006), Algorithms 3.5 (bracketing) and 3.6 (zoom), eq. 3.59 for the
    trial. Bracketing is a zoom whose far end is at infinity, so both are one step here.

    >>> from lbfgs_xp.line_search import StrongWolfe, line_search
    >>> result = line_search(lambda a: ((a - 3.0) ** 2, 2.0 * (a - 3.0)), StrongWolfe(c2=0.1))
    >>> round(result.alpha, 9), result.evaluations
    (3.0, 2)
    """

    max_evaluations: int = 40
    c1: float = 1e-4
    c2: float = 0.9
    growth: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("c1", "c2"):
            setting(self, name, number, above=0.0, below=1.0)
        require(self.c1 < self.c2, "c1 < c2", c1=self.c1, c2=self.c2)
        setting(self, "growth", number, least=2.0)

    def accepts(self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar) -> Mask:
        return self._decreased(search, phi) & (fn.abs(dphi) <= self.c2 * -search.dphi0)

    def first(self, fn: Scalars, phi0: Scalar, dphi0: Scalar, alpha0: Scalar) -> Zoom:
        far = fn.full(math.inf, phi0)
        return Zoom(Point(fn.full(0.0, phi0), phi0, dphi0), Point(far, phi0, dphi0), far, far)

    def next(
        self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar
    ) -> tuple[Scalar, Mask, Zoom]:
        low, high, width, older_width = search.inner
        trial = Point(search.alpha, phi, dphi)

        worse = fn.logical_not(self._decreased(search, phi)) | (phi >= low.phi)
        turned = fn.where(high.alpha > low.alpha, dphi >= 0.0, dphi <= 0.0)
        older = low
        high = fn.choose(worse, trial, fn.choose(turned, low, high))
        low = fn.choose(worse, low, trial)

        span = fn.abs(high.alpha - low.alpha)
        nearest = fn.minimum(low.alpha, high.alpha)
        middle = nearest + 0.5 * span
        inside = cubic(fn, low, high)
        slow = fn.logical_not(fn.isfinite(inside)) | (span > SHRINK * older_width)
        margin = MARGIN * span
        inside = fn.clip(inside, nearest + margin, nearest + (span - margin))
        inside = fn.where(slow, middle, inside)

        # Without a bracket the trial is the new low, and the cubic through it and the previous low
        # may have its minimiser ahead. At least double the step, since the cubic may be wrong.
        farthest = self.growth * low.alpha
        ahead = cubic(fn, older, low)
        ahead = fn.where(ahead > low.alpha, ahead, farthest)
        ahead = fn.clip(ahead, 2.0 * low.alpha, farthest)

        found = fn.isfinite(span)
        step = fn.where(found, inside, ahead)
        stuck = found & ((step == low.alpha) | (step == high.alpha))
        return step, stuck, Zoom(low, high, span, width)

    def _decreased(self, search: Search, phi: Scalar) -> Mask:
        return phi <= search.phi0 + search.alpha * (self.c1 * search.dphi0)
