"""Fits with `minimize`, for comparison with Levenberg-Marquardt."""

from __future__ import annotations

from typing import Any

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.fits.residuals import Residuals
from lbfgs_xp.fits.result import BatchLeastSquaresResult, LeastSquaresResult
from lbfgs_xp.fits.settings import FitPlan
from lbfgs_xp.minimize import minimize


def fit_by_minimize(
    objective: Residuals, box: Any, plan: FitPlan, settings: dict[str, Any]
) -> LeastSquaresResult:
    """Minimise the cost with L-BFGS.

    box : None or the bounds (B, p), between which differences stay.
    """
    layout, batched = objective.layout, objective.layout.batched
    objective.bounds = box
    x_scale = None if plan.scale is None else layout.xp.reshape(1.0 / plan.scale, layout.shape)
    res = minimize(
        _Cost(objective, plan), layout.start(), method="lbfgs", jac=True, batched=batched,
        pass_rows=batched, x_scale=x_scale, on_error=plan.on_error, **settings,
    )
    x = layout.xp.reshape(res.x, (-1, layout.size))
    residuals = objective(x)
    jacobian = objective.jacobian(x, residuals)
    kind: type[Any] = BatchLeastSquaresResult if batched else LeastSquaresResult
    return kind(
        x=layout.to_tree(res.x),
        cost=res.fun,
        fun=residuals if batched else residuals[0, ...],
        jac=jacobian if batched else jacobian[0, ...],
        optimality=res.gradient_norm,
        nit=res.nit,
        nfev=objective.calls.nfev,
        njev=objective.calls.njev,
        derivatives=objective.derivatives,
        success=res.success,
        status=res.status,
        message=res.message,
    )


class _Cost:
    """The cost of a fit and its gradient, as a function for `minimize`."""

    def __init__(self, objective: Residuals, plan: FitPlan):
        self.objective, self.plan = objective, plan
        self.layout = objective.layout
        self.space = Space(self.layout.backend, batched=True)
        # The rows last evaluated, on the device and on the host, with their residuals; and the
        # latest x of all rows.
        self._here: tuple[Any, Any, Residuals] = None, None, objective
        self._latest = self.layout.xp.reshape(self.layout.start(), (-1, self.layout.size))

    def __call__(self, vector: Array, rows: Any = None) -> tuple[Any, Array]:
        layout, space, loss = self.layout, self.space, self.plan.settings.loss
        xp = layout.xp
        residuals, jacobian = self._evaluate(xp.reshape(vector, (-1, layout.size)), rows)
        with np.errstate(all="ignore"):    # trials far away may overflow
            squares, others = loss.weights(xp, residuals, layout.backend.eps)
            value = space.sum(loss.terms(xp, residuals))
            columns = xp.matrix_transpose(jacobian)
            gradient = space.products(columns, squares * others * residuals)
        return (value, gradient) if layout.batched else (value[0], gradient[0, ...])

    def _evaluate(self, x: Array, rows: Any) -> tuple[Array, Array]:
        """The residuals of these rows and their Jacobian."""
        objective, compact = self.objective, self.plan.compact
        if rows is not self._here[0]:
            numbers = self.layout.backend.to_host(rows)
            if len(numbers) == self.layout.batch[0]:
                self._here = rows, None, objective
            else:
                self._here = rows, numbers, objective.take(numbers) if compact else objective
        _, numbers, part = self._here
        if numbers is None or compact:
            residuals = part(x)
            return residuals, part.jacobian(x, residuals)
        self._latest = self.space.put(numbers, x, self._latest)
        residuals = part(self._latest)
        return self.space.take((residuals, part.jacobian(self._latest, residuals)), numbers)
