"""What all line searches share: the state, the budget, and backing off from NaN and infinity."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from lbfgs_xp.arrays import scalars
from lbfgs_xp.arrays.scalars import Mask, Scalar, Scalars, named
from lbfgs_xp.checks import Settings, count, number, setting

SEARCHING = 0
"""Evaluate at `Search.alpha` and advance."""
ACCEPTED = 1
"""`Search.alpha` satisfies the conditions of the rule."""
STUCK = 2
"""No step was accepted; `Search.best_alpha` is the best step seen."""

# The share of the step that is kept after a trial that is not finite: eight such trials shrink a
# step by a factor of 1e8.
BACK = 0.1


class Point(NamedTuple):
    """A step, with the value and the slope there."""

    alpha: Scalar
    phi: Scalar
    dphi: Scalar


class Search(NamedTuple):
    """The state of a search: Python numbers for one problem, arrays of shape (B,) for a batch.

    alpha: the step to try next; at the end, the accepted step or, if stuck, the last one tried.
    status: SEARCHING, ACCEPTED or STUCK.
    evaluations: the number of trials so far.
    origin: subtracted from all values before the rule sees them, so that small differences are not
        lost: phi(0) if `noise` is positive, else 0.
    phi0, dphi0: value (minus `origin`) and slope at 0.
    noise: how far apart two values may be through rounding alone.
    best_alpha, best_phi: the lowest finite trial so far and its value (minus `origin`); 0 and phi0
        until there is one. Compare `best_phi` only with `phi0`.
    cap: the smallest step whose trial was not finite; infinite until there is one.
    contrary: whether the last trial not hidden by rounding was higher than phi0 although its slope
        was negative: for short steps, value and slope then contradict each other.
    inner: the state of the rule itself.
    """

    alpha: Scalar
    status: Any
    evaluations: Any
    origin: Scalar
    phi0: Scalar
    dphi0: Scalar
    noise: Scalar
    best_alpha: Scalar
    best_phi: Scalar
    cap: Scalar
    contrary: Mask
    inner: Any


class Nothing(NamedTuple):
    """The inner state of a rule that needs none."""


# Names of settings in SciPy, MINPACK, torch and optax.
_FOREIGN = {
    **dict.fromkeys(
        ("maxls", "max_ls", "maxiter", "max_iter", "max_linesearch_steps",
         "max_backtracking_steps"),
        ("max_evaluations",),
    ),
    **dict.fromkeys(("amax", "stpmax", "max_step", "max_learning_rate"), ("alpha_max",)),
    **dict.fromkeys(("amin", "stpmin", "min_step"), ("alpha_min",)),
    **dict.fromkeys(("ftol", "slope_rtol"), ("c1", "delta")),
    **dict.fromkeys(("gtol", "curv_rtol"), ("c2", "sigma")),
    "c1": ("delta",),
    "c2": ("sigma",),
}


@dataclass(frozen=True, kw_only=True)
class LineSearch(Settings, ABC):
    """A search along phi(alpha) = f(x + alpha d), driven by ask and tell, that sees only scalars.

    A rule is a frozen dataclass of constants. Everything that changes is in the `Search` that it
    returns, so one rule may serve any number of searches. Scalars are Python floats, or arrays of
    shape (B,): each row is then a separate search, and nothing is read back to the host.

    To write a rule, implement `accepts`, `first` and `next` with the functions of
    `lbfgs_xp.arrays.scalars`.

    max_evaluations: the number of trials before the search gives up, at least 1.
    alpha_max: the largest step.

    >>> from lbfgs_xp.line_search import SEARCHING, MoreThuente
    >>> rule = MoreThuente()
    >>> search = rule.begin(phi0=9.0, dphi0=-6.0, alpha0=1.0)  # phi(a) = (a - 3)^2
    >>> while search.status == SEARCHING:
    ...     a = search.alpha
    ...     search = rule.advance(search, (a - 3.0) ** 2, 2.0 * (a - 3.0))
    >>> search.alpha, search.evaluations
    (1.0, 1)
    """

    foreign = _FOREIGN

    max_evaluations: int = 20
    alpha_max: float = 1e10

    def __post_init__(self) -> None:
        setting(self, "max_evaluations", count, least=1)
        setting(self, "alpha_max", number, above=0.0)

    # ---- public methods -------------------------------------------------------------------------

    def begin(self, phi0: Scalar, dphi0: Scalar, alpha0: Scalar, noise: Scalar = 0.0) -> Search:
        """Start a search from the value and the slope at 0; `alpha0` is the first step to try.

        phi0, dphi0: Python numbers, or arrays of shape (B,).
        alpha0, noise: the same, or Python numbers for a whole batch. A value that differs from
        `phi0` by less than `noise` is replaced by an estimate from the slopes (see `advance`).

        If the slope is not negative, phi0, dphi0 or alpha0 is not finite, or alpha0 is not
        positive, there is nothing to search: the search is STUCK at once, with best_alpha = 0.
        """
        if isinstance(phi0, (float, int)):
            return self._begin(float(phi0), float(dphi0), float(alpha0), float(noise))
        return scalars.of(phi0).fused(
            _begun, self, phi0, _real(dphi0), _real(alpha0), _real(noise)
        )

    def advance(self, search: Search, phi: Scalar, dphi: Scalar) -> Search:
        """The search after value and slope at `search.alpha` have been evaluated.

        phi, dphi: value and slope, of the same kind as in `begin`. Rows that are done do not
        change.

        * If phi and phi0 differ by less than `search.noise`, rounding hides which is lower. The
          rule then sees phi0 + alpha/2 (dphi0 + dphi) instead of phi, which is exact on a
          quadratic. The test for sufficient decrease thereby becomes the approximate Wolfe
          condition of Hager & Zhang (2005), eq. 4.1: (2 c1 - 1) dphi0 >= dphi. With noise = 0 the
          rule sees every value unchanged; it also does after a higher value with a negative slope
          (`Search.contrary`), since one of the two must then be wrong.
        * A trial that is not finite was too far. The rule does not see it; the next trial is
          closer to the best one, and no later trial goes that far again.
        * A trial with the value and the slope of the start has not moved x beyond its rounding: the
          search is STUCK if the next step would be shorter.
        * The search is STUCK once the budget is spent or no new step is left to try. It never asks
          for the same point twice: take `best_alpha` if `best_phi` < `phi0`.
        """
        if isinstance(search.phi0, float):
            return self._advance_one(search, float(phi), float(dphi))
        fn = scalars.of(search.phi0)
        with fn.quiet():
            return fn.fused(_advanced, self, search, _real(phi), _real(dphi))

    # ---- what a rule defines --------------------------------------------------------------------

    def start(self, fn: Scalars, alpha0: Scalar) -> Scalar:
        """The first trial, given the step that the caller proposes."""
        return fn.minimum(alpha0, self.alpha_max)

    @abstractmethod
    def accepts(self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar) -> Mask:
        """Whether `search.alpha`, with this value and slope, ends the search."""

    @abstractmethod
    def first(self, fn: Scalars, phi0: Scalar, dphi0: Scalar, alpha0: Scalar) -> Any:
        """The initial state of the rule itself: a named tuple of scalars."""

    @abstractmethod
    def next(
        self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar
    ) -> tuple[Scalar, Mask, Any]:
        """The next trial, a mask of where the rule can go no further, and its new state."""

    def completed(self, search: Search) -> Search:
        """The search of one problem with the state of the rule; see `_begin`."""
        if not isinstance(search.inner, float):
            return search
        first = self.first(scalars.FLOATS, search.phi0, search.dphi0, search.inner)
        return search._replace(inner=first)

    # ---- what all rules share -------------------------------------------------------------------

    def _begin(self, phi0: float, dphi0: float, alpha0: float, noise: float) -> Search:
        """`begin` for one problem. Most searches end at their first trial, so the state of the rule
        is made only when needed; until then `inner` is the first step."""
        usable = math.isfinite(phi0) and -math.inf < dphi0 < 0.0 < alpha0 < math.inf
        status = SEARCHING if usable else STUCK
        alpha = self.start(scalars.FLOATS, alpha0)
        origin, phi0 = (phi0, 0.0) if noise > 0.0 else (0.0, phi0)
        return named(Search, (
            alpha if usable else 0.0, status, 0, origin, phi0, dphi0, noise, 0.0, phi0, math.inf,
            False, alpha,
        ))

    def _advance_one(self, search: Search, phi: float, dphi: float) -> Search:
        """`_advance` for one problem, with a short cut for a finite trial whose value rounding does
        not hide."""
        fn = scalars.FLOATS
        (
            alpha, status, evaluations, origin, phi0, dphi0, noise, best_alpha, best_phi, cap,
            contrary, inner,
        ) = search
        seen = phi - origin
        if status != SEARCHING or not (
            noise <= abs(seen - phi0) < math.inf and math.isfinite(dphi)
        ):
            return self._advance(fn, search, phi, dphi)
        evaluations += 1
        if seen < best_phi:
            best_alpha, best_phi = alpha, seen
        if self.accepts(fn, search, seen, dphi):
            status = ACCEPTED
        else:
            contrary = seen > phi0 and dphi < 0.0
            if isinstance(inner, float):
                search = named(Search, (*search[:-1], self.first(fn, phi0, dphi0, inner)))
            step, stuck, inner = self.next(fn, search, seen, dphi)
            if not step < cap:
                anchor = best_alpha if best_alpha < cap else 0.0
                step = anchor + 0.5 * (cap - anchor)
            step = fn.minimum(step, self.alpha_max)
            stuck = stuck or evaluations >= self.max_evaluations
            if stuck or not step > 0.0 or step in (alpha, best_alpha):
                status = STUCK
            else:
                alpha = step
        return named(Search, (
            alpha, status, evaluations, origin, phi0, dphi0, noise, best_alpha, best_phi, cap,
            contrary, inner,
        ))

    def _advance_many(self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar) -> Search:
        """`_advance` when rows can be picked: most rows are accepted, and need no more than this.
        """
        searching = search.status == SEARCHING
        seen = phi - search.origin
        away = fn.abs(seen - search.phi0)
        plain = (search.noise <= away) & fn.isfinite(away) & fn.isfinite(dphi)
        accepted = searching & plain & self.accepts(fn, search, seen, dphi)
        lower = accepted & (seen < search.best_phi)
        ended = search._replace(
            status=fn.where(accepted, ACCEPTED, search.status),
            evaluations=fn.where(accepted, search.evaluations + 1, search.evaluations),
            best_alpha=fn.where(lower, search.alpha, search.best_alpha),
            best_phi=fn.where(lower, seen, search.best_phi),
        )
        others = searching & fn.logical_not(accepted)
        advance = functools.partial(self._advance, fn)
        return fn.some(others, advance, (search, phi, dphi), ended)

    def _advance(self, fn: Scalars, search: Search, phi: Scalar, dphi: Scalar) -> Search:
        (
            alpha, status, evaluations, origin, phi0, dphi0, noise, best_alpha, best_phi, cap,
            contrary, inner,
        ) = search
        searching = status == SEARCHING
        if fn.every(fn.logical_not(searching)):
            return search

        phi = phi - origin
        near = fn.abs(phi - phi0) < noise
        # If neither value nor slope has changed, there was no step; and slopes that contradict the
        # values cannot replace them.
        same = near & (phi == phi0) & (dphi == dphi0)
        hidden = near & fn.logical_not(contrary | same)
        raised = phi > phi0
        phi = fn.where(hidden, phi0 + 0.5 * alpha * (dphi0 + dphi), phi)
        finite = searching & fn.isfinite(phi) & fn.isfinite(dphi)
        accepted = finite & self.accepts(fn, search, phi, dphi)
        lower = finite & (phi < best_phi)
        best_alpha = fn.where(lower, alpha, best_alpha)
        best_phi = fn.where(lower, phi, best_phi)
        evaluations = fn.where(searching, evaluations + 1, evaluations)
        too_far = searching & fn.logical_not(finite)
        contrary = fn.where(finite & fn.logical_not(near), raised & (dphi < 0.0), contrary)
        cap = fn.where(too_far, fn.minimum(cap, alpha), cap)
        # Back off from the cap towards the best point below it. A best point above it would be on
        # the far side of a hole in the domain.
        anchor = fn.where(best_alpha < cap, best_alpha, 0.0)
        proposal = anchor + BACK * (alpha - anchor)
        stuck = evaluations >= self.max_evaluations
        if not fn.every(too_far):
            if isinstance(inner, float):
                inner = self.first(fn, phi0, dphi0, inner)
            step, halted, moved = self.next(fn, search._replace(inner=inner), phi, dphi)
            proposal = fn.where(finite, step, proposal)
            stuck = stuck | (finite & halted)
            inner = fn.choose(finite, moved, inner)
        proposal = fn.where(proposal < cap, proposal, anchor + 0.5 * (cap - anchor))
        proposal = fn.minimum(proposal, self.alpha_max)

        fresh = (proposal > 0.0) & (proposal != alpha) & (proposal != best_alpha)
        # A shorter step would not move x either.
        fresh = fresh & fn.logical_not(same & (proposal < alpha))
        stuck = stuck | fn.logical_not(fresh & fn.isfinite(proposal))
        stuck = searching & stuck & fn.logical_not(accepted)
        status = fn.where(accepted, ACCEPTED, fn.where(stuck, STUCK, status))
        alpha = fn.where(status == SEARCHING, proposal, alpha)
        return Search(
            alpha, status, evaluations, origin, phi0, dphi0, noise, best_alpha, best_phi, cap,
            contrary, inner,
        )


def _begun(
    fn: Scalars, rule: LineSearch, phi0: Scalar, dphi0: Scalar, alpha0: Scalar, noise: Scalar
) -> Search:
    """`LineSearch.begin` for arrays."""
    phi0 = fn.full(phi0, phi0)
    dphi0 = fn.full(dphi0, phi0)
    alpha0 = fn.full(alpha0, phi0)
    usable = fn.isfinite(phi0) & fn.isfinite(dphi0) & (dphi0 < 0)
    usable = usable & fn.isfinite(alpha0) & (alpha0 > 0)
    alpha = rule.start(fn, alpha0)
    noise = fn.full(noise, phi0)
    origin = fn.where(noise > 0, phi0, 0.0)
    phi0 = fn.where(noise > 0, 0.0, phi0)
    return Search(
        fn.where(usable, alpha, 0.0),
        fn.where(usable, fn.full(SEARCHING, phi0), STUCK),
        fn.full(0, phi0),
        origin,
        phi0,
        dphi0,
        noise,
        fn.full(0.0, phi0),
        phi0,
        fn.full(math.inf, phi0),
        fn.full(False, phi0),
        rule.first(fn, phi0, dphi0, alpha),
    )


def _advanced(fn: Scalars, rule: LineSearch, search: Search, phi: Scalar, dphi: Scalar) -> Search:
    """`LineSearch.advance` for arrays."""
    phi, dphi = fn.full(phi, search.phi0), fn.full(dphi, search.phi0)
    advance = rule._advance_many if fn.picks else rule._advance
    return advance(fn, search, phi, dphi)


def _real(value: Any) -> Any:
    """A Python number as a float; anything else unchanged."""
    return float(value) if isinstance(value, (int, float)) else value
