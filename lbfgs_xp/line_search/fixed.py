"""A fixed step, accepted without conditions."""

from __future__ import annotations

from dataclasses import dataclass

from lbfgs_xp.arrays.scalars import Mask, Scalar, Scalars
from lbfgs_xp.checks import number, optional, require, setting
from lbfgs_xp.line_search.base import LineSearch, Nothing, Search


@dataclass(frozen=True)
class Fixed(LineSearch):
    """Accept the first trial that is finite.

    alpha: the step; None uses the one passed to `begin`.
    max_evaluations: the number of trials before giving up; more than one is needed only if a trial
        is not finite.

    >>> from lbfgs_xp.line_search import Fixed, line_search
    >>> line_search(lambda a: ((a - 3.0) ** 2, 2.0 * (a - 3.0)), Fixed(0.25)).alpha
    0.25
    """

    alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        setting(self, "alpha", optional(number), above=0.0)
        require(
            self.alpha is None or self.alpha <= self.alpha_max,
            "alpha <= alpha_max",
            alpha=self.alpha,
            alpha_max=self.alpha_max,
        )

    def start(self, fn: Scalars, alpha0: Scalar) -> Scalar:
        return super().start(fn, alpha0 if self.alpha is None else fn.full(self.alpha, alpha0))

    def accepts(self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar) -> Mask:
        return fn.full(True, phi)

    def first(self, fn: Scalars, phi0: Scalar, dphi0: Scalar, alpha0: Scalar) -> Nothing:
        return Nothing()

    def next(
        self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar
    ) -> tuple[Scalar, Mask, Nothing]:
        return search.alpha, fn.full(True, phi), search.inner
