"""The penalty sum(weight |x|), and the orthants in which it is linear.

An iterate and the signs that its variables may take from there define an orthant (Andrew & Gao
2007). In it the penalty is linear, so what is minimised is smooth: a search that stays there is one
within bounds, at 0 for every variable with a weight.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.arrays.keyed import Keyed
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.projections import Box, fingerprint, like


class Orthant(NamedTuple):
    """Where a search from an iterate x stays.

    lower, upper : bounds, arrays like x: 0 and infinity for a variable that is positive or becomes
        so, -infinity and 0 for a negative one, 0 and 0 for one that stays at 0; or those of a box,
        if they are tighter.
    pull : the gradient of the penalty there. At 0 it is the subgradient that leaves the least of
        the gradient g of fun, so that g + pull is the pseudo-gradient at x.
    """

    lower: Array
    upper: Array
    pull: Array

    def sides(self, space: Space, x: Array) -> tuple[Array, Array]:
        """The bounds, as `Box.sides` returns them."""
        return self.lower, self.upper

    def nearest(self, space: Space, x: Array) -> Array:
        """The nearest point of the orthant to each vector x (..., n)."""
        return space.xp.minimum(space.xp.maximum(x, self.lower), self.upper)


@dataclasses.dataclass(frozen=True)
class L1(Keyed):
    """The penalty sum(weight |x|).

    weight : a float, or an array that broadcasts to x; for a batch (B, n), if the problems have
        weights of their own.
    """

    weight: Any

    @functools.cached_property
    def _key(self) -> Any:
        return fingerprint(self.weight)

    def of_rows(self, space: Space, count: int, rows: Array) -> L1:
        """The penalty of those of `count` problems that have these indices."""
        weight = self.weight
        if not (is_array(weight) and weight.ndim == 2 and weight.shape[0] == count):
            return self
        return L1(space.backend.take_from_any(weight, space.send(rows)))

    def value(self, space: Space, x: Array) -> Array:
        """sum(weight |x|) for each vector x (..., n)."""
        return space.sum(like(space, self.weight, "l1", x) * space.xp.abs(x))

    def orthant(self, space: Space, box: Box | None, x: Array, gradient: Array) -> Orthant:
        """The orthant, within the box, of a search from x, where this is the gradient of fun."""
        xp = space.xp
        weight = like(space, self.weight, "l1", x) + xp.zeros_like(x)
        steepest = xp.minimum(xp.maximum(-gradient, -weight), weight)
        up, down = x > 0.0, x < 0.0
        pull = xp.where(up, weight, xp.where(down, -weight, steepest))
        whole = gradient + pull
        confined, far = weight > 0.0, space.backend.full((), math.inf)
        # A variable at 0 goes where the pseudo-gradient falls; if there it is 0, nowhere.
        low = confined & (up | ~(down | (whole > 0.0)))
        high = confined & (down | ~(up | (whole < 0.0)))
        zero = xp.zeros_like(x)
        lower, upper = xp.where(low, zero, -far), xp.where(high, zero, far)
        if box is not None:
            below, above = box.sides(space, x)
            lower = lower if below is None else xp.maximum(lower, below)
            upper = upper if above is None else xp.minimum(upper, above)
        return Orthant(lower, upper, pull)
