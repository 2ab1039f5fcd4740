"""The search of Moré and Thuente for the strong Wolfe conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lbfgs_xp.arrays.scalars import Mask, Scalar, Scalars, named
from lbfgs_xp.checks import number, require, setting, tolerance
from lbfgs_xp.line_search.base import LineSearch, Point, Search
from lbfgs_xp.line_search.interpolation import cubic_from, cubic_terms, quadratic, secant

# The constants of MINPACK-2: how far a step without a bracket may go, as a multiple of the last
# one, and the share of a bracket that may be left after two steps before it is halved.
GROW_MIN, GROW_MAX = 1.1, 4.0
SHRINK = 0.66


class Bracket(NamedTuple):
    """x: the best point; y: the other end of the interval; low, high: limits for the next trial."""

    found: Mask
    second_stage: Mask
    x: Point
    y: Point
    low: Scalar
    high: Scalar
    width: Scalar
    older_width: Scalar


@dataclass(frozen=True, kw_only=True)
class MoreThuente(LineSearch):
    """The search of Moré and Thuente: guaranteed decrease and a small slope.

        phi(alpha) <= phi(0) + c1 alpha phi'(0)
        |phi'(alpha)| <= c2 |phi'(0)|

    It takes the same steps as `dcsrch` in MINPACK-2 (SciPy's default search), except that when
    `dcsrch` would return to its best point to evaluate it again, this search is STUCK with that
    point in `best_alpha`.

    c1: the required share of the decrease that the slope predicts (their mu).
    c2: the share of the slope that may be left (their eta); 0 <= c1 <= c2 < 1.
    xtol: give up when the bracket is this narrow, relative to its upper end; xtol >= 0.
    alpha_min: the smallest step, 0 <= alpha_min <= alpha_max.
    max_evaluations, alpha_max: see `LineSearch`.

    Source: Moré & Thuente (1994), Line search algorithms with guaranteed sufficient decrease, ACM
    TOMS 20(3); the step follows section 4, with the cases as implemented in MINPACK-2.

    >>> from lbfgs_xp.line_search import MoreThuente, line_search
    >>> result = line_search(lambda a: ((a - 3.0) ** 2, 2.0 * (a - 3.0)), MoreThuente(c2=0.1))
    >>> result.alpha, result.success, result.evaluations
    (3.0, True, 2)
    """

    c1: float = 1e-3
    c2: float = 0.9
    xtol: float = 0.1
    alpha_min: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("c1", "c2"):
            setting(self, name, number, least=0.0, below=1.0)
        require(self.c1 <= self.c2, "c1 <= c2", c1=self.c1, c2=self.c2)
        setting(self, "xtol", tolerance)
        setting(self, "alpha_min", number, least=0.0)
        require(
            self.alpha_min <= self.alpha_max,
            "alpha_min <= alpha_max",
            alpha_min=self.alpha_min,
            alpha_max=self.alpha_max,
        )

    def start(self, fn: Scalars, alpha0: Scalar) -> Scalar:
        return fn.clip(alpha0, self.alpha_min, self.alpha_max)

    def accepts(self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar) -> Mask:
        decreased = phi <= search.phi0 + search.alpha * (self.c1 * search.dphi0)
        return decreased & (fn.abs(dphi) <= self.c2 * -search.dphi0)

    def first(self, fn: Scalars, phi0: Scalar, dphi0: Scalar, alpha0: Scalar) -> Bracket:
        no, zero = fn.full(False, phi0), fn.full(0.0, phi0)
        start = named(Point, (zero, phi0, dphi0))
        width = fn.full(self.alpha_max - self.alpha_min, phi0)
        high = alpha0 + GROW_MAX * alpha0
        return named(Bracket, (no, no, start, start, zero, high, width, width / 0.5))

    def next(
        self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar
    ) -> tuple[Scalar, Mask, Bracket]:
        found, second_stage, x, y, low, high, width, older_width = search.inner
        alpha = search.alpha
        promised = self.c1 * search.dphi0
        decreased = phi <= search.phi0 + alpha * promised
        second_stage = second_stage | (decreased & (dphi >= 0.0))

        stuck = found & self._no_room(alpha, low, high)
        at_most = (alpha == self.alpha_max) & decreased & (dphi <= promised)
        at_least = (alpha == self.alpha_min) & (fn.logical_not(decreased) | (dphi >= promised))
        stuck = stuck | at_most | at_least

        # While the trial is lower but not low enough, the first stage looks for a minimiser of psi,
        # which is phi minus its predicted decrease.
        use_psi = fn.logical_not(second_stage | decreased) & (phi <= x.phi)
        trial = named(Point, (alpha, phi, dphi))
        if fn.every(fn.logical_not(use_psi)):
            step, x, y, found = _step(fn, x, y, trial, found, low, high)
        else:
            tilt = fn.where(use_psi, promised, 0.0)
            x, y, trial = _tilted(x, tilt), _tilted(y, tilt), _tilted(trial, tilt)
            step, x, y, found = _step(fn, x, y, trial, found, low, high)
            x, y = _tilted(x, -tilt), _tilted(y, -tilt)

        # Halve a bracket that two steps have not reduced to two thirds.
        span = fn.abs(y.alpha - x.alpha)
        slow = found & (span >= SHRINK * older_width)
        step = fn.where(slow, x.alpha + 0.5 * (y.alpha - x.alpha), step)
        older_width = fn.where(found, width, older_width)
        width = fn.where(found, span, width)

        ahead = step - x.alpha
        low = fn.where(found, fn.minimum(x.alpha, y.alpha), step + GROW_MIN * ahead)
        high = fn.where(found, fn.maximum(x.alpha, y.alpha), step + GROW_MAX * ahead)
        step = fn.clip(step, self.alpha_min, self.alpha_max)
        stuck = stuck | (found & self._no_room(step, low, high))
        inner = named(Bracket, (found, second_stage, x, y, low, high, width, older_width))
        return step, stuck, inner

    def _no_room(self, step: Scalar, low: Scalar, high: Scalar) -> Mask:
        return (step <= low) | (step >= high) | (high - low <= self.xtol * high)


def _tilted(p: Point, tilt: Scalar) -> Point:
    return Point(p.alpha, p.phi - p.alpha * tilt, p.dphi - tilt)


def _step(
    fn: Scalars, x: Point, y: Point, t: Point, found: Mask, low: Scalar, high: Scalar
) -> tuple[Scalar, Point, Point, Mask]:
    """The next step from the best point x, the far end y and the trial t, and the new x, y, found.

    Section 4 of the paper distinguishes four cases by the value and the slope at the trial.
    """
    higher = t.phi > x.phi
    turned = ((t.dphi > 0.0) & (x.dphi < 0.0)) | ((t.dphi < 0.0) & (x.dphi > 0.0))
    flatter = fn.abs(t.dphi) < fn.abs(x.dphi)
    forward = t.alpha > x.alpha

    def case_1() -> Scalar:
        # The value is higher. Take the cubic step if it is closer to x than the quadratic one, else
        # the average of the two.
        c = cubic_from(fn, x, t, *cubic_terms(fn, x, t))
        q = quadratic(fn, x, t)
        nearer = fn.abs(c - x.alpha) <= fn.abs(q - x.alpha)
        return fn.where(nearer, c, c + (q - c) / 2.0)

    def case_2() -> Scalar:
        # The slope has changed sign. Take the cubic or the secant step, whichever is farther away.
        c = cubic_from(fn, t, x, *cubic_terms(fn, x, t))
        s = secant(fn, x, t)
        return fn.where(fn.abs(c - t.alpha) > fn.abs(s - t.alpha), c, s)

    def case_3() -> Scalar:
        # The slope has the same sign and is flatter. Use the cubic only if its minimiser lies
        # beyond t.
        theta, gamma = cubic_terms(fn, x, t)
        gamma = fn.where(forward, -gamma, gamma)
        r = fn.divide((gamma - t.dphi) + theta, (gamma + (x.dphi - t.dphi)) + gamma)
        c = t.alpha + r * (x.alpha - t.alpha)
        c = fn.where((r < 0.0) & (gamma != 0.0), c, fn.where(forward, high, low))
        s = secant(fn, x, t)
        to_c, to_s = fn.abs(c - t.alpha), fn.abs(s - t.alpha)
        # Inside a bracket, take the shorter of the two steps, and stay clear of the far end.
        inside = fn.where(to_c < to_s, c, s)
        end = t.alpha + SHRINK * (y.alpha - t.alpha)
        inside = fn.where(forward, fn.minimum(end, inside), fn.maximum(end, inside))
        outside = fn.clip(fn.where(to_c > to_s, c, s), low, high)
        return fn.where(found, inside, outside)

    def case_4() -> Scalar:
        # The slope has the same sign and is not flatter. Step as far as allowed or, in a bracket,
        # to the minimiser of the cubic through t and y.
        c = cubic_from(fn, t, y, *cubic_terms(fn, y, t))
        return fn.where(found, c, fn.where(forward, high, low))

    step = fn.select([(higher, case_1), (turned, case_2), (flatter, case_3)], case_4)
    y = fn.choose(higher, t, fn.choose(turned, x, y))
    x = fn.choose(higher, x, t)
    return step, x, y, found | higher | turned
