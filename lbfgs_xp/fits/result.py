"""The outcomes of `lx.least_squares` and `lx.curve_fit`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np

from lbfgs_xp.arrays.backend import Array, Backend
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import Layout, Partial, map_leaves
from lbfgs_xp.fits.covariance import deviations, inverse_of_squares
from lbfgs_xp.fits.distributions import chi2_above
from lbfgs_xp.fits.intervals import Intervals, Profile
from lbfgs_xp.fits.jacobian import Products
from lbfgs_xp.fits.names import listed_order, places_of, row_of
from lbfgs_xp.fits.summary import summary
from lbfgs_xp.result import Status, table

_STATUSES = {int(status): status for status in Status}


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
            inverse, loose = inverse_of_squares(0.0, space, jacobian)
            squares = xp.reshape(self.fun, (-1, m))
            covariance, over = xp.full_like(inverse, math.inf), m - self._left_out - p
            if over > 0:
                covariance = inverse * (space.dot(squares, squares) / over)[:, None, None]
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
        Their covariance, for all p numbers in the order in which p0 lists them, which is that of
        `names` (see also `covariance_of`). If the data do not determine all parameters, it covers
        only the directions that they do determine; if there are no more data than parameters and
        absolute_sigma is False, it is infinite.
    stderr : like p0
        The standard deviations of the parameters, the square roots of the diagonal of `covariance`;
        infinite for parameters that the data do not determine.
    chi2 : float
        The sum of ((y - model) / sigma)^2, or of the losses instead of the squares. For counts,
        sigma^2 is the variance by the model (Pearson's chi2); nan for the likelihood of a function.
    reduced_chi2 : float
        (chi2 + chi2_priors) / dof; nan if there are no degrees of freedom.
    deviance : float
        Twice the log likelihood that a prediction of its own for each datum would gain over the
        model: what the fit has made as small as possible, except for priors. With normal errors, it
        is chi2. For the likelihood of a function, as measured against the best prediction for each
        datum.
    chi2_priors : float
        The sum of the squares of the residuals of priors.
    r2 : float
        1 - sum of squares / sum of squares of the best constant: 1 for a perfect fit. For counts,
        the same of the deviances.
    residuals : array (m,)
        y - model, in the unit of y; for likelihood="binomial", y - trials model. None for data that
        were fitted in chunks. As y, they may be complex, and so are `jacobian` and `predict`.
    n_data, n_free : int
        The number of data, without points that an infinite sigma leaves out (a complex one counts
        as two); and of parameters, without those that are fixed or tied.
    n_priors : int
        How many parameters, or combinations of them, have priors.
    log_likelihood : float
        The logarithm of the likelihood of the data, without priors. For normal errors: of the
        standard deviations sigma with absolute_sigma=True, otherwise of the multiple of sigma (of 1
        without one) that makes it largest. nan with a robust loss, which is not a likelihood.
    absolute_sigma : bool
        As passed; True for the likelihood of counts, or of a function.
    names : tuple of str
        The names of the p numbers in the order of `covariance`: the keys of p0 ("k"; "peak.width"
        if it is nested; "heights[0]" in an array), otherwise the names of the model's arguments, or
        "x[0]", "x[1]" and so on if it does not name them.
    dof, p_value, aic, bic, correlation, jacobian
        Computed when they are asked for; see there.
    nit : int
        Steps taken.
    nfev, njev : int
        Calls of the model, including those for finite differences, and evaluations of its Jacobian.
    derivatives : "automatic", "given", "2-point" or "3-point"
        Where the Jacobian at the end comes from; see `lx.LeastSquaresResult`.
    success, status, message
        Whether the fit succeeded, and why it ended; see `lx.Status`.
    starts : None, or `lx.Starts`
        What became of the other starts, if there were any; `nfev` counts their calls, too.
    """

    x: Any
    covariance: Any = dataclasses.field(repr=False)
    stderr: Any
    chi2: float
    reduced_chi2: float
    deviance: float = dataclasses.field(repr=False)
    chi2_priors: float = dataclasses.field(repr=False)
    r2: float
    residuals: Any = dataclasses.field(repr=False)
    n_data: int = dataclasses.field(repr=False)
    n_free: int = dataclasses.field(repr=False)
    log_likelihood: float = dataclasses.field(repr=False)
    n_priors: int = dataclasses.field(repr=False)
    absolute_sigma: bool = dataclasses.field(repr=False)
    names: tuple[str, ...] = dataclasses.field(repr=False)
    nit: int
    nfev: int
    njev: int
    derivatives: str
    success: bool
    status: Status
    message: str
    starts: Any = dataclasses.field(default=None, repr=False)
    _analysis: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        return table(self)

    @property
    def dof(self) -> Any:
        """The degrees of freedom, n_data + n_priors - n_free; (B,) for a batch."""
        return self.n_data + self.n_priors - self.n_free

    @property
    def p_value(self) -> Any:
        """The probability that chi2 is at least as large, if the model is right and sigma holds the
        standard deviations of normal errors; (B,) for a batch.

        nan unless absolute_sigma=True and the loss is linear: without absolute deviations, chi2 is
        the measure of the errors, and nothing is left to compare it with. For counts, it is
        approximate, and of no use if most data have only a few.

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x, y = np.arange(5.0), np.asarray([0.1, 1.0, 2.1, 2.9, 4.0])
        >>> line = lambda x, slope, offset: offset + slope * x
        >>> fit = lx.curve_fit(
        ...     line, x, y, [1.0, 0.0], jac="3-point", sigma=0.1, absolute_sigma=True
        ... )
        >>> fit.dof, round(fit.p_value, 3), round(fit.chi2, 3)
        (3, 0.593, 1.9)
        """
        backend, told = self._told("chi2", "chi2_priors", "dof", "log_likelihood")
        chi2, of_priors, dof, likelihood = told
        usable = self.absolute_sigma & ~np.isnan(likelihood)
        found = np.where(usable, chi2_above(chi2 + of_priors, dof), np.nan)
        return backend.from_host(found) if found.ndim else float(found)

    @property
    def aic(self) -> Any:
        """Akaike's information criterion, 2 k - 2 log_likelihood; (B,) for a batch. Of two models
        for the same data, the one with the smaller value is expected to predict better.

        k is the number of free parameters, plus 1 with absolute_sigma=False for the scale of the
        errors, which is then estimated, too.
        """
        return 2.0 * self._estimated - 2.0 * self.log_likelihood

    @property
    def bic(self) -> Any:
        """Schwarz's information criterion, k log(n_data) - 2 log_likelihood, with k as in `aic`;
        (B,) for a batch."""
        backend, (n_data,) = self._told("n_data")
        logs = np.log(n_data)
        logs = backend.from_host(logs) if logs.ndim else float(logs)
        return self._estimated * logs - 2.0 * self.log_likelihood

    @property
    def correlation(self) -> Any:
        """The correlations (p, p) of the parameters, or (B, p, p), in the order of `covariance`;
        nan for parameters that are fixed or that the data do not determine.

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x, y = np.arange(5.0), np.asarray([0.1, 1.0, 2.1, 2.9, 4.0])
        >>> line = lambda x, slope, offset: offset + slope * x
        >>> fit = lx.curve_fit(line, x, y, [1.0, 0.0], jac="3-point")
        >>> fit.correlation.round(2)
        array([[ 1.  , -0.82],
               [-0.82,  1.  ]])
        """
        backend = Backend.of(self.covariance)
        xp, covariance = backend.xp, self.covariance
        p = covariance.shape[-1]
        with np.errstate(all="ignore"):
            one = xp.eye(p, dtype=xp.bool, device=backend.creation_device)
            own = xp.max(xp.where(one, covariance, xp.full_like(covariance, -math.inf)), axis=-1)
            own = xp.where((own > 0.0) & xp.isfinite(own), own, xp.full_like(own, math.nan))
            found = covariance / xp.sqrt(own[..., None] * own[..., None, :])
            known = xp.isfinite(found)
            return xp.where(one & known, xp.ones_like(found), found)

    @property
    def jacobian(self) -> Any:
        """The derivatives (m, p) of the model at x by the parameters, or (B, m, p), in the unit of
        y and in the order of `covariance`.

        It is not kept, but computed whenever it is asked for, from the model and the data that the
        result holds; copies and pickles do not hold them.
        """
        return self._kept().jacobian(self.x)

    @property
    def _dof_of_scale(self) -> np.ndarray:
        """From how many degrees of freedom the scale of the errors was estimated, () or (B,) on the
        host; inf if it is absolute."""
        _, (dof,) = self._told("dof")
        return np.where(self.absolute_sigma, math.inf, dof)

    @property
    def _estimated(self) -> Any:
        """How many numbers the data have determined."""
        return self.n_free + (0 if self.absolute_sigma else 1)

    def _told(self, *names: str) -> tuple[Backend, list[np.ndarray]]:
        """Numbers of the fit on the host, and the backend of the results."""
        backend = Backend.of(self.covariance)
        batched = self.covariance.ndim == 3
        values = (getattr(self, name) for name in names)
        return backend, [
            np.asarray(backend.to_host(value) if batched else value) for value in values
        ]

    def _kept(self) -> Any:
        if self._analysis is None:
            raise ValueError(
                "this result is a copy, or comes from a pickle or a compiled function, which do "
                "not keep the model and the data; wanted the result that lx.curve_fit has returned"
            )
        return self._analysis

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_analysis": None}

    def intervals(self, level: float = 0.6827) -> Intervals:
        """Confidence intervals of all parameters by profile likelihood (MINOS: James & Roos 1975).

        The ends are where chi2, with all other parameters fitted, is as far above that of the fit
        as the quantile of chi2 with one degree of freedom: by 1 for 68.27 %. Without
        absolute_sigma, differences of chi2 are divided by reduced_chi2, as in the covariance, and
        since that is an estimate with `dof` degrees of freedom, the limit is t^2, from the quantile
        of Student's t (Bates & Watts 1988, Nonlinear Regression Analysis, 6.1): 1.43 for 3 of them.
        A robust loss takes the place of the squares. Unlike multiples of `stderr`, the ends need
        not lie symmetrically, and do not depend on how the model is parametrised.

        All ends of all fits are found as one batch, from where the covariance says that they are.

        Parameters
        ----------
        level : float
            The probability that an interval holds the true value, between 0 and 1.

        Returns
        -------
        Intervals
            `low, high = fit.intervals()`, each like p0. At a bound of the parameter, the interval
            ends at the bound; where chi2 stays below the level, it is infinite; see
            `lx.IntervalStatus` and `Intervals.low_status`.

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x, y = np.arange(6.0), np.asarray([5.1, 2.4, 1.6, 0.5, 0.5, 0.1])
        >>> decay = lambda x, a, k: a * np.exp(-k * x)
        >>> fit = lx.curve_fit(decay, x, y, [1.0, 1.0], jac="3-point", sigma=0.3)
        >>> low, high = fit.intervals(0.95)
        >>> (low - fit.x).round(2), (high - fit.x).round(2)
        (array([-0.56, -0.13]), array([0.56, 0.17]))
        """
        return self._kept().intervals(self, level)

    def profile(self, parameter: str | int, values: Any = None, size: int = 41) -> Profile:
        """How far chi2 rises with one parameter held at values and the others fitted.

        Parameters
        ----------
        parameter : str or int
            A name, or a place, in `names`.
        values : None, an array (n,), or (B, n) for a batch
            The values; by default `size` of them, up to 3 standard errors to both sides, within the
            bounds.
        size : int

        Returns
        -------
        Profile
            `values` and `delta`, in the units of `intervals`.

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x, y = np.arange(5.0), np.asarray([0.1, 1.0, 2.1, 2.9, 4.0])
        >>> line = lambda x, slope, offset: offset + slope * x
        >>> fit = lx.curve_fit(line, x, y, [1.0, 0.0], jac="3-point")
        >>> fit.profile("slope", fit.x[0] + fit.stderr[0] * np.arange(4.0)).delta.round(6)
        array([0., 1., 4., 9.])
        """
        return self._kept().profile(self, parameter, values, size)

    def contour(
        self, one: str | int, other: str | int, level: float = 0.6827, size: int = 60,
        progress: bool = False,
    ) -> Any:
        """The border of the region that holds two parameters with a probability, by profile
        likelihood: with all others fitted, chi2 has risen by the quantile of chi2 with two degrees
        of freedom (2.30 for 68.27 %), in the units of `intervals`; without absolute_sigma, by twice
        that of F with 2 and `dof`.

        Parameters
        ----------
        one, other : str or int
            Names, or places, in `names`.
        level : float
            The probability that both are inside.
        size : int
            How many points, at least 8.
        progress : bool
            Whether to show a live status line.

        Returns
        -------
        array (size, 2), or (B, size, 2) for a batch
            Points along the border, which ends where it began: the values of both parameters. At
            each value of the first one, the second one is taken to have one range. nan for points
            that were not found, and for fits without an interval of the first parameter.

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x, y = np.arange(5.0), np.asarray([0.1, 1.0, 2.1, 2.9, 4.0])
        >>> line = lambda x, slope, offset: offset + slope * x
        >>> fit = lx.curve_fit(line, x, y, [1.0, 0.0], jac="3-point")
        >>> away = fit.contour("slope", "offset") - fit.x
        >>> rise = (away @ np.linalg.inv(fit.covariance) * away).sum(-1)
        >>> bool(np.allclose(rise, 3.449, rtol=1e-3))    # instead of 2.30
        True
        """
        return self._kept().contour(self, one, other, level, size, progress)

    def summary(self, level: float | None = None, limit: float = 0.5) -> str:
        """The fit as text: parameters with their errors, rounded to the digits that these
        determine, how good the fit is, and the strong correlations.

        For a batch, a table of medians: of the parameters, of their scatter from fit to fit and of
        their errors; how many fits ended how; and a histogram of all residuals in units of their
        standard deviation (not for copies and pickles).

        Parameters
        ----------
        level : None or float
            The level of `intervals`, which are then computed and shown, too.
        limit : float
            From which size on correlations are shown.

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x, y = np.arange(6.0), np.asarray([5.1, 2.4, 1.6, 0.5, 0.5, 0.1])
        >>> decay = lambda x, a, k: a * np.exp(-k * x)
        >>> fit = lx.curve_fit(
        ...     decay, x, y, [1.0, 1.0], jac="3-point", sigma=0.2, absolute_sigma=True
        ... )
        >>> print(fit.summary(level=0.6827))
        6 data, 2 free parameters, converged in ... steps (GRADIENT)
          a   5.06 ± 0.19     5.06 +0.19 -0.19
          k   0.669 ± 0.049   0.669 +0.052 -0.048
          (intervals by profile likelihood, 68.27 %)
        chi2 = 4.354, dof = 4, chi2 / dof = 1.089, p = 0.36
        AIC = 0.0680076, BIC = -0.348473
        """
        return summary(self, level, limit, self._analysis)

    def predict(self, x: Any = None) -> Any:
        """What the model returns with the parameters of the fit.

        Parameters
        ----------
        x : None, or coordinates as `lx.curve_fit` takes them; None: those of the data.

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x = np.arange(5.0)
        >>> line = lambda x, slope, offset: offset + slope * x
        >>> fit = lx.curve_fit(line, x, 1.0 + 2.0 * x, [1.0, 0.0], jac="3-point")
        >>> fit.predict([10.0, 20.0]).round(6)
        array([21., 41.])
        """
        return self._kept().predict(self, x)

    def band(self, x: Any = None, level: float = 0.6827) -> tuple[Any, Any]:
        """Where the curve is, with its errors: prediction -+ z times its standard deviation.

        The deviation comes from the covariance and the derivatives of the model (the delta method).
        It is that of the curve at each x alone, without the scatter of new data around it; infinite
        where the data do not determine the curve. With absolute_sigma, z is a quantile of the
        normal distribution, otherwise of Student's t with `dof` degrees of freedom.

        Parameters
        ----------
        x : as in `predict`, where the model returns (k,), or (B, k) for a batch.
        level : float
            The probability, for normal errors, that the band holds the curve at an x: for 0.6827,
            z is 1, or 1.2 with 3 degrees of freedom.

        Returns
        -------
        low, high : arrays like the prediction; if it is complex, each for both parts

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x, y = np.arange(5.0), np.asarray([0.1, 1.0, 2.1, 2.9, 4.0])
        >>> line = lambda x, slope, offset: offset + slope * x
        >>> fit = lx.curve_fit(line, x, y, [1.0, 0.0], jac="3-point")
        >>> low, high = fit.band([0.0], level=0.95)    # 3 degrees of freedom: 3.18 instead of 1.96
        >>> bool(np.allclose(0.5 * (high - low), 3.18 * fit.stderr[1], rtol=1e-3))
        True
        """
        return self._kept().band(self, x, level)

    def propagate(self, function: Callable[[Any], Any]) -> tuple[Any, Any]:
        """The value and the standard deviation of a function of the parameters (delta method);
        infinite if the data do not determine it.

        Parameters
        ----------
        function : function
            Of parameters like `x` (of a tuple of numbers if p0 is a list or an array), to a number
            or an array; for a batch, of all rows, to (B,) or (B, ...). It is differentiated
            automatically, or with NumPy by differences.

        Returns
        -------
        value, error : floats, or arrays like what the function returned

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x, y = np.arange(6.0), np.asarray([5.1, 2.4, 1.6, 0.5, 0.5, 0.1])
        >>> decay = lambda x, a, k: a * np.exp(-k * x)
        >>> fit = lx.curve_fit(decay, x, y, {"a": 1.0, "k": 1.0}, jac="3-point")
        >>> value, error = fit.propagate(lambda p: np.log(2.0) / p["k"])    # the half-life
        >>> round(value, 3), round(error, 3)
        (1.037, 0.08)
        """
        return self._kept().propagate(self, function)

    def sample(self, size: int, seed: Any = None) -> Any:
        """Parameters at random, with the mean `x` and the covariance of the fit.

        They are normal: what bounds exclude is not excluded. Tied parameters follow the others.

        Parameters
        ----------
        size : int
            How many.
        seed : as in `numpy.random.default_rng`

        Returns
        -------
        like p0, each leaf with an axis `size` more: (size, ...), or (B, size, ...) for a batch

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x, y = np.arange(5.0), np.asarray([0.1, 1.0, 2.1, 2.9, 4.0])
        >>> line = lambda x, slope, offset: offset + slope * x
        >>> fit = lx.curve_fit(line, x, y, [1.0, 0.0], jac="3-point")
        >>> drawn = fit.sample(10_000, seed=0)
        >>> drawn.shape, bool(np.allclose(np.cov(drawn.T), fit.covariance, rtol=0.05))
        ((10000, 2), True)
        """
        return self._kept().sample(self, size, seed)

    def bootstrap(self, size: int, seed: Any = None) -> Any:
        """Parameters fitted to data as they might have been: the prediction plus residuals drawn at
        random, with repetition, from those of the fit. All fits are one batch.

        Residuals are drawn in units of sigma, around their mean, and enlarged by
        sqrt(n_data / (n_data - n_free)), since a fit makes them smaller (with priors, n_free less
        what these determine); correlated data, by their uncorrelated combinations. Their spread
        gives the errors, whatever sigma was. With a likelihood or sigma=(low, high), the data are
        drawn from their distribution around the prediction instead (a parametric bootstrap; not for
        a function), whose scale is that of the covariance.

        Parameters
        ----------
        size : int
            How many.
        seed : as in `numpy.random.default_rng`

        Returns
        -------
        like p0, each leaf with an axis `size` more, as in `sample`; nan where a fit has failed

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x = np.linspace(0.0, 4.0, 40)
        >>> y = 2.0 * np.exp(-x) + 0.1 * np.random.default_rng(0).normal(size=40)
        >>> decay = lambda x, a, k: a * np.exp(-k * x)
        >>> fit = lx.curve_fit(decay, x, y, [1.0, 1.0], jac="3-point")
        >>> spread = fit.bootstrap(500, seed=0).std(axis=0)
        >>> bool(np.allclose(spread, fit.stderr, rtol=0.15))
        True
        """
        return self._kept().bootstrap(self, size, seed)

    def plot(self, level: float = 0.6827, row: int = 0) -> Any:
        """Draw the data with their errors, the curve with its band, and the residuals below.

        The errors are sigma, in the scale of `stderr`. If x is no array with a number for each
        point, the axis counts the points. Both parts of complex data are drawn side by side.

        Parameters
        ----------
        level : float
            That of `band`.
        row : int
            For a batch, which fit.

        Returns
        -------
        matplotlib Figure

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        return self._kept().plot(self, level, row)

    def plot_profiles(self, size: int = 31) -> Any:
        """Draw how chi2 rises with each parameter, beside the parabola of its standard error.

        The horizontal lines are at 68.27 % and 95.45 %, and the dotted ones at the ends of the
        interval of 68.27 %.

        Parameters
        ----------
        size : int
            That of `profile`.

        Returns
        -------
        matplotlib Figure

        Raises
        ------
        ImportError, ValueError
            If matplotlib is not installed; for a batch.
        """
        return self._kept().plot_profiles(self, size)

    def plot_contours(self, size: int = 60, progress: bool = False) -> Any:
        """Draw the contours of all pairs of parameters, at 68.27 % and 95.45 %, beside the ellipses
        of the covariance, and on the diagonal their profiles.

        Parameters
        ----------
        size, progress
            Those of `contour`.

        Returns
        -------
        matplotlib Figure

        Raises
        ------
        ImportError, ValueError
            If matplotlib is not installed; for a batch.
        """
        return self._kept().plot_contours(self, size, progress)

    def covariance_of(self, one: str | int, other: str | int | None = None) -> Any:
        """The part of `covariance` that belongs to two parameters, or to one.

        Parameters
        ----------
        one, other : str or int
            Names of numbers or of whole leaves of p0 (see `names`), or places in `names`;
            other=None: the same as `one`.

        Returns
        -------
        array (k, l), for parameters of k and l numbers; (B, k, l) for a batch

        Raises
        ------
        ValueError
            If there is no parameter of this name, or at this place.

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
        rows = places_of(self.names, one)
        columns = rows if other is None else places_of(self.names, other)
        # The numbers of a leaf lie side by side.
        return self.covariance[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    def __iter__(self) -> NoReturn:
        raise TypeError(
            "the result of curve_fit is a single object, not a pair to unpack; wanted "
            "fit = lx.curve_fit(...), then fit.x and fit.covariance"
        )


@dataclasses.dataclass(frozen=True, repr=False)
class BatchCurveFit(CurveFit):
    """The outcome of `lx.curve_fit` with batched=True, for B fits.

    The attributes are those of `lx.CurveFit`, but `chi2`, `reduced_chi2`, `deviance`,
    `chi2_priors`, `r2`, `n_data`, `n_free`, `log_likelihood`, `nit`, `success` and `status` are
    arrays (B,) of the library of y, `covariance` and `residuals` have shapes (B, p, p) and (B, m),
    and `message` is a list of B strings. `status` holds the integers of `lx.Status`. If the batch
    is fitted in pieces, `nfev` and `njev` are the largest counts of any piece.
    """

    chi2: Any
    reduced_chi2: Any
    deviance: Any = dataclasses.field(repr=False)
    chi2_priors: Any = dataclasses.field(repr=False)
    r2: Any
    n_data: Any = dataclasses.field(repr=False)
    n_free: Any = dataclasses.field(repr=False)
    log_likelihood: Any = dataclasses.field(repr=False)
    nit: Any
    success: Any
    status: Any
    message: list[str]  # type: ignore[assignment]

    def row(self, number: int) -> CurveFit:
        """One fit of the batch as a single fit, with all of its methods: its summary, its pictures
        and its intervals.

        The counts `nfev` and `njev` stay those of the batch. The model is still called with
        parameters of shape (1, 1); with compact=False, for all rows.

        Parameters
        ----------
        number : int
            Its row of y, from 0 on.

        Examples
        --------
        >>> import numpy as np
        >>> import lbfgs_xp as lx
        >>> x = np.arange(5.0)
        >>> line = lambda x, slope, offset: offset + slope * x
        >>> y = np.asarray([1.0 + 2.0 * x, 3.0 - x]) + 0.1 * np.cos(9.0 * x)
        >>> fit = lx.curve_fit(line, x, y, [1.0, 0.0], batched=True).row(1)
        >>> low, high = fit.intervals()
        >>> fit.x.round(1), bool(low[0] < fit.x[0] < high[0])
        (array([-1.,  3.]), True)
        """
        number = row_of("number", number, len(self.message))
        backend = Backend.of(self.covariance)

        def row(tree: Any) -> Any:
            return map_leaves(lambda leaf: leaf[number, ...], tree)

        def told(name: str) -> Any:
            return backend.to_host(getattr(self, name))[number].item()

        counts, numbers = ("n_data", "n_free", "nit"), (
            "chi2", "reduced_chi2", "deviance", "chi2_priors", "r2", "log_likelihood", "success",
        )
        starts = self.starts
        if starts is not None:
            each = {field.name: getattr(starts, field.name) for field in dataclasses.fields(starts)}
            best = int(backend.to_host(each.pop("best"))[number])
            starts = dataclasses.replace(starts, **row(each), best=best)
        parts: dict[str, Any] = {
            **{name: row(getattr(self, name)) for name in ("x", "covariance", "stderr")},
            **{name: told(name) for name in numbers},
            **{name: int(told(name)) for name in counts},
        }
        return CurveFit(
            **parts,
            residuals=row(self.residuals), n_priors=self.n_priors,
            absolute_sigma=self.absolute_sigma, names=self.names, nfev=self.nfev, njev=self.njev,
            derivatives=self.derivatives, status=_STATUSES[told("status")],
            message=self.message[number], starts=starts,
            _analysis=self._analysis and self._analysis.row(self, number),
        )
