"""The answers of one fit of a batch, which are asked and told as those of a single fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array, is_array
from lbfgs_xp.arrays.tree import map_leaves
from lbfgs_xp.fits import pictures
from lbfgs_xp.fits.intervals import Intervals, IntervalStatus, Profile


class RowAnswers:
    """The answers of row `number` of a batch.

    fit, answers : of the batch: of this row alone if the model may be called with single rows,
        otherwise of all.
    """

    def __init__(self, fit: Any, answers: Any, number: int):
        if answers.compact:
            (fit, answers), number = answers.alone(fit, number), 0
        self.fit, self.answers, self.number = fit, answers, number

    @property
    def layout(self) -> Any:
        return self.answers.layout

    @property
    def order(self) -> np.ndarray:
        return self.answers.order

    @property
    def free(self) -> np.ndarray:
        return self.answers.free

    def at_bounds(self, x: Any) -> np.ndarray:
        return self.answers.at_bounds(self.fit.x)[self.number :][:1]

    def _row(self, tree: Any) -> Any:
        """The row of arrays whose first axis is that of the batch."""
        return map_leaves(lambda leaf: leaf[self.number, ...], tree)

    def jacobian(self, x: Any) -> Array:
        return self._row(self.answers.jacobian(self.fit.x))

    def intervals(self, fit: Any, level: float) -> Intervals:
        found = self.answers.intervals(self.fit, level)
        low, high, below, above = map(
            self._row, (found.low, found.high, found.low_status, found.high_status)
        )
        to_host = self.layout.backend.to_host
        success = bool(to_host(found.success)[self.number])
        status = self.answers.whole_vector(found.low_status)[self.number]
        lower = (status == int(IntervalStatus.LOWER)).any()
        better = self._row(found.better) if lower else None
        return Intervals(low, high, below, above, level, success, better)

    def profile(self, fit: Any, parameter: Any, values: Any, size: int) -> Profile:
        found = self.answers.profile(self.fit, parameter, values, size)
        return Profile(found.name, *map(self._row, (found.values, found.delta, found.x)))

    def contour(
        self, fit: Any, one: Any, other: Any, level: float, size: int, progress: bool
    ) -> Any:
        return self._row(self.answers.contour(self.fit, one, other, level, size, progress))

    def predict(self, fit: Any, x: Any) -> Any:
        return self._row(self.answers.predict(self.fit, x))

    def band(self, fit: Any, x: Any, level: float, sigma: Any) -> tuple[Any, Any]:
        low, high = map(self._row, self.answers.band(self.fit, x, level, sigma))
        return low, high

    def propagate(self, fit: Any, function: Callable[[Any], Any]) -> tuple[Any, Any]:
        backend, (count,) = self.layout.backend, self.layout.batch

        def of_all(tree: Any) -> Array:
            found = function(self._row(tree))
            if not is_array(found):
                found = backend.adopt(found, "what function returned")
            return backend.xp.broadcast_to(found[None, ...], (count, *found.shape))

        value, error = map(self._row, self.answers.propagate(
            self.fit, of_all if callable(function) else function
        ))
        if tuple(value.shape) == ():
            return float(backend.to_host(value)), float(backend.to_host(error))
        return value, error

    def sample(self, fit: Any, size: int, seed: Any) -> Any:
        return self._row(self.answers.sample(self.fit, size, seed))

    def bootstrap(self, fit: Any, size: int, seed: Any) -> Any:
        return self._row(self.answers.bootstrap(self.fit, size, seed))

    def plot(self, fit: Any, level: float, row: int) -> Any:
        return self.answers.plot(self.fit, level, self.number)

    def plot_profiles(self, fit: Any, size: int) -> Any:
        answers: Any = self
        return pictures.plot_profiles(fit, answers, size)

    def plot_contours(self, fit: Any, size: int, progress: bool) -> Any:
        answers: Any = self
        return pictures.plot_contours(fit, answers, size, progress)
