"""What all methods with a line search share, however they find their directions."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.line_search import STUCK, LineSearch, Search

# A function that goes down for so long, without a bend, has no bound. (A limit of the step below
# this one is a wish of the user's, and proves nothing.)
FAR = 1e9


class Lowest(NamedTuple):
    """The lowest trial of the search under way: what a search that gets stuck falls back on."""

    alpha: Any
    value: Any
    gradient: Array


def at_floor(space: Space, decrement: Any, value: Any) -> Any:
    """Whether rounding hides the decrease that the last step promised."""
    return decrement <= space.scalars.abs(value) * space.backend.noise


def advance(
    fn: Scalars, rule: LineSearch, search: Search, phi: Any, dphi: Any, active: Any
) -> Search:
    """The searches, advanced where `active`."""
    if active is True:
        return rule.advance(search, phi, dphi)
    # Rows that are done stay as they are.
    told = search._replace(status=fn.where(active, search.status, STUCK))
    after = rule.advance(told, phi, dphi)
    return after._replace(status=fn.where(active, after.status, search.status))
