"""Backtracking until the decrease is sufficient."""

from __future__ import annotations

from dataclasses import dataclass

from lbfgs_xp.arrays.scalars import Mask, Scalar, Scalars
from lbfgs_xp.checks import number, require, setting
from lbfgs_xp.line_search.base import LineSearch, Nothing, Point, Search
from lbfgs_xp.line_search.interpolation import cubic, quadratic


@dataclass(frozen=True, kw_only=True)
class Armijo(LineSearch):
    """Shrink the step until the value has decreased enough.

        phi(alpha) <= phi(0) + c1 alpha phi'(0)

    The next step is the minimiser of the cubic that matches value and slope at 0 and at the trial,
    kept between `shrink_min` and `shrink_max` times the trial. No step is longer than the first.

    c1: the required share of the decrease that the slope predicts, 0 < c1 < 1.
    shrink_min, shrink_max: 0 < shrink_min <= shrink_max < 1.
    max_evaluations, alpha_max: see `LineSearch`.

    Source: Nocedal & Wright (2006), Algorithm 3.1 and section 3.5. Since the slope at the trial is
    known here, the cubic uses it instead of the older value in their eq. 3.58.

    >>> from lbfgs_xp.line_search import Armijo, line_search
    >>> line_search(lambda a: ((a - 3.0) ** 2, 2.0 * (a - 3.0)), Armijo(), 8.0).alpha
    3.0
    """

    max_evaluations: int = 30
    c1: float = 1e-4
    shrink_min: float = 0.1
    shrink_max: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("c1", "shrink_min", "shrink_max"):
            setting(self, name, number, above=0.0, below=1.0)
        require(
            self.shrink_min <= self.shrink_max,
            "shrink_min <= shrink_max",
            shrink_min=self.shrink_min,
            shrink_max=self.shrink_max,
        )

    def accepts(self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar) -> Mask:
        return phi <= search.phi0 + search.alpha * (self.c1 * search.dphi0)

    def first(self, fn: Scalars, phi0: Scalar, dphi0: Scalar, alpha0: Scalar) -> Nothing:
        return Nothing()

    def next(
        self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar
    ) -> tuple[Scalar, Mask, Nothing]:
        start = Point(0.0 * search.alpha, search.phi0, search.dphi0)
        trial = Point(search.alpha, phi, dphi)
        step = cubic(fn, start, trial)
        step = fn.where(fn.isfinite(step), step, quadratic(fn, start, trial))
        step = fn.where(fn.isfinite(step), step, 0.0)
        step = fn.clip(step, self.shrink_min * search.alpha, self.shrink_max * search.alpha)
        return step, fn.full(False, phi), search.inner
