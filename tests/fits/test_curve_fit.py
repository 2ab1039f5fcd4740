"""Fits with uncertainties: compared with SciPy, in batches, with bounds, losses and names."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import sys
import threading
import warnings
from typing import Any

import numpy as np
import pytest

import lbfgs_xp as lx
from lbfgs_xp import Status
from tests.backends import Backend

X = np.linspace(0.0, 4.0, 40)
TRUE = np.asarray([2.5, 1.3, 0.5])
START = np.asarray([1.0, 1.0, 1.0])
Y = TRUE[0] * np.exp(-TRUE[1] * X) + TRUE[2] + 0.05 * np.random.default_rng(0).normal(size=40)
SIGMA = np.linspace(0.5, 2.0, 40) * 0.05


def decay(backend: Backend | None = None) -> Any:
    xp = np if backend is None else backend.xp
    return lambda x, a, k, c: a * xp.exp(-k * x) + c


def jac_of(backend: Backend) -> Any:
    return None if backend.has_autodiff else "3-point"


def fit(backend: Backend, y: Any = Y, p0: Any = START, **settings: Any) -> lx.CurveFit:
    settings = {"jac": jac_of(backend), **settings}
    return lx.curve_fit(decay(backend), backend.asarray(X), backend.asarray(y), p0, **settings)


def scipy_fit(**settings: Any) -> tuple[np.ndarray, np.ndarray]:
    optimize = pytest.importorskip("scipy.optimize")
    tight = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14}
    return optimize.curve_fit(decay(), X, Y, START, **tight, **settings)


def check(backend: Backend, res: lx.CurveFit, wanted: tuple[np.ndarray, np.ndarray]) -> None:
    assert res.success, res.message
    x, covariance = backend.to_numpy(res.x), backend.to_numpy(res.covariance)
    np.testing.assert_allclose(x, wanted[0], rtol=1e-6)
    np.testing.assert_allclose(covariance, wanted[1], rtol=1e-5)
    np.testing.assert_allclose(backend.to_numpy(res.stderr), np.sqrt(np.diag(wanted[1])), rtol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("kind", ["none", "deviations", "covariance"])
def test_like_scipy(backend: Backend, kind: str, absolute: bool) -> None:
    nearby = np.exp(-np.abs(X[:, None] - X)) * np.outer(SIGMA, SIGMA)
    sigma = {"none": None, "deviations": SIGMA, "covariance": nearby}[kind]
    res = fit(backend, sigma=sigma, absolute_sigma=absolute)
    check(backend, res, scipy_fit(sigma=sigma, absolute_sigma=absolute))
    inverse = np.eye(40) if sigma is None else np.linalg.inv(
        np.diag(sigma**2) if sigma.ndim == 1 else sigma
    )
    rest = Y - decay()(X, *backend.to_numpy(res.x))
    np.testing.assert_allclose(backend.to_numpy(res.residuals), rest, atol=1e-12)
    assert res.chi2 == pytest.approx(rest @ inverse @ rest, rel=1e-9)
    assert res.reduced_chi2 == pytest.approx(res.chi2 / 37)


def test_r2() -> None:
    """For a straight line, r2 is the squared correlation."""
    y = 2.0 * X + np.cos(5.0 * X)
    res = lx.curve_fit(lambda x, a, b: a + b * x, X, y, [0.0, 0.0], jac="3-point")
    assert res.r2 == pytest.approx(np.corrcoef(X, y)[0, 1] ** 2, rel=1e-10)


@pytest.mark.sampled
@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
def test_losses_like_scipy(backend: Backend, loss: str) -> None:
    y = Y.copy()
    y[[5, 20, 33]] += [3.0, -2.0, 4.0]
    optimize = pytest.importorskip("scipy.optimize")
    wanted = optimize.curve_fit(
        decay(), X, y, START, method="trf", loss=loss, f_scale=0.1, jac="3-point",
        xtol=1e-15, ftol=1e-15, gtol=1e-12, x_scale="jac",
    )
    res = fit(backend, y, loss=loss, f_scale=0.1)
    assert res.success
    np.testing.assert_allclose(backend.to_numpy(res.x), wanted[0], rtol=1e-5)
    np.testing.assert_allclose(backend.to_numpy(res.covariance), wanted[1], rtol=1e-3)
    plain = fit(backend, y)
    error, worse = (np.max(np.abs(backend.to_numpy(r.x) - TRUE)) for r in (res, plain))
    assert error < 0.2 < worse


def test_without_jac(backend: Backend) -> None:
    """One line on every library; what has been used for the Jacobian is in the result."""
    x, y = backend.asarray(X), backend.asarray(Y)
    res = lx.curve_fit(decay(backend), x, y, START)
    check(backend, res, scipy_fit())
    used = "automatic" if backend.has_autodiff else "2-point"
    assert res.derivatives == used and f"derivatives: {used}" in repr(res)
    xp = backend.xp
    least = lx.least_squares(lambda p: p[0] * xp.exp(-p[1] * x) + p[2] - y, backend.asarray(START))
    np.testing.assert_allclose(backend.to_numpy(least.x), backend.to_numpy(res.x), rtol=1e-6)
    assert least.derivatives == used


def test_which_derivatives_have_been_used() -> None:
    def jac(x: Any, a: Any, k: Any, c: Any) -> Any:
        return np.stack([np.exp(-k * x), -a * x * np.exp(-k * x), np.ones_like(x)], axis=-1)

    for given, named in ((jac, "given"), ("3-point", "3-point"), ("2-point", "2-point")):
        assert fit(Backend.NUMPY, jac=given).derivatives == named
        assert fit(Backend.NUMPY, jac=given, method="lbfgs").derivatives == named
    # Rounding ends this fit, so differences to both sides have the last word; in a batch, too.
    for data in (Y, np.stack([Y, Y])):
        res = fit(Backend.NUMPY, data, jac="2-point", gtol=0.0, batched=data.ndim == 2)
        assert res.derivatives == "3-point"


def test_bounds_like_scipy(backend: Backend) -> None:
    bounds = ([0.0, 0.0, 0.7], [2.2, 10.0, np.inf])
    optimize = pytest.importorskip("scipy.optimize")
    wanted, _ = optimize.curve_fit(
        decay(), X, Y, START, bounds=bounds, xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    res = fit(backend, bounds=bounds)
    x = backend.to_numpy(res.x)
    assert res.success
    assert x[2] == 0.7 and x[0] <= 2.2
    np.testing.assert_allclose(x, wanted, rtol=1e-6)


def test_bounds_that_bind_on_the_way() -> None:
    """The start is at a bound that does not bind at the solution."""
    free = fit(Backend.NUMPY)
    res = fit(Backend.NUMPY, p0=[0.0, 5.0, 0.0], bounds=([0.0, 0.0, 0.0], [3.0, 5.0, 1.0]))
    np.testing.assert_allclose(res.x, free.x, rtol=1e-8)


def test_named_parameters(backend: Backend) -> None:
    xp = backend.xp

    def model(x: Any, a: Any, inner: Any) -> Any:
        return a * xp.exp(-inner["k"] * x) + inner["c"]

    start = {"a": 1.0, "inner": {"k": 1.0, "c": 1.0}}
    res = lx.curve_fit(
        model, backend.asarray(X), backend.asarray(Y), start, jac=jac_of(backend),
        bounds=({"a": 0.0, "inner": {"k": None, "c": 0.0}}, None),
    )
    plain = fit(backend)
    x = backend.to_numpy(plain.x)
    stderr = backend.to_numpy(plain.stderr)
    assert float(res.x["a"]) == pytest.approx(x[0], rel=1e-7)
    assert float(res.x["inner"]["k"]) == pytest.approx(x[1], rel=1e-7)
    assert float(res.stderr["inner"]["k"]) == pytest.approx(stderr[1], rel=1e-5)


def test_jacobian_given(backend: Backend) -> None:
    xp = backend.xp

    def jac(x: Any, a: Any, k: Any, c: Any) -> Any:
        e = xp.exp(-k * x)
        return xp.stack([e, -a * x * e, xp.ones_like(x)], axis=-1)

    res = fit(backend, jac=jac, sigma=SIGMA)
    check(backend, res, scipy_fit(sigma=SIGMA))


@pytest.mark.parametrize("named", [False, True])
def test_rows_of_a_batch(backend: Backend, named: bool) -> None:
    """Each row is as if fitted alone; a row with nan does not affect the others."""
    rng = np.random.default_rng(1)
    rows = np.asarray([[2.5, 1.3, 0.5], [1.0, 0.4, -1.0], [4.0, 3.0, 0.0], [1.0, 1.0, 1.0]])
    y = np.stack([decay()(X, *row) for row in rows]) + 0.05 * rng.normal(size=(4, 40))
    y[3, 7] = np.nan
    p0: Any = {"a": 1.0, "k": 1.0, "c": 1.0} if named else START
    res = fit(backend, y, p0, batched=True, sigma=SIGMA)
    x, stderr = ([r["a"], r["k"], r["c"]] if named else [r] for r in (res.x, res.stderr))
    x, stderr = (
        np.stack([backend.to_numpy(v) for v in side], axis=-1).reshape(4, 3) for side in (x, stderr)
    )
    assert backend.to_numpy(res.success).tolist() == [True, True, True, False]
    assert int(backend.to_numpy(res.status)[3]) == Status.NOT_FINITE
    for i in range(3):
        alone = fit(Backend.NUMPY, y[i], sigma=SIGMA)
        np.testing.assert_allclose(x[i], alone.x, rtol=1e-7)
        np.testing.assert_allclose(stderr[i], alone.stderr, rtol=1e-5)
        assert float(backend.to_numpy(res.chi2)[i]) == pytest.approx(alone.chi2, rel=1e-9)
        assert float(backend.to_numpy(res.r2)[i]) == pytest.approx(alone.r2, rel=1e-9)


def peaks(rows: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Noisy peaks, with starts near and far; one row has a nan, one holds zeros."""
    rng = np.random.default_rng(3)
    truth = np.stack(
        [rng.uniform(2.0, 9.0, rows), rng.uniform(1.0, 3.0, rows), rng.uniform(0.3, 0.6, rows)],
        axis=-1,
    )

    def model(xp: Any) -> Any:
        return lambda x, a, b, c: a * xp.exp(-(((x - b) / c) ** 2))

    y = model(np)(X, *(truth[:, i, None] for i in range(3))) + 0.05 * rng.normal(size=(rows, 40))
    y[5, 3], y[6] = np.nan, 0.0
    start = truth + np.where(np.arange(rows)[:, None] % 3 == 0, 0.3, 0.02)
    return model, y, start


FEW = [Backend.NUMPY, Backend.STRICT, Backend.TORCH]


@pytest.mark.parametrize("library", [*FEW, Backend.JAX], ids=str)
def test_ended_rows_leave_and_pieces_are_joined(
    library: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever rows the model sees together, each fit is the same as alone."""
    monkeypatch.setattr(sys.modules["lbfgs_xp.arrays.rows"], "_COMPILED_SIZES", (8, 16))
    monkeypatch.setattr(sys.modules["lbfgs_xp.fits.pieces"], "_FEWEST", 64)
    monkeypatch.setattr(type(fit_backend(library)), "cache_size", 64 * 120)
    rows = 99
    model, y, start = peaks(rows)
    sizes = set()

    def seen(x: Any, *parameters: Any) -> Any:
        sizes.add((tuple(x.shape), tuple(parameters[0].shape)))
        return model(library.xp)(x, *parameters)

    watched: Any = seen
    if library.is_jax:
        import jax

        watched = jax.jit(seen)
    x = np.tile(X, (rows, 1))
    arguments = [library.asarray(v) for v in (x, y, start)]
    settings = dict(batched=True, jac=jac_of(library), sigma=np.tile(SIGMA, (rows, 1)))
    res = lx.curve_fit(watched, *arguments, bounds=(0.0, None), **settings)
    assert all(one[:1] == other[:1] and other[1:] == (1,) for one, other in sizes)
    counts = {one[0] for one, _ in sizes}
    assert max(counts) == 50 and len(counts) > 1
    success = library.to_numpy(res.success)
    assert success.tolist() == [i != 5 for i in range(rows)]
    assert len(res.message) == rows and res.covariance.shape == (rows, 3, 3)
    whole = lx.curve_fit(
        model(np), x, y, start, bounds=(0.0, None), compact=False, **{**settings, "jac": "3-point"}
    )
    ordinary = [i for i in range(rows) if i not in (5, 6)]
    for name in ("x", "stderr", "chi2", "residuals"):
        one, other = library.to_numpy(getattr(res, name)), getattr(whole, name)
        np.testing.assert_allclose(one[ordinary], other[ordinary], rtol=1e-6, atol=1e-8)
    alone = lx.curve_fit(
        model(np), X, y[80], start[80], sigma=SIGMA, jac="3-point", bounds=(0.0, None)
    )
    np.testing.assert_allclose(library.to_numpy(res.x)[80], alone.x, rtol=1e-7)


def fit_backend(library: Backend) -> Any:
    from lbfgs_xp.arrays.backend import Backend as OfLibrary

    return OfLibrary.of(library.asarray([1.0]))


@pytest.mark.parametrize("batched", [False, True])
def test_trials_that_overflow_are_no_matter_of_warnings(batched: bool) -> None:
    def model(x: Any, a: Any, b: Any) -> Any:
        return a + b * x + np.where(a > 0.4, 1e200, 0.0)

    x, p0 = np.linspace(0.0, 1.0, 20), [0.0, 0.0]
    y = np.ones((3, 20)) if batched else np.ones(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("lm", "lbfgs"):
            res = lx.curve_fit(
                model, x, y, p0, jac="3-point", method=method, batched=batched, maxiter=50
            )
            assert np.all(np.isfinite(res.chi2))


def test_many_threads_make_no_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["lbfgs_xp.fits.pieces"], "_FEWEST", 16)
    model, y, start = peaks(100)
    sizes = []

    def watched(x: Any, *parameters: Any) -> Any:
        sizes.append(len(parameters[0]))
        return model(np)(x, *parameters)

    res = lx.curve_fit(watched, X, y, start, batched=True, jac="3-point", threads=1000, maxiter=0)
    assert res.x.shape == (100, 3)
    # Seven pieces, the last of which begins earlier.
    assert set(sizes) == {15}


def test_threads_that_differentiate_with_torch() -> None:
    """Forward-mode differentiation in torch does not support two threads at a time."""
    model, y, start = peaks(1200)
    arguments = [Backend.TORCH.asarray(v) for v in (X, y, start)]
    fits = [
        lx.curve_fit(model(Backend.TORCH.xp), *arguments, batched=True, maxiter=8, threads=n)
        for n in (1, 4)
    ]
    np.testing.assert_array_equal(fits[0].nit, fits[1].nit)
    np.testing.assert_allclose(fits[0].x, fits[1].x, rtol=1e-6)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["lbfgs_xp.fits.pieces"], "_FEWEST", 16)
    model, y, start = peaks(100)
    how: dict[str, Any] = {"batched": True, "jac": "3-point"}
    both, seen = threading.Barrier(2, timeout=60.0), threading.local()

    def watched(x: Any, *parameters: Any) -> Any:
        if not hasattr(seen, "this_thread"):
            seen.this_thread = True
            both.wait()    # times out if there is no second thread
        return model(np)(x, *parameters)

    one = lx.curve_fit(model(np), X, y, start, threads=1, **how)
    two = lx.curve_fit(watched, X, y, start, threads=2, **how)
    np.testing.assert_array_equal(one.x, two.x)
    np.testing.assert_array_equal(one.status, two.status)


def test_interrupts_end_all_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["lbfgs_xp.fits.pieces"], "_FEWEST", 16)
    monkeypatch.setattr(type(fit_backend(Backend.NUMPY)), "cache_size", 16 * 120)
    model, y, start = peaks(100)
    calls = itertools.count()

    def interrupted(x: Any, *parameters: Any) -> Any:
        if next(calls) == 200:
            raise KeyboardInterrupt
        return model(np)(x, *parameters)

    res = lx.curve_fit(interrupted, X, y, start, batched=True, jac="3-point")
    assert 0 < np.count_nonzero(res.status == Status.INTERRUPTED) < 90
    assert res.status[-1] == Status.INTERRUPTED and res.x.shape == (100, 3)
    assert next(calls) <= 201 + 7 * 7    # the start and its Jacobian, for each remaining piece


def test_models_that_hold_rows() -> None:
    model, y, start = peaks(30)
    offsets = np.arange(30.0)[:, None]

    def shifted(x: Any, *parameters: Any) -> Any:
        return model(np)(x, *parameters) + offsets

    with pytest.raises(ValueError) as error:
        lx.curve_fit(shifted, X, y + offsets, start, batched=True, jac="3-point")
    assert any("compact=False" in note for note in error.value.__notes__)
    res = lx.curve_fit(
        shifted, X, y + offsets, start, batched=True, jac="3-point", compact=False
    )
    assert np.count_nonzero(res.success) == 29
    fits = [
        lx.curve_fit(
            model_, X, y_, start, batched=True, jac="3-point", method="lbfgs", compact=compact,
            gtol=1e-6,
        )
        for model_, y_, compact in ((shifted, y + offsets, False), (model(np), y, True))
    ]
    np.testing.assert_allclose(fits[0].chi2, fits[1].chi2, rtol=1e-6)
    # The offsets as part of x, and the same with least_squares.
    res = lx.curve_fit(
        lambda x, *parameters: model(np)(x[0], *parameters) + x[1], (X, offsets), y + offsets,
        start, batched=True, jac="3-point",
    )
    other = lx.least_squares(
        lambda p, data: model(np)(X, *(p[:, i, None] for i in range(3))) - data, start, (y,),
        jac="3-point", batched=True, compact=True,
    )
    np.testing.assert_allclose(res.x[:5], other.x[:5], rtol=1e-7)
    assert other.jac.shape == (30, 40, 3)


@pytest.mark.parametrize("backend", [*FEW, Backend.NUMPY_READONLY], ids=str)
def test_jacobian_given_to_a_batch(backend: Backend) -> None:
    """With weights, and with rows whose normal equations lose too many digits among others."""
    xp = backend.xp

    def jac(x: Any, a: Any, k: Any, c: Any) -> Any:
        e = xp.exp(-k * x)
        return xp.stack([e, -a * x * e, xp.ones_like(e)], axis=-1)

    rng = np.random.default_rng(5)
    # A slow decay looks like a straight line, so that a, k and c are nearly dependent.
    rates = np.asarray([1.0, 0.003, 2.0, 0.002])
    y = 2.0 * np.exp(-rates[:, None] * X) + 1e-6 * rng.normal(size=(4, 40))
    start = np.stack([np.full(4, 1.9), rates * 1.1, np.full(4, 0.1)], axis=-1)
    res = fit(backend, y, start, batched=True, jac=jac, sigma=SIGMA)
    assert backend.to_numpy(res.success).all()
    for i in range(4):
        alone = fit(Backend.NUMPY, y[i], start[i], jac="3-point", sigma=SIGMA)
        np.testing.assert_allclose(backend.to_numpy(res.x)[i], alone.x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(backend.to_numpy(res.stderr)[i], alone.stderr, rtol=1e-3)


@pytest.mark.parametrize("batched", [False, True])
def test_fixed_parameters(batched: bool) -> None:
    """With equal bounds, a fit is as if the model had fewer parameters."""
    bounds = ([-np.inf, 1.3, -np.inf], [np.inf, 1.3, np.inf])
    settings = dict(jac="3-point", sigma=SIGMA)
    data = (np.stack([Y, 2.0 * Y]),) if batched else (Y,)
    res = fit(Backend.NUMPY, *data, bounds=bounds, batched=batched, **settings)
    fewer = lx.curve_fit(
        lambda x, a, c: decay()(x, a, 1.3, c), X, *data, [1.0, 1.0], batched=batched, **settings
    )
    np.testing.assert_allclose(res.x[..., [0, 2]], fewer.x, rtol=1e-8)
    np.testing.assert_allclose(res.stderr[..., [0, 2]], fewer.stderr, rtol=1e-6)
    np.testing.assert_allclose(res.reduced_chi2, fewer.reduced_chi2, rtol=1e-9)
    assert (res.x[..., 1] == 1.3).all() and (res.stderr[..., 1] == 0.0).all()


@pytest.mark.parametrize("p0", [(10.0, 0.1, -3.0), (1e-3, 5.0, 0.0)])
def test_errors_of_differences_are_not_followed(p0: tuple[float, ...]) -> None:
    """At the end, the gradient from forward differences fluctuates."""
    rng = np.random.default_rng(0)
    t = np.linspace(0.0, 4.0, 60)
    y = decay()(t, 2.5, 1.3, 0.5) + 0.05 * rng.normal(size=60)
    central, forward = (lx.curve_fit(decay(), t, y, p0, jac=jac) for jac in ("3-point", "2-point"))
    assert forward.success and forward.nit <= 1.75 * central.nit
    np.testing.assert_allclose(forward.x, central.x, rtol=1e-6)


def test_far_away_is_no_precision_floor() -> None:
    """Bard's function (More, Garbow & Hillstrom 1981, problem 8) from a hundred times its start,
    where the columns of the Jacobian have very different sizes from those at the end.

    It has a local minimum at infinity, and a pole on the way forms a valley that leads there. From
    so far away, rounding decides which way a run with differences takes: it may not reach the
    minimum in time, but it must not mistake the valley for a precision floor.
    """
    u = np.arange(1.0, 16.0)
    v, w = 16.0 - u, np.minimum(u, 16.0 - u)
    y = [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.1, 4.39]

    def residuals(x: Any) -> Any:
        return y - (x[0] + u / (v * x[1] + w * x[2]))

    def jacobian(x: Any) -> Any:
        square = (v * x[1] + w * x[2]) ** 2
        return np.stack([-np.ones(15), u * v / square, u * w / square], axis=-1)

    rng = np.random.default_rng(0)
    for factor in (1.0, 100.0):
        for _ in range(5):
            x0 = factor * (1.0 + 1e-14 * rng.normal(size=3))
            exact = lx.least_squares(residuals, x0, jac=jacobian, maxiter=300)
            assert exact.success and 2.0 * exact.cost == pytest.approx(8.21487e-3, rel=1e-5)
            res = lx.least_squares(residuals, x0, jac="3-point", maxiter=300)
            home = 2.0 * res.cost == pytest.approx(8.21487e-3, rel=1e-5)
            assert (res.success and home) or (factor > 1.0 and res.status is Status.ITERATIONS)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_squares_out_of_range_are_no_success(factor: float) -> None:
    res = fit(Backend.NUMPY, factor * Y, factor * START)
    assert res.status is Status.NOT_FINITE


def test_infinite_data_give_no_warning() -> None:
    y = Y.copy()
    y[3] = np.inf
    assert fit(Backend.NUMPY, y).status is Status.NOT_FINITE


def test_infinite_deviations_leave_points_out() -> None:
    y, out = Y.copy(), np.arange(40) < 5
    y[out] = 100.0
    sigma = np.where(out, np.inf, 0.05)
    res = fit(Backend.NUMPY, y, sigma=sigma, absolute_sigma=True)
    rest = lx.curve_fit(
        decay(), X[5:], Y[5:], START, jac="3-point", sigma=0.05, absolute_sigma=True
    )
    np.testing.assert_allclose(res.x, rest.x, rtol=1e-8)
    np.testing.assert_allclose(res.stderr, rest.stderr, rtol=1e-6)


def test_trials_without_a_value_are_refused() -> None:
    """The first Gauss-Newton step leads out of the domain of the logarithm."""

    def model(x: Any, a: Any, b: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return a * np.log(x + b)

    y = model(X, 2.0, 0.01)
    res = lx.curve_fit(model, X, y, [1.0, 3.0], jac="3-point")
    assert res.success
    np.testing.assert_allclose(res.x, [2.0, 0.01], rtol=1e-6)


def test_parameters_that_the_data_do_not_determine() -> None:
    """a + b and c are determined, but a and b are not."""
    y = 3.0 + 2.0 * X + 0.1 * np.cos(9.0 * X)
    rows = np.stack([np.ones(40), np.ones(40), X], axis=-1)
    res = lx.curve_fit(
        lambda x, a, b, c: a + b + c * x, X, y, START, jac=lambda x, a, b, c: rows
    )
    line = lx.curve_fit(lambda x, a, c: a + c * x, X, y, [1.0, 1.0], jac="3-point")
    assert res.success
    assert np.isinf(res.stderr[:2]).all()
    np.testing.assert_allclose(res.x[0] + res.x[1], line.x[0], rtol=1e-8)
    assert res.stderr[2] == pytest.approx(line.stderr[1] * np.sqrt(38 / 37), rel=1e-6)


def test_as_many_data_as_parameters() -> None:
    y = decay()(X[[0, 9, 30]], *TRUE)
    res = lx.curve_fit(decay(), X[[0, 9, 30]], y, START, jac="3-point")
    np.testing.assert_allclose(res.x, TRUE, rtol=1e-8)
    assert np.isinf(res.stderr).all() and np.isnan(res.reduced_chi2)
    res = lx.curve_fit(
        decay(), X[[0, 9, 30]], y, START, jac="3-point", sigma=0.1, absolute_sigma=True
    )
    assert np.isfinite(res.stderr).all()


def test_by_lbfgs(backend: Backend) -> None:
    res = fit(backend, method="lbfgs", sigma=SIGMA)
    wanted = scipy_fit(sigma=SIGMA)
    assert res.success
    np.testing.assert_allclose(backend.to_numpy(res.x), wanted[0], rtol=1e-5)
    np.testing.assert_allclose(backend.to_numpy(res.covariance), wanted[1], rtol=1e-4)


def test_units_do_not_matter() -> None:
    """Up to rounding, the steps are the same in other units."""
    scale = np.asarray([1e-6, 1e3, 1e9])
    model = decay()

    def other(x: Any, *p: Any) -> Any:
        return model(x, *(v * s for v, s in zip(p, scale, strict=True)))

    plain = fit(Backend.NUMPY)
    res = lx.curve_fit(other, X, Y, START / scale, jac="3-point")
    assert res.nit == plain.nit
    np.testing.assert_allclose(res.x * scale, plain.x, rtol=1e-9)
    np.testing.assert_allclose(res.stderr * scale, plain.stderr, rtol=1e-6)


def test_float32(backend: Backend) -> None:
    x, y = (backend.asarray(v, "float32") for v in (X, Y))
    jac = None if backend.has_autodiff else "3-point"
    res = lx.curve_fit(decay(backend), x, y, START, jac=jac)
    assert res.x.dtype == res.covariance.dtype == y.dtype
    assert res.success
    np.testing.assert_allclose(backend.to_numpy(res.x), fit(Backend.NUMPY).x, rtol=2e-3)


def falling(x: np.ndarray, a: Any, k: Any) -> Any:
    return a * np.exp(-k * x)


def test_a_point_left_out_may_be_nan() -> None:
    x = np.linspace(0.0, 2.0, 12)
    y, sigma = falling(x, 2.0, 0.7) + 0.01 * np.cos(40.0 * x), np.ones(12)
    kept = np.arange(12) != 5
    y[5], sigma[5] = np.nan, np.inf
    whole = lx.curve_fit(falling, x, y, [1.0, 1.0], jac="3-point", sigma=sigma)
    fewer = lx.curve_fit(falling, x[kept], y[kept], [1.0, 1.0], jac="3-point", sigma=sigma[kept])
    np.testing.assert_allclose(whole.x, fewer.x, rtol=1e-7)
    assert np.isnan(whole.residuals[5]) and np.all(np.isfinite(whole.residuals[kept]))
    lost = lx.curve_fit(falling, x, y, [1.0, 1.0], jac="3-point")
    assert lost.status is Status.NOT_FINITE and "nan in the data" in lost.message


def test_an_exception_carries_the_best_point() -> None:
    x = np.linspace(0.0, 2.0, 12)
    y, calls = falling(x, 2.0, 0.7), 0

    def failing(x: np.ndarray, a: Any, k: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise ZeroDivisionError
        return falling(x, a, k)

    with pytest.raises(ZeroDivisionError) as caught:
        lx.curve_fit(failing, x, y, [1.0, 1.0], jac="3-point")
    res = caught.value.result  # type: ignore[attr-defined]
    assert res.nit > 0 and res.status is Status.RUNNING
    assert res.cost == pytest.approx(0.5 * np.sum((falling(x, *res.x) - y) ** 2))
    assert res.cost < 0.5 * np.sum((falling(x, 1.0, 1.0) - y) ** 2)
    assert "best point" in caught.value.__notes__[-1]


@pytest.mark.parametrize("budget", ["maxiter", "maxfun", "maxtime"])
def test_budgets(budget: str) -> None:
    limit = {"maxiter": 2, "maxfun": 2, "maxtime": 0.0}[budget]
    res = fit(Backend.NUMPY, **{budget: limit})
    wanted = {
        "maxiter": Status.ITERATIONS, "maxfun": Status.EVALUATIONS, "maxtime": Status.TIME
    }
    assert res.status is wanted[budget] and not res.success
    assert res.nit == (2 if budget == "maxiter" else 0)
    assert budget == "maxiter" or res.nfev == 7    # the start and its Jacobian


def test_tolerances() -> None:
    assert fit(Backend.NUMPY, ftol=1e-2, gtol=0.0).status is Status.VALUE
    assert fit(Backend.NUMPY, xtol=1e-2, gtol=0.0).status is Status.STEP
    assert fit(Backend.NUMPY, gtol=0.0).status is Status.PRECISION


def test_a_wrong_jacobian_is_told() -> None:
    def jac(x: Any, a: Any, k: Any, c: Any) -> Any:
        return -np.stack([np.exp(-k * x), -a * x * np.exp(-k * x), np.ones_like(x)], axis=-1)

    assert fit(Backend.NUMPY, jac=jac).status is Status.LINE_SEARCH


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"jac": "4-point"}, ValueError, "jac is '4-point'"),
        ({"loss": "tukey"}, ValueError, "loss is 'tukey'"),
        ({"method": "lbgfs"}, ValueError, "did you mean 'lbfgs'"),
        ({"f_scale": 0.0}, ValueError, "f_scale is 0.0"),
        ({"gtol": -1.0}, ValueError, "gtol is -1.0"),
        ({"maxiter": 1.5}, ValueError, "maxiter is 1.5"),
        ({"bounds": 3}, TypeError, "bounds is 3"),
        ({"bounds": (2.0, 1.0)}, ValueError, "wanted lower <= upper"),
        ({"sigma": np.zeros(40)}, ValueError, "not above 0"),
        ({"sigma": np.ones(7)}, ValueError, "sigma has shape"),
        ({"sigma": -np.eye(40)}, ValueError, "not positive definite"),
        ({"sigma": np.eye(40) + np.eye(40, k=1)}, ValueError, "not symmetric"),
        ({"sigma": np.full(40, 1e-310)}, ValueError, "too small"),
        ({"threads": 0}, ValueError, "threads is 0"),
        ({"threads": None}, ValueError, "threads is None"),
        ({"p0": []}, ValueError, r"p0 has shape \(0,\)"),
        ({"p0": [[1.0, 1.0, 1.0]]}, ValueError, "p0 has shape"),
        ({"y": np.stack([Y, Y])}, ValueError, "batched=True"),
        ({"y": Y[:7]}, ValueError, "like y"),
        ({"p0": {"a": 1.0, "k": 1.0, "q": 1.0}}, ValueError, "p0 names 'q'; the model takes a, k,"),
        ({"p0": {"a": 1.0, "k": 1.0}}, ValueError, "p0 is without 'c'; the model takes a, k, c"),
        ({"jac": lambda x, a, k, c: np.ones((40, 2))}, ValueError, "the Jacobian has shape"),
    ],
)
def test_errors(settings: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        fit(Backend.NUMPY, **settings)


def test_names_of_other_libraries() -> None:
    """A field that has another name here is named; whatever else is missing, nothing is guessed."""
    found = fit(Backend.NUMPY)
    for name, here in {"pcov": "covariance", "params": "x", "redchi": "reduced_chi2"}.items():
        with pytest.raises(AttributeError, match=f"no attribute '{name}'; wanted fit.{here}$"):
            getattr(found, name)
        assert not hasattr(found, name)
    with pytest.raises(AttributeError, match="no attribute 'xx'$"):
        _ = found.xx
    np.testing.assert_array_equal(copy.deepcopy(found).x, found.x)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).x, found.x)


def test_models_whose_names_are_not_known_in_advance() -> None:
    """Keywords of any name, defaults, and arguments that another function has set."""
    x, start = np.linspace(0.0, 1.0, 9), {"a": 1.0, "b": 1.0}
    models: list[Any] = [
        lambda x, **p: p["a"] + p["b"] * x,
        lambda x, a, b, c=0.0: a + b * x + c,
        functools.partial(lambda x, a, b, c: a + b * x + c, c=0.0),
        lambda x, *, a, b: a + b * x,
    ]
    for model in models:
        assert abs(lx.curve_fit(model, x, 2.0 + 3.0 * x, start).x["b"] - 3.0) < 1e-7


def test_errors_of_residuals() -> None:
    with pytest.raises(TypeError, match="residuals returned a float"):
        lx.least_squares(lambda x: 1.0, np.ones(2), jac="2-point")
    with pytest.raises(ValueError, match=r"shape \(\); wanted"):
        lx.least_squares(lambda x: x[0], np.ones(2), jac=lambda x: np.eye(2))
    with pytest.raises(TypeError, match="x0 is complex"):
        lx.least_squares(lambda x: x, np.ones(2) * 1j, jac="2-point")


def test_lbfgs_of_a_batch_whose_rows_leave() -> None:
    """Models that are passed the remaining rows, and models that hold data of all rows."""
    model, y, start = peaks(60)
    shift = np.linspace(0.0, 1.0, 60)[:, None]

    def holds(x: Any, *parameters: Any) -> Any:
        assert parameters[0].shape[0] == 60
        return model(np)(x, *parameters) + shift

    how: dict[str, Any] = {"batched": True, "jac": "3-point", "method": "lbfgs", "gtol": 1e-3}
    sizes = set()

    def watched(x: Any, *parameters: Any) -> Any:
        sizes.add(parameters[0].shape[0])
        return model(np)(x, *parameters)

    left = lx.curve_fit(watched, X, y, start, **how)
    whole = lx.curve_fit(holds, X, y + shift, start, compact=False, **how)
    assert min(sizes) < max(sizes) == 60
    np.testing.assert_allclose(left.x, whole.x, rtol=1e-2, atol=1e-2)
    np.testing.assert_array_equal(left.status, whole.status)
    assert np.count_nonzero(left.success) == 59    # one row has a nan


def test_data_of_the_rows_may_be_integers() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, size=(64, 12))
    slopes = np.logspace(-2.0, 1.0, 64)
    y = np.exp(-slopes[:, None] * x / 20.0)
    res = lx.curve_fit(
        lambda x, k: np.exp(-k * x / 20.0), x, y, [0.5], batched=True, jac="3-point"
    )
    np.testing.assert_allclose(res.x[:, 0], slopes, rtol=1e-6)


def test_what_is_printed_of_a_batch(backend: Backend) -> None:
    y = np.stack([Y, Y, np.full_like(Y, np.nan)])
    res = fit(backend, y, batched=True)
    shown = dict(line.lstrip().split(": ", 1) for line in repr(res).splitlines() if ": " in line)
    assert shown["success"] == "2 of 3" and shown["status"] == "GRADIENT 2, NOT_FINITE 1"
    chi2 = f"{fit(Backend.NUMPY).chi2:.6g}"
    assert shown["chi2"] == f"min {chi2}, median {chi2}, max {chi2}, nan 1"
    assert shown["nfev"] == str(res.nfev)
    # The cost of residuals that do not depend on the parameter.
    offsets, x0 = backend.asarray(np.eye(3)), backend.asarray(np.ones((3, 1)))
    res = lx.least_squares(
        lambda x: 0.0 * x + offsets, x0, jac=lambda x: 0.0 * offsets[:, :, None], batched=True
    )
    assert "cost: min 0.5, median 0.5, max 0.5" in repr(res) and "success: 3 of 3" in repr(res)


def test_a_fit_is_not_unpacked() -> None:
    with pytest.raises(TypeError, match=r"not .*fit\.x and fit\.covariance"):
        _popt, _pcov = fit(Backend.NUMPY)


def test_rows_fitted_by_lbfgs_take_its_steps() -> None:
    rng = np.random.default_rng(0)
    truth = np.asarray([[2.5, 3.0], [1.3, 0.7], [0.5, 0.2]])
    y = decay()(X, *truth[:, :, None]) + 0.05 * rng.normal(size=(2, 40))
    how: dict[str, Any] = {"method": "lbfgs", "jac": "3-point"}
    res = lx.curve_fit(decay(), X, y, np.ones(3), batched=True, **how)
    alone = [lx.curve_fit(decay(), X, row, np.ones(3), **how).nit for row in y]
    np.testing.assert_array_equal(res.nit, alone)


def test_the_callback_of_least_squares() -> None:
    records: list[Any] = []

    def line(x: Any) -> Any:
        return np.stack([10.0 * (x[..., 1] - x[..., 0] ** 2), 1.0 - x[..., 0]], axis=-1)

    start = np.asarray([-1.2, 1.0])
    whole = lx.least_squares(line, start, jac="3-point", callback=records.append)
    assert len(records) == whole.nit and [r.nit for r in records] == list(range(1, whole.nit + 1))
    assert np.array_equal(records[-1].x, whole.x) and records[-1].cost == whole.cost
    costs = [record.cost for record in records]
    assert costs == sorted(costs, reverse=True)
    for stops in (lambda r: r.nit == 3, lambda r: r.nit == 3 and (1, 2), _halt):
        part = lx.least_squares(line, start, jac="3-point", callback=stops)
        assert part.status is lx.Status.CALLBACK and not part.success
        assert np.array_equal(part.x, records[part.nit - 1].x)
    many = lx.least_squares(
        line, np.stack([start, 0.5 * start]), jac="3-point", batched=True,
        callback=lambda record: record.cost.max() < 1.0,
    )
    assert many.status.tolist() == [lx.Status.CALLBACK] * 2 and many.cost.max() < 1.0
    with pytest.raises(TypeError, match="callback is 3; wanted a function or None"):
        lx.least_squares(line, start, jac="3-point", callback=3)


def _halt(record: Any) -> None:
    raise StopIteration


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("batched", [False, True])
def test_differences_of_a_fit_stay_within_its_bounds(method: str, jac: str, batched: bool) -> None:
    x, outside = np.linspace(0.0, 3.0, 40), []
    lower, upper = np.asarray([0.0, 0.0, -1.0]), np.asarray([2.5, 2.0, 0.3])

    def model(x: Any, a: Any, b: Any, c: Any) -> Any:
        p = np.stack([np.ravel(v) for v in (a, b, c)], axis=-1)
        outside.append(np.any(p < lower) or np.any(p > upper))
        return a * np.exp(-b * x) + c

    y, p0 = 2.0 * np.exp(-0.8 * x) + 0.5, np.asarray([1.0, 1.0, 0.1])
    if batched:
        y, p0 = np.stack([y, y - 0.6]), np.stack([p0, p0])
    fit = lx.curve_fit(
        model, x, y, p0, jac=jac, method=method, bounds=(lower, upper), batched=batched
    )
    assert np.all(fit.success) and not any(outside)
    assert np.isclose(np.reshape(fit.x, (-1, 3))[0, 2], 0.3)


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_model_may_return_the_same_memory_each_time(library: str, jac: Any) -> None:
    xp = pytest.importorskip(library)
    x, rng = np.linspace(0.0, 5.0, 30), np.random.default_rng(3)
    y = 2.0 * np.exp(-0.7 * x) + 0.3 + 0.02 * rng.normal(size=(5, 30))
    x, y = (xp.asarray(array) for array in (x, y))
    room = xp.zeros_like(y)

    def model(x: Any, a: Any, k: Any, c: Any) -> Any:
        return a * xp.exp(-k * x) + c

    def sparing(x: Any, *params: Any) -> Any:
        found = model(x, *params)
        kept = room[0] if found.ndim == 1 else room[: found.shape[0]]
        kept[...] = found
        return kept

    for data, batched in ((y[0], False), (y, True)):
        plain, other = (
            lx.curve_fit(f, x, data, [1.0, 1.0, 0.0], jac=jac, batched=batched)
            for f in (model, sparing)
        )
        assert np.all(np.asarray(other.success))
        for name in ("x", "covariance", "residuals", "chi2"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))
