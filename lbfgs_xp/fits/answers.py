"""The questions that the result of `lx.curve_fit` answers by calling the model again.

The methods of `CurveFit` have their documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lbfgs_xp import checks
from lbfgs_xp.fits import pictures, predictions, profile
from lbfgs_xp.fits.analysis import Analysis
from lbfgs_xp.fits.answers_of_row import RowAnswers
from lbfgs_xp.fits.intervals import Intervals, Profile


class Answers(Analysis):
    """What a fit keeps, and what can be asked of it; `fit` is the result that asks."""

    def intervals(self, fit: Any, level: float) -> Intervals:
        with self.asked():
            return profile.intervals(fit, self, level)

    def profile(self, fit: Any, parameter: Any, values: Any, size: int) -> Profile:
        with self.asked():
            return profile.profile(fit, self, parameter, values, size)

    def contour(
        self, fit: Any, one: Any, other: Any, level: float, size: int, progress: bool
    ) -> Any:
        (progress,) = checks.flags(progress=progress)
        with self.asked(f"contour of {one}, {other}", progress):
            return profile.contour(fit, self, one, other, level, size)

    def predict(self, fit: Any, x: Any) -> Any:
        with self.asked():
            return predictions.predict(fit, self, x)

    def band(self, fit: Any, x: Any, level: float, sigma: Any) -> tuple[Any, Any]:
        with self.asked():
            return predictions.band(fit, self, x, level, sigma)

    def propagate(self, fit: Any, function: Callable[[Any], Any]) -> tuple[Any, Any]:
        with self.asked():
            return predictions.propagate(fit, self, function)

    def sample(self, fit: Any, size: int, seed: Any) -> Any:
        with self.asked():
            return predictions.sample(fit, self, size, seed)

    def bootstrap(self, fit: Any, size: int, seed: Any) -> Any:
        with self.asked():
            return predictions.bootstrap(fit, self, size, seed)

    def row(self, fit: Any, number: int) -> RowAnswers:
        with self.layout.backend.current():
            return RowAnswers(fit, self, number)

    def plot(self, fit: Any, level: float, row: int) -> Any:
        return pictures.plot(fit, self, level, row)

    def plot_profiles(self, fit: Any, size: int) -> Any:
        return pictures.plot_profiles(fit, self, size)

    def plot_contours(self, fit: Any, size: int, progress: bool) -> Any:
        return pictures.plot_contours(fit, self, size, progress)
