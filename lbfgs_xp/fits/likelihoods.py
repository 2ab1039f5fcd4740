"""Likelihoods of the data, as residuals whose squares add up to the deviance.

A likelihood L(y | mu) of a datum y with the prediction mu has the deviance

    D = 2 log L(y | best mu) - 2 log L(y | mu),

which is at least 0, and for normal errors ((mu - y) / sigma)^2. The residual is
sign(mu - y) sqrt(D), so that least squares of residuals is maximum likelihood (for counts see
Laurence & Chromy 2010, Efficient maximum likelihood estimator fitting of histograms). Its slope in
mu is also that of the deviance, and a prediction outside the domain, such as a negative mean of
counts, gives nan, which for a fit is a trial that went too far.

Standard errors come from the information of each datum about mu: the expected one, -E[(log L)''],
or for a likelihood of the user the observed one, -(log L)'', which is negative for some data of
heavy tails.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from lbfgs_xp import checks
from lbfgs_xp.arrays import returned
from lbfgs_xp.arrays.backend import Array, Backend, take
from lbfgs_xp.run.differences import Differences

# Predictions as close to the datum as this power of eps, relative to it, count as equal: the ratio
# of residual and slope would be rounding.
_EQUAL = 1.0 / 3.0
# How often the best prediction for each datum is looked for, by a step that doubles or halves.
_SEARCHES = 80
# How often the weights of a mean of data with two deviations each are found.
_MEANS = 50
# A deviance of at most this many times its rounding error shows nothing.
_ROUNDED = 64.0
# A value lower than the best one by this many times its rounding error is another minimum.
_LOWER = 1e6


class Likelihood:
    """The likelihood of the data of a fit; its arrays have the shape of y, or broadcast to it.

    y : (m,), or (B, m) for a batch.
    kept : None, or 1.0 for each datum that counts and 0.0 for the others.
    """

    y: Array
    kept: Any
    name: ClassVar[str]
    # What predictions must be.
    domain: ClassVar[str] = ""
    # The arrays that hold data of the rows.
    of_rows: ClassVar[tuple[str, ...]] = ("y", "kept")

    def residuals(self, prediction: Array) -> Array:
        """The residuals at predictions like y, which may have a first axis of length 1."""
        raise NotImplementedError

    def slopes(self, prediction: Array, residuals: Array) -> Array:
        """Their derivatives; 0 if one is infinite, because the best prediction is at the end of its
        range."""
        raise NotImplementedError

    def information(self, prediction: Array) -> Array:
        """The information of each datum about its prediction; for `Custom`, it may be negative."""
        raise NotImplementedError

    def mean(self, prediction: Array) -> Array:
        """The expected data."""
        return prediction

    def prediction(self, mean: Array) -> Array:
        """The predictions of these expected data."""
        return mean

    def drawn(self, rng: np.random.Generator, prediction: Array, unit: np.ndarray) -> Likelihood:
        """The likelihood of data drawn at random with these predictions.

        unit : (R, 1), what sigma is relative to in each row; 1 if it is absolute.
        """
        raise ValueError(
            "likelihood is a function, from which no data can be drawn; wanted intervals() or "
            "sample() instead of bootstrap()"
        )

    def _with(self, y: np.ndarray) -> Any:
        return dataclasses.replace(  # type: ignore[type-var]
            self, y=Backend.of(self.y).from_host(y)
        )

    def variance(self, prediction: Array) -> Array | None:
        """The variance of the data; None if it is unknown."""
        return None

    def best_constant(self) -> Array | None:
        """The prediction (...,) that suits all data of a fit best, if it must be the same."""
        return None

    def saturated(self) -> np.ndarray:
        """The largest log likelihood (...,) of each fit, with a prediction for each datum."""
        raise NotImplementedError

    def take(self, indices: Array) -> Likelihood:
        """The same for these rows of a batch."""
        return self._mapped(lambda array: take(array, indices))

    def repeated(self, count: int) -> Likelihood:
        """The same for a batch of `count` fits like this single one."""
        xp = Backend.of(self.y).xp
        return self._mapped(
            lambda array: xp.broadcast_to(array[None, ...], (count, *array.shape))
        )

    def _mapped(self, function: Callable[[Array], Array]) -> Likelihood:
        arrays = {name: getattr(self, name) for name in self.of_rows}
        return dataclasses.replace(self, **{  # type: ignore[type-var]
            name: None if array is None else function(array) for name, array in arrays.items()
        })

    def _counted(self, array: Array) -> Array:
        """The array with 0 for data that do not count."""
        if self.kept is None:
            return array
        xp = Backend.of(self.y).xp
        return xp.where(self.kept == 0.0, xp.zeros_like(array), array)


@dataclasses.dataclass(frozen=True)
class SplitNormal(Likelihood):
    """Normal errors with different standard deviations on both sides.

    low, high : 1 / sigma for predictions below and above y.
    """

    name = "gaussian"
    of_rows = ("y", "kept", "low", "high")

    y: Array
    kept: Any
    low: Array
    high: Array

    def residuals(self, prediction: Array) -> Array:
        change = prediction - self.y
        return self._counted(self._weights(change) * change)

    def slopes(self, prediction: Array, residuals: Array) -> Array:
        return self._counted(self._weights(prediction - self.y))

    def information(self, prediction: Array) -> Array:
        weights = self._weights(prediction - self.y)
        return self._counted(weights * weights)

    def _weights(self, change: Array) -> Array:
        xp = Backend.of(self.y).xp
        return xp.where(change > 0.0, self.high, self.low) + xp.zeros_like(change)

    def drawn(self, rng: np.random.Generator, prediction: Array, unit: np.ndarray) -> SplitNormal:
        # An error of the datum downwards is one of the prediction upwards.
        mean, low, high = map(_on_host, (prediction, self.low, self.high))
        errors = unit * rng.normal(size=mean.shape)
        with np.errstate(all="ignore"):
            y = mean + errors / np.where(errors < 0.0, high, low)
        return self._with(np.where(np.isfinite(y), y, 0.0))

    def best_constant(self) -> Array:
        xp = Backend.of(self.y).xp
        kept = xp.ones_like(self.y) if self.kept is None else self.kept
        level = xp.sum(kept * self.y, axis=-1) / xp.sum(kept, axis=-1)
        for _ in range(_MEANS):
            weights = xp.where(level[..., None] > self.y, self.high, self.low)
            weights = kept * weights * weights
            level = xp.sum(weights * self.y, axis=-1) / xp.sum(weights, axis=-1)
        return level

    def saturated(self) -> np.ndarray:
        sum_of_sigmas = 1.0 / _on_host(self.low) + 1.0 / _on_host(self.high)
        return _sum_of(-np.log(math.sqrt(math.pi / 2.0) * sum_of_sigmas), self.kept)


@dataclasses.dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts y whose means are the predictions."""

    name = "poisson"
    domain = "above 0 (may be 0 where y is 0)"

    y: Array
    kept: Any

    def residuals(self, prediction: Array) -> Array:
        backend = Backend.of(self.y)
        return self._counted(backend.jit(_poisson, backend)(prediction, self.y))

    def slopes(self, prediction: Array, residuals: Array) -> Array:
        backend = Backend.of(self.y)
        slopes = backend.jit(_poisson_slopes, backend)
        return self._counted(slopes(prediction, self.y, residuals))

    def information(self, prediction: Array) -> Array:
        return self._counted(_quotient(Backend.of(self.y).xp, 1.0, prediction))

    def variance(self, prediction: Array) -> Array:
        return prediction

    def drawn(self, rng: np.random.Generator, prediction: Array, unit: np.ndarray) -> Poisson:
        return self._with(rng.poisson(_on_host(prediction)).astype(float))

    def best_constant(self) -> Array:
        xp = Backend.of(self.y).xp
        kept = xp.ones_like(self.y) if self.kept is None else self.kept
        return xp.sum(kept * self.y, axis=-1) / xp.sum(kept, axis=-1)

    def saturated(self) -> np.ndarray:
        y = _on_host(self.y)
        logs = np.log(np.where(y > 0.0, y, 1.0))
        return _sum_of(y * logs - y - _log_factorial(y), self.kept)


def _poisson(backend: Backend, mean: Array, y: Array) -> Array:
    xp = backend.xp
    some = y > 0.0
    deviance = xp.where(some, _part(xp, y, mean - y), 2.0 * mean)
    return xp.where(mean < y, -xp.sqrt(deviance), xp.sqrt(deviance))


def _poisson_slopes(backend: Backend, mean: Array, y: Array, residuals: Array) -> Array:
    xp = backend.xp
    change = mean - y
    equal = xp.abs(change) <= backend.eps**_EQUAL * y
    root = xp.sqrt(xp.where(y > 0.0, y, xp.ones_like(y)))
    slopes = _quotient(xp, _quotient(xp, change, mean), residuals)
    near = (1.0 - 2.0 / 3.0 * change / (root * root)) / root
    return xp.where(equal & (y > 0.0), near, slopes)


@dataclasses.dataclass(frozen=True)
class Binomial(Likelihood):
    """The number y of successes among `trials`, the probabilities of which are the predictions."""

    name = "binomial"
    domain = "probabilities, from 0 to 1"
    of_rows = ("y", "kept", "trials")

    y: Array
    kept: Any
    trials: Array

    def residuals(self, prediction: Array) -> Array:
        backend = Backend.of(self.y)
        return self._counted(backend.jit(_binomial, backend)(prediction, self.y, self.trials))

    def slopes(self, prediction: Array, residuals: Array) -> Array:
        backend = Backend.of(self.y)
        slopes = backend.jit(_binomial_slopes, backend)
        return self._counted(slopes(prediction, self.y, self.trials, residuals))

    def information(self, prediction: Array) -> Array:
        variance = prediction * (1.0 - prediction)
        return self._counted(_quotient(Backend.of(self.y).xp, self.trials, variance))

    def mean(self, prediction: Array) -> Array:
        return self.trials * prediction

    def prediction(self, mean: Array) -> Array:
        return mean / self.trials

    def drawn(self, rng: np.random.Generator, prediction: Array, unit: np.ndarray) -> Binomial:
        chances, trials = _on_host(prediction), _on_host(self.trials)
        wrong = trials[trials != np.floor(trials)]
        if wrong.size:
            raise ValueError(
                f"trials holds {wrong.ravel()[0]:g}; wanted whole numbers to draw successes from"
            )
        return self._with(rng.binomial(trials.astype(int), chances).astype(float))

    def variance(self, prediction: Array) -> Array:
        return self.trials * prediction * (1.0 - prediction)

    def best_constant(self) -> Array:
        xp = Backend.of(self.y).xp
        kept = xp.ones_like(self.y) if self.kept is None else self.kept
        return xp.sum(kept * self.y, axis=-1) / xp.sum(kept * self.trials, axis=-1)

    def saturated(self) -> np.ndarray:
        y, n = _on_host(self.y), _on_host(self.trials)
        logs = _log_factorial(n) - _log_factorial(y) - _log_factorial(n - y)
        for part in (y, n - y):
            logs = logs + part * np.log(np.where(part > 0.0, part / n, 1.0))
        return _sum_of(logs, self.kept)


def _binomial(backend: Backend, p: Array, y: Array, n: Array) -> Array:
    xp, rest = backend.xp, n - y
    change = n * p - y
    successes = xp.where(y > 0.0, _part(xp, y, change), 2.0 * change)
    failures = xp.where(rest > 0.0, _part(xp, rest, -change), -2.0 * change)
    # The linear parts of the two cancel.
    deviance = xp.where(y > 0.0, successes, 0.0 * p) + xp.where(rest > 0.0, failures, 0.0 * p)
    deviance = xp.where(y > 0.0, deviance, -2.0 * n * xp.log1p(-p))
    deviance = xp.where(rest > 0.0, deviance, -2.0 * n * xp.log(p))
    inside = (p >= 0.0) & (p <= 1.0)
    size = xp.sqrt(xp.where(inside, deviance, math.nan * deviance))
    return xp.where(change < 0.0, -size, size)


def _binomial_slopes(backend: Backend, p: Array, y: Array, n: Array, residuals: Array) -> Array:
    xp, rest = backend.xp, n - y
    change, variance = n * p - y, p * (1.0 - p)
    least = xp.where(y < rest, y, rest)
    equal = xp.abs(change) <= backend.eps**_EQUAL * least
    slopes = _quotient(xp, _quotient(xp, change, variance), residuals)
    # With no failures, or no successes, a factor of the quotient is 0 at the end of the range.
    slopes = xp.where(y > 0.0, slopes, _quotient(xp, n / (1.0 - p), residuals))
    slopes = xp.where(rest > 0.0, slopes, _quotient(xp, -n / p, residuals))
    return xp.where(equal & (least > 0.0), xp.sqrt(_quotient(xp, n, variance)), slopes)


def _part(xp: Any, count: Array, change: Array) -> Array:
    """2 count (e - log(1 + e)) with e = change / count."""
    e = change / xp.where(count > 0.0, count, xp.ones_like(count))
    return 2.0 * count * xp.maximum(e - xp.log1p(e), xp.zeros_like(e))


def _quotient(xp: Any, above: Any, below: Array) -> Array:
    """above / below, or 0 if `below` is 0."""
    known = below != 0.0
    return xp.where(known, above / xp.where(known, below, xp.ones_like(below)), 0.0 * below)


# --- a likelihood of the user --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Custom(Likelihood):
    """A negative log likelihood of each datum, nll(y, prediction), with a single minimum.

    best, lowest, root : for each datum, the prediction that suits it best, the value there, and the
        square root of the second derivative.
    """

    name = "custom"
    of_rows = ("y", "kept", "best", "lowest", "root")

    y: Array
    kept: Any
    nll: Callable[[Array, Array], Array]
    best: Array
    lowest: Array
    root: Array

    @classmethod
    def of(cls, nll: Callable, y: Array, kept: Any, prediction: Array) -> Custom:
        """With the best prediction for each datum, looked for from y, or else from a prediction."""
        backend = Backend.of(y)
        xp = backend.xp
        value = _checked(nll, y, y, backend)
        start = xp.where(xp.isfinite(value), y, prediction)
        unit = xp.abs(prediction - y)
        unit = xp.where(unit > 0.0, unit, 0.1 * xp.abs(y) + 0.1)
        step = xp.where(xp.isfinite(unit), unit, xp.ones_like(unit))
        best, lowest = start, _checked(nll, y, start, backend)
        for _ in range(_SEARCHES):
            moved = xp.zeros_like(y) > 1.0
            for side in (step, -step):
                value = _checked(nll, y, best + side, backend)
                better = value < lowest
                best = xp.where(better, best + side, best)
                lowest = xp.where(better, value, lowest)
                moved = moved | better
            step = xp.where(moved, 2.0 * step, 0.5 * step)
            # Steps that do not move the best prediction show nothing.
            step = xp.maximum(step, backend.eps**0.5 * xp.abs(best) + backend.eps)
        found = cls(y, kept, nll, best, lowest, xp.zeros_like(y))
        bent = found._curvature(best)
        bent = xp.where(xp.isfinite(bent) & (bent > 0.0), bent, xp.zeros_like(bent))
        return dataclasses.replace(found, root=xp.sqrt(bent))

    def residuals(self, prediction: Array) -> Array:
        xp, prediction, value, near = self._compared(prediction)
        deviance = 2.0 * (value - self.lowest)
        size = xp.sqrt(xp.where(near, xp.ones_like(deviance), deviance))
        size = xp.where(prediction < self.best, -size, size)
        if self._any(near):
            # The values show nothing, but their derivative does.
            size = xp.where(near, _quotient(xp, self._slope(prediction), self.root), size)
        return self._counted(size)

    def slopes(self, prediction: Array, residuals: Array) -> Array:
        xp, prediction, _, near = self._compared(prediction)
        slopes = _quotient(xp, self._slope(prediction), xp.reshape(residuals, self.y.shape))
        slopes = xp.where(near, self.root, slopes)
        return xp.reshape(self._counted(slopes), residuals.shape)

    def information(self, prediction: Array) -> Array:
        xp = Backend.of(self.y).xp
        bent = self._curvature(xp.reshape(prediction, self.y.shape))
        return xp.reshape(self._counted(bent), prediction.shape)

    def _compared(self, prediction: Array) -> tuple[Any, Array, Array, Array]:
        """The predictions in the shape of y, their values, and whether those are the best ones up
        to rounding; nan for lower ones: nll has more than one minimum."""
        backend = Backend.of(self.y)
        xp = backend.xp
        prediction = xp.reshape(prediction, self.y.shape)
        value = _checked(self.nll, self.y, prediction, backend)
        noise = _ROUNDED * backend.eps * (xp.abs(value) + xp.abs(self.lowest))
        above = value - self.lowest
        value = xp.where(above < -_LOWER * noise, math.nan * value, value)
        return xp, prediction, value, above <= noise

    def _any(self, mask: Array) -> bool:
        return bool(Backend.of(self.y).to_host(mask).any())

    def saturated(self) -> np.ndarray:
        return _sum_of(-_on_host(self.lowest), self.kept)

    def _slope(self, prediction: Array) -> Array:
        """The derivative of nll."""
        backend = Backend.of(self.y)
        if not backend.differentiates:
            return self._derivative(self._value, prediction)
        shift = backend.zeros((*self.y.shape[:-1], 1))
        shifted = functools.partial(_shifted, self.nll, self.y, prediction)
        return backend.detach(backend.jacobian(False, shifted)(shift))[..., 0]

    def _curvature(self, prediction: Array) -> Array:
        """The second derivative of nll."""
        return self._derivative(self._slope, prediction)

    def _value(self, prediction: Array) -> Array:
        return _checked(self.nll, self.y, prediction, Backend.of(self.y))

    def _derivative(self, function: Callable[[Array], Array], prediction: Array) -> Array:
        """The derivative of a function of each prediction, by central differences."""
        backend, shape = Backend.of(self.y), self.y.shape
        xp = backend.xp

        def of_each(column: Array) -> Array:
            return xp.reshape(function(xp.reshape(column, shape)), (-1,))

        column = xp.reshape(prediction, (-1, 1))
        differences = Differences(backend, of_each, least=0.0)
        (found,) = differences(column, of_each(column), None, True)
        return xp.reshape(found, shape)


def _shifted(nll: Callable, y: Array, prediction: Array, shift: Array) -> Array:
    return nll(y, prediction + shift)


def _checked(nll: Callable, y: Array, prediction: Array, backend: Backend) -> Array:
    """What nll returns, or a clear error."""
    with np.errstate(all="ignore"):
        found = nll(y, prediction)
    wanted = f"an array of shape {tuple(y.shape)}, like y"
    returned.check_array("likelihood", found, backend, wanted, like="y")
    if tuple(found.shape) != tuple(y.shape):
        raise ValueError(f"likelihood returned {returned.described(found)}; wanted {wanted}")
    returned.check_real("likelihood", found, backend)
    return backend.detach(backend.xp.astype(found, backend.dtype, copy=False))


# --- the arguments of `curve_fit` ----------------------------------------------------------------

NAMES = ("gaussian", "poisson", "binomial")


def check_name(likelihood: Any, sigma: Any, trials: Any, loss: Any) -> None:
    """Refuse what is no likelihood, or does not go together with it."""
    known = isinstance(likelihood, str) and likelihood in NAMES
    if not (known or callable(likelihood)):
        raise ValueError(
            f"likelihood is {checks.shown(likelihood)}; wanted {', '.join(map(repr, NAMES))}, or "
            "a function nll(y, prediction)"
        )
    if trials is not None and likelihood != "binomial":
        raise ValueError(
            f"trials is {checks.shown(trials)} with likelihood={checks.shown(likelihood)}; wanted "
            'likelihood="binomial"'
        )
    if likelihood == "gaussian":
        return
    if sigma is not None:
        raise ValueError(
            f"sigma is {checks.shown(sigma)} with likelihood={checks.shown(likelihood)}, which "
            "says how the data scatter; wanted no sigma (mask the points to leave out)"
        )
    if loss != "linear":
        raise ValueError(
            f"loss is {checks.shown(loss)} with likelihood={checks.shown(likelihood)}; wanted "
            "'linear', because a robust loss is for normal errors"
        )


def counts_of(
    likelihood: str, y: Array, kept: Any, trials: Any, backend: Backend
) -> Likelihood:
    """The likelihood with this name, of counts y."""
    xp, shape = backend.xp, tuple(y.shape)
    host = _on_host(y)
    used = np.ones(shape, dtype=bool) if kept is None else _on_host(kept) > 0.0
    wrong = used & (host < 0.0)
    if wrong.any():
        place = tuple(map(int, np.argwhere(wrong)[0]))
        raise ValueError(
            f"y is {float(host[place])} at {place} with likelihood={likelihood!r}; wanted counts "
            "of at least 0"
        )
    if likelihood == "poisson":
        return Poisson(y, kept)
    n = backend.adopt(1.0 if trials is None else trials, "trials")
    try:
        n = xp.broadcast_to(n, shape)
    except (ValueError, RuntimeError):
        raise ValueError(
            f"trials has shape {tuple(n.shape)}; wanted a shape that broadcasts to {shape}, that "
            "of y"
        ) from None
    numbers = _on_host(n)
    wrong = used & ~((numbers > 0.0) & np.isfinite(numbers))
    if wrong.any():
        place = tuple(map(int, np.argwhere(wrong)[0]))
        raise ValueError(
            f"trials is {float(numbers[place])} at {place}; wanted finite numbers above 0 (mask "
            "the points to leave out)"
        )
    n = xp.where(backend.from_host(used, xp.bool), n, xp.ones_like(n))
    wrong = used & (host > numbers)
    if wrong.any():
        place = tuple(map(int, np.argwhere(wrong)[0]))
        raise ValueError(
            f"y is {float(host[place])} at {place}, more than the {numbers[place]:g} in trials; "
            "wanted the number of successes among them"
        )
    return Binomial(y, kept, n)


def _on_host(array: Array) -> np.ndarray:
    return np.asarray(Backend.of(array).to_host(array), dtype=np.float64)


def _sum_of(values: np.ndarray, kept: Any) -> np.ndarray:
    """The sum over the data of each fit that count."""
    return np.sum(values if kept is None else np.where(_on_host(kept) > 0.0, values, 0.0), axis=-1)


def _log_factorial(y: np.ndarray) -> np.ndarray:
    different, places = np.unique(y, return_inverse=True)
    with np.errstate(all="ignore"):
        logs = np.asarray([math.lgamma(n + 1.0) if n >= 0.0 else math.nan for n in different])
    return logs[places].reshape(y.shape)
