"""Likelihoods of counts and of users, and deviations with two sides, against formulas and SciPy."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from lbfgs_xp.fits.likelihoods import Binomial, Custom, Poisson
from tests.backends import Backend

X = np.linspace(0.0, 5.0, 60)
RNG = np.random.default_rng(0)
TRUTH = np.asarray([[6.0, 1.0, 0.5], [3.0, 0.5, 1.0], [10.0, 2.0, 0.3]])
START = [5.0, 1.0, 1.0]
# Amplitudes and backgrounds of counts; a background of 0 would have no logarithm.
BOX = ([0.0, 0.0, 1e-9], [np.inf, np.inf, np.inf])
DOSES = np.linspace(-2.0, 2.0, 30)
TRIALS = RNG.integers(2, 9, 30).astype(float)


def decay(xp: Any = np) -> Any:
    return lambda x, a, k, c: a * xp.exp(-k * x) + c


def logistic(xp: Any = np) -> Any:
    return lambda x, a, b: 1.0 / (1.0 + xp.exp(-(a + b * x)))


COUNTS = RNG.poisson(np.stack([decay()(X, *row) for row in TRUTH])).astype(float)
CHANCES = logistic()(DOSES, 0.3, 1.5)
SUCCESSES = RNG.binomial(TRIALS.astype(int), CHANCES, size=(3, 30)).astype(float)


def negative_log(xp: Any) -> Any:
    """The negative log likelihood of counts, as a user would write it."""
    return lambda y, mean: mean - y * xp.log(xp.where(mean > 0.0, mean, mean * xp.nan))


def slopes_of(model: Any, x: np.ndarray, params: np.ndarray) -> np.ndarray:
    columns = []
    for i in range(len(params)):
        step = np.zeros(len(params))
        step[i] = 1e-5 * max(abs(params[i]), 1.0)
        columns.append((model(x, *(params + step)) - model(x, *(params - step))) / (2 * step[i]))
    return np.stack(columns, axis=-1)


def stderr_of(information: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    return np.sqrt(np.diag(np.linalg.inv(slopes.T @ (slopes * information[:, None]))))


def test_counts_on_every_library(backend: Backend) -> None:
    """A batch and a single fit find the zero of the score, with errors from the information."""
    xp = backend.xp
    x, y = backend.asarray(X), backend.asarray(COUNTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        res = lx.curve_fit(
            decay(xp), x, y, START, likelihood="poisson", bounds=BOX, batched=True
        )
    found, stderr = backend.to_numpy(res.x), backend.to_numpy(res.stderr)
    assert backend.to_numpy(res.success).all()
    stats = pytest.importorskip("scipy.stats")
    for row in (0, 2):
        mean = decay()(X, *found[row])
        slopes = slopes_of(decay(), X, found[row])
        score = slopes.T @ (1.0 - COUNTS[row] / mean)
        assert np.all(np.abs(score * stderr[row]) < 1e-5)
        np.testing.assert_allclose(stderr[row], stderr_of(1.0 / mean, slopes), rtol=1e-5)
        logs = np.where(COUNTS[row] > 0.0, np.log(np.maximum(COUNTS[row], 1.0) / mean), 0.0)
        deviance = 2.0 * np.sum(mean - COUNTS[row] + COUNTS[row] * logs)
        assert backend.to_numpy(res.deviance)[row] == pytest.approx(deviance, rel=1e-9)
        pearson = np.sum((COUNTS[row] - mean) ** 2 / mean)
        assert backend.to_numpy(res.chi2)[row] == pytest.approx(pearson, rel=1e-9)
        likelihood = stats.poisson.logpmf(COUNTS[row], mean).sum()
        assert backend.to_numpy(res.log_likelihood)[row] == pytest.approx(likelihood, rel=1e-9)
    alone = lx.curve_fit(
        decay(xp), x, backend.asarray(COUNTS[0]), START, likelihood="poisson", bounds=BOX
    )
    np.testing.assert_allclose(backend.to_numpy(alone.x), found[0], rtol=1e-6)
    assert isinstance(alone.deviance, float) and alone.absolute_sigma
    rest = COUNTS[0] - decay()(X, *found[0])
    np.testing.assert_allclose(backend.to_numpy(alone.residuals), rest, atol=1e-5)


def test_successes_and_functions_on_every_library(backend: Backend) -> None:
    xp = backend.xp
    res = lx.curve_fit(
        logistic(xp), backend.asarray(DOSES), backend.asarray(SUCCESSES), [0.0, 1.0],
        likelihood="binomial", trials=TRIALS, batched=True,
    )
    rows = np.stack([np.ones(30), DOSES], axis=-1)
    for row in range(3):
        chance = logistic()(DOSES, *backend.to_numpy(res.x)[row])
        assert np.all(np.abs(rows.T @ (SUCCESSES[row] - TRIALS * chance)) < 1e-5)
        wanted = stderr_of(TRIALS * chance * (1.0 - chance), rows)
        np.testing.assert_allclose(backend.to_numpy(res.stderr)[row], wanted, rtol=1e-5)
    how: dict[str, Any] = {"batched": True, "bounds": BOX}
    x, y = backend.asarray(X), backend.asarray(COUNTS[:1])
    own = lx.curve_fit(decay(xp), x, y, START, likelihood=negative_log(xp), **how)
    known = lx.curve_fit(decay(xp), x, y, START, likelihood="poisson", **how)
    np.testing.assert_allclose(backend.to_numpy(own.x), backend.to_numpy(known.x), rtol=1e-5)
    np.testing.assert_allclose(
        backend.to_numpy(own.deviance), backend.to_numpy(known.deviance), rtol=1e-7
    )


def test_residuals_and_slopes_to_all_digits() -> None:
    """Also next to the best prediction, where their ratio is rounding, and for extreme ones."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 60
    away = np.asarray([0.0, 1e-14, 1e-9, 1e-6, 7e-6, 1e-3, 0.3, 20.0])
    for count in (1.0, 7.0, 3e5):
        means = count * np.concatenate([1.0 + away, 1.0 - away[:-1], [1e-3]])
        likelihood = Poisson(np.full(means.shape, count), None)
        residuals = likelihood.residuals(means)
        slopes = likelihood.slopes(means, residuals)
        for mean, residual, slope in zip(means, residuals, slopes, strict=True):
            e = mpmath.mpf(mean) / mpmath.mpf(count) - 1
            size = mpmath.sqrt(2 * count * (e - mpmath.log(1 + e)))
            wanted = float(size if e >= 0 else -size)
            assert residual == pytest.approx(wanted, rel=1e-9, abs=1e-14 * np.sqrt(count))
            exact = 1 / mpmath.sqrt(count) if e == 0 else (1 - count / mpmath.mpf(mean)) / wanted
            assert slope == pytest.approx(float(exact), rel=2e-5)
            # What enters the gradient is their product.
            assert slope * residual == pytest.approx(
                float(1 - count / mpmath.mpf(mean)), rel=1e-9, abs=1e-10 / np.sqrt(count)
            )
    for successes in (0.0, 3.0, 5.0):
        chances = np.asarray([1e-9, 0.1, 0.6, 0.6 * (1.0 + 1e-9), 0.61, 1.0 - 1e-9])
        ones = np.ones_like(chances)
        binomial = Binomial(successes * ones, None, 5.0 * ones)
        residuals = binomial.residuals(chances)
        slopes = binomial.slopes(chances, residuals)
        for p, residual, slope in zip(chances, residuals, slopes, strict=True):
            exact = mpmath.mpf(p)
            deviance = mpmath.mpf(0)
            for part, share in ((successes, exact), (5.0 - successes, 1 - exact)):
                if part:
                    deviance += 2 * part * mpmath.log(part / (5 * share))
            assert residual**2 == pytest.approx(float(deviance), rel=1e-7, abs=1e-14)
            score = float((5 * exact - successes) / (exact * (1 - exact)))
            assert slope * residual == pytest.approx(score, rel=1e-7, abs=1e-9)


def test_no_counts_and_predictions_of_nothing() -> None:
    """Where a peak has died out the prediction is exactly 0, as are the counts."""
    x = np.linspace(-60.0, 60.0, 241)

    def peak(x: Any, a: Any, w: Any) -> Any:
        return a * np.exp(-((x / w) ** 2))

    y = RNG.poisson(peak(x, 30.0, 1.5)).astype(float)
    res = lx.curve_fit(peak, x, y, [10.0, 1.0], likelihood="poisson")
    assert res.success and np.count_nonzero(peak(x, *res.x) == 0.0) > 50
    # With predictions a exp(-x^2 / w^2), the amplitude follows from the sum.
    assert np.sum(peak(x, *res.x)) == pytest.approx(y.sum(), rel=1e-6)
    none = lx.curve_fit(
        lambda x, a, b: a + b * x, X, np.zeros(60), [1.0, 0.1], likelihood="poisson",
        bounds=(0.0, None),
    )
    assert none.success and np.all(none.x == 0.0) and none.deviance == 0.0


def test_a_negative_mean_is_too_far() -> None:
    """The first step of the line leads below 0; the fit ends where the score vanishes."""
    y = np.asarray([0.0, 0.0, 1.0, 0.0, 2.0, 1.0, 4.0, 3.0, 6.0, 9.0])
    x = np.arange(10.0)
    res = lx.curve_fit(lambda x, a, b: a + b * x, x, y, [20.0, 0.0], likelihood="poisson")
    mean = res.x[0] + res.x[1] * x
    assert np.all(mean > 0.0) and np.all(np.isfinite(res.stderr))
    wrong = lx.curve_fit(lambda x, a, b: a + b * x, x, y, [-20.0, 0.0], likelihood="poisson")
    assert wrong.status is Status.NOT_FINITE and not wrong.success
    assert wrong.message.endswith("at the start must be above 0 (may be 0 where y is 0)")
    many = lx.curve_fit(
        lambda x, a, b: a + b * x, x, np.stack([y, y]), np.asarray([[20.0, 0.0], [-20.0, 0.0]]),
        likelihood="poisson", batched=True,
    )
    np.testing.assert_allclose(many.x[0], res.x, rtol=1e-6, atol=1e-9)
    assert many.status[1] == Status.NOT_FINITE and "at the start" in many.message[1]


def test_low_counts_reach_the_cramer_rao_bound() -> None:
    """2,000 fits, with about one count in each bin: none fails, and the errors are right."""
    rng, size = np.random.default_rng(5), 2000
    x, truth = np.linspace(-1.0, 1.0, 150), np.asarray([0.2, 0.8])

    def model(x: Any, a: Any, b: Any) -> Any:
        return np.exp(a + b * x)

    y = rng.poisson(model(x, *truth), size=(size, 150)).astype(float)
    res = lx.curve_fit(model, x, y, [0.0, 0.0], likelihood="poisson", batched=True)
    assert np.mean(y == 0.0) > 0.25 and res.success.all()
    bound = stderr_of(model(x, *truth), np.stack([np.ones(150), x], axis=-1))
    # A standard deviation of 2,000 numbers has an error of 1.6 %.
    np.testing.assert_allclose(res.x.std(axis=0), bound, rtol=0.05)
    np.testing.assert_allclose(np.sqrt(np.mean(res.stderr**2, axis=0)), bound, rtol=0.01)
    pulls = (res.x - truth) / res.stderr
    np.testing.assert_allclose(pulls.std(axis=0), 1.0, atol=0.05)


@pytest.mark.thorough
@pytest.mark.parametrize("size", [10_000])
def test_ten_thousand_fits_of_low_counts(size: int) -> None:
    rng = np.random.default_rng(6)
    x, truth = np.linspace(0.0, 1.0, 300), np.asarray([0.3, 2.0])

    def model(x: Any, a: Any, b: Any) -> Any:
        return a + b * x

    y = rng.poisson(model(x, *truth), size=(size, 300)).astype(float)
    res = lx.curve_fit(
        model, x, y, [1.0, 1.0], likelihood="poisson", batched=True, bounds=(1e-9, None)
    )
    assert res.success.all()
    bound = stderr_of(1.0 / model(x, *truth), np.stack([np.ones(300), x], axis=-1))
    np.testing.assert_allclose(res.x.std(axis=0), bound, rtol=0.02)
    np.testing.assert_allclose(np.sqrt(np.mean(res.stderr**2, axis=0)), bound, rtol=0.02)


def test_weights_by_counts_would_be_wrong() -> None:
    """The mean of counts: exact with the likelihood, far too low with weights 1 / n."""
    y = RNG.poisson(1.5, 5000).astype(float)
    x = np.arange(5000.0)
    exact = lx.curve_fit(lambda x, a: a + 0.0 * x, x, y, [1.0], likelihood="poisson")
    weighted = lx.curve_fit(
        lambda x, a: a + 0.0 * x, x, y, [1.0], sigma=np.sqrt(np.maximum(y, 1.0))
    )
    assert exact.x[0] == pytest.approx(y.mean(), rel=1e-7)
    assert exact.stderr[0] == pytest.approx(np.sqrt(y.mean() / 5000), rel=1e-6)
    assert exact.r2 == pytest.approx(0.0, abs=1e-12)
    assert weighted.x[0] < 0.9 * exact.x[0]


def test_masked_counts_are_left_out() -> None:
    out = np.isin(np.arange(60), [0, 7, 31])
    y = np.ma.array(np.where(out, -1.0, COUNTS[0]), mask=out)
    how: dict[str, Any] = {"likelihood": "poisson", "bounds": BOX}
    res = lx.curve_fit(decay(), X, y, START, **how)
    rest = lx.curve_fit(decay(), X[~out], COUNTS[0][~out], START, **how)
    np.testing.assert_allclose(res.x, rest.x, rtol=1e-6)
    np.testing.assert_allclose(res.stderr, rest.stderr, rtol=1e-5)
    for name in ("chi2", "deviance", "log_likelihood", "n_data", "r2"):
        assert getattr(res, name) == pytest.approx(getattr(rest, name), rel=1e-6)


def test_a_likelihood_with_heavy_tails() -> None:
    """Student's t with 3 degrees of freedom and a known scale, beside outliers."""
    scipy_optimize = pytest.importorskip("scipy.optimize")
    y = 2.0 + 0.5 * X + 0.1 * RNG.standard_t(3.0, 60)
    y[::9] += 2.0

    def nll(y: Any, mean: Any) -> Any:
        return 2.0 * np.log1p(((y - mean) / 0.1) ** 2 / 3.0)

    def line(x: Any, a: Any, b: Any) -> Any:
        return a + b * x

    res = lx.curve_fit(line, X, y, [1.0, 1.0], likelihood=nll)
    wanted = scipy_optimize.minimize(
        lambda p: np.sum(nll(y, line(X, *p))), [2.0, 0.5], tol=1e-12
    )
    assert res.success and np.isnan(res.chi2)
    np.testing.assert_allclose(res.x, wanted.x, atol=1e-6)
    assert res.log_likelihood == pytest.approx(-wanted.fun, rel=1e-9)
    assert np.all(np.abs(res.x - [2.0, 0.5]) < 5.0 * res.stderr)
    # The information of outliers is negative.
    z = ((y - line(X, *res.x)) / 0.1) ** 2
    bent = 4.0 * (3.0 - z) / (3.0 + z) ** 2 / 0.1**2
    assert bent.min() < 0.0
    wanted = stderr_of(bent, np.stack([np.ones(60), X], axis=-1))
    np.testing.assert_allclose(res.stderr, wanted, rtol=1e-4)


@pytest.mark.parametrize("batched", [False, True])
def test_a_likelihood_that_is_a_function_of_any_library(backend: Backend, batched: bool) -> None:
    """It is called with arrays like y only; Poisson's, so that the named one is the oracle."""
    xp, x = backend.xp, np.linspace(0.0, 4.0, 25)
    counts = np.random.default_rng(0).poisson(5.0 * np.exp(-x) + 1.0).astype(float)
    y = backend.asarray(counts[None] if batched else counts)

    def fit(likelihood: Any) -> lx.CurveFit:
        return lx.curve_fit(
            lambda x, a, k, c: a * xp.exp(-k * x) + c, backend.asarray(x), y, [4.0, 1.0, 0.8],
            likelihood=likelihood, bounds=(1e-3, 20.0), batched=batched,
        )

    own, named = fit(lambda y, mean: mean - y * xp.log(mean)), fit("poisson")
    assert np.all(backend.to_numpy(own.success)) if batched else own.success
    np.testing.assert_allclose(
        backend.to_numpy(own.x), backend.to_numpy(named.x), rtol=1e-5
    )


def test_censored_data_have_no_best_prediction() -> None:
    """Times of a fit that ended before some events: for these, later is always better."""
    rng = np.random.default_rng(1)
    times = rng.exponential(2.0, 400)
    seen = np.minimum(times, 3.0)
    events = times < 3.0

    def nll(y: Any, mean: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return np.where(events, np.log(mean), 0.0) + y / mean

    res = lx.curve_fit(
        lambda x, mean: mean + 0.0 * x, np.arange(400.0), seen, [1.0], likelihood=nll
    )
    wanted = seen.sum() / events.sum()
    assert res.success and res.x[0] == pytest.approx(wanted, rel=1e-6)
    assert res.stderr[0] == pytest.approx(wanted / np.sqrt(events.sum()), rel=1e-5)


def test_another_minimum_is_no_success() -> None:
    """A likelihood with two minima, against what is asked for."""
    y = np.zeros(20)
    ones = np.ones(20)
    custom = Custom.of(lambda y, m: 0.1 * (m**2 - 1.0) ** 2 + 0.05 * m, y, None, ones)
    assert np.isnan(custom.residuals(-1.0 * ones if custom.best[0] > 0.0 else ones)).all() or (
        custom.best < 0.0
    ).all()


def test_deviations_with_two_sides() -> None:
    """The maximum of the likelihood: weights follow the side on which the model is."""
    low, high = np.linspace(0.05, 0.2, 60), np.linspace(0.3, 0.1, 60)
    y = decay()(X, *TRUTH[0]) + 0.1 * RNG.normal(size=60)
    res = lx.curve_fit(decay(), X, y, START, sigma=(low, high), absolute_sigma=True)
    change = decay()(X, *res.x) - y
    sigma = np.where(change > 0.0, high, low)
    slopes = slopes_of(decay(), X, res.x)
    assert res.success and np.all(np.abs(slopes.T @ (change / sigma**2) * res.stderr) < 1e-5)
    assert res.chi2 == pytest.approx(np.sum((change / sigma) ** 2), rel=1e-9)
    np.testing.assert_allclose(res.stderr, stderr_of(sigma**-2.0, slopes), rtol=1e-5)
    both, one = (
        lx.curve_fit(decay(), X, y, START, sigma=each) for each in ((low, low), low)
    )
    for name in ("x", "stderr", "chi2", "r2", "residuals", "log_likelihood", "aic", "bic"):
        np.testing.assert_allclose(getattr(both, name), getattr(one, name), rtol=1e-6, atol=1e-7)
    assert (both.absolute_sigma, both.n_data) == (one.absolute_sigma, one.n_data)
    left_out = np.where(np.arange(60) < 5, np.inf, 0.1)
    fewer = lx.curve_fit(decay(), X, y, START, sigma=(left_out, left_out))
    alone = lx.curve_fit(decay(), X[5:], y[5:], START, sigma=(0.1, 0.1))
    np.testing.assert_allclose(fewer.x, alone.x, rtol=1e-6)
    assert fewer.n_data == alone.n_data and fewer.chi2 == pytest.approx(alone.chi2, rel=1e-6)
    assert fewer.log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-6)


def test_two_sides_that_are_alike_are_one() -> None:
    """With a robust loss, and with relative deviations of any size."""
    y = decay()(X, *TRUTH[0]) + 0.1 * RNG.normal(size=60)
    y[::9] += 2.0
    sigma = np.linspace(0.05, 0.2, 60)
    how: dict[str, Any] = {"loss": "soft_l1", "absolute_sigma": True}
    both, one = (
        lx.curve_fit(decay(), X, y, START, sigma=each, **how) for each in ((sigma, sigma), sigma)
    )
    assert (both.chi2, both.deviance) == pytest.approx((one.chi2, one.deviance), rel=1e-6)
    assert np.isnan(both.log_likelihood) and np.isnan(both.p_value)
    assert both.intervals().success
    np.testing.assert_allclose(both.intervals().low, one.intervals().low, rtol=1e-4)
    wide = lx.curve_fit(decay(), X, y, START, sigma=(50.0 * sigma, 50.0 * sigma))
    ratio = wide.bootstrap(200, seed=0).std(axis=0) / wide.stderr
    assert np.all((ratio > 0.7) & (ratio < 1.4))


def test_likelihoods_of_rows_that_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces and in a batch that shrinks, each row keeps its own counts and trials."""
    import sys

    monkeypatch.setattr(sys.modules["lbfgs_xp.fits.pieces"], "_FEWEST", 16)
    rng = np.random.default_rng(2)
    trials = rng.integers(5, 40, (50, 1)) * np.ones((50, 30))
    slopes = rng.uniform(0.5, 3.0, 50)
    y = rng.binomial(trials.astype(int), logistic()(DOSES, 0.3, slopes[:, None])).astype(float)
    nowhere = np.zeros((50, 2))
    res = lx.curve_fit(
        logistic(), DOSES, y, nowhere, likelihood="binomial", trials=trials, batched=True,
        threads=2,
    )
    assert res.success.all()
    for row in (0, 17, 49):
        alone = lx.curve_fit(
            logistic(), DOSES, y[row], nowhere[row], likelihood="binomial", trials=trials[row]
        )
        np.testing.assert_allclose(res.x[row], alone.x, rtol=1e-5, atol=1e-7)
        assert res.deviance[row] == pytest.approx(alone.deviance, rel=1e-9)
    by_gradient = lx.curve_fit(
        logistic(), DOSES, y[:3], nowhere[:3], likelihood="binomial", trials=trials[:3],
        batched=True, method="lbfgs",
    )
    np.testing.assert_allclose(by_gradient.x, res.x[:3], rtol=1e-5)


@pytest.mark.parametrize(("settings", "error", "words"), [
    ({"likelihood": "poison"}, ValueError, "likelihood is 'poison'; wanted 'gaussian'"),
    ({"likelihood": None}, ValueError, "likelihood is None"),
    ({"sigma": 1.0}, ValueError, "sigma is 1.0 with likelihood='poisson'"),
    ({"loss": "huber"}, ValueError, "loss is 'huber' with likelihood='poisson'"),
    ({"trials": 3}, ValueError, "trials is 3 with likelihood='poisson'"),
    ({"y": COUNTS[0] - 1.0}, ValueError, r"y is -1.0 at \(\d+,\) with likelihood='poisson'"),
    ({"likelihood": "binomial"}, ValueError, "more than the 1 in trials"),
    ({"likelihood": "binomial", "trials": np.ones(7)}, ValueError, "trials has shape"),
    ({"likelihood": "binomial", "trials": 0.0}, ValueError, "trials is 0.0"),
    ({"likelihood": "binomial", "trials": [np.inf] * 60}, ValueError, r"trials is inf at \(0,\)"),
    ({"likelihood": "binomial", "trials": "a"}, TypeError, "trials is 'a'"),
    ({"likelihood": lambda y, m: 1.0}, TypeError, "likelihood returned a float"),
    ({"likelihood": lambda y, m: np.sum(m)}, ValueError, "likelihood returned"),
])
def test_errors(settings: dict[str, Any], error: type, words: str) -> None:
    given = {"y": COUNTS[0], "likelihood": "poisson", **settings}
    with pytest.raises(error, match=words):
        lx.curve_fit(decay(), X, given.pop("y"), START, **given)


def test_errors_of_two_sides() -> None:
    for sigma, words in (
        ((np.ones(7), 1.0), "sigma has shape"),
        ((1.0, -1.0), "not above 0"),
        ((1.0, None), "wanted deviations on both sides"),
        ((np.eye(60), np.eye(60)), "pair of matrices"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            lx.curve_fit(decay(), X, COUNTS[0], START, sigma=sigma)
    with pytest.raises(ValueError, match=r"sigma is \(0.1, 0.2\) for two data"):
        lx.curve_fit(lambda x, a: a + 0.0 * x, [0.0, 1.0], [0.0, 1.0], [1.0], sigma=(0.1, 0.2))


def test_trials_of_masked_data_may_be_none() -> None:
    trials = np.where(np.arange(30) == 4, 0.0, TRIALS)
    masked = np.ma.masked_where(trials == 0.0, SUCCESSES[0])
    how: dict[str, Any] = {"likelihood": "binomial"}
    res = lx.curve_fit(logistic(), DOSES, masked, [0.0, 1.0], trials=trials, **how)
    rest = trials > 0.0
    fewer = lx.curve_fit(
        logistic(), DOSES[rest], SUCCESSES[0][rest], [0.0, 1.0], trials=TRIALS[rest], **how
    )
    np.testing.assert_allclose(res.x, fewer.x, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(res.stderr, fewer.stderr, rtol=1e-5)
    half = lx.curve_fit(logistic(), DOSES, SUCCESSES[0], [0.0, 1.0], trials=TRIALS + 0.5, **how)
    with pytest.raises(ValueError, match="wanted whole numbers to draw successes from"):
        half.bootstrap(3)
