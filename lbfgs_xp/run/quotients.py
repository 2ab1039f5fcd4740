"""Difference quotients: derivatives from values next to a point, and by how much those to one side
and to the other disagree."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

from lbfgs_xp.arrays import scalars
from lbfgs_xp.arrays.backend import Array, is_array


def inverse(xp: Any, v: Array) -> Array:
    """1 / v, and 0 for a step of 0, between equal bounds."""
    return 1.0 / scalars.of(v).where(v == 0.0, math.inf, v)


def one_sided(
    xp: Any, slope: Array, value: Array, a: Array, b: Array, fa: Array, fb: Array
) -> Array:
    """The slope, or that to one side if it is not finite."""
    ahead, behind = (fa - value) * inverse(xp, a), (fb - value) * inverse(xp, b)
    return xp.where(xp.isfinite(slope), slope, xp.where(xp.isfinite(ahead), ahead, behind))


def slopes_of(
    xp: Any, value: Array, a: Array, b: Any, fa: list[Array], fb: Any, narrow: bool, looks: bool
) -> tuple[list[Array], Any]:
    """The derivatives from the values at the steps a and b, and by how much those from either step
    disagree. For one step, b and fb are None, and fa, what the values have changed by, may be
    overwritten.

    narrow : whether both steps may go to the same side, a and 2a.
    looks : whether the disagreement is wanted.
    """
    vector = fa[0].ndim == a.ndim

    def over(change: Array, by: Array, k: int) -> Array:
        # In place, where a library can.
        change *= by[..., k, None] if vector else by[..., k]
        return change

    by_a = inverse(xp, a)
    if fb is None:
        slopes = [over(change, by_a, k) for k, change in enumerate(fa)]
        return (fa if is_array(fa) else slopes), None
    by_both = inverse(xp, a - b)
    slopes = [over(f - g, by_both, k) for k, (f, g) in enumerate(zip(fa, fb, strict=True))]
    if not (narrow or looks):
        return slopes, None
    by_b = inverse(xp, b)
    ones = [over(f - value, by_a, k) for k, f in enumerate(fa)]
    others = [over(f - value, by_b, k) for k, f in enumerate(fb)]
    if narrow:
        same = a * b > 0.0
        slopes = [
            xp.where(same[..., k, None] if vector else same[..., k], 2.0 * one - other, slope)
            for k, (slope, one, other) in enumerate(zip(slopes, ones, others, strict=True))
        ]
    return slopes, [one - other for one, other in zip(ones, others, strict=True)]


def are_finite(xp: Any, slopes: list[Array], vector: bool) -> Array:
    """Whether all derivatives are finite, (...)."""
    finite = [xp.isfinite(slope) for slope in slopes]
    if vector:
        finite = [xp.all(each, axis=-1) for each in finite]
    return functools.reduce(operator.and_, finite)
