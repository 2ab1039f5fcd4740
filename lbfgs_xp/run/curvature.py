"""The Hessian at the end of a run: given, by automatic differentiation, or by central differences.

The step along each variable is eps^(1/3) L for differences of gradients and eps^(1/4) L for second
differences of values, where L is the distance over which the value changes by its size, or by as
much as it has fallen in the run: L = sqrt(2 F / |H_ii|). H_ii comes from a first try. How the third
derivatives compare with that is unknown, so differences over steps an eighth as long must agree;
where they do not, the step is found at which neighbours agree best.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.run.objective import Objective

# How often steps are chosen, by which factor they must be off to be chosen again, and by how much
# they change at most.
_TRIES, _OFF, _MOST = 4, 10.0, 1e3
# The factor between neighbouring steps, how many are tried downwards and upwards, after how many
# without an improvement the search ends, and the least step in units in the last place of x.
_NEXT, _DOWN, _UP, _PATIENCE, _LEAST = 8.0, 16, 5, 2, 64.0
# A relative disagreement that is said aloud.
_DOUBTFUL = 0.1


class Curvature(NamedTuple):
    """What the Hessian at a point takes.

    objective : the function and its gradient.
    hess : as in `lx.minimize`.
    automatic : whether to differentiate automatically without `hess`.
    first_value : the value at the start, one for each problem.
    """

    objective: Objective
    hess: Any
    automatic: bool
    first_value: Any

    def at(self, point: Any) -> Array:
        """The symmetric Hessian (..., n, n) at a point with the structure of x0."""
        objective = self.objective
        if objective.is_shared:
            raise ValueError(
                "this result comes from many processes, which have ended their run; wanted the "
                "sum of the Hessians of their functions, each of its own run"
            )
        if objective.layout.batch:
            objective.restrict_to(None)
        layout, backend = objective.layout, objective.backend
        with backend.current():
            x = backend.detach(layout.to_vector(point, "x"))
            x = x if layout.scale is None else x / layout.scale
            if self.hess is not None or self.automatic:
                matrix = objective.hessian(self.hess)(x)
            else:
                matrix = self._by_differences(x)
            matrix = 0.5 * (matrix + layout.xp.matrix_transpose(matrix))
            if layout.scale is not None:
                matrix = matrix / layout.scale[..., None] / layout.scale[..., None, :]
            return matrix

    def _by_differences(self, x: Array) -> Array:
        objective, xp = self.objective, self.objective.layout.xp
        of_values, eps = objective.differs, objective.backend.eps
        value = self._value(x)
        share = eps ** (1 / 4 if of_values else 1 / 3)
        step = share * xp.where(x == 0.0, xp.ones_like(x), xp.abs(x))
        for _ in range(_TRIES):
            matrix = self._bends(x, value, step) if of_values else self._slopes(x, step)
            bends = matrix if of_values else xp.linalg.diagonal(matrix)
            better = self._better(value, share, step, bends)
            off = (better > _OFF * step) | (_OFF * better < step)
            if not objective.backend.to_host(xp.any(off)):
                break
            step = xp.where(off, better, step)
        if not of_values:
            return self._settled(self._slopes, x, step, matrix, step, eps ** (3 / 8))[0]

        def of_diagonal(x: Array, step: Array, columns: Any = None) -> Array:
            return self._bends(x, value, step, columns)[..., None]

        rows, step = self._settled(
            of_diagonal, x, step, bends[..., None], xp.ones_like(step[..., :1]), eps ** (1 / 4)
        )
        return self._mixed(x, step, rows[..., 0])

    def _settled(
        self, differences: Callable, x: Array, step: Array, found: Array, size: Array,
        enough: float,
    ) -> tuple[Array, Array]:
        """The rows (..., n, k) and steps (..., n) that agree with differences over shorter steps.

        differences : (x, step, columns) -> rows (..., n, k).
        found : these for `step`.
        size : (..., k), in which units the k entries of a row are compared.
        enough : the relative disagreement to accept.
        """
        backend, xp = self.objective.backend, self.objective.layout.xp
        unit = size[..., None, :]

        def apart(rows: Array, others: Array, both: Array) -> Array:
            change = xp.max(xp.abs(rows - others) * unit, axis=-1)
            most = xp.max(xp.maximum(xp.abs(rows), xp.abs(others)) * unit, axis=-1)
            # Two zeros agree because of rounding, or because the function is linear.
            share = xp.where(most > 0.0, change / most, xp.full_like(most, xp.inf))
            return xp.where(xp.isfinite(share) & both, share, xp.full_like(share, xp.inf))

        def visible(lengths: Array) -> Array:
            return lengths > _LEAST * backend.eps * xp.abs(x)

        def columns_of(mask: Array) -> list[int]:
            mask = np.asarray(backend.to_host(mask))
            return [i for i in range(mask.shape[-1]) if mask[..., i].any()]

        with np.errstate(all="ignore"):
            shorter = differences(x, step / _NEXT)
            best, taken, least = found, step, apart(found, shorter, visible(step / _NEXT))
            flat = xp.max(xp.abs(found - shorter) * unit, axis=-1) == 0.0
            for count, factor, last in ((_DOWN, 1.0 / _NEXT, shorter), (_UP, _NEXT, found)):
                length = step if factor > 1.0 else step / _NEXT
                since = xp.zeros_like(step)
                for _ in range(count):
                    open_ = (least > enough) & (since < _PATIENCE) & xp.logical_not(flat)
                    columns = columns_of(open_)
                    if not columns:
                        break
                    rows = differences(x, factor * length, columns)
                    short = xp.minimum(length, factor * length)
                    share = apart(rows, last, visible(short))
                    better = open_ & (share < least)
                    longer, of_longer = (factor * length, rows) if factor > 1.0 else (length, last)
                    best = xp.where(better[..., None], of_longer, best)
                    taken = xp.where(better, longer, taken)
                    least = xp.where(better, share, least)
                    worse = xp.isfinite(share) & xp.logical_not(better)
                    since = xp.where(better, 0.0, since + xp.astype(worse, since.dtype))
                    length, last = factor * length, rows
            doubtful = (least > _DOUBTFUL) & xp.isfinite(least)
        self._warn(columns_of(doubtful))
        return best, taken

    def _warn(self, columns: list[int]) -> None:
        if columns:
            warnings.warn(
                f"res.hessian(): differences over steps of any length disagree for the variables "
                f"{', '.join(map(str, columns[:5]))}{', ...' if len(columns) > 5 else ''} (in the "
                "order of the leaves of x); the function has a kink or much noise there, and the "
                "matrix may be far off", RuntimeWarning, stacklevel=6,
            )

    @np.errstate(all="ignore")
    def _better(self, value: Array, share: float, step: Array, bends: Array) -> Array:
        """Better steps, from the second derivatives that these steps found."""
        xp = self.objective.layout.xp
        fallen = xp.abs(self._array(self.first_value) - value)
        fallen = xp.where(xp.isfinite(fallen), fallen, xp.zeros_like(fallen))
        size = xp.maximum(xp.abs(value), fallen)
        size = xp.where(size > 0.0, size, xp.ones_like(size))[..., None]
        length = xp.sqrt(2.0 * size / xp.abs(bends))
        known = xp.isfinite(length) & (length > 0.0)
        # A longer step shows more where nothing bends, a shorter one at the end of the domain.
        other = xp.where(xp.isfinite(bends), _MOST * step, step / _MOST)
        better = xp.where(known, share * length, other)
        return xp.minimum(xp.maximum(better, step / _MOST), _MOST * step)

    def _inside(self, x: Array, step: Array) -> tuple[Array, Array]:
        """A point next to x from which the steps to both sides stay within the bounds."""
        xp, bounds = self.objective.layout.xp, self.objective.bounds
        if bounds is None:
            return x, step
        low, high = bounds
        step = xp.minimum(step, 0.25 * (high - low))
        return xp.minimum(xp.maximum(x, low + step), high - step), step

    def _along(self, step: Array, i: int) -> Array:
        """The step along one variable."""
        xp = self.objective.layout.xp
        here = xp.arange(step.shape[-1], device=self.objective.backend.creation_device) == i
        return xp.where(here, step, xp.zeros_like(step))

    def _slopes(self, x: Array, step: Array, columns: Any = None) -> Array:
        """The Hessian by central differences of gradients; 0 in other than these rows."""
        x, step = self._inside(x, step)
        rows, nothing = [], self.objective.layout.xp.zeros_like(x)
        for i in range(x.shape[-1]):
            if columns is not None and i not in columns:
                rows.append(nothing)
                continue
            up, down = x + self._along(step, i), x - self._along(step, i)
            change = self._gradient(up) - self._gradient(down)
            rows.append(self._ratio(change, (up - down)[..., i][..., None]))
        return self.objective.layout.xp.stack(rows, axis=-2)

    def _bends(self, x: Array, value: Array, step: Array, columns: Any = None) -> Array:
        """The diagonal of the Hessian by second differences of values; 0 at other places."""
        at, step = self._inside(x, step)
        if at is not x:
            value = self._value(at)
        rows, nothing = [], self.objective.layout.xp.zeros_like(x[..., 0])
        for i in range(x.shape[-1]):
            if columns is not None and i not in columns:
                rows.append(nothing)
                continue
            up, down = at + self._along(step, i), at - self._along(step, i)
            change = self._value(up) + self._value(down) - 2.0 * value
            rows.append(self._ratio(change, (0.5 * (up - down)[..., i]) ** 2))
        return self.objective.layout.xp.stack(rows, axis=-1)

    def _mixed(self, x: Array, step: Array, bends: Array) -> Array:
        """The Hessian with this diagonal, by differences of values at the corners of squares."""
        xp, n = self.objective.layout.xp, x.shape[-1]
        x, step = self._inside(x, step)
        columns = [[bends[..., i]] * n for i in range(n)]
        for i, k in itertools.combinations(range(n), 2):
            a, b = self._along(step, i), self._along(step, k)
            change = self._value(x + a + b) - self._value(x + a - b)
            change = change - self._value(x - a + b) + self._value(x - a - b)
            found = self._ratio(change, 4.0 * step[..., i] * step[..., k])
            columns[i][k] = columns[k][i] = found
        return xp.stack([xp.stack(column, axis=-1) for column in columns], axis=-1)

    @np.errstate(all="ignore")
    def _ratio(self, change: Array, width: Array) -> Array:
        """change / width; 0 for a variable that is fixed."""
        xp = self.objective.layout.xp
        return xp.where(width > 0.0, change / width, xp.zeros_like(change))

    def _value(self, x: Array) -> Array:
        objective = self.objective
        return self._array(objective.value(x) if objective.differs else objective.evaluate(x)[0])

    def _gradient(self, x: Array) -> Array:
        return self.objective.evaluate(x)[1]

    def _array(self, value: Any) -> Array:
        backend = self.objective.backend
        value = value if is_array(value) else backend.full((), value)
        return self.objective.layout.xp.astype(value, backend.dtype, copy=False)
