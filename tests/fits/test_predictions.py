"""Predictions and functions of parameters with errors, and parameters at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

X = np.linspace(0.0, 4.0, 40)
TRUE = (2.5, 1.3, 0.5)
FEW = [Backend.NUMPY, Backend.TORCH]


def data(rows: int, noise: float = 0.1) -> np.ndarray:
    noises = noise * np.random.default_rng(3).normal(size=(rows, 40))
    return TRUE[0] * np.exp(-TRUE[1] * X) + TRUE[2] + noises


def fit(y: Any, backend: Backend = Backend.NUMPY, **settings: Any) -> lx.CurveFit:
    xp = backend.xp
    p0 = {"k": 1.0, "c": 1.0, "a": 1.0}
    return lx.curve_fit(
        lambda x, a, k, c: a * xp.exp(-k * x) + c, backend.asarray(X), backend.asarray(y), p0,
        batched=np.ndim(y) == 2, **settings,
    )


def numbers(backend: Backend, tree: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: backend.to_numpy(leaf) for name, leaf in tree.items()}


@pytest.mark.parametrize("batched", [False, True])
def test_band(backend: Backend, batched: bool) -> None:
    res = fit(data(2) if batched else data(2)[0], backend, sigma=0.1)
    at = np.asarray([-1.0, 0.5, 6.0])
    x = {name: leaf.reshape(-1, 1) for name, leaf in numbers(backend, res.x).items()}
    decay = np.exp(-x["k"] * at)
    middle = x["a"] * decay + x["c"]
    slopes = np.stack([-x["a"] * at * decay, np.ones_like(decay), decay], axis=-1)
    covariance = backend.to_numpy(res.covariance).reshape(-1, 3, 3)
    t = 2.026192463029109    # of Student's distribution with 37 degrees of freedom
    wanted = t * np.sqrt(np.sum((slopes @ covariance) * slopes, axis=-1))
    low, high = (backend.to_numpy(s) for s in res.band(backend.asarray(at), 0.95))
    assert low.shape == ((2, 3) if batched else (3,))
    np.testing.assert_allclose(backend.to_numpy(res.predict(at)), np.reshape(middle, low.shape))
    np.testing.assert_allclose(0.5 * (high + low), np.reshape(middle, low.shape), rtol=1e-10)
    np.testing.assert_allclose(0.5 * (high - low), np.reshape(wanted, low.shape), rtol=1e-5)
    curve = backend.asarray(data(2) if batched else data(2)[0]) - res.residuals
    np.testing.assert_allclose(backend.to_numpy(res.predict()), backend.to_numpy(curve))


@pytest.mark.parametrize("batched", [False, True])
def test_band_of_new_data(backend: Backend, batched: bool) -> None:
    """The variances of the curve and of the data add; the scale of the errors applies to both."""
    at = np.asarray([-1.0, 0.5, 6.0])
    t = 2.026192463029109
    y = data(2) if batched else data(2)[0]
    for known in (False, True):
        res = fit(y, backend, sigma=0.1, absolute_sigma=known)
        z = 1.959963984540054 if known else t
        low, high = (backend.to_numpy(s) for s in res.band(backend.asarray(at), 0.95))
        scale = 1.0 if known else np.reshape(
            np.sqrt(backend.to_numpy(res.reduced_chi2) if batched else res.reduced_chi2), (-1, 1)
        )
        for sigma in (0.2, np.asarray([0.1, 0.0, np.inf])):
            given = sigma if np.ndim(sigma) == 0 else backend.asarray(sigma)
            below, above = (
                backend.to_numpy(s) for s in res.band(backend.asarray(at), 0.95, sigma=given)
            )
            wanted = np.hypot(0.5 * (high - low), z * sigma * scale)
            np.testing.assert_allclose(
                0.5 * (above - below), np.reshape(wanted, low.shape), rtol=1e-5
            )


def test_the_band_of_new_data_holds_them() -> None:
    """95 % of new data are inside, from fits of few data whose errors are not known."""
    x, new = np.linspace(0.0, 1.0, 8), np.linspace(-0.5, 1.5, 5)
    rng = np.random.default_rng(1)
    y = 1.0 + 2.0 * x + 0.3 * rng.normal(size=(4000, 8))
    res = lx.curve_fit(lambda x, a, b: a + b * x, x, y, [1.0, 1.0], batched=True)
    low, high = res.band(new, 0.95, sigma=1.0)
    seen = 1.0 + 2.0 * new + 0.3 * rng.normal(size=(4000, 5))
    inside = np.mean((low < seen) & (seen < high), axis=0)
    assert np.all(np.abs(inside - 0.95) < 0.014)    # four standard deviations of the share
    row_low, row_high = res.row(7).band(new, 0.95, sigma=1.0)
    np.testing.assert_allclose([row_low, row_high], [low[7], high[7]], rtol=1e-12)


def test_errors_of_the_band_of_new_data() -> None:
    res = lx.curve_fit(lambda x, a, b: a + b * x, X, data(1)[0], [1.0, 1.0])
    with pytest.raises(ValueError, match="sigma is -1.0; wanted numbers of at least 0"):
        res.band(sigma=-1.0)
    with pytest.raises(ValueError, match=r"sigma has shape \(3,\); wanted one that broadcasts to"):
        res.band(sigma=np.ones(3))
    with pytest.raises(TypeError, match="prediction was passed to band; wanted sigma="):
        res.band(prediction=True)
    counts = lx.curve_fit(
        lambda x, a: a + 0.0 * x, X, np.full(X.size, 3.0), [1.0], likelihood="poisson"
    )
    with pytest.raises(ValueError, match="sigma is 1.0; wanted None, because"):
        counts.band(sigma=1.0)


@pytest.mark.parametrize("batched", [False, True])
def test_propagate(backend: Backend, batched: bool) -> None:
    """A function whose own fit gives its error."""
    xp = backend.xp
    res = fit(data(2) if batched else data(2)[0], backend)
    other = lx.curve_fit(
        lambda x, area, k, c: area * k * xp.exp(-k * x) + c, backend.asarray(X),
        backend.asarray(data(2) if batched else data(2)[0]), [1.0, 1.0, 1.0], batched=batched,
    )
    value, error = res.propagate(lambda p: p["a"] / p["k"])
    assert isinstance(value, float) != batched
    wanted, deviation = (backend.to_numpy(each)[..., 0] for each in (other.x, other.stderr))
    host = backend.to_numpy if batched else np.asarray
    np.testing.assert_allclose(host(value), wanted, rtol=1e-7)
    np.testing.assert_allclose(host(error), deviation, rtol=1e-4)
    values, errors = other.propagate(lambda p: xp.stack([p[0], 2.0 * p[1]], axis=-1))
    np.testing.assert_allclose(
        backend.to_numpy(errors), backend.to_numpy(other.stderr)[..., :2] * [1.0, 2.0], rtol=1e-6
    )
    assert tuple(values.shape) == tuple(errors.shape) == ((2, 2) if batched else (2,))


@pytest.mark.parametrize("backend", FEW, ids=str)
@pytest.mark.parametrize("batched", [False, True])
def test_sample(backend: Backend, batched: bool) -> None:
    res = fit(data(2) if batched else data(2)[0], backend)
    drawn = numbers(backend, res.sample(4000, seed=1))
    assert list(drawn) == ["k", "c", "a"]
    for leaf in drawn.values():
        assert leaf.shape == ((2, 4000) if batched else (4000,))
    drawn = np.stack(list(drawn.values()), axis=-1).reshape(-1, 4000, 3)
    covariance = backend.to_numpy(res.covariance).reshape(-1, 3, 3)
    x = np.stack(list(numbers(backend, res.x).values()), axis=-1).reshape(-1, 3)
    for i in range(2 if batched else 1):
        size = np.sqrt(np.diag(covariance[i]))
        found = np.cov(drawn[i].T)
        np.testing.assert_allclose(
            found / np.outer(size, size), covariance[i] / np.outer(size, size), atol=0.08
        )
        assert (np.abs(drawn[i].mean(axis=0) - x[i]) < 5.0 * size / np.sqrt(4000)).all()


@pytest.mark.parametrize("batched", [False, True])
def test_bootstrap(backend: Backend, batched: bool) -> None:
    """As many as fit on the host are enough to see that all rows are their own."""
    size = 300 if backend.is_numpy else 12
    res = fit(data(2) if batched else data(2)[0], backend)
    drawn = numbers(backend, res.bootstrap(size, seed=1))
    x, stderr = numbers(backend, res.x), numbers(backend, res.stderr)
    same = numbers(Backend.NUMPY, fit(data(2) if batched else data(2)[0]).bootstrap(size, seed=1))
    for name in ("a", "k", "c"):
        assert drawn[name].shape == ((2, size) if batched else (size,))
        np.testing.assert_allclose(drawn[name], same[name], rtol=1e-4)
        if backend.is_numpy:
            spread = drawn[name].std(axis=-1)
            np.testing.assert_allclose(spread, stderr[name], rtol=0.25)
            assert (np.abs(drawn[name].mean(axis=-1) - x[name]) < 0.4 * stderr[name]).all()


@pytest.mark.parametrize("sigma", [
    np.where(X[3] == X, np.inf, np.linspace(0.05, 0.2, 40)),
    0.01 * np.exp(-np.abs(X[:, None] - X)),
])
def test_bootstrap_in_units_of_sigma(sigma: np.ndarray) -> None:
    """Errors of the data as sigma says, also if they are correlated."""
    rng = np.random.default_rng(0)
    known = np.where(np.isfinite(sigma), sigma, 1.0)
    root = np.linalg.cholesky(known) if known.ndim == 2 else np.diag(known)
    y = TRUE[0] * np.exp(-TRUE[1] * X) + TRUE[2] + root @ rng.normal(size=40)
    res = fit(y, sigma=sigma)
    drawn = res.bootstrap(400, seed=0)
    for name in ("a", "k", "c"):
        assert drawn[name].std() == pytest.approx(float(res.stderr[name]), rel=0.25)


def test_bootstrap_with_bounds_and_ties() -> None:
    y = data(1)[0]
    upper = 1.0 + float(fit(y).x["k"])
    res = lx.curve_fit(
        lambda x, a, k, c, area: a * np.exp(-k * x) + c, X, y,
        {"a": 1.0, "k": 1.0, "c": 1.0, "area": 0.0}, ties={"area": lambda p: p["a"] / p["k"]},
        bounds=({"k": 0.0}, {"k": upper}),
    )
    for drawn in (res.bootstrap(60, seed=0), res.sample(60, seed=0)):
        np.testing.assert_allclose(drawn["area"], drawn["a"] / drawn["k"], rtol=1e-9)
        assert drawn["area"].std() == pytest.approx(float(res.stderr["area"]), rel=0.5)
    value, error = res.propagate(lambda p: p["area"])
    assert (value, error) == pytest.approx((float(res.x["area"]), float(res.stderr["area"])))


@pytest.mark.parametrize("backend", [Backend.NUMPY, Backend.TORCH], ids=str)
@pytest.mark.parametrize("batched", [False, True])
def test_what_the_data_do_not_determine(backend: Backend, batched: bool) -> None:
    """Data at one place determine a line there, and the sum of its parameters alone."""
    x = backend.asarray(np.ones(12))
    y = backend.asarray(np.asarray([[1.0, 1.1] * 6, [2.0, 1.8] * 6]))
    res = lx.curve_fit(
        lambda x, a, b: a + b * x, x, y if batched else y[0], [1.0, 1.0], batched=batched,
        sigma=0.1, absolute_sigma=True,
    )
    at = np.asarray([1.0, 2.0])
    low, high = res.band(backend.asarray(np.tile(at, (2, 1)) if batched else at))
    width = np.atleast_2d(backend.to_numpy(high) - backend.to_numpy(low))
    assert (width[:, 0] < 0.2).all() and (width[:, 1] == np.inf).all()
    _, known = res.propagate(lambda p: p[0] + p[1])
    _, unknown = res.propagate(lambda p: p[0])
    known, unknown = (np.atleast_1d(np.asarray(each)) for each in (known, unknown))
    np.testing.assert_allclose(2.0 * known, width[:, 0], rtol=1e-3)
    assert np.isinf(unknown).all()


@pytest.mark.parametrize("spread", [1e-6, 10.0])
def test_bootstrap_with_priors(spread: float) -> None:
    """Residuals are enlarged by what the data determine, not the priors."""
    x = X[:8] - X[:8].mean()
    y = 1.0 + 2.0 * x - x * x + 0.1 * np.cos(9.0 * np.arange(8))
    res = lx.curve_fit(
        lambda x, a, b, c: a + b * x + c * x * x, x, y, [1.0, 2.0, 0.0], sigma=0.1,
        absolute_sigma=True, priors={"a": (1.0, spread), "b": (2.0, spread)},
    )
    determined = 1.0 if spread < 1.0 else 3.0
    wanted = res.stderr[2] * (res.residuals / 0.1).std() * np.sqrt(8.0 / (8.0 - determined))
    assert res.bootstrap(2000, seed=0)[:, 2].std() == pytest.approx(wanted, rel=0.06)


def test_failed_fits_have_no_others() -> None:
    y = data(2)
    y[1, 4] = np.nan
    res = fit(y)
    drawn = res.bootstrap(5, seed=0)
    assert np.isfinite(drawn["k"][0]).all() and np.isnan(drawn["k"][1]).all()


def test_wrong_questions() -> None:
    res = fit(data(1)[0])
    with pytest.raises(ValueError, match="size is 0; wanted an integer of at least 1"):
        res.sample(0)
    with pytest.raises(TypeError, match="function is 3; wanted a function"):
        res.propagate(3)
    with pytest.raises(ValueError, match="limit is .a.; wanted"):
        res.summary(limit="a")
    with pytest.raises(ValueError, match=r"level is 2\.0"):
        res.band(level=2.0)
    with pytest.raises(ValueError, match=r"shape \(\) at this x; wanted one \(k,\)"):
        res.band(1.0)
    with pytest.raises(ValueError, match="a number for each fit"):
        fit(data(3)).propagate(lambda p: p["k"][0])
