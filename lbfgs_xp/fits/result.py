"""The outcomes of `lx.least_squares` and `lx.curve_fit`."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple, NoReturn

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout, flatten
from lbfgs_xp.fits.covariance import deviations, inverse_of_squares
from lbfgs_xp.result import Status, table


class FitRecord(NamedTuple):
    """What the callback of `lx.least_squares` receives after each accepted step.

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
        Their Jacobian, with columns in the order of the leaves of x0.
    optimality : float
        max |J_j . r| / (|J_j| |r|) over the columns J_j of the Jacobian, without those of
        parameters held at a bound: the cosine of the smallest angle between a column and the
        residuals (the test of MINPACK for gtol).
    nit : int
        Steps taken.
    nfev, njev : int
        Calls of the residuals, including those for finite differences, and evaluations of the
        Jacobian.
    success, status, message
        Whether the run succeeded, and why it ended; see `lx.Status`.
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
    success: bool
    status: Status
    message: str

    def __repr__(self) -> str:
        return table(self)

    @functools.cached_property
    def covariance(self) -> Any:
        """The covariance (p, p) of the numbers of x, in the order of its leaves, as `lx.curve_fit`
        estimates it: s^2 (J^T J)^-1 with s^2 = 2 cost / (m - p); for a batch (B, p, p).

        It holds for the linear loss and parameters away from their bounds. If the residuals do not
        determine all parameters, it covers only the directions that they do determine; it is
        infinite if m <= p.
        """
        return self._errors[0]

    @functools.cached_property
    def stderr(self) -> Any:
        """The standard deviations of the parameters, like x: the square roots of the diagonal of
        `covariance`; infinite for parameters that the residuals do not determine."""
        batched = self.jac.ndim == 3
        return Layout(self.x, batched).to_tree(self._errors[1])

    @functools.cached_property
    def _errors(self) -> tuple[Array, Array]:
        backend = Backend.of(self.jac)
        xp, space = backend.xp, Space(backend, batched=True)
        m, p = self.jac.shape[-2:]
        with np.errstate(all="ignore"):
            jacobian = xp.reshape(self.jac, (-1, m, p))
            inverse, loose = inverse_of_squares(0.0, space, jacobian)
            squares = xp.reshape(self.fun, (-1, m))
            covariance = xp.full_like(inverse, math.inf)
            if m > p:
                covariance = inverse * (space.dot(squares, squares) / (m - p))[:, None, None]
            stderr = deviations(space, covariance, loose)
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


@dataclasses.dataclass(frozen=True)
class CurveFit:
    """The outcome of `lx.curve_fit`; for a batch see `lx.BatchCurveFit`.

    Attributes
    ----------
    x : like p0
        The parameters, in the structure of p0.
    covariance : array (p, p)
        Their covariance, for all p numbers in the order in which `x` and `stderr` list them (see
        also `covariance_of`). If the data do not
        determine all parameters, it covers only the directions that they do determine; if there are
        no more data than parameters and absolute_sigma is False, it is infinite.
    stderr : like p0
        The standard deviations of the parameters, the square roots of the diagonal of `covariance`;
        infinite for parameters that the data do not determine.
    chi2 : float
        The sum of ((y - model) / sigma)^2, or of the losses instead of the squares.
    reduced_chi2 : float
        chi2 / (m - p), for m data and p parameters that are not fixed; nan if m <= p.
    r2 : float
        1 - sum of squares / sum of squares of the best constant: 1 for a perfect fit.
    residuals : array (m,)
        y - model, in the unit of y.
    nit : int
        Steps taken.
    nfev, njev : int
        Calls of the model, including those for finite differences, and evaluations of its Jacobian.
    success, status, message
        Whether the fit succeeded, and why it ended; see `lx.Status`.
    """

    x: Any
    covariance: Any = dataclasses.field(repr=False)
    stderr: Any
    chi2: float
    reduced_chi2: float
    r2: float
    residuals: Any = dataclasses.field(repr=False)
    nit: int
    nfev: int
    njev: int
    success: bool
    status: Status
    message: str

    def __repr__(self) -> str:
        return table(self)

    def covariance_of(self, one: str, other: str | None = None) -> Any:
        """The part of `covariance` that belongs to two parameters of a dict, or to one.

        Parameters
        ----------
        one, other : names of p0; other=None: the same as `one`.

        Returns
        -------
        array (k, l), for parameters of k and l numbers; (B, k, l) for a batch

        Raises
        ------
        TypeError, KeyError
            If p0 is no dict, or has no parameter of this name.

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x, start = np.arange(5.0), {"slope": 1.0, "offset": 0.0}
        >>> model = lambda x, slope, offset: offset + slope * x
        >>> y = np.asarray([0.1, 1.0, 2.1, 2.9, 4.0])
        >>> fit = lx.curve_fit(model, x, y, start, jac="3-point")
        >>> bool(fit.covariance_of("slope", "offset")[0, 0] == fit.covariance[0, 1])
        True
        """
        if not isinstance(self.x, dict):
            raise TypeError(f"p0 is a {type(self.x).__name__}; wanted a dict, whose names to use")
        batch, places, start = self.covariance.ndim - 2, {}, 0
        for name, part in self.x.items():
            size = sum(math.prod(leaf.shape[batch:]) for leaf in leaves_in_order(part))
            places[name] = slice(start, start + size)
            start += size
        rows, columns = places[one], places[one if other is None else other]
        return self.covariance[..., rows, columns]

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "the result of curve_fit is a single object, not a pair to unpack; wanted "
            "fit = lx.curve_fit(...), then fit.x and fit.covariance"
        )


@dataclasses.dataclass(frozen=True, repr=False)
class BatchCurveFit(CurveFit):
    """The outcome of `lx.curve_fit` with batched=True, for B fits.

    The attributes are those of `lx.CurveFit`, but `chi2`, `reduced_chi2`, `r2`, `nit`, `success`
    and `status` are arrays (B,) of the library of y, `covariance` and `residuals` have shapes
    (B, p, p) and (B, m), and `message` is a list of B strings. `status` holds the integers of
    `lx.Status`. If the batch is fitted in pieces, `nfev` and `njev` are the largest counts of any
    piece.
    """

    chi2: Any
    reduced_chi2: Any
    r2: Any
    nit: Any
    success: Any
    status: Any
    message: list[str]  # type: ignore[assignment]


def leaves_in_order(tree: Any) -> list[Any]:
    """The leaves in the order in which the tree lists them; `flatten` sorts the keys of a dict."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    elif not isinstance(tree, (list, tuple)):
        return flatten(tree)[0]
    return [leaf for part in tree for leaf in leaves_in_order(part)]
