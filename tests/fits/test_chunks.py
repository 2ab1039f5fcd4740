"""Fits of data in chunks: the same as at once, in little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from tests.backends import Backend

X = np.linspace(0.0, 4.0, 5000)
RNG = np.random.default_rng(0)
SIGMA = RNG.uniform(0.04, 0.06, X.size)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + SIGMA * RNG.normal(size=X.size)
NUMBERS = ("chi2", "reduced_chi2", "r2", "log_likelihood", "n_data", "n_free", "nit")


def decay(x: Any, a: Any, k: Any, c: Any) -> Any:
    return a * np.exp(-k * x) + c


def check_alike(found: lx.CurveFit, wanted: lx.CurveFit) -> None:
    assert found.success and found.residuals is None
    for name in NUMBERS:
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-9), name
    np.testing.assert_allclose(found.covariance, wanted.covariance, rtol=1e-5, atol=1e-20)
    away = np.abs(found.x - wanted.x) / np.where(wanted.stderr > 0.0, wanted.stderr, 1.0)
    assert np.max(away) < 1e-5


@pytest.mark.parametrize("settings", [
    {}, {"sigma": SIGMA}, {"sigma": SIGMA, "absolute_sigma": True}, {"jac": "3-point"},
    {"bounds": ([0.0, 0.0, 0.6], None)}, {"bounds": ([0.0, 1.0, 0.0], [9.0, 1.0, 9.0])},
    {"fixed": ("k",)}, {"ties": {"c": lambda p: 0.2 * p[0]}}, {"x_scale": [2.0, 1.0, 0.5]},
])
def test_chunks_give_the_fit_of_all_data(settings: dict[str, Any]) -> None:
    start = [1.0, 1.0, 1.0]
    wanted = lx.curve_fit(decay, X, Y, start, **{"jac": "2-point", **settings})
    found = lx.curve_fit(decay, X, Y, start, chunk_size=777, **{"jac": "2-point", **settings})
    check_alike(found, wanted)


def test_an_infinite_sigma_leaves_points_out_of_their_chunk() -> None:
    sigma, y = SIGMA.copy(), Y.copy()
    sigma[700:1200], y[700:1200] = np.inf, np.nan
    wanted = lx.curve_fit(decay, X, y, [1.0, 1.0, 1.0], sigma=sigma, jac="2-point")
    found = lx.curve_fit(
        decay, X, y, [1.0, 1.0, 1.0], sigma=sigma, jac="2-point", chunk_size=777
    )
    check_alike(found, wanted)


@pytest.mark.parametrize("settings", [
    {"sigma": SIGMA, "absolute_sigma": True}, {"bounds": ([0.0, 0.0, 0.5], None)},
    {"fixed": ("k",)}, {"ties": {"c": lambda p: 0.2 * p[0]}},
])
def test_questions_about_a_fit_in_chunks(settings: dict[str, Any]) -> None:
    start = [1.0, 1.0, 1.0]
    wanted = lx.curve_fit(decay, X, Y, start, **settings)
    found = lx.curve_fit(decay, X, Y, start, chunk_size=777, **settings)
    unit = np.where(wanted.stderr > 0.0, wanted.stderr, 1.0)
    ours, theirs = found.intervals(), wanted.intervals()
    assert ours.success and np.isfinite(ours.low).all()
    np.testing.assert_array_equal(ours.low_status, theirs.low_status)
    for side, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose((side - other) / unit, 0.0, atol=1e-4)
    table = slice(1, 5)
    assert found.summary(0.9).splitlines()[table] == wanted.summary(0.9).splitlines()[table]
    for name in ("band", "predict"):
        np.testing.assert_allclose(
            getattr(found, name)([0.0, 9.0]), getattr(wanted, name)([0.0, 9.0]), rtol=1e-6
        )
    half_lives = [fit.propagate(lambda p: np.log(2.0) / p[1]) for fit in (found, wanted)]
    np.testing.assert_allclose(*half_lives, rtol=1e-6)


def test_profiles_and_contours_of_a_fit_in_chunks() -> None:
    wanted = lx.curve_fit(decay, X, Y, [1.0, 1.0, 1.0])

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from ((X[i : i + 999], Y[i : i + 999]) for i in range(0, X.size, 999))

    found = lx.curve_fit(decay, chunks, None, [1.0, 1.0, 1.0])
    values = wanted.profile("k", size=5).values
    np.testing.assert_allclose(
        found.profile("k", values).delta, wanted.profile("k", values).delta, atol=1e-4
    )
    border, other = (fit.contour("a", "k", size=8) for fit in (found, wanted))
    np.testing.assert_allclose((border - other) / wanted.stderr[:2], 0.0, atol=1e-4)
    calls: list[Any] = [
        found.predict, found.band, found.plot, lambda: found.bootstrap(3), lambda: found.jacobian
    ]
    for call in calls:
        with pytest.raises(ValueError, match="fitted in chunks, of which only sums are kept; want"):
            call()


def test_nearly_dependent_columns_keep_their_digits() -> None:
    def line(x: Any, a: Any, b: Any) -> Any:
        return a + b * (1.0 + 1e-6 * x)

    def slopes(x: Any, a: Any, b: Any) -> Any:
        return np.stack([np.ones_like(x), 1.0 + 1e-6 * x], axis=-1)

    wanted = lx.curve_fit(line, X, Y, [0.0, 0.0], jac=slopes)
    found = lx.curve_fit(line, X, Y, [0.0, 0.0], jac=slopes, chunk_size=777)
    assert found.success
    np.testing.assert_allclose(found.stderr, wanted.stderr, rtol=1e-6)
    np.testing.assert_allclose(found.chi2, wanted.chi2, rtol=1e-9)
    assert np.max(np.abs(found.x - wanted.x) / wanted.stderr) < 1e-4


def test_a_parameter_without_influence_is_loose() -> None:
    found = lx.curve_fit(
        lambda x, a, b: a + 0.0 * b * x, X, Y, [1.0, 1.0], jac="2-point", chunk_size=777
    )
    assert found.stderr[1] == np.inf and np.isfinite(found.stderr[0])
    assert "do not respond" in found.message


def test_a_wrong_jacobian_is_no_success() -> None:
    def wrong(x: Any, a: Any, k: Any, c: Any) -> Any:
        e = np.exp(-k * x)
        return np.stack([e, a * x * e, np.ones_like(x)], axis=-1)    # the sign of k

    found = lx.curve_fit(decay, X, Y, [1.0, 1.0, 1.0], jac=wrong, chunk_size=777, maxiter=200)
    assert not found.success


def test_libraries(backend: Backend) -> None:
    exp = backend.xp.exp
    found = lx.curve_fit(
        lambda x, a, k, c: a * exp(-k * x) + c, backend.asarray(X), backend.asarray(Y),
        [1.0, 1.0, 1.0], chunk_size=2500, jac=None if backend.has_autodiff else "3-point",
    )
    wanted = lx.curve_fit(decay, X, Y, [1.0, 1.0, 1.0], jac="3-point")
    assert found.success
    assert np.max(np.abs(backend.to_numpy(found.x) - wanted.x) / wanted.stderr) < 1e-4


def test_data_from_a_function_and_from_files(tmp_path: Path) -> None:
    wanted = lx.curve_fit(decay, X, Y, [1.0, 1.0, 1.0], sigma=SIGMA, jac="2-point")

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start in range(0, X.size, 900):
            part = slice(start, start + 900)
            yield X[part], Y[part], SIGMA[part]

    check_alike(lx.curve_fit(decay, chunks, None, [1.0, 1.0, 1.0], jac="2-point"), wanted)
    arrays = []
    for name, values in (("x", X), ("y", Y), ("sigma", SIGMA)):
        np.save(tmp_path / f"{name}.npy", values)
        arrays.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    x, y, sigma = arrays
    found = lx.curve_fit(
        decay, x, y, [1.0, 1.0, 1.0], sigma=sigma, jac="2-point", chunk_size=900
    )
    check_alike(found, wanted)


def test_large_data_are_fitted_in_little_memory() -> None:
    count, some = 2**20, tuple(range(3, 17))    # a Jacobian of 17 parameters has 2^24 numbers
    x = np.linspace(0.0, 4.0, count)
    y = decay(x, 2.5, 1.3, 0.5) + np.sin(1e4 * x)
    start = [1.0] * 3 + [0.0] * len(some)

    def model(x: Any, *p: Any) -> Any:
        return decay(x, *p[:3]) + sum(p[3:])

    lx.curve_fit(model, x[:2000], y[:2000], start, fixed=some, jac="2-point")
    tracemalloc.start()
    try:
        fit = lx.curve_fit(model, x, y, start, fixed=some, jac="2-point")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fit.success and fit.residuals is None
    # What a fit of any size needs is a third of these data.
    assert peak < 0.5 * (x.nbytes + y.nbytes)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"chunk_size": 0}, "chunk_size is 0"),
    ({"chunk_size": 100, "loss": "huber"}, "chunk_size is 100; wanted one fit of normal errors"),
    ({"chunk_size": 100, "method": "lbfgs"}, "wanted one fit of normal errors"),
    ({"x": lambda: iter(()), "y": None, "likelihood": "poisson"}, "wanted one fit of normal"),
    ({"chunk_size": 100, "sigma": np.eye(X.size)}, r"wanted deviations \(5000,\)"),
    ({"x": lambda: iter(()), "y": None}, "returned no chunks"),
    ({"x": lambda: iter([X]), "y": None}, "a chunk of data is"),
    ({"x": lambda: iter([(X, Y)]), "y": None, "sigma": SIGMA}, r"wanted tuples \(x, y, sigma\)"),
])
def test_wrong_calls(arguments: dict[str, Any], message: str) -> None:
    given = {"x": X, "y": Y, "p0": [1.0, 1.0, 1.0], "jac": "2-point", **arguments}
    with pytest.raises((ValueError, TypeError), match=message):
        lx.curve_fit(decay, **given)


def test_chunks_with_and_without_sigma_are_refused() -> None:
    x, y = np.arange(8.0), 2.0 * np.arange(8.0)

    def chunks() -> Any:
        yield x[:4], y[:4]
        yield x[4:], y[4:], np.ones(4)

    with pytest.raises(ValueError, match=r"some chunks of data are \(x, y\) and others"):
        lx.curve_fit(lambda x, a, b: a * x + b, chunks, None, [1.0, 1.0])
