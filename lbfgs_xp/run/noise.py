"""The noise of a function, from its values at equally spaced points (Moré & Wild 2011, Estimating
Computational Noise).

Sums of many terms, factorisations, and models that solve differential equations, round their values
or draw samples have noise far above the rounding of their dtype. What is smooth fades with each
order of the differences of values at equally spaced points; noise stays.

Values are the numbers of `minimize`, for each problem in a batch, or the residuals of a fit.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.scalars import Scalars

# The ratio of the standard deviation of normal errors to the median of their magnitudes.
_NORMAL = 1.4826
# Two values are equal if they differ by at most this many times eps of the larger one.
_ROUNDED = 4.0
# A number of gaps is whole up to this part of one; and several are at least so many.
_WHOLE, _SEVERAL = 0.02, 2.5


def points(x: Array, step: Array, count: int) -> list[Array]:
    """Equally spaced points on one side of x, without x, so that a jump or a kink at x is not taken
    for noise."""
    return [x + float(k) * step for k in range(1, count + 1)]


def deviations(
    fn: Scalars, values: list[Any], orders: Sequence[int] = (2, 3, 4),
    size: Callable[[Any], Any] | None = None,
) -> list[Any]:
    """The standard deviation of the noise of equally spaced values, by their differences of each of
    these orders. If they agree, they measure noise. What is smooth only enlarges them, so the
    smallest one is the best estimate.

    size : from a difference of many values to their root mean square. By default each value is a
        number.
    """
    found = []
    for order, row, growth in _differences(values, orders[-1]):
        if order in orders:
            # The median, because a single jump or kink is no noise.
            sizes = [fn.abs(each) if size is None else size(each) for each in row]
            usual = _NORMAL if size is None else 1.0
            found.append(median(fn, sizes) * (usual / growth))
    return found


def deviation(fn: Scalars, values: list[Any]) -> Any:
    """The standard deviation of the noise of equally spaced numbers: 0 if neither their third nor
    their fourth differences change sign, as for powers and logarithms next to a singularity."""
    found, changes = smallest(fn, deviations(fn, values)), False
    for order, row, _ in _differences(values, 4):
        if order > 2:
            changes = changes | ((smallest(fn, row) < 0.0) & (largest(fn, row) > 0.0))
    return fn.where(changes, found, 0.0 * found)


def most_deviation(fn: Scalars, values: list[Any]) -> Any:
    """An upper estimate of the standard deviation of the noise of equally spaced numbers, by all
    their differences of third and higher orders."""
    found = 0.0
    for order, row, growth in _differences(values, len(values) - 1):
        if order > 2:
            for each in row:
                found = fn.maximum(fn.abs(each) * (1.0 / growth), found)
    return found


def _differences(values: list[Any], last: int) -> Iterator[tuple[int, list[Any], float]]:
    """Each row of the difference table, up to the order `last`: its order, its entries, and by
    which factor the standard deviation of noise grows in it."""
    row, square = values, 1.0
    for order in range(1, last + 1):
        row = [b - a for a, b in zip(row, row[1:], strict=False)]
        square *= 2.0 * (2.0 * order - 1.0) / order    # the binomial coefficient (2k over k)
        yield order, row, square**0.5


def beyond_slope(fn: Scalars, values: list[Any], slope: Any) -> Any:
    """How far the differences of equally spaced numbers are from the one that the slope predicts,
    beyond what their bend explains."""
    (_, first, _), (_, second, _) = _differences(values, 2)
    bend = median(fn, [fn.abs(each) for each in second])
    off = fn.abs(median(fn, first) - slope) - float(len(values)) * bend
    return fn.where(off > 0.0, off, 0.0)


def range_of(fn: Scalars, values: list[Any]) -> Any:
    """The difference of the highest and the lowest number."""
    return largest(fn, values) - smallest(fn, values)


def are_equal(fn: Scalars, backend: Backend, values: list[Any]) -> Any:
    """Whether most of these numbers equal another one up to rounding."""
    ordered = fn.ordered(values)
    least = _least(fn, backend, ordered)
    equal = sum(
        fn.where(b - a <= least, 1.0, 0.0 * a) for a, b in zip(ordered, ordered[1:], strict=False)
    )
    return equal > len(values) // 2


def are_multiples(fn: Scalars, backend: Backend, values: list[Any]) -> Any:
    """Whether most of these numbers equal another one up to rounding, or most of their differences
    equal the next one, as if they could only be multiples of something."""
    _, (_, second, _) = _differences(values, 2)
    change = median(fn, [fn.abs(each) for each in second])
    even = change <= _least(fn, backend, fn.ordered(values))
    return are_equal(fn, backend, values) | even


def smallest_gap(fn: Scalars, backend: Backend, values: list[Any]) -> Any:
    """The smallest difference between two of these numbers beyond rounding; inf if there is none.
    """
    ordered = fn.ordered(values)
    least, found = _least(fn, backend, ordered), 0.0 * ordered[0] + math.inf
    for a, b in zip(ordered, ordered[1:], strict=False):
        found = fn.where((b - a > least) & (b - a < found), b - a, found)
    return found


def are_steps(fn: Scalars, values: list[Any], gap: Any) -> Any:
    """Whether these numbers differ by multiples of this gap, and by several of them."""
    parts = [(b - values[0]) / gap % 1.0 for b in values]
    whole = functools.reduce(
        operator.and_, [(part < _WHOLE) | (part > 1.0 - _WHOLE) for part in parts]
    )
    return whole & (gap < math.inf) & (range_of(fn, values) > _SEVERAL * gap)


def smallest(fn: Scalars, values: list[Any]) -> Any:
    return functools.reduce(fn.minimum, values)


def largest(fn: Scalars, values: list[Any]) -> Any:
    return functools.reduce(fn.maximum, values)


def median(fn: Scalars, values: list[Any]) -> Any:
    ordered, half = fn.ordered(values), len(values) // 2
    if len(values) % 2:
        return ordered[half]
    return 0.5 * (ordered[half - 1] + ordered[half])


def _least(fn: Scalars, backend: Backend, ordered: list[Any]) -> Any:
    """The smallest difference that is more than rounding."""
    return _ROUNDED * backend.eps * fn.maximum(fn.abs(ordered[0]), fn.abs(ordered[-1]))
