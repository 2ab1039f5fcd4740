"""Over which lengths a function bends, judged by its differences."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lbfgs_xp.arrays import scalars
from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.run.quotients import inverse, slopes_of

# By how much a length may change from one derivative to the next.
CHANGE = 100.0
# The longest length, relative to the size of a coordinate or 1, for a function that does not bend;
# a longer one is looked at again.
FAR = 1e3
# By which factor a step must be off for its difference to be taken again, as a power of eps: 36 in
# float64, 5 in float32; and how much shorter it may be then.
_OFF, _SHORTEST = -0.1, 1e-3
# A change of the function counts if it exceeds its rounding error by this factor.
_VISIBLE = 4.0
# At which points, counted from the start, the lengths are measured: early, and then regularly.
_EARLY, _REGULARLY = 4, 16

class Lengths(NamedTuple):
    """Over which lengths a function bends.

    length : (..., n); that of a function of numbers relative to the size of each coordinate.
    variation : how far the function changes, (...); for a function of numbers, its value there.
    count : the number of points so far, (...).
    at : the last point (..., n); for a function of numbers, where the lengths were measured.
    """

    length: Array
    variation: Any
    count: Any
    at: Array


class Seen(NamedTuple):
    """What the differences along some coordinates found: derivatives, k arrays (...) or (..., m),
    or one with them along its first axis; the distances of the points that they compare, the second
    differences between them, the lengths that they suggest, and masks, (..., k)."""

    slopes: Any
    span: Array
    second: Any
    length: Array
    again: Array
    up: Array
    down: Array


def judged(
    backend: Backend, value: Array, noise: Array, variation: Array, share: Any, a: Array, b: Any,
    fa: list[Array], fb: Any, narrow: bool, most: Array, length: Array, up: Any, down: Any,
) -> Seen:
    """The derivatives, and what they say of the lengths.

    share : the noise of a function of many values relative to how far it changes, (...), or None.
    fa, fb : the values at the steps a and b; for one step, what they are more than `value`.
    up, down : where only this side was tried, or None.
    """
    xp, eps, vector = backend.xp, backend.eps, fa[0].ndim == a.ndim

    def size(columns: list[Array]) -> Array:
        sizes = map(backend.max_abs, columns) if vector else map(xp.abs, columns)
        return xp.stack(list(sizes), axis=-1)

    noise, variation = spread(noise), spread(variation)
    change = size(fa if fb is None else [f - value for f in fa])
    slopes, bent = slopes_of(xp, value, a, b, fa, fb, narrow, True)
    steepest = change * inverse(xp, xp.abs(a)) if fb is None else size(slopes)
    bad_up = bad = xp.logical_not(xp.isfinite(change))
    no = bad_up & xp.logical_not(bad_up)
    bad_down = both_bad = no
    second = None
    if fb is not None:
        change_down = size([f - value for f in fb])
        bad_down = xp.logical_not(xp.isfinite(change_down))
        both_bad, bad = bad_up & bad_down, bad_up | bad_down
        change = xp.maximum(change, change_down)
        bend = size(bent)
        second = 2.0 * bend * a * a * inverse(xp, xp.abs(a - b))
        # The part of it that is rounding.
        bend = xp.where(bend * xp.abs(a) > 2.0 * _VISIBLE * noise, bend, xp.zeros_like(bend))
        bend = 2.0 * bend * inverse(xp, xp.abs(a - b))
    rate = xp.where(change > _VISIBLE * noise, steepest, xp.zeros_like(change))
    far = xp.maximum(most, length)
    by_rate = xp.where(rate > 0.0, variation * inverse(xp, rate), far)
    suggested = xp.minimum(by_rate, far)
    weak = rate == 0.0
    if fb is not None:
        # A function that does not bend visibly at L q^(1/3) is straight over more than L.
        over = eps ** (-1 / 6) / 3.0
        if share is not None:
            share = spread(share)
            over = scalars.of(share).where(share > eps, share, eps) ** (-1 / 6) / 3.0
        straight = xp.minimum(over * length, FAR * most)
        by_curve = xp.minimum(suggested, xp.sqrt(variation * inverse(xp, bend)))
        suggested = xp.where(rate > 0.0, straight, far)
        suggested = xp.where(bend > 0.0, by_curve, suggested)
        weak = weak & (bend == 0.0)
    # If the other side was tried before, only a shorter step is left.
    lost = both_bad if up is None else both_bad | (bad & (up | down))
    suggested = xp.where(bad, xp.where(lost, length / CHANGE, length), suggested)
    # From very far, one look does not tell how long the step should be.
    least = length * _SHORTEST
    suggested = xp.maximum(suggested, least if vector else xp.minimum(least, xp.abs(a)))
    limit = eps**_OFF
    again = (length > limit * suggested) | bad
    if vector:
        weak = weak | (change < limit * noise)
        again = again | (weak & (suggested > limit * length))
    else:
        suggested = xp.where(again, suggested, length)
    again = again & (a != 0.0)
    span = a if fb is None else a - b
    ahead, behind = bad_down & xp.logical_not(lost), bad_up & xp.logical_not(lost)
    if up is not None:
        # A side that is fine stays.
        stays = xp.logical_not(both_bad if fb is not None else bad)
        ahead, behind = ahead | (up & stays), behind | (down & stays)
    return Seen(slopes, span, second, suggested, again, ahead, behind)


def judged_one(
    eps: float, noise: float, variation: float, most: float, length: float, step: float,
    seen: float,
) -> tuple[float, bool, bool]:
    """`judged` of one forward difference on floats: the length that it suggests,
    whether to take it again, and whether it is not finite. seen : |f(x + step) - f(x)|."""
    limit = eps**_OFF
    bad, rate, suggested = not math.isfinite(seen), 0.0, max(most, length)
    if seen > _VISIBLE * noise:
        rate = seen * (1.0 / abs(step) if step else 0.0)
    if rate > 0.0:
        suggested = min(variation * (1.0 / rate), suggested)
    if bad:
        suggested = length
    suggested = max(suggested, length * _SHORTEST)
    again = bad or length > limit * suggested
    if rate == 0.0 or seen < limit * noise:
        again = again or suggested > limit * length
    return suggested, again and step != 0.0, bad


def followed_one(old: float, new: float, due: bool, long: bool) -> float:
    """The length at the next point, from that of now and the one that a difference suggests.

    due : whether it may change.
    long : whether it is far longer than its parameter, so that it may get shorter at any point.
    """
    if long:
        return min(new, old)
    return min(max(new, old / CHANGE), old * CHANGE) if due else old


def is_due(count: Any) -> Any:
    """Whether to measure the lengths at the point with this number."""
    return (count == 1) | (count == _EARLY) | (count % _REGULARLY == 0)


def merged_at(xp: Any, columns: list[int], old: Array, new: Array, keep: Array) -> Array:
    """`old` (..., n), with the `new` entries of these columns, (..., k), where kept."""
    place = {i: k for k, i in enumerate(columns)}
    return xp.stack([
        xp.where(keep[..., i], new[..., place[i]], old[..., i]) if i in place else old[..., i]
        for i in range(old.shape[-1])
    ], axis=-1)


def merged(xp: Any, seen: Seen, found: Seen, columns: list[int]) -> Seen:
    """What is known of all coordinates; these have new lengths where they were off."""
    def all_of(old: Array, new: Array, keep: Array) -> Array:
        return merged_at(xp, columns, old, new, keep)

    no = xp.zeros_like(seen.again)
    return Seen(
        seen.slopes, seen.span, None, all_of(seen.length, found.length, seen.again),
        all_of(no, found.again, seen.again), all_of(seen.up, found.up, seen.again),
        all_of(seen.down, found.down, seen.again),
    )


def spread(number: Any) -> Any:
    """A number of each problem (...), shaped to multiply those of its coordinates."""
    return number if isinstance(number, (bool, float)) else number[..., None]
