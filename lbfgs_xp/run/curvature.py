"""The Hessian at the end of a run: given, by automatic differentiation, or by central differences.

The step along each variable is eps^(1/3) L for differences of gradients and eps^(1/4) L for second
differences of values, where L is the distance over which the value changes by its size, or by as
much as it has fallen in the run: L = sqrt(2 F / |H_ii|). H_ii comes from a first try.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.run.objective import Objective

# How often steps are chosen, by which factor they must be off to be chosen again, and by how much
# they change at most.
_TRIES, _OFF, _MOST = 4, 10.0, 1e3


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
        return self._mixed(x, step, bends) if of_values else matrix

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

    def _slopes(self, x: Array, step: Array) -> Array:
        """The Hessian by central differences of gradients."""
        x, step = self._inside(x, step)
        rows = []
        for i in range(x.shape[-1]):
            up, down = x + self._along(step, i), x - self._along(step, i)
            change = self._gradient(up) - self._gradient(down)
            rows.append(self._ratio(change, (up - down)[..., i][..., None]))
        return self.objective.layout.xp.stack(rows, axis=-2)

    def _bends(self, x: Array, value: Array, step: Array) -> Array:
        """The diagonal of the Hessian by second differences of values."""
        at, step = self._inside(x, step)
        if at is not x:
            value = self._value(at)
        rows = []
        for i in range(x.shape[-1]):
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
