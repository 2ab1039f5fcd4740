"""The search of Hager and Zhang, which can accept a step by slopes if rounding hides the values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from lbfgs_xp.arrays.scalars import Mask, Scalar, Scalars
from lbfgs_xp.checks import number, require, setting, tolerance
from lbfgs_xp.line_search.base import LineSearch, Point, Search
from lbfgs_xp.line_search.interpolation import secant

# What to do next with a proper bracket: the first and the second step of secant^2 (S1; S2 and S3),
# or the check that both together have narrowed it enough (L2).
FIRST, SECOND, CHECK = 0, 1, 2


class SecantBracket(NamedTuple):
    """low: slope negative, value not above the limit; high: the other end, at first at infinity.

    older_low, older_high: the bracket at the start of the current secant^2.
    secant: the first trial of the current secant^2.
    """

    stage: Any
    low: Point
    high: Point
    older_low: Point
    older_high: Point
    secant: Scalar


@dataclass(frozen=True, kw_only=True)
class HagerZhang(LineSearch):
    """The line search of CG_DESCENT: Wolfe conditions, or approximate ones near the minimiser.

    A step is accepted if

        phi(alpha) <= phi(0) + delta alpha phi'(0),  phi'(alpha) >= sigma phi'(0)

    or if

        (2 delta - 1) phi'(0) >= phi'(alpha) >= sigma phi'(0)
        phi(alpha) <= phi(0) + epsilon |phi(0)|

    The second test compares slopes, so it still recognises a good step when values differ only by
    rounding.

    delta, sigma: 0 < delta < 1/2, delta <= sigma < 1.
    epsilon: how far the value may rise, relative to |phi(0)|; epsilon >= 0.
    theta: where to cut a bracket whose upper end is too high, 0 < theta < 1.
    gamma: a bracket is halved if secants leave more than this share of it, 0 < gamma < 1.
    rho: growth factor of the step until a bracket is found, rho > 1.
    max_evaluations, alpha_max: see `LineSearch`.

    Source: Hager & Zhang (2005), A new conjugate gradient method with guaranteed descent and an
    efficient line search, SIAM J. Optim. 16(1), section 4; (2006), Algorithm 851, ACM TOMS 32(1).

    >>> from lbfgs_xp.line_search import HagerZhang, line_search
    >>> result = line_search(lambda a: ((a - 3.0) ** 2, 2.0 * (a - 3.0)), HagerZhang(), 8.0)
    >>> result.alpha, result.evaluations
    (3.0, 2)
    """

    max_evaluations: int = 50
    delta: float = 0.1
    sigma: float = 0.9
    epsilon: float = 1e-6
    theta: float = 0.5
    gamma: float = 0.66
    rho: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        setting(self, "delta", number, above=0.0, below=0.5)
        for name in ("sigma", "theta", "gamma"):
            setting(self, name, number, above=0.0, below=1.0)
        setting(self, "epsilon", tolerance)
        setting(self, "rho", number, above=1.0)
        require(self.delta <= self.sigma, "delta <= sigma", delta=self.delta, sigma=self.sigma)

    def accepts(self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar) -> Mask:
        dphi0 = search.dphi0
        wolfe = phi <= search.phi0 + search.alpha * (self.delta * dphi0)
        near = ((2.0 * self.delta - 1.0) * dphi0 >= dphi) & (phi <= self._limit(fn, search))
        return (wolfe | near) & (dphi >= self.sigma * dphi0)

    def first(self, fn: Scalars, phi0: Scalar, dphi0: Scalar, alpha0: Scalar) -> SecantBracket:
        low = Point(fn.full(0.0, phi0), phi0, dphi0)
        high = Point(fn.full(math.inf, phi0), phi0, dphi0)
        return SecantBracket(fn.full(FIRST, phi0), low, high, low, high, low.alpha)

    def next(
        self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar
    ) -> tuple[Scalar, Mask, SecantBracket]:
        stage, low, high, older_low, older_high, first_secant = search.inner

        # U1, U2 and U3 in one: a trial where phi rises or is above the limit becomes the high end.
        rises = (dphi >= 0.0) | (phi > self._limit(fn, search))
        trial = Point(search.alpha, phi, dphi)
        high = fn.choose(rises, trial, high)
        low = fn.choose(rises, low, trial)

        def inside(step: Scalar) -> Mask:
            return (step > low.alpha) & (step < high.alpha)

        # B3: no high end yet. U3: a high end where phi falls is above the limit, so there is a
        # minimiser before it; cut until phi rises at the high end.
        open_ended = fn.logical_not(fn.isfinite(high.alpha))
        span = high.alpha - low.alpha
        falling = fn.logical_not(open_ended) & (high.dphi < 0.0)
        ordered = fn.logical_not(open_ended | falling)

        # S2, S3: a second secant, if the first one became an end of the bracket.
        is_high, is_low = first_secant == high.alpha, first_secant == low.alpha
        again = fn.where(is_high, secant(fn, older_high, high), secant(fn, older_low, low))
        second = ordered & (stage == SECOND) & (is_high | is_low) & inside(again)
        # L2: the two secants have left too much.
        wide = span > self.gamma * (older_high.alpha - older_low.alpha)
        halve = ordered & (stage != FIRST) & fn.logical_not(second) & wide
        # L1: start again. S1: if the secant gives no step inside the bracket, halve it too.
        anew = ordered & fn.logical_not(second | halve)
        fresh = secant(fn, low, high)
        begun = anew & inside(fresh)

        step = low.alpha + 0.5 * span
        step = fn.where(begun, fresh, fn.where(second, again, step))
        step = fn.where(falling, (1.0 - self.theta) * low.alpha + self.theta * high.alpha, step)
        step = fn.where(open_ended, self.rho * search.alpha, step)
        stage = fn.where(
            ordered, fn.where(begun, SECOND, fn.where(second, CHECK, 0 * stage)), stage
        )
        older_low = fn.choose(anew, low, older_low)
        older_high = fn.choose(anew, high, older_high)
        first_secant = fn.where(begun, fresh, first_secant)
        bracket = SecantBracket(stage, low, high, older_low, older_high, first_secant)
        return step, fn.logical_not(inside(step)), bracket

    def _limit(self, fn: Scalars, search: Search) -> Scalar:
        return search.phi0 + self.epsilon * fn.abs(search.origin + search.phi0)
