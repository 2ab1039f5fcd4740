"""What can be asked of a fit: all that calls the model again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lbfgs_xp import checks
from lbfgs_xp.fits.intervals import Intervals, Profile


class Questions:
    """The part of `lx.CurveFit` that needs the model and the data, which the result holds as
    `_analysis`; see `answers.Answers`. Copies and pickles have none."""

    x: Any
    _analysis: Any

    def _kept(self) -> Any:
        if self._analysis is None:
            raise ValueError(
                "this result is a copy, or comes from a pickle or a compiled function, which do "
                "not keep the model and the data; wanted the result that lx.curve_fit has returned"
            )
        return self._analysis

    @property
    def jacobian(self) -> Any:
        """The derivatives (m, p) of the model at x by the parameters, or (B, m, p), in the unit of
        y and in the order of `covariance`.

        It is not kept, but computed whenever it is asked for, from the model and the data that the
        result holds; copies and pickles do not hold them.
        """
        return self._kept().jacobian(self.x)

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

    @checks.reject_foreign_keywords(
        prediction="sigma=, the standard deviations of new data (1.0 if the fit had no sigma)",
    )
    def band(
        self, x: Any = None, level: float = 0.6827, *, sigma: Any = None
    ) -> tuple[Any, Any]:
        """Where the curve is, with its errors: prediction -+ z times its standard deviation; or,
        with `sigma`, where new data are.

        The deviation comes from the covariance and the derivatives of the model (the delta method).
        It is that of the curve at each x alone, without the scatter of new data around it unless
        `sigma` is passed; infinite where the data do not determine the curve. With absolute_sigma,
        z is a quantile of the normal distribution, otherwise of Student's t with `dof` degrees of
        freedom.

        Parameters
        ----------
        x : as in `predict`, where the model returns (k,), or (B, k) for a batch.
        level : float
            The probability, for normal errors, that the band holds the curve at an x: for 0.6827,
            z is 1, or 1.2 with 3 degrees of freedom.
        sigma : None, or an array that broadcasts to the prediction
            The standard deviations of new data at x, in the sense of the fit's sigma: with
            absolute_sigma=False in its unit (1.0 for a fit without one), and scaled by
            reduced_chi2. For real data with normal errors.

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
        return self._kept().band(self, x, level, sigma)

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
            About how many points each profile has, on both sides of the fit, up to the ends of the
            interval of 99.73 %.

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
        of the covariance, and on the diagonal their profiles, as in `plot_profiles`.

        Parameters
        ----------
        size, progress
            Those of `contour`; the profiles have at least 31 points.

        Returns
        -------
        matplotlib Figure

        Raises
        ------
        ImportError, ValueError
            If matplotlib is not installed; for a batch.
        """
        return self._kept().plot_contours(self, size, progress)
