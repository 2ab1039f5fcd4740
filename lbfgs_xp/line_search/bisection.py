"""Doubling and bisection until the weak Wolfe conditions hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from lbfgs_xp.arrays.scalars import Mask, Scalar, Scalars
from lbfgs_xp.checks import number, require, setting
from lbfgs_xp.line_search.base import LineSearch, Search


class Interval(NamedTuple):
    low: Scalar
    high: Scalar


@dataclass(frozen=True, kw_only=True)
class Bisection(LineSearch):
    """Double the step, then halve the bracket, until the weak Wolfe conditions hold.

        phi(alpha) <= phi(0) + c1 alpha phi'(0)
        phi'(alpha) >= c2 phi'(0)

    Since it uses no model of phi, it also succeeds at kinks: this is the rule for nonsmooth
    functions.

    c1, c2: 0 < c1 < c2 < 1.
    max_evaluations, alpha_max: see `LineSearch`.

    Source: Lewis & Overton (2013), Nonsmooth optimization via quasi-Newton methods, Algorithm 4.6.

    >>> from lbfgs_xp.line_search import Bisection, line_search
    >>> line_search(lambda a: (abs(a - 3.0), 1.0 if a > 3.0 else -1.0), Bisection()).alpha
    4.0
    """

    max_evaluations: int = 60
    c1: float = 1e-4
    c2: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("c1", "c2"):
            setting(self, name, number, above=0.0, below=1.0)
        require(self.c1 < self.c2, "c1 < c2", c1=self.c1, c2=self.c2)

    def accepts(self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar) -> Mask:
        return self._decreased(search, phi) & (dphi >= self.c2 * search.dphi0)

    def first(self, fn: Scalars, phi0: Scalar, dphi0: Scalar, alpha0: Scalar) -> Interval:
        return Interval(fn.full(0.0, phi0), fn.full(math.inf, phi0))

    def next(
        self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar
    ) -> tuple[Scalar, Mask, Interval]:
        # A trial that decreased enough was rejected because its slope is still too steep: continue
        # from it.
        decreased = self._decreased(search, phi)
        low = fn.where(decreased, search.alpha, search.inner.low)
        high = fn.where(decreased, search.inner.high, search.alpha)
        step = fn.where(fn.isfinite(high), 0.5 * (low + high), 2.0 * search.alpha)
        return step, (step <= low) | (step >= high), Interval(low, high)

    def _decreased(self, search: Search, phi: Scalar) -> Mask:
        return phi <= search.phi0 + search.alpha * (self.c1 * search.dphi0)
