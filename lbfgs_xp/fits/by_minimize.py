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
    objective: Residuals, plan: FitPlan, settings: dict[str, Any]
) -> LeastSquaresResult:
    """Minimise the cost with L-BFGS."""
    layout, xp = objective.layout, objective.layout.xp
    loss = plan.settings.loss
    space = Space(layout.backend, batched=True)

    # The rows last evaluated, on the device and on the host, with their residuals; and the latest
    # x of all rows.
    here: tuple[Any, Any, Residuals] = None, None, objective
    latest = xp.reshape(layout.start(), (-1, layout.size))

    def evaluate(x: Array, rows: Any) -> tuple[Array, Array]:
        """The residuals of these rows and their Jacobian."""
        nonlocal here, latest
        if rows is not here[0]:
            numbers = layout.backend.to_host(rows)
            if len(numbers) == layout.batch[0]:
                here = rows, None, objective
            else:
                here = rows, numbers, objective.take(numbers) if plan.compact else objective
        _, numbers, part = here
        if numbers is None or plan.compact:
            residuals = part(x)
            found = residuals, part.jacobian(x, residuals)
        else:
            latest = space.put(numbers, x, latest)
            residuals = part(latest)
            found = space.take((residuals, part.jacobian(latest, residuals)), numbers)
        return found

    def fun(vector: Array, rows: Any = None) -> tuple[Any, Array]:
        residuals, jacobian = evaluate(xp.reshape(vector, (-1, layout.size)), rows)
        with np.errstate(all="ignore"):    # trials far away may overflow
            squares, others = loss.weights(xp, residuals, layout.backend.eps)
            value = space.sum(loss.terms(xp, residuals))
            columns = xp.matrix_transpose(jacobian)
            gradient = space.products(columns, squares * others * residuals)
        return (value, gradient) if layout.batched else (value[0], gradient[0, ...])

    batched = layout.batched
    res = minimize(
        fun, layout.start(), method="lbfgs", jac=True, batched=batched, pass_rows=batched,
        **settings,
    )
    x = xp.reshape(res.x, (-1, layout.size))
    residuals = objective(x)
    jacobian = objective.jacobian(x, residuals)
    kind: type[Any] = BatchLeastSquaresResult if batched else LeastSquaresResult
    return kind(
        x=layout.to_tree(res.x),
        cost=res.fun,
        fun=residuals if layout.batched else residuals[0, ...],
        jac=jacobian if layout.batched else jacobian[0, ...],
        optimality=res.gradient_norm,
        nit=res.nit,
        nfev=objective.calls.nfev,
        njev=objective.calls.njev,
        success=res.success,
        status=res.status,
        message=res.message,
    )
