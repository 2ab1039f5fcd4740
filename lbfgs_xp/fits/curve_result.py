"""The outcome of `lx.curve_fit`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NoReturn

import numpy as np

from lbfgs_xp.arrays.backend import Backend
from lbfgs_xp.arrays.space import Space
from lbfgs_xp.arrays.tree import map_leaves
from lbfgs_xp.fits.covariance import safe_norms
from lbfgs_xp.fits.distributions import chi2_above
from lbfgs_xp.fits.linear_algebra import outer_sum
from lbfgs_xp.fits.names import places_of, row_of
from lbfgs_xp.fits.questions import Questions
from lbfgs_xp.fits.summary import summary
from lbfgs_xp.result import Status, table

_STATUSES = {int(status): status for status in Status}
# Names in the results of other libraries, and what has that meaning here.
_FOREIGN = {
    **dict.fromkeys(("popt", "params", "best_values", "values"), "x"),
    **dict.fromkeys(("pcov", "covar", "cov_x", "cov"), "covariance"),
    **dict.fromkeys(("perr", "errors", "uncertainties"), "stderr"),
    **dict.fromkeys(("redchi", "redchi2", "chi2_red"), "reduced_chi2"),
    **dict.fromkeys(("chisqr", "chisq", "fval"), "chi2"),
    **dict.fromkeys(("nfree", "ndof"), "dof"),
    "rsquared": "r2",
    "ndata": "n_data",
    "nvarys": "n_free",
    **dict.fromkeys(("best_fit", "eval"), "predict()"),
    "eval_uncertainty": "band()",
    **dict.fromkeys(("conf_interval", "minos", "merrors"), "intervals()"),
    "fit_report": "summary()",
}


@dataclasses.dataclass(frozen=True)
class CurveFit(Questions):
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
    # R with R^T R = covariance, which underflows before R does.
    _root: Any = dataclasses.field(default=None, repr=False, compare=False)
    _analysis: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        return table(self)

    def __getattr__(self, name: str) -> NoReturn:
        instead = f"; wanted fit.{_FOREIGN[name]}" if name in _FOREIGN else ""
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}{instead}", name=name,
            obj=self,
        )

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
        xp, space = backend.xp, Space(backend, batched=True)
        with np.errstate(all="ignore"):
            norms = safe_norms(space, self._root)
            norms = xp.where((norms > 0.0) & xp.isfinite(norms), norms, math.nan * norms)
            found = outer_sum(space, self._root / norms[..., None, :])
            one = xp.eye(found.shape[-1], dtype=xp.bool, device=backend.creation_device)
            return xp.where(one & xp.isfinite(found), xp.ones_like(found), found)

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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_analysis": None}

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
            **{name: row(getattr(self, name)) for name in ("x", "covariance", "stderr", "_root")},
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
