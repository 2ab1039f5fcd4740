"""What a fit keeps so that its result can call the model again, and the rows in which it does."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.fits.names import sorted_places
from lbfgs_xp.fits.residuals import Residuals
from lbfgs_xp.fits.settings import FitSettings


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """The model, the data and the settings of a fit: nothing that the user has not passed.

    objective : the residuals of all rows.
    box : None, or the bounds (B, p) each.
    compact : whether the model may be called with some of the rows.
    """

    objective: Residuals
    box: Any
    settings: FitSettings
    compact: bool

    def __post_init__(self) -> None:
        # What the differences of the last points of the fit know is not needed again.
        self.objective.differences.known = ()

    def vector(self, tree: Any) -> Array:
        """Parameters like the result's x as vectors (B, p)."""
        layout = self.objective.layout.whole
        vector = layout.to_vector(tree, "x")
        return layout.xp.reshape(vector, (-1, layout.size))

    def jacobian(self, x: Any) -> Array:
        """The derivatives of the model (m, p), or (B, m, p), in the order of x."""
        layout = self.objective.layout
        model = self.of_model(self.objective.args[0], self.objective.args[1])
        vector = self.vector(x)
        jacobian = model.jacobian(vector, model(vector))
        jacobian = self.listed(jacobian)
        return jacobian if layout.batched else jacobian[0, ...]

    def of_model(self, x: Any, like: Array) -> Residuals:
        """The model at the coordinates x as residuals of data that are 0, without weights.

        like : an array of the shape that the model returns.
        """
        objective, xp = self.objective, self.objective.layout.xp
        zeros = xp.zeros_like(like)
        return Residuals(
            objective.fun, (x, zeros, None), objective.jac, objective.layout.whole,
            objective.compiled,
            shared=tuple(like.shape[-1:]), whole=objective.whole,
        )

    def listed(self, array: Array) -> Array:
        """An array (..., p) whose last axis has the order of the vector, in the order of x."""
        layout = self.objective.layout.whole
        places = sorted_places(layout)
        if places is None:
            return array
        order = layout.backend.index_array(np.argsort(np.asarray(places)))
        return layout.xp.take(array, order, axis=-1)
