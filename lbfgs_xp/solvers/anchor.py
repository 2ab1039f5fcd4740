"""Where curvature pairs begin if the gradient has errors.

A pair (s, y) of a step s and the change y of the gradient shows curvature only if errors of the
gradient do not explain y. With errors of up to eps in each component, independent of each other,
s . y is wrong by about sqrt(2) eps |s|. As by Shi, Xie, Byrd & Nocedal (2022, A Noise-Tolerant
Quasi-Newton Algorithm for Unconstrained Optimization), a pair is kept only under the noise control
condition

    |s . y| >= 2 (1 + c3) eps |s|,    c3 = 1/2.

They lengthen s where it fails by evaluating gradients farther along the line. Here s grows by
itself, without evaluations: the next pair begins where this one began, at the anchor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.scalars import Scalars
from lbfgs_xp.arrays.space import Space

_CONTROL = 3.0    # 2 (1 + c3)


class Anchor(NamedTuple):
    """Where the next pair begins: x and the gradient there, (..., n)."""

    x: Array
    gradient: Array


def begun(error: float, x: Array, gradient: Array) -> Anchor | None:
    """The anchor at a start; None if the gradient has no `error`, so that each pair is one step."""
    return Anchor(x, gradient) if error > 0.0 else None


def shows_curvature(fn: Scalars, error: float, curvature: Any, squared: Any) -> Any:
    """Whether a pair meets the noise control condition.

    curvature, squared : s . y and s . s.
    """
    return fn.abs(curvature) >= _CONTROL * error * fn.sqrt(squared)


def moved(space: Space, anchor: Anchor, there: Any, x: Array, gradient: Array) -> Anchor:
    """The anchor, moved to x where `there`."""
    return Anchor(space.pick(there, x, anchor.x), space.pick(there, gradient, anchor.gradient))
