"""What all methods with a line search share, whatever their directions."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.pending import Pending
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.line_search import STUCK, LineSearch, Search

# A function that still falls without curvature after a step of this length counts as unbounded. (If
# the user limits steps to less than this, reaching the limit proves nothing.)
FAR = 1e9


class Lowest(NamedTuple):
    """The lowest trial of the current search, to which a search that gets stuck falls back."""

    alpha: Any
    value: Any
    gradient: Array


def at_floor(fn: Scalars, noise: float, decrement: Any, value: Any) -> Any:
    """Whether rounding hides the decrease that was predicted for the last step.

    noise : that of the backend.
    """
    return decrement <= fn.abs(value) * noise


def advance(
    fn: Scalars, rule: LineSearch, search: Search, phi: Any, dphi: Any, active: Any
) -> Search:
    """The searches, advanced where `active`."""
    if active is True:
        return rule.advance(search, phi, dphi)
    # Rows that are done must stay as they are.
    told = search._replace(status=fn.where(active, search.status, STUCK))
    after = rule.advance(told, phi, dphi)
    return after._replace(status=fn.where(active, after.status, search.status))


def search_from(rule: LineSearch, value: Any, slope: Any, first: Any, noise: Any) -> Search:
    """`rule.begin` at an iterate. If the slope is pending, `begun` begins with its value."""
    if isinstance(slope, Pending):
        # Any slope below 0 gives the first trial.
        return rule.begin(value, -1.0, first, noise)._replace(dphi0=slope)
    return rule.begin(value, slope, first, noise)


def begun(rule: LineSearch, search: Search) -> Search:
    """The search, begun with its slope if that was pending."""
    if not isinstance(search.dphi0, Pending):
        return search
    value = search.origin + search.phi0
    return rule.begin(value, float(search.dphi0), search.alpha, search.noise)
