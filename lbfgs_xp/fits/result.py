"""The outcome of `lx.least_squares`, and what callbacks receive."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout, Partial
from lbfgs_xp.fits.covariance import deviations, root_of_inverse, scaled_root, square
from lbfgs_xp.fits.jacobian import Products
from lbfgs_xp.fits.names import listed_order
from lbfgs_xp.result import Status, table


class FitRecord(NamedTuple):
    """What the callback of a fit receives after each accepted step.

    x, cost, fun, nit : as in `lx.LeastSquaresResult`, for the current point; for a batch as in
        `lx.BatchLeastSquaresResult`, after each step that some of its problems accept.
    nfev : int, the calls of the residuals so far.
    """

    x: Any
    cost: Any
    fun: Any
    nit: Any
    nfev: int


@dataclasses.dataclass(frozen=True)
class LeastSquaresResult:
    """The outcome of `lx.least_squares`; for a batch see `lx.BatchLeastSquaresResult`.

    Attributes
    ----------
    x : like x0
        The point with the lowest cost, with the structure, library, device and dtype of x0.
    cost : float
        Half the sum of the squares of the residuals, or of their losses.
    fun : array (m,)
        The residuals at x.
    jac : array (m, p)
        Their Jacobian, with columns in the order of the leaves of x0, those of a dict by sorted
        keys. With solver="dual" or "cg": an operator of this `shape` with `matvec(v)` and
        `rmatvec(u)`.
    optimality : float
        max |J_j . r| / (|J_j| |r|) over the columns J_j of the Jacobian, without those of
        parameters held at a bound: the cosine of the smallest angle between a column and the
        residuals (the test of MINPACK for gtol).
    nit : int
        Steps taken.
    nfev, njev : int
        Calls of the residuals, including those for finite differences, and evaluations of the
        Jacobian.
    derivatives : "automatic", "given", "2-point" or "3-point"
        Where the Jacobian at the end comes from: automatic differentiation, the function jac, or
        finite differences to one side or to both.
    success, status, message
        Whether the run succeeded, and why it ended; see `lx.Status`.
    costs : None, or nested like what residuals returns
        With `weights`: the cost of each block of residuals, with its weight.
    covariance, stderr
        Computed when they are asked for; see there.
    """

    x: Any
    cost: float
    fun: Any = dataclasses.field(repr=False)
    jac: Any = dataclasses.field(repr=False)
    optimality: float
    nit: int
    nfev: int
    njev: int
    derivatives: str
    success: bool
    status: Status
    message: str
    costs: Any = dataclasses.field(default=None, repr=False)
    # How many residuals have the weight 0.
    _left_out: int = dataclasses.field(default=0, repr=False)

    def __repr__(self) -> str:
        return table(self)

    @functools.cached_property
    def covariance(self) -> Any:
        """The covariance (p, p) of the numbers of x, in the order in which x lists them, as
        `lx.curve_fit` estimates it: s^2 (J^T J)^-1 with s^2 = 2 cost / (m - p); for a batch
        (B, p, p). Residuals whose weight is 0 do not count in m.

        It holds for the linear loss and parameters away from their bounds. If the residuals do not
        determine all parameters, it covers only the directions that they do determine; it is
        infinite if m <= p.
        """
        covariance, backend = self._errors[0], Backend.of(self.jac, traced=True)
        order = listed_order(Layout(self.x, self.jac.ndim == 3, traced=True))
        if (order == np.arange(order.size)).all():
            return covariance
        places, take = backend.index_array(order), backend.xp.take
        return take(take(covariance, places, axis=-1), places, axis=-2)

    @functools.cached_property
    def stderr(self) -> Any:
        """The standard deviations of the parameters, like x: the square roots of the diagonal of
        `covariance`; infinite for parameters that the residuals do not determine, and 0 for
        tensors that are frozen."""
        layout = Layout(self.x, self.jac.ndim == 3, traced=True)
        if isinstance(layout.structure, Partial):
            zero = layout.xp.zeros_like
            frozen = {i: zero(leaf) for i, leaf in layout.structure.frozen.items()}
            layout.structure = Partial(layout.structure.whole, frozen)
        return layout.to_tree(self._errors[1])

    @functools.cached_property
    def _errors(self) -> tuple[Array, Array]:
        if isinstance(self.jac, Products):
            raise ValueError(
                "the Jacobian of this result is an operator, because of its solver; wanted a "
                'result of solver="dense" for a covariance'
            )
        backend = Backend.of(self.jac, traced=True)
        xp, space = backend.xp, Space(backend, batched=True)
        m, p = self.jac.shape[-2:]
        with np.errstate(all="ignore"):
            jacobian = xp.reshape(self.jac, (-1, m, p))
            root, loose = root_of_inverse(0.0, space, jacobian)
            residuals = xp.reshape(self.fun, (-1, m))
            squares, over = space.dot(residuals, residuals), m - self._left_out - p
            root = scaled_root(space, root, squares / over if over > 0 else math.nan * squares)
            covariance, stderr = square(space, root), deviations(space, root, loose)
        if self.jac.ndim == 2:
            return covariance[0, ...], stderr[0, ...]
        return covariance, stderr


@dataclasses.dataclass(frozen=True, repr=False)
class BatchLeastSquaresResult(LeastSquaresResult):
    """The outcome of `lx.least_squares` with batched=True, for B problems.

    The attributes are those of `lx.LeastSquaresResult`, but `cost`, `optimality`, `nit`, `success`
    and `status` are arrays (B,) of the library of x0, `fun` and `jac` have shapes (B, m) and
    (B, m, p), and `message` is a list of B strings. `status` holds the integers of `lx.Status`.
    """

    cost: Any
    optimality: Any
    nit: Any
    success: Any
    status: Any
    message: list[str]  # type: ignore[assignment]
