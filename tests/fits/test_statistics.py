"""What a fit says of itself: correlations, likelihoods and criteria, by name and in p0's order."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.fits.distributions import chi2_above, deviations_of, rise_of
from tests.backends import Backend

X = np.linspace(0.0, 4.0, 40)
NAMES = ("offset", "height", "rate")
TRUE = np.asarray([0.5, 2.5, 1.3])
Y = TRUE[0] + TRUE[1] * np.exp(-TRUE[2] * X) + 0.05 * np.random.default_rng(0).normal(size=40)


def fit(backend: Backend, batched: bool, **settings: Any) -> lx.CurveFit:
    xp = backend.xp
    p0 = dict(zip(NAMES, (0.0, 1.0, 1.0), strict=True))
    return lx.curve_fit(
        lambda x, offset, height, rate: offset + height * xp.exp(-rate * x),
        backend.asarray(X), backend.asarray(np.stack([Y, Y + 0.01 * X]) if batched else Y), p0,
        batched=batched, jac=None if backend.has_autodiff else "3-point", **settings,
    )


@pytest.mark.sampled
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_statistics(backend: Backend, batched: bool, absolute: bool) -> None:
    """Against their definitions, of arrays in the order of p0, which is not that of the names."""
    sigma = np.where(np.arange(40) == 7, np.inf, 0.04)
    res = fit(backend, batched, sigma=sigma, absolute_sigma=absolute)

    def first(value: Any) -> np.ndarray:
        return backend.to_numpy(value)[0] if batched else np.asarray(value)

    def matrix(array: Any) -> np.ndarray:
        return backend.to_numpy(array)[0] if batched else backend.to_numpy(array)

    jacobian, used = matrix(res.jacobian), np.isfinite(sigma)
    x = [float(backend.to_numpy(res.x[name]).ravel()[0]) for name in NAMES]
    decay = np.exp(-x[2] * X)
    wanted = np.stack([np.ones(40), decay, -x[1] * X * decay], axis=-1)
    np.testing.assert_allclose(jacobian, wanted, atol=1e-6)
    assert res.names == NAMES
    covariance = np.linalg.inv(wanted[used].T @ wanted[used]) * 0.04**2
    covariance = covariance if absolute else covariance * first(res.reduced_chi2)
    np.testing.assert_allclose(matrix(res.covariance), covariance, rtol=1e-6)
    deviations = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(
        matrix(res.correlation), covariance / np.outer(deviations, deviations), rtol=1e-6
    )
    assert (first(res.n_data), first(res.n_free), first(res.dof)) == (39, 3, 36)
    rest = matrix(res.residuals)[used]
    size = 0.04 if absolute else np.sqrt(np.mean(rest**2))
    likelihood = np.sum(-0.5 * (rest / size) ** 2 - np.log(size * np.sqrt(2.0 * np.pi)))
    k = 3 if absolute else 4
    assert first(res.log_likelihood) == pytest.approx(likelihood, rel=1e-9)
    assert first(res.aic) == pytest.approx(2 * k - 2 * likelihood, rel=1e-9)
    assert first(res.bic) == pytest.approx(k * np.log(39) - 2 * likelihood, rel=1e-9)
    stats = pytest.importorskip("scipy.stats")
    if absolute:
        assert first(res.p_value) == pytest.approx(stats.chi2.sf(first(res.chi2), 36), rel=1e-9)
    else:
        assert np.isnan(first(res.p_value))


def test_correlated_data() -> None:
    """The likelihood of data with a covariance."""
    stats = pytest.importorskip("scipy.stats")
    covariance = 0.05**2 * np.exp(-np.abs(X[:, None] - X))
    res = fit(Backend.NUMPY, False, sigma=covariance, absolute_sigma=True)
    wanted = stats.multivariate_normal(np.zeros(40), covariance).logpdf(res.residuals)
    assert res.log_likelihood == pytest.approx(wanted, rel=1e-9)


def test_a_robust_loss_has_no_likelihood() -> None:
    res = fit(Backend.NUMPY, False, sigma=0.05, absolute_sigma=True, loss="cauchy")
    assert np.isnan([res.p_value, res.aic, res.bic, res.log_likelihood]).all()
    assert np.isfinite(res.correlation).all()


def test_parameters_that_are_fixed_or_loose() -> None:
    bounds = ({"offset": 0.5}, {"offset": 0.5})
    fixed = fit(Backend.NUMPY, False, bounds=bounds)
    assert fixed.n_free == 2 and fixed.dof == 38
    assert np.isnan(fixed.correlation[0]).all()
    assert np.isfinite(fixed.correlation[1:, 1:]).all()


@pytest.mark.parametrize("settings", [
    {"fixed": "c"}, {"bounds": ([-9.0, -9.0, 0.0], [9.0, 9.0, 0.0])},
    {"fixed": "c", "chunk_size": 1},
])
def test_a_fixed_parameter_has_no_error_without_a_scale(settings: dict[str, Any]) -> None:
    res = lx.curve_fit(
        lambda x, a, b, c: a + b * x + c * x * x, np.asarray([0.0, 1.0]), np.asarray([1.0, 2.0]),
        [1.0, 1.0, 0.0], **settings,
    )
    np.testing.assert_array_equal(res.stderr, [np.inf, np.inf, 0.0])
    np.testing.assert_array_equal(res.covariance[2], 0.0)


@pytest.mark.parametrize("batched", [False, True])
def test_a_jacobian_has_the_order_of_p0(batched: bool) -> None:
    """Also one that is passed."""

    def jac(x: Any, offset: Any, height: Any, rate: Any) -> Any:
        decay = np.exp(-rate * x)
        return np.stack([np.ones_like(decay), decay, -height * x * decay], axis=-1)

    given = lx.curve_fit(
        lambda x, offset, height, rate: offset + height * np.exp(-rate * x), X,
        np.stack([Y, Y]) if batched else Y, dict(zip(NAMES, (0.0, 1.0, 1.0), strict=True)),
        jac=jac, batched=batched, sigma=0.05,
    )
    other = fit(Backend.NUMPY, batched, sigma=0.05)
    row = (0,) if batched else ()
    np.testing.assert_allclose(given.covariance[row], other.covariance[row], rtol=1e-6)
    np.testing.assert_allclose(given.jacobian[row], other.jacobian[row], rtol=1e-6, atol=1e-9)
    for name in NAMES:
        np.testing.assert_allclose(
            np.ravel(given.x[name])[0], np.ravel(other.x[name])[0], rtol=1e-7
        )


@pytest.mark.parametrize("batched", [False, True])
def test_a_covariance_of_least_squares_has_the_order_of_x(batched: bool) -> None:
    def residuals(p: Any) -> Any:
        pair, rate = p["pair"], p["a rate"]
        return pair[..., :1] * np.exp(-rate[..., None] * X) + pair[..., 1:] - y

    rows, y = (2,) if batched else (), np.stack([Y, Y + 0.01 * X]) if batched else Y
    start = {"pair": np.ones((*rows, 2)), "a rate": np.ones(rows)}
    res = lx.least_squares(residuals, start, batched=batched)
    errors = np.sqrt(np.diagonal(res.covariance, axis1=-2, axis2=-1))
    np.testing.assert_allclose(errors[..., :2], res.stderr["pair"], rtol=1e-14)
    np.testing.assert_allclose(errors[..., 2], res.stderr["a rate"], rtol=1e-14)
    fit = lx.curve_fit(
        lambda x, height, offset, rate: offset + height * np.exp(-rate * x), X, Y, [1.0, 1.0, 1.0]
    )
    covariance = res.covariance[0] if batched else res.covariance
    np.testing.assert_allclose(covariance, fit.covariance, rtol=1e-6)


def test_a_frozen_tensor_has_no_error() -> None:
    torch = pytest.importorskip("torch")
    x, y = torch.as_tensor(X), torch.as_tensor(Y)
    start = {"height": torch.tensor(1.0, dtype=torch.float64, requires_grad=True)}
    start["a rate"] = torch.tensor(1.3, dtype=torch.float64)
    start["offset"] = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    res = lx.least_squares(
        lambda p: p["offset"] + p["height"] * torch.exp(-p["a rate"] * x) - y, start
    )
    assert float(res.stderr["a rate"]) == 0.0
    errors = np.sqrt(np.diagonal(np.asarray(res.covariance)))
    given = [float(res.stderr[name]) for name in ("height", "offset")]
    np.testing.assert_allclose(errors, given, rtol=1e-14)


def test_names() -> None:
    def peaks(x: Any, base: Any, peaks: Any, *, inner: Any = 0.0) -> Any:
        return base + sum(peak["height"] * np.exp(-((x - peak["place"][0]) ** 2)) for peak in peaks)

    start = {
        "base": 0.1,
        "peaks": [{"place": np.asarray([1.0]), "height": np.asarray(1.0)},
                  {"place": np.asarray([3.0]), "height": np.asarray(1.0)}],
    }
    y = np.exp(-((X - 1.1) ** 2)) + 2.0 * np.exp(-((X - 2.9) ** 2)) + 0.01 * np.sin(9.0 * X)
    res = lx.curve_fit(peaks, X, y, start, jac="3-point")
    assert res.names == (
        "base", "peaks.0.place[0]", "peaks.0.height", "peaks.1.place[0]", "peaks.1.height"
    )
    np.testing.assert_array_equal(
        res.covariance_of("peaks.1", "base"), res.covariance[3:5, 0:1]
    )
    np.testing.assert_array_equal(res.covariance_of(-1), res.covariance[4:, 4:])
    many = lx.curve_fit(lambda x, *p: p[0] + p[1] * x, X, Y, [0.0, 0.0], jac="3-point")
    assert many.names == ("x[0]", "x[1]")
    two = lx.curve_fit(
        lambda x, heights, rate: heights[0] + heights[1] * np.exp(-rate[0] * x), X, Y,
        (np.asarray([0.0, 1.0]), np.ones(1)), jac="3-point",
    )
    assert two.names == ("heights[0]", "heights[1]", "rate[0]")


def test_copies_keep_the_numbers_alone() -> None:
    res = fit(Backend.NUMPY, True)
    for other in (pickle.loads(pickle.dumps(res)), copy.deepcopy(res), copy.copy(res)):
        np.testing.assert_array_equal(other.aic, res.aic)
        np.testing.assert_array_equal(other.correlation, res.correlation)
        with pytest.raises(ValueError, match="copy, or comes from a pickle"):
            _ = other.jacobian


@pytest.mark.parametrize("dof", [1, 2, 5, 100, 10_000, 10_000_000])
def test_chances_like_scipy(dof: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    chi2 = np.maximum(dof + np.sqrt(2.0 * dof) * np.asarray([-5.0, -1.0, 0.0, 0.5, 1.0, 6.0]), 0.0)
    np.testing.assert_allclose(
        chi2_above(chi2, np.full(6, dof)), stats.chi2.sf(chi2, dof), rtol=1e-7
    )


def test_edges_of_chances() -> None:
    found = chi2_above(np.asarray([0.0, np.inf, 1.0, -1.0, np.nan]), np.asarray([3, 3, 0, 3, 3]))
    np.testing.assert_array_equal(found, [1.0, 0.0, np.nan, np.nan, np.nan])
    assert rise_of(0.6826894921370859) == pytest.approx(1.0)
    assert rise_of(0.6826894921370859, parameters=2) == pytest.approx(2.2957489)
    dof = np.asarray([[0.0, np.nan], [3.0, np.inf]])
    for found in (deviations_of(0.95, dof), rise_of(0.95, dof), rise_of(0.95, dof, 2)):
        assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()


@pytest.mark.parametrize("dof", [1, 2, 3, 10, 999, 1000, 10_000_000])
def test_quantiles_like_scipy(dof: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for level in (1e-3, 0.3, 0.6827, 0.95, 0.9973, 1.0 - 1e-10):
        rest = 1.0 - level
        assert deviations_of(level, dof) == pytest.approx(stats.t.isf(0.5 * rest, dof), rel=1e-9)
        # F with 2 and dof degrees of freedom, in closed form: SciPy 1.15 is wrong in its far tail.
        exact = dof * math.expm1(-2.0 / dof * math.log(rest))
        assert rise_of(level, dof, 2) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("power", [-1.0, 1.0])
@pytest.mark.parametrize("batched", [False, True])
def test_errors_hold_where_their_squares_do_not(
    backend: Backend, dtype: str, power: float, batched: bool
) -> None:
    """Variances leave the range of the dtype long before the standard deviations do."""
    scale = (1e25 if dtype == "float32" else 1e200) ** power
    xp, rows = backend.xp, (slice(None), None) if batched else ...
    y = np.stack([Y, Y + 0.01 * X]) if batched else Y

    def told(unit: float) -> tuple:
        def given(numbers: Any) -> Any:
            return backend.asarray((np.asarray(numbers) * unit).astype(dtype))

        fit = lx.curve_fit(
            lambda x, a, c, k: c + a * xp.exp(-k * x), given(X / unit), given(y),
            {"a": given(2.0), "c": given(0.1), "k": given(1.0 / unit)}, sigma=0.05 * unit,
            absolute_sigma=True, batched=batched, jac=None if backend.has_autodiff else "3-point",
        )
        (low, high), (_, error) = fit.band(), fit.propagate(lambda p: 3.0 * p["c"])
        size = np.asarray([unit, unit, 1.0])
        stderr = [backend.to_numpy(fit.stderr[name])[rows] if batched
                  else float(fit.stderr[name]) for name in ("a", "c", "k")]
        stderr = np.concatenate(stderr, axis=-1) if batched else np.asarray(stderr)
        return (
            stderr / size, backend.to_numpy(fit.correlation),
            (backend.to_numpy(high).astype(float) - backend.to_numpy(low)) / unit,
            (backend.to_numpy(error) if batched else error) / unit,
        )

    for here, there in zip(told(1.0), told(scale), strict=True):
        assert np.all(np.isfinite(there))
        np.testing.assert_allclose(there, here, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("size", [1e-22, 1e20])
def test_data_whose_squares_leave_the_range_need_a_sigma(size: float) -> None:
    x, y = X.astype("float32"), (size * Y).astype("float32")

    def model(x: Any, a: Any, c: Any, k: Any) -> Any:
        return c + a * np.exp(-k * x)

    start = [2.0 * size, 0.1 * size, 1.0]
    assert lx.curve_fit(model, x, y, start).status is lx.Status.NOT_FINITE
    found = lx.curve_fit(model, x, y, start, sigma=size)
    other = lx.curve_fit(model, X, Y, [2.0, 0.1, 1.0])
    np.testing.assert_allclose(found.x / [size, size, 1.0], other.x, rtol=1e-4)
    np.testing.assert_allclose(found.stderr / [size, size, 1.0], other.stderr, rtol=1e-3)


def test_messages_say_what_is_not_known() -> None:
    """Without degrees of freedom the data determine the parameters, but not the scale of errors."""
    fit = lx.curve_fit(lambda x, a, b: a * x + b, [0.0, 1.0], [1.0, 3.0], [1.0, 1.0])
    assert np.isinf(fit.stderr).all() and "determine" not in fit.message
    assert np.isinf(np.asarray(fit.band([5.0]))).all()
    nan = lx.curve_fit(lambda x, a, b: a * x + b, X, np.where(X > 3.0, np.nan, X), [1.0, 1.0])
    assert nan.status is lx.Status.NOT_FINITE and "determine" not in nan.message
    loose = lx.curve_fit(lambda x, a, b, c: a * x + b + c, X, Y, [1.0, 1.0, 1.0])
    assert loose.message.endswith("the data do not determine b, c")
