"""Finite differences (Nocedal & Wright, section 8.1), with steps that follow the function.

The error of a difference is least for a step of L q^(1/3) to both sides, or L q^(1/2) to one side,
where L is the length over which the function bends and q its rounding error, relative to its
changes over that length. |x| says little about L: a line at 6562.8 may be 0.05 wide. So L is
measured with the differences (`lbfgs_xp.run.lengths`), from how far the values differ and from how
much the forward and the backward difference disagree; if the step turns out to be far too long or
too short, the difference is taken again. No step leaves the bounds. If the function is not finite
on one side, the step goes to the other.

A function whose values are numbers keeps its lengths until x is many of them away from where they
were measured; the distance covered is then the next length to try. With noise of known size, such
as that of an iterative solver, its steps follow its bends (`lbfgs_xp.run.bends`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays import scalars
from lbfgs_xp.arrays.backend import Array, Backend, identity, is_array
from lbfgs_xp.arrays.scalars import FLOATS
from lbfgs_xp.run.bends import Bends, better_steps, first_steps
from lbfgs_xp.run.lengths import (
    CHANGE,
    FAR,
    Lengths,
    Seen,
    followed_one,
    is_due,
    judged,
    judged_one,
    merged,
    merged_at,
    spread,
)
from lbfgs_xp.run.lowest import Lowest, nothing, picked
from lbfgs_xp.run.quotients import are_finite, inverse, one_sided, slopes_of

METHODS = ("2-point", "3-point")
# How often a difference of many values, and of a number, is taken at most.
_OFTEN, _OFTEN_OF_NUMBERS = 5, 8
# The lengths of a function of numbers are measured again at a point so many of them away from the
# last place, those of one of many values if a coordinate has grown by as many; lengths of less than
# this part of the ordinary one are corrected at any point.
_FAR_AWAY, _NARROW = 30.0, 0.03
# The longest step of differences that are stretched, relative to the length.
_STRETCHED = 0.1
# The shortest step, in units of the rounding of x.
_LEAST = 64.0
# The largest noise, relative to the changes of the function, for which steps are chosen.
_MOST = 1e-2
# The function changes by at least this many times its rounding error over a length.
_DIGITS = 1e6
# How often steps among noise are measured again.
_SEARCHES = 8
# The most coordinates of a problem whose steps are chosen on floats.
_SMALL = 16


@functools.cache
def _identity(n: int) -> np.ndarray:
    return np.eye(n, dtype=bool)


def check_jac(jac: Any) -> None:
    """Refuse anything but what `jac` of `lx.minimize` may be."""
    if jac is None or jac is True or callable(jac) or (isinstance(jac, str) and jac in METHODS):
        return
    raise ValueError(
        f"jac is {jac!r}; wanted None (automatic differentiation), True, a function, "
        '"2-point" or "3-point"'
    )


def calls_per_derivative(variables: int, central: bool) -> int:
    """How often the function is called, in addition to the call at x itself."""
    return (2 if central else 1) * variables


def accuracy(eps: float, central: bool) -> float:
    """The relative error of the derivatives of a function without noise."""
    return float(eps ** (2 / 3 if central else 1 / 2))


class Known(NamedTuple):
    """What has been measured; None: nothing so far.

    lengths : `Lengths`.
    noise : the noise of the function beyond the rounding of its values, (...). For numbers it is a
        standard deviation, 0 where there is none.
    bends : `Bends`, the steps of a function of numbers among noise.
    lowest : `Lowest`, the lowest number that was seen.
    """

    lengths: Any = None
    noise: Any = None
    bends: Any = None
    lowest: Any = None


class Differences:
    """The derivatives of a function by finite differences.

    Parameters
    ----------
    function : from x (..., n) to (...) or (..., m), an array that its next call may overwrite.
    least : a coordinate of at most this size is first taken to have size 1. With 1, only large
        coordinates take larger steps; with 0, all first steps are relative.

    Attributes
    ----------
    step : None, or the steps, relative to the size of each coordinate (to 1 at 0), which are then
        not measured.
    stretch : by how much the measured steps are lengthened, for functions with noise.
    span, level : of the last derivatives, the distances of the points that they compare (..., n),
        and the noise that was assumed (...).
    known : what has been measured.
    """

    def __init__(self, backend: Backend, function: Callable[[Array], Any], least: float):
        self.backend, self.function, self.least = backend, function, least
        self.fn = scalars.of(backend.zeros((1,)))
        self.step: float | None = None
        self.stretch = 1.0
        self.span: Any = 0.0
        self.level: Any = 0.0
        self.known = Known()
        self._calls = 0

    @property
    def memory(self) -> tuple:
        """What they know, to be saved."""
        return self.known, self.stretch, self.span, self.level, self._calls

    @memory.setter
    def memory(self, memory: tuple) -> None:
        self.known, self.stretch, self.span, self.level, self._calls = memory

    @property
    def per_row(self) -> tuple:
        """What they know that has an entry for each row of a batch."""
        return self.known, self.span, self.level

    @per_row.setter
    def per_row(self, per_row: tuple) -> None:
        self.known, self.span, self.level = per_row

    def __call__(
        self, x: Array, value: Any, variation: Any, central: bool, bounds: Any = None,
        may_call: Callable[[int], bool] = lambda calls: True,
    ) -> Any:
        """The derivative along each coordinate of x: n results like those of the function, or one
        array with them along its first axis.

        value : function(x).
        variation : (...), how far the function has changed so far; None for that of numbers, whose
            size is taken.
        central : whether to step to both sides.
        bounds : None, or (lower, upper), (..., n) each, between which to call the function.
        may_call : whether the budget allows this many calls for differences taken again.
        """
        tried = None
        if self._is_small(x, variation, central, bounds):
            slopes, tried = self._on_floats(x, value, variation)
            if tried is None:
                return slopes
        self._caller = np.geterr()
        with np.errstate(all="ignore"):    # the values may be infinite
            central = central or self.known.bends is not None
            return self._derivatives(x, value, variation, central, bounds, may_call, tried)

    def assume(self, x: Array, length: Array) -> None:
        """Take these lengths (B, n) of a function of many values for those at the next point, which
        is near x. Rows in which some are not numbers above 0 will be measured."""
        xp = self.backend.xp
        known = (length > 0.0) & xp.isfinite(length)
        length = xp.where(known, length, self._unit(x))
        # Lengths are measured at the first point and not at the second.
        count = xp.astype(xp.all(known, axis=-1), length.dtype)
        nowhere = xp.full_like(length, math.nan)
        self.known = Known(Lengths(length, 0.0 * count, count, nowhere), self.known.noise)

    @property
    def are_measured(self) -> bool:
        """Whether the steps are as long as what was measured says."""
        return self.step is None and self.stretch == 1.0

    @property
    def errors(self) -> Array:
        """How far noise changes the last derivatives, (..., n)."""
        return self.gain * spread(self.level)

    @property
    def gain(self) -> Array:
        """The errors of the last derivatives, in units of the noise of the function, (..., n)."""
        return 2.0 * inverse(self.backend.xp, self.backend.xp.abs(self.span))

    def _derivatives(
        self, x: Array, value: Any, variation: Any, central: bool, bounds: Any,
        may_call: Callable[[int], bool], tried: Seen | None,
    ) -> Any:
        """tried : what the first differences found, if they have been taken."""
        xp, backend = self.backend.xp, self.backend
        n, lengths, first = x.shape[-1], self.known.lengths, self._is_first(x)
        value, size = self._array(value), xp.abs(x)
        vector = value.ndim == x.ndim
        # The numbers of one problem are floats, if reading them costs nothing.
        free = backend.reads_are_free
        one = vector and x.ndim == 1 and free
        number: Callable[[Any], Any] = float if one else identity
        fn = FLOATS if one else self.fn
        rounding: Any = backend.eps * number(backend.max_abs(value) if vector else xp.abs(value))
        noise = rounding
        if vector and self.known.noise is not None:
            noise = fn.maximum(rounding, number(self.known.noise))
        variation = xp.abs(value) if variation is None else number(self._array(variation))
        unit: Any = None
        long: Any = None
        if first or not vector:
            unit = self._unit(x)
        if first:
            length, before, far = unit, variation if vector else value, noise != math.inf
            due = far
            count = 1.0 if one else xp.astype(due, noise.dtype)
        elif vector:
            length, before, count, last = lengths
            # A row of a batch may be asked again at the same point, for the sake of others.
            moved = xp.any(x != last, axis=-1)
            count = count + (bool(moved) if one else xp.astype(moved, count.dtype))
            # Of parameters that are now much larger, or smaller, the lengths are measured again.
            covered = xp.minimum(xp.abs(x - last), size)
            farther = covered > _FAR_AWAY * length
            length = xp.where(farther, covered, length)
            due = far = (bool(moved) if one else moved) & (is_due(count) | xp.any(farther, axis=-1))
            # Lengths from a start far away may be far too long for what is left of a parameter.
            long = moved[..., None] & (length > FAR * self.fn.where(size > 0.0, size, 1.0))
        else:
            before, count = lengths.variation, lengths.count
            # A trial point where the function is larger says little of the way to the minimum.
            lower = value <= before
            length, far = self._followed(x, lengths.length * unit, unit, lower)
            due = far | xp.any(lengths.length < _NARROW, axis=-1)
        most = self.fn.maximum(size, 1.0)
        if vector:
            variation = fn.maximum(variation, before)
            before = variation
        elif not first:
            before = self.fn.where(far, value, before)
            # A value that happens to be small does not make the function bend faster.
            variation = fn.maximum(variation, xp.abs(before))
        variation = fn.maximum(variation, _DIGITS * rounding)
        # A value of 0 says nothing of how far the function changes.
        variation = fn.where(variation > 0.0, variation, math.inf)

        bends, noisy, h = self.known.bends, None, None
        if bends is not None:
            noisy, h = self._is_noisy(value), bends.step_at(xp, x)
            due = due & xp.logical_not(noisy[..., 0])
        narrows = bounds is not None or noisy is not None
        no = xp.zeros_like(x, dtype=xp.bool) if narrows else None
        seen = Seen([], length, None, length, no, no, no)
        slopes: Any = None
        columns = list(range(n))
        scales = noise, variation, most
        # A run on one value must find the same gradients when it is continued.
        self._calls += 1
        # On a device, to ask which points are due would be to wait; next to several calls for each
        # number that is little.
        asks = free or not vector
        if asks:
            here = due if long is None else due | xp.any(long, axis=-1)
            any_due = bool(here if one else xp.any(here))
        else:
            any_due = is_due(self._calls)
        looks = (first or any_due) and self.are_measured
        often, lowest = _OFTEN if vector else _OFTEN_OF_NUMBERS, self.known.lowest
        for attempt in range(often):
            # Steps to one side only: at bounds, and where the domain ends.
            narrow = bounds is not None or attempt > 0
            found = tried or self._take(
                x, value, scales, seen, columns, central, bounds, narrow, looks, noisy, h
            )
            tried = None
            if attempt == 0:
                slopes, self.span, second = found.slopes, found.span, found.second
            else:
                again = seen.again
                self.span = merged_at(xp, columns, self.span, found.span, again)
                for k, i in enumerate(columns):
                    here = again[..., i, None] if vector else again[..., i]
                    slopes[i] = xp.where(here, found.slopes[k], slopes[i])
            if found.length is None:
                break
            seen = found if attempt == 0 else merged(xp, seen, found, columns)
            if not first:
                due = due | xp.logical_not(are_finite(xp, found.slopes, vector))
                here = spread(due)
                if long is not None:
                    here = here | (long & (seen.length < length))
                seen = seen._replace(again=seen.again & here)
            # Elsewhere, to look whether a step is off would be to wait for the device.
            may_repeat = first or asks
            if not may_repeat or attempt == often - 1:
                break
            off = backend.to_host(seen.again)
            columns = [i for i in range(n) if off[..., i].any()]
            if not columns or not may_call(calls_per_derivative(len(columns), central)):
                break
            # Steps that are far too long may lead beyond a pole.
            self._forget_lowest(xp.any(seen.again, axis=-1), lowest)
        # Also as an array.
        self.level = np.float64(noise) if one else noise
        if first:
            length, last = seen.length, x
        elif vector:
            last = x
            if seen.length is not length:
                low, high = length / CHANGE, length * CHANGE
                limited = xp.minimum(xp.maximum(seen.length, low), high)
                new = fn.where(spread(due), limited, length)
                length = xp.where(long, xp.minimum(seen.length, length), new)
        else:
            changed = far | xp.any((seen.length != length) & spread(due), axis=-1)
            length = xp.where(spread(due), seen.length, lengths.length * unit)
            last = xp.where(changed[..., None], x, lengths.at)
        if bends is not None:
            longest = None if self.step is not None else FAR * most
            bends = bends.after(xp, x, self.known.noise[..., None], noisy, second, longest)
        lengths = Lengths(length if vector else length / unit, before, count, last)
        self.known = self.known._replace(lengths=lengths, bends=bends)
        return slopes

    def _forget_lowest(self, rows: Array, before: Lowest | None) -> None:
        """Go back to these lowest values in these rows, (...)."""
        now = self.known.lowest
        if now is None or now is before:
            return
        if rows.ndim == 0:
            lowest = before
        else:
            lowest = picked(self.backend, rows, nothing(now) if before is None else before, now)
        self.known = self.known._replace(lowest=lowest)

    def _followed(
        self, x: Array, length: Array, unit: Array, lower: Array
    ) -> tuple[Array, Array]:
        """The lengths (..., n) for a function of numbers at x, and where x is so far from where
        they were measured that they have to be measured again, (...).

        lower : where the value is at most that of then, (...).
        """
        xp, at = self.backend.xp, self.known.lengths.at
        away = xp.abs(x - at)
        far = (away > _FAR_AWAY * self.lengths(at)) & (self.step is None) & lower[..., None]
        covered = xp.minimum(away, unit)
        return xp.where(far & (covered > length), covered, length), xp.any(far, axis=-1)

    def _take(
        self, x: Array, value: Array, scales: tuple[Array, Array, Array], seen: Seen,
        columns: list[int], central: bool, bounds: Any, narrow: bool, looks: bool,
        noisy: Any = None, step: Any = None,
    ) -> Seen:
        """The differences along these coordinates; without a look, only the derivatives.

        scales : the rounding error of the values, how far they change, and the longest lengths.
        narrow : whether some steps may go to one side only.
        noisy, step : None, or where there is noise, (..., 1), and the steps there.
        """
        xp, backend = self.backend.xp, self.backend
        noise, variation, most = scales
        h = self._steps(x, noise, variation, seen.length, central)
        if noisy is not None:
            h, narrow, looks = xp.where(noisy, step, h), True, True
        a, b = self._offsets(x, h, seen, central, bounds) if narrow else (h, -h)
        a, fa = self._values(x, a, columns, None if central else value)
        behind: tuple[Any, Any] = self._values(x, b, columns) if central else (None, None)
        b, fb = behind
        waits = not backend.reads_are_free
        if not looks and (central or waits or backend.are_finite(fa)):
            slopes, _ = slopes_of(xp, value, a, b, fa, fb, narrow, False)
            if waits or not central or backend.are_finite(slopes):
                return seen._replace(slopes=slopes, span=a if b is None else a - b, length=None)
        length, up, down = seen.length, seen.up, seen.down
        if len(columns) < x.shape[-1]:
            pick = backend.index_array(np.asarray(columns))
            most, length = (xp.take(array, pick, axis=-1) for array in (most, length))
            if up is not None:
                up, down = (xp.take(array, pick, axis=-1) for array in (up, down))
        share = None
        if value.ndim == x.ndim and self.known.noise is not None:
            share = self.known.noise / variation
        found = judged(
            backend, value, noise, variation, share, a, b, fa, fb, narrow, most, length, up, down
        )
        if noisy is None:
            return found
        # Among noise, one side is as good as both.
        slopes = [
            xp.where(noisy[..., 0], one_sided(xp, slope, value, a[..., k], b[..., k], f, g), slope)
            for k, (slope, f, g) in enumerate(zip(found.slopes, fa, fb, strict=True))
        ]
        return found._replace(
            slopes=slopes, length=xp.where(noisy, length, found.length),
            again=found.again & xp.logical_not(noisy),
        )

    def _values(
        self, x: Array, offsets: Array, columns: list[int], since: Any = None
    ) -> tuple[Array, Any]:
        """The steps along these coordinates that were really taken, (..., k), and the values there,
        or what they are more than `since`: k arrays, or one with them along its first axis."""
        xp, backend = self.backend.xp, self.backend
        moved = x + offsets
        places = xp.arange(x.shape[-1], device=backend.creation_device)
        steps = moved - x
        if len(columns) < x.shape[-1]:
            steps = xp.take(steps, backend.index_array(np.asarray(columns)), axis=-1)

        def value(i: int) -> Array:
            with np.errstate(**self._caller):
                return self._array(self.function(xp.where(places == i, moved, x)))

        values = map(value, columns)
        if since is None:
            return steps, [backend.own(v) if v.ndim == x.ndim else v for v in values]
        if since.ndim < x.ndim:
            return steps, [v - since for v in values]
        return steps, backend.changes(values, since, len(columns))

    def _array(self, value: Any) -> Array:
        if not is_array(value):
            return self.backend.full((), value)
        if value.dtype == self.backend.dtype:
            return value
        return self.backend.xp.astype(value, self.backend.dtype, copy=False)

    def _relative_noise(
        self, x: Array, noise: Array, variation: Array, length: Array
    ) -> Array:
        """The rounding error of the function, and of x through it, relative to the variation."""
        xp, fn, eps = self.backend.xp, self.fn, self.backend.eps
        if self.least > 0.0:
            # A number is as precise as it can be.
            return fn.minimum(eps * fn.maximum(xp.abs(x) / length, 1.0), _MOST)
        share = spread(noise / variation) + eps * xp.abs(x) / length
        return fn.minimum(fn.where(share > eps, share, eps), _MOST)

    def _steps(
        self, x: Array, noise: Array, variation: Array, length: Array, central: bool
    ) -> Array:
        """How far to step along each coordinate."""
        xp = self.backend.xp
        if self.step is not None:
            return self.step * xp.where(x == 0.0, xp.ones_like(x), xp.abs(x))
        share = self._relative_noise(x, noise, variation, length)
        h = length * share ** (1 / 3 if central else 1 / 2)
        if self.stretch > 1.0:
            h = xp.maximum(h, xp.minimum(self.stretch * h, _STRETCHED * length))
        # A step must not vanish beside x.
        return xp.maximum(h, _LEAST * self.backend.eps * xp.abs(x))

    def _offsets(
        self, x: Array, h: Array, seen: Seen, central: bool, bounds: Any
    ) -> tuple[Array, Array]:
        """The two steps along each coordinate, or the one and anything, from their lengths."""
        xp = self.backend.xp
        reach = 2.0 if central else 1.0
        up, down = seen.up, seen.down
        if bounds is not None:
            above, below = bounds[1] - x, x - bounds[0]
            narrow = (above < h) | (below < h)
            upwards = above >= below
            up = up | (narrow & upwards) if central else up | ((above < h) & (below < above))
            down = down | (narrow & xp.logical_not(upwards)) if central else (
                down | ((above < h) & (below >= above))
            )
            room = xp.where(down, below, above)
            h = xp.where((up | down) & (h > room / reach), room / reach, h)
        one = xp.ones_like(h)
        ahead = xp.where(down, -one, one)
        behind = xp.where(down, -2.0 * one, xp.where(up, 2.0 * one, -one))
        return ahead * h, behind * h

    def _is_first(self, x: Array) -> bool:
        """Whether no lengths are known for such points."""
        lengths = self.known.lengths
        return lengths is None or lengths.length.shape != x.shape

    # --- one small problem on the host ---------------------------------------------------------

    def _is_small(self, x: Array, variation: Any, central: bool, bounds: Any) -> bool:
        """Whether `_on_floats` is for these differences: to one side, of a small problem on the
        host without noise; where lengths are measured, only in float64."""
        backend, (lengths, noise, bends, _) = self.backend, self.known
        if central or bounds is not None or variation is None or self.least > 0.0:
            return False
        if x.ndim != 1 or x.shape[0] > _SMALL or not backend.on_host:
            return False
        if noise is not None or bends is not None or not self.are_measured:
            return False
        if x.dtype.itemsize == 8:
            return True
        return not (self._is_first(x) or is_due(lengths.count + 1))

    def _on_floats(self, x: Array, value: Array, variation: Any) -> tuple[Array, Seen | None]:
        """`_derivatives` on floats, which take less time than arrays so small: the derivatives
        (n, m), and what the differences found if some have to be taken again, else None."""
        backend, eps, lengths = self.backend, self.backend.eps, self.known.lengths
        noise, change = eps * float(backend.max_abs(value)), float(variation)
        sizes = [abs(at) for at in x.tolist()]
        first = self._is_first(x)
        if first:
            length = [size if size > 0.0 else 1.0 for size in sizes]
            looks, due, count, long = True, noise != math.inf, 1.0, [False] * x.shape[0]
        else:
            length = lengths.length.tolist()
            change = FLOATS.maximum(change, float(lengths.variation))
            away = [abs(step) for step in (x - lengths.at).tolist()]
            moved = any(away)
            count = lengths.count + moved
            covered = list(map(min, away, sizes))
            farther = [way > _FAR_AWAY * old for way, old in zip(covered, length, strict=True)]
            length = [
                way if there else old
                for way, old, there in zip(covered, length, farther, strict=True)
            ]
            long = [
                moved and reach > FAR * (size or 1.0)
                for reach, size in zip(length, sizes, strict=True)
            ]
            due = moved and (any(farther) or is_due(count))
            looks = due or any(long)
        before, change = change, FLOATS.maximum(change, _DIGITS * noise)
        change = change if change > 0.0 else math.inf
        h = []
        for size, reach in zip(sizes, length, strict=True):
            share = noise / change + eps * size / reach
            share = min(share if share > eps else eps, _MOST)
            h.append(max(reach * math.sqrt(share), _LEAST * eps * size))
        there = x + np.asarray(h, x.dtype)
        steps = there - x
        slopes = np.empty((*x.shape, *value.shape), x.dtype)
        for i, point in enumerate(np.where(_identity(x.shape[0]), there, x)):
            slopes[i] = self.function(point)
        with np.errstate(all="ignore"):    # the values may be infinite
            slopes -= value
            finite = backend.are_finite((slopes,))
            changes = [] if finite and not looks else backend.max_abs(slopes).tolist()
            slopes *= (1.0 / steps)[:, None]
        if changes:
            verdicts = [
                judged_one(eps, noise, change, max(size, 1.0), *each)
                for size, *each in zip(sizes, length, steps.tolist(), changes, strict=True)
            ]
            suggested, again, bad = map(list, zip(*verdicts, strict=True))
            due = due or (not first and not finite)
            again = [
                here and (first or due or (far and new < old))
                for here, far, new, old in zip(again, long, suggested, length, strict=True)
            ]
            if any(again):
                no = np.zeros(x.shape, dtype=bool)
                found = np.asarray(suggested, x.dtype), np.asarray(again), no, np.asarray(bad)
                return slopes, Seen(list(slopes), steps, None, *found)
            length = suggested if first else [
                followed_one(old, new, due, far)
                for old, new, far in zip(length, suggested, long, strict=True)
            ]
        self._calls += 1
        self.span, self.level = steps, np.float64(noise)
        self.known = Known(Lengths(np.asarray(length, x.dtype), before, count, x))
        return slopes, None

    # --- functions of numbers ------------------------------------------------------------------

    def steps(self, x: Array, value: Any, central: bool) -> Array:
        """The steps of differences of a function of numbers at x, (..., n)."""
        xp, value = self.backend.xp, self._array(value)
        lengths, _, bends, _ = self.known
        plain = self._plain(x, value, lengths.length, central)
        return plain if bends is None else xp.where(self._is_noisy(value), bends.step, plain)

    def _is_noisy(self, value: Array) -> Array:
        """Where the noise of a function of numbers is at least its rounding, (..., 1)."""
        xp, noise = self.backend.xp, self.known.noise
        least = 0.5 * self.backend.eps * xp.abs(value)
        return ((noise > 0.0) & (noise >= least))[..., None]

    def lengths(self, x: Array) -> Array:
        """The lengths over which a function of numbers bends at x, (..., n)."""
        return self.known.lengths.length * self._unit(x)

    def _unit(self, x: Array) -> Array:
        """The size of each coordinate, and 1 for those of at most `least`."""
        size = self.backend.xp.abs(x)
        return self.fn.where(size > self.least, size, 1.0)

    def narrow(self) -> Array:
        """Along which coordinates a function of numbers seems to bend over a small part of their
        size, (..., n)."""
        return self.known.lengths.length < _NARROW

    def ordinary_steps(self, x: Array, value: Any) -> Array:
        """The steps of central differences if the function bends over the size of each variable."""
        return self._plain(x, self._array(value), self.backend.xp.ones_like(x), True)

    def _plain(self, x: Array, value: Array, length: Array, central: bool) -> Array:
        """The steps if there is only rounding."""
        noise = self.backend.eps * self.backend.xp.abs(value)
        return self._steps(x, noise, noise, length * self._unit(x), central)

    def expect_noise(
        self, x: Array, value: Any, noise: Any, bounds: Any, may_call: Callable[[int], bool]
    ) -> Array:
        """Find the steps for a function of numbers with this noise, and use them from now on.
        Return how often each row (...) has called the function.

        noise : (...), its standard deviation; 0 where there is none.
        may_call : whether the budget allows this many calls.
        """
        xp, backend = self.backend.xp, self.backend
        self._caller = np.geterr()
        value, noise = self._array(value), self._array(noise)[..., None]
        lengths = self.known.lengths
        rounding = backend.eps * xp.abs(value)
        h, noisy = self._plain(x, value, lengths.length, True), noise > 0.0
        if self.step is None:
            # A size of 0, or almost 0, says nothing; steps that are too long are soon shortened.
            size = xp.abs(x)
            size = xp.where(size > backend.eps, size, xp.ones_like(x))
            first = first_steps(xp, size, value, noise)
            h = xp.where(noisy, xp.maximum(h, first), h)
        most = FAR * self.fn.maximum(xp.abs(x), 1.0)
        # Which steps are still off, in each row; the calls count for those rows alone.
        off = noisy & (h == h)
        calls = xp.zeros_like(noise[..., 0], dtype=xp.int32)
        no = xp.zeros_like(x, dtype=xp.bool)
        nothing = Seen([], h, None, h, no, no, no)
        for _ in range(_SEARCHES if self.step is None else 0):
            here = backend.to_host(off)
            columns = [i for i in range(x.shape[-1]) if here[..., i].any()]
            if not columns or not may_call(calls_per_derivative(len(columns), True)):
                break
            calls = calls + 2 * xp.sum(xp.astype(off, xp.int32), axis=-1, dtype=xp.int32)
            with np.errstate(all="ignore"):    # the values may be infinite
                scales = rounding, xp.abs(value), most
                found = self._take(
                    x, value, scales, nothing, columns, True, bounds, True, True, noisy, h
                )
                pick = backend.index_array(np.asarray(columns))
                tried, longest = (xp.take(array, pick, axis=-1) for array in (h, most))
                better = better_steps(xp, noise, found.second, tried, longest)
            new = merged_at(xp, columns, h, better, off)
            off = off & (new != h)
            h = new
        # At the next point, wherever it is, these are the steps.
        nowhere = xp.full_like(x, math.nan)
        bends = Bends(nowhere, h, xp.zeros_like(h), h)
        self.known = self.known._replace(noise=noise[..., 0], bends=bends)
        return calls

    def forget_noise(self, rows: Any) -> None:
        """Take the function to be without noise in these rows, (...)."""
        noise = self.known.noise
        if noise is not None:
            noise = self.backend.xp.where(self._array(rows) > 0.0, 0.0 * noise, noise)
            self.known = self.known._replace(noise=noise)
