"""What can be asked of a fit in chunks: all but what needs the data side by side."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.fits.answers import Answers
from lbfgs_xp.fits.chunks import Chunks


class ChunkAnswers(Answers):
    """The answers of a fit in chunks, in which every row is a fit alone."""

    def groups(self, numbers: np.ndarray, wanted: Any = None) -> list[np.ndarray]:
        rows = np.arange(numbers.size) if wanted is None else np.flatnonzero(wanted)
        return [rows[i : i + 1] for i in range(rows.size)]

    def rows(self, numbers: np.ndarray, start: Array, lengths: Any = None) -> Any:
        chunks: Any = self.objective
        return ChunkRows(chunks.again(self.send(start)[0, ...]), self)

    def predict(self, fit: Any, x: Any) -> Any:
        return self._refuse("x") if x is None else super().predict(fit, x)

    def band(self, fit: Any, x: Any, level: float, sigma: Any) -> tuple[Any, Any]:
        return self._refuse("x") if x is None else super().band(fit, x, level, sigma)

    def jacobian(self, x: Any) -> NoReturn:
        self._refuse("band()")

    def bootstrap(self, fit: Any, size: int, seed: Any) -> NoReturn:
        self._refuse("intervals() or sample()")

    def plot(self, fit: Any, level: float, row: int) -> NoReturn:
        self._refuse("plot_profiles()")

    def _refuse(self, wanted: str) -> NoReturn:
        raise ValueError(
            f"the data were fitted in chunks, of which only sums are kept; wanted {wanted}"
        )


@dataclasses.dataclass(frozen=True)
class ChunkRows:
    """`Rows` for one row: norms (1, k), and a Jacobian (1, k, p) in their coordinates."""

    residuals: Chunks
    analysis: ChunkAnswers

    def __call__(self, x: Array) -> Array:
        analysis = self.analysis
        found = analysis.call(self.residuals, analysis.send(x)[0, ...])
        return analysis.fetch(found)[None, ...]

    def jacobian(self, x: Array, residuals: Array) -> Array:
        analysis, columns = self.analysis, self.residuals.columns
        found = analysis.call(
            columns, *(analysis.send(array)[0, ...] for array in (x, residuals))
        )
        return analysis.backend.xp.matrix_transpose(analysis.fetch(found))[None, ...]
