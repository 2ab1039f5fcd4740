"""Fitted parameters as differentiable functions of the data; see `lbfgs_xp.run.implicit`.

The Hessian is that of the cost, by differentiating its gradient, and not J^T J, whose diagonal only
gives the units of the parameters. (As a preconditioner, its inverse would hide a singular Hessian.)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from lbfgs_xp.arrays.backend import Array
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import flatten, map_leaves
from lbfgs_xp.fits.data import Curve, adopted, pure_weights, without_left_out
from lbfgs_xp.fits.losses import ResidualLoss
from lbfgs_xp.fits.residuals import Residuals
from lbfgs_xp.run.implicit import Found, Point, Problem, warn_of_failure
from lbfgs_xp.run.objective import Evaluation

# What depends on the data as well, but has no derivatives.
_OTHERS = ("covariance", "stderr", "fun", "jac", "residuals", "optimality", "log_likelihood")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Half the sum of the losses of residuals, a function of nested parameters and arguments.

    residuals : a function of the same, with values (..., m).
    """

    # See `Backend.jit`.
    wrapped_functions: ClassVar = ("residuals",)

    residuals: Any
    loss: ResidualLoss
    space: Space

    def __call__(self, params: Any, *args: Any) -> Array:
        space = self.space
        return space.sum(self.loss.terms(space.xp, self.residuals(params, *args)))


@dataclasses.dataclass(frozen=True)
class FromData:
    """The residuals of a model as a function of parameters, x, y and sigma."""

    # See `Backend.jit`.
    wrapped_functions: ClassVar = ("curve",)

    curve: Curve

    def __call__(self, params: Any, x: Any, y: Array, sigma: Any) -> Array:
        backend = self.curve.backend.for_traced()
        weights = pure_weights(sigma, y, backend)
        x, y = adopted(x, backend, "x"), without_left_out(weights, y)
        return dataclasses.replace(self.curve, backend=backend)(params, x, y, weights)


def found_of_fit(
    result: Any, objective: Residuals, box: Any, loss: ResidualLoss, residuals: Any, of_cost: float,
    cost: str,
) -> Found:
    """The end of a fit, to be differentiated.

    residuals : the function of the parameters and of the arguments that are differentiated.
    cost, of_cost : the field of the result that is this multiple of the cost.
    """
    layout = objective.layout
    xp, batched = layout.xp, layout.batched
    space = Space(layout.backend, batched)
    x = layout.to_vector(result.x, "x")
    rows = xp.reshape(x, (-1, layout.size))
    free = None
    if box is not None:
        free = (rows > box[0]) & (rows < box[1])
    units = _inverse_squares(xp, objective.jacobian(rows, objective(rows)))
    if not batched:
        units, free = units[0, ...], None if free is None else free[0, ...]
    function = Cost(residuals, loss, space)
    problem = Problem(
        Evaluation(function, None, False, layout), space, _product, objective.compiled
    )
    warn_of_failure(space, result.success)

    def completed(result: Any, x: Array, value: Any, gradient: Array, aux: Any) -> Any:
        tree = layout.for_traced().to_tree(x)
        result = dataclasses.replace(result, x=tree, **{cost: of_cost * value})
        without = functools.partial(layout.backend.without_derivative, x)
        return dataclasses.replace(result, **{
            field.name: map_leaves(without, getattr(result, field.name))
            for field in dataclasses.fields(result) if field.name in _OTHERS
        })

    return Found(result, problem, Point(x, free, units, result.success), (), completed)


def _inverse_squares(xp: Any, jacobian: Array) -> Array:
    """1 / |J_j|^2 for the columns of a Jacobian: (..., m, p) -> (..., p)."""
    squares = xp.sum(jacobian * jacobian, axis=-2)
    return 1.0 / xp.where(squares > 0.0, squares, xp.ones_like(squares))


def _product(space: Space, diagonal: Array, vector: Array) -> Array:
    return diagonal * vector


def refuse_masks(*data: Any) -> None:
    """Refuse masked arrays, whose masks the data to be differentiated do not have."""
    if any(map(np.ma.isMaskedArray, flatten(data)[0])):
        raise TypeError(
            "the data hold a masked array; wanted, for a differentiable fit, an infinite sigma for "
            "the points to leave out"
        )
