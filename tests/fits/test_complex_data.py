"""Fits of complex data with real parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp.fits.complex_data import joined, parts_of
from tests.backends import Backend, parameters

W = 2.0 * np.pi * np.logspace(0.0, 4.0, 30)
TRUE = (10.0, 100.0, 1e-5)
START = (5.0, 50.0, 3e-5)


def circuit(xp: Any) -> Any:
    """A resistance in series with a resistance and a capacity side by side."""

    def impedance(w: Any, series: Any, parallel: Any, capacity: Any) -> Any:
        turn = w * (parallel * capacity)
        size = parallel / (1.0 + turn * turn)
        real, imaginary = series + size, -size * turn
        # No library mixes real arrays with complex numbers in the same way.
        kind = xp.complex128
        return xp.astype(real, kind) + xp.astype(imaginary, kind) * 1j

    return impedance


Z = circuit(np)


def measured(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    z, rng = Z(W, *TRUE), np.random.default_rng(seed)
    sigma = 0.01 * np.abs(z)
    return z + sigma * (rng.normal(size=30) + 1j * rng.normal(size=30)), sigma


def stacked(sigma: Any, **settings: Any) -> lx.CurveFit:
    """The same fit, with both parts as real data."""
    y, _ = measured()

    def both(w: Any, series: Any, parallel: Any, capacity: Any) -> Any:
        return parts_of(Z(w, series, parallel, capacity))

    return lx.curve_fit(both, W, parts_of(y), START, sigma=sigma, **settings)


@pytest.mark.parametrize("batched", [False, True])
def test_both_parts_are_data(backend: Backend, batched: bool) -> None:
    xp, (y, sigma) = backend.xp, measured()
    settings: Any = {"absolute_sigma": True}
    wanted = stacked(np.concatenate([sigma, sigma]), **settings)
    rows: Any = [2 * [each] if batched else each for each in (y, sigma)]
    data = xp.asarray(np.asarray(rows[0]), device=backend.device)
    model = circuit(xp)
    if backend.is_jax:
        import jax

        model = jax.jit(model)
    fit = lx.curve_fit(
        model, backend.asarray(W), data, START, sigma=backend.asarray(np.asarray(rows[1])),
        batched=batched, **settings,
    )
    row = (0,) if batched else ()
    found, errors = (backend.to_numpy(each)[row] for each in (fit.x, fit.stderr))
    np.testing.assert_allclose((found - wanted.x) / wanted.stderr, 0.0, atol=1e-4)
    np.testing.assert_allclose(errors, wanted.stderr, rtol=1e-4)
    assert np.all(np.asarray(backend.to_numpy(fit.n_data) if batched else fit.n_data) == 60)
    residuals, jacobian = (backend.to_numpy(each)[row] for each in (fit.residuals, fit.jacobian))
    assert residuals.dtype == jacobian.dtype == np.complex128
    np.testing.assert_allclose(parts_of(residuals), wanted.residuals, atol=1e-3)
    np.testing.assert_allclose(
        parts_of(jacobian, -2) * wanted.stderr, wanted.jacobian * wanted.stderr, atol=1e-4
    )


def test_everything_else_of_the_fit() -> None:
    y, sigma = measured()
    wanted = stacked(np.concatenate([sigma, sigma]), absolute_sigma=True)
    fit = lx.curve_fit(Z, W, y, START, sigma=sigma, absolute_sigma=True)
    for name in ("chi2", "p_value", "aic", "bic", "log_likelihood"):
        assert getattr(fit, name) == pytest.approx(getattr(wanted, name), rel=1e-9)
    for side, other in zip(fit.intervals(), wanted.intervals(), strict=True):
        np.testing.assert_allclose((side - other) / fit.stderr, 0.0, atol=1e-4)
    for side, other in zip(fit.band(), wanted.band(), strict=True):
        np.testing.assert_allclose(parts_of(side), other, rtol=1e-5)
    spread = fit.bootstrap(200, seed=0).std(axis=0)
    np.testing.assert_allclose(spread, wanted.bootstrap(200, seed=0).std(axis=0), rtol=1e-4)
    assert fit.summary() == wanted.summary()
    # The best constant is complex.
    level = np.sum(y / sigma**2) / np.sum(1.0 / sigma**2)
    assert fit.r2 == pytest.approx(1.0 - fit.chi2 / np.sum(np.abs((y - level) / sigma) ** 2))


@pytest.mark.parametrize("form", ["complex", "covariance", "number", "chunks", "masked"])
def test_deviations(form: str) -> None:
    y, sigma = measured()
    both = np.concatenate([sigma, 3.0 * sigma])
    given: Any = sigma + 3.0j * sigma
    settings: Any = {}
    if form == "covariance":
        root = np.eye(60) + 0.3 * np.eye(60, k=30)
        both = given = root @ np.diag(both**2) @ root.T
    elif form == "number":
        both = given = 0.7
    elif form == "chunks":
        settings = {"chunk_size": 11}
        both, given = np.concatenate([sigma, sigma]), sigma
    elif form == "masked":
        both[[4, 34]] = np.inf
        y = np.ma.masked_array(y, mask=np.arange(30) == 4)
        y.data[4] = np.nan
    wanted = stacked(both, absolute_sigma=True)
    fit = lx.curve_fit(Z, W, y, START, sigma=given, absolute_sigma=True, **settings)
    np.testing.assert_allclose((fit.x - wanted.x) / wanted.stderr, 0.0, atol=1e-6)
    np.testing.assert_allclose(fit.stderr, wanted.stderr, rtol=1e-6)
    assert fit.n_data == wanted.n_data and fit.r2 > 0.99


def test_given_jacobians_and_complex_coordinates() -> None:
    y, sigma = measured()

    def model(s: Any, series: Any, parallel: Any, capacity: Any) -> Any:
        return series + parallel / (1.0 + s * parallel * capacity)

    def jac(s: Any, series: Any, parallel: Any, capacity: Any) -> Any:
        bottom = (1.0 + s * parallel * capacity) ** 2
        return np.stack([1.0 + 0.0 * s, 1.0 / bottom, -s * parallel**2 / bottom], axis=-1)

    wanted = stacked(np.concatenate([sigma, sigma]))
    for s in (1j * W, list(1j * W)):
        for given in (jac, None):
            fit = lx.curve_fit(model, s, y, START, sigma=sigma, jac=given)
            np.testing.assert_allclose((fit.x - wanted.x) / wanted.stderr, 0.0, atol=1e-5)
    assert fit.predict([1j]).shape == (1,)


@pytest.mark.parametrize(
    "backend", parameters([Backend.NUMPY, Backend.STRICT, Backend.TORCH]), indirect=True
)
def test_complex_residuals_of_least_squares(backend: Backend) -> None:
    y, sigma = measured()
    wanted = stacked(np.concatenate([sigma, sigma]))
    model, xp = circuit(backend.xp), backend.xp
    w, data = backend.asarray(W), xp.asarray(y / sigma, device=backend.device)
    weights = xp.astype(backend.asarray(1.0 / sigma), xp.complex128)
    scale = backend.asarray(np.asarray(START))

    def residuals(p: Any) -> Any:
        p = p * scale
        return model(w, p[0], p[1], p[2]) * weights - data

    res = lx.least_squares(residuals, backend.asarray([1.0, 1.0, 1.0]))
    assert res.success and tuple(res.fun.shape) == (60,) and tuple(res.jac.shape) == (60, 3)
    away = backend.to_numpy(res.x) * START - wanted.x
    np.testing.assert_allclose(away / wanted.stderr, 0.0, atol=1e-4)
    found = backend.to_numpy(res.fun)
    np.testing.assert_allclose(joined(found), -joined(wanted.residuals) / sigma, atol=1e-3)


def test_wrong_calls() -> None:
    y, sigma = measured()
    with pytest.raises(TypeError, match="y has dtype complex128; wanted real numbers for a likeli"):
        lx.curve_fit(Z, W, y, START, likelihood="poisson")
    with pytest.raises(TypeError, match="y has dtype complex128; wanted real numbers for a likeli"):
        lx.curve_fit(Z, W, y, START, sigma=(sigma, sigma))
    with pytest.raises(ValueError, match=r"sigma has shape \(29,\); .* \(30,\), .* \(60, 60\): of"):
        lx.curve_fit(Z, W, y, START, sigma=sigma[1:])
    with pytest.raises(TypeError, match="model returned dtype complex128; wanted a real"):
        lx.curve_fit(Z, W, y.real, START)
    with pytest.raises(ValueError, match=r"model returned an array of shape \(29,\); wanted .*30"):
        lx.curve_fit(Z, W[1:], y, START)
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="y is complex; wanted real data for a fit that is diff"):
        lx.curve_fit(Z, W, torch.as_tensor(y), START, differentiable=True)


def test_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    y, sigma = measured()
    fit = lx.curve_fit(Z, W, y, START, sigma=sigma)
    figure = fit.plot()
    real, imaginary = figure.axes[:2]
    assert (real.get_ylabel(), imaginary.get_ylabel()) == ("real part of y", "imaginary part of y")
    np.testing.assert_allclose(imaginary.lines[0].get_ydata(), y.imag)
    assert imaginary.lines[-1].get_ydata().min() == pytest.approx(-50.0, rel=0.05)
